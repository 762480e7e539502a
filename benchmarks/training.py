"""The training cases: which contestants, how many steps, and what is made of the times they report."""

import dataclasses
import statistics
from typing import Any

from benchmarks.bench import Bench, Outcome, add_speedups, median_rate, print_status
from benchmarks.contestants import TrainingJob
from benchmarks.inputs import block_weights, head_weights
from benchmarks.processes import BenchmarkError, SkipError, run_job

# bf16 against float32: more than this is another computation, not another rounding. TRL's default clips gradients,
# which the course does not, so its losses go another way from the first update on; they must be near all the same.
LOSS_TOLERANCE = 0.005
CLIPPED_TOLERANCE = 0.03
_COMPARED_STEPS = 2
_ALL = ("ours", "trl-tuned", "trl-default", "course")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of a case is run.

    Attributes:
        rounds: How often each peer has its turn; the order alternates.
        steps: Measured steps of a turn.
        warm_up: Steps before them, in which memory and kernels are set up: pages that a process touches for the first
            time are dear in a virtual machine, and it takes the shorter steps some more turns to have touched all.
        contestants: Who takes part.
    """

    rounds: int
    steps: int
    warm_up: int = 2
    contestants: tuple[str, ...] = _ALL


@dataclasses.dataclass(frozen=True)
class TrainingCase:
    """One row of the comparison.

    Attributes:
        name: As in the results, such as `train.gpt2.b8`.
        shape: The model's.
        batch_size: Examples in a step.
        full: What `make bench` does.
        quick: What `make bench QUICK=1` does; None where there is no time for it.
        long_answers: Whether answers are joined to 150 tokens on average.
        lora: Whether an adapter is trained.
    """

    name: str
    shape: str
    batch_size: int
    full: Plan
    quick: Plan | None
    long_answers: bool = False
    lora: bool = False


_TUNED = ("ours", "trl-tuned")

# Turns are as long as a run of about 45 minutes on two cores allows: the slowest step here takes half a minute.
TRAINING_CASES = [
    TrainingCase("train.gpt2.b8", "gpt2", 8, Plan(2, 5, warm_up=5), Plan(1, 3, warm_up=3)),
    TrainingCase("train.gpt2.b32", "gpt2", 32, Plan(1, 3, warm_up=3), Plan(1, 1)),
    TrainingCase(
        "train.gpt2-medium.b8", "gpt2-medium", 8, Plan(1, 4, warm_up=3), Plan(1, 2, contestants=("ours", "trl-default"))
    ),
    TrainingCase("train.gpt2-medium.b32", "gpt2-medium", 32, Plan(1, 1), None),
    TrainingCase(
        "train.long_answers",
        "gpt2",
        8,
        Plan(1, 4, warm_up=3, contestants=_TUNED),
        Plan(1, 2, contestants=_TUNED),
        long_answers=True,
    ),
    TrainingCase(
        "train.gpt2-medium.lora.b8", "gpt2-medium", 8, Plan(1, 4, warm_up=3, contestants=_TUNED), None, lora=True
    ),
]
_DRY = Plan(1, 1, warm_up=1)
_PRECISIONS = ("float32", "bfloat16")
_TRIAL = Plan(1, 2, warm_up=1)
_DRY_BATCH_SIZE = 2


def run_training_case(case: TrainingCase, bench: Bench) -> Outcome:
    """Return the times of a case and their ratios.

    Raises:
        SkipError: The quick run leaves this case out.
        BenchmarkError: A contestant failed, or its losses are not the peers'.
    """
    plan = case.full if bench.mode == "full" else case.quick if bench.mode == "quick" else _DRY
    if plan is None:
        raise SkipError("the quick run leaves it out")
    if bench.mode == "dry":
        plan = dataclasses.replace(plan, contestants=case.full.contestants)
        case = dataclasses.replace(case, shape=bench.shape(case.shape), batch_size=_DRY_BATCH_SIZE)
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in plan.contestants}
    precision = find_faster_precision(case, bench) if "trl-tuned" in plan.contestants else "float32"
    for name in order_turns(plan, beside_each=bench.mode == "full"):
        job = dataclasses.replace(_build_job(case, plan, name, bench), precision=precision)
        report = run_job("contestants", job, deadline=bench.deadline)
        reports[name].append(report)
        print_status(f"{case.name}: {name}: {statistics.median(report['seconds']):.2f} s/step")
    outcome = Outcome(contestants={name: merge_turns(turns) for name, turns in reports.items()})
    check_losses(outcome.contestants)
    add_speedups(outcome, case.name, "seconds_per_step")
    ours = outcome.contestants["ours"]
    ours["fraction_of_matmul_peak"] = compute_fraction(case, ours, bench.peaks())
    outcome.values[f"{case.name}.fraction_of_matmul_peak"] = ours["fraction_of_matmul_peak"]
    for name in set(case.full.contestants) - set(plan.contestants):
        outcome.skipped[f"{case.name}.speedup_vs_{name.replace('-', '_')}"] = "the quick run leaves it out"
    return outcome


def find_faster_precision(case: TrainingCase, bench: Bench) -> str:
    """Return the precision in which TRL takes less time for a step: both are tried for three steps.

    Only the full run has the time for that; others go by the rate of plain matrix products.
    """
    if bench.mode != "full":
        return max(_PRECISIONS, key=lambda precision: float(bench.peaks()[precision]))
    seconds = {}
    for precision in _PRECISIONS:
        job = dataclasses.replace(_build_job(case, _TRIAL, "trl-tuned", bench), precision=precision)
        seconds[precision] = min(run_job("contestants", job, deadline=bench.deadline)["seconds"])
        print_status(f"{case.name}: trl-tuned in {precision}: {seconds[precision]:.2f} s/step")
    return min(seconds, key=lambda precision: seconds[precision])


def order_turns(plan: Plan, *, beside_each: bool) -> list[str]:
    """Return who has a turn when; the order turns round every round.

    Args:
        plan: Of the case.
        beside_each: Whether ours has a turn beside every turn of a peer, rather than one a round: a machine that others
            share has better and worse minutes, and a turn of ours is over in a fraction of a peer's.

    >>> order_turns(Plan(2, 5, contestants=("ours", "a", "b")), beside_each=True)
    ['ours', 'a', 'ours', 'b', 'b', 'ours', 'a', 'ours']
    """
    names = list(plan.contestants)
    if beside_each:
        names = [name for peer in names if peer != "ours" for name in ("ours", peer)]
    return [name for turn in range(plan.rounds) for name in (names if turn % 2 == 0 else reversed(names))]


def _build_job(case: TrainingCase, plan: Plan, contestant: str, bench: Bench) -> TrainingJob:
    return TrainingJob(
        contestant,
        model=bench.model(case.shape),
        data=bench.data,
        batch_size=case.batch_size,
        warm_up=plan.warm_up,
        steps=plan.steps,
        long_answers=case.long_answers,
        lora=case.lora,
    )


def merge_turns(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a contestant's turns amount to; medians are over the measured steps of all turns."""
    merged = {name: [entry for turn in turns for entry in turn[name]] for name in _PER_STEP}
    return {
        "seconds_per_step": statistics.median(merged["seconds"]),
        "example_tokens_per_second": median_rate(merged["example_tokens"], merged["seconds"]),
        "peak_memory_gb": max(turn["peak_memory_bytes"] for turn in turns) / 1e9,
        "precision": turns[0]["precision"],
        **merged,
    }


_PER_STEP = ("seconds", "losses", "example_tokens", "label_tokens", "computed_tokens")


def check_losses(contestants: dict[str, dict[str, Any]]) -> None:
    """Compare our losses with the peers' of the same batches: whoever computes something else is not a peer.

    Raises:
        BenchmarkError: They differ by more than 0.5 % (TRL's defaults: 3 %) at one of the first measured steps.
    """
    ours = contestants["ours"]["losses"][:_COMPARED_STEPS]
    for name, found in contestants.items():
        tolerance = CLIPPED_TOLERANCE if name == "trl-default" else LOSS_TOLERANCE
        # No strict: a turn may have one measured step.
        for step, (loss, theirs) in enumerate(zip(ours, found["losses"], strict=False), 1):
            # Written so that a loss that is no number fails too.
            if not abs(loss - theirs) <= tolerance * abs(theirs):
                raise BenchmarkError(
                    f"the losses of measured step {step} differ: {loss:.4f} for ours, {theirs:.4f} for {name}; "
                    f"{tolerance:.1%} is allowed, so the times are not of the same work"
                )


def compute_fraction(case: TrainingCase, ours: dict[str, Any], peaks: dict[str, Any]) -> float:
    """Return the share of the machine's matrix-product peak that our training step reaches.

    A step's operations are 2 a weight and token forward, 2 for the input's gradient and 2 for the weight's (which
    frozen weights do not need): 6, with LoRA 4, times the blocks' weights for each token that goes through the blocks
    (padding included, a shared prefix once), and times the output layer's for each label. Attention scores, the
    adapter's own products and everything that is not a matrix product count as nothing done.
    """
    operations = 4 if case.lora else 6
    flops = [
        operations * (block_weights(case.shape) * tokens + head_weights(case.shape) * labels)
        for tokens, labels in zip(ours["computed_tokens"], ours["label_tokens"], strict=True)
    ]
    return median_rate(flops, ours["seconds"]) / float(peaks[ours["precision"]])
