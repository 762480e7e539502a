"""All cases but training: what each job is, and what is made of its report."""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import services
from benchmarks.bench import Bench, Outcome, add_speedups, print_status
from benchmarks.generation import GenerationJob
from benchmarks.memory import MEMORY_CASES, MemoryCase, check_room, measure_memory
from benchmarks.processes import BenchmarkError, SkipError, run_job

# Prompts that each contestant answers; ours and the batches answer all, since their batches are the point.
_PROMPTS = {"ours": 110, "ours-bf16": 110, "batched": 110, "one-by-one": 8, "course": 2}
_QUICK_PROMPTS = {**_PROMPTS, "one-by-one": 4, "course": 1}
_NEW_TOKENS = 64
# In float32 a near tie may still be rounded another way; more than a few differing answers are an error.
_MIN_EQUAL = 0.9
_ROWS = {"full": 100_000, "quick": 100_000, "dry": 200}
# Long enough for opening the judge not to count: 20 seconds and 5 at the ideal rate.
_JUDGE_SECONDS = {"full": 20, "quick": 5, "dry": 0.5}


def run_generation_case(bench: Bench) -> Outcome:
    """Return the seconds an answer of each contestant and their ratios.

    Raises:
        BenchmarkError: A contestant failed, or our answers are not the peers'.
    """
    prompts = {"full": _PROMPTS, "quick": _QUICK_PROMPTS, "dry": dict.fromkeys(_PROMPTS, 2)}[bench.mode]
    outcome, responses = Outcome(), {}
    for name, count in prompts.items():
        job = GenerationJob(name, bench.model("gpt2"), bench.data, count, _NEW_TOKENS if bench.mode != "dry" else 8)
        report = run_job("generation", job, deadline=bench.deadline)
        print_status(f"generate: {name}: {report['seconds']:.3f} s/answer")
        responses[name] = report["responses"]
        outcome.contestants[name] = {
            "seconds_per_answer": report["seconds"],
            "new_tokens_per_second": report["new_tokens"] / report["seconds"],
            "peak_memory_gb": report["peak_memory_bytes"] / 1e9,
            "precision": report["precision"],
            "answers": len(report["responses"]),
            "equal_to_ours": compare_answers(responses["ours"], report["responses"]),
        }
    for name, found in outcome.contestants.items():
        if found["precision"] == "float32" and found["equal_to_ours"] < _MIN_EQUAL:
            raise BenchmarkError(f"only {found['equal_to_ours']:.0%} of the answers of {name} equal ours")
    add_speedups(outcome, "generate", "seconds_per_answer")
    seconds = {name: found["seconds_per_answer"] for name, found in outcome.contestants.items()}
    outcome.values["generate.bf16_speedup_vs_one_by_one"] = seconds["one-by-one"] / seconds["ours-bf16"]
    return outcome


def compare_answers(ours: dict[str, str], theirs: dict[str, str]) -> float:
    """Return the share of equal answers among the prompts that both answered.

    >>> compare_answers({"a": "x", "b": "y", "c": "z"}, {"a": "x", "b": "!"})
    0.5
    """
    return sum(ours[name] == text for name, text in theirs.items()) / len(theirs)


def run_memory_case(case: MemoryCase, bench: Bench) -> Outcome:
    """Return the peak memory of a recipe, in GB of 1e9 bytes.

    Raises:
        SkipError: The machine lacks the memory or the disk, or the quick run leaves it out.
    """
    if bench.mode == "quick" and case.shape == "gpt2-xl":
        raise SkipError("the quick run leaves it out")
    if bench.mode != "dry":
        check_room(case, folder=bench.folder)
    try:
        model = bench.model(case.shape)
        report = measure_memory(case, model=model, data=bench.data, deadline=bench.deadline)
    finally:
        if case.shape == "gpt2-xl":
            bench.drop_model(case.shape)
    gigabytes = report["peak_memory_bytes"] / 1e9
    print_status(f"{case.name}: {gigabytes:.2f} GB")
    return _build_single(case.name, gigabytes, "GB at most", report)


def run_judge_case(concurrency: int, bench: Bench) -> Outcome:
    """Return the judge's calls a second over the ideal: as many as are under way, over the server's fixed latency."""
    ideal = concurrency / services.LATENCY_SECONDS
    with services.judge_server() as url:
        calls = max(1, round(_JUDGE_SECONDS[bench.mode] * ideal))
        job = {"part": "judge", "url": url, "calls": calls, "concurrency": concurrency}
        report = run_job("services", job, deadline=bench.deadline)
    efficiency = report["calls"] / report["seconds"] / ideal
    print_status(f"judge.efficiency_c{concurrency}: {efficiency:.3f}")
    return _build_single(f"judge.efficiency_c{concurrency}", efficiency, "of the ideal", report)


def run_data_case(bench: Bench) -> Outcome:
    """Return the rows a second that are formatted and tokenized."""
    job = {"part": "data", "model": bench.model("gpt2"), "data": bench.data, "rows": _ROWS[bench.mode]}
    report = run_job("services", job, deadline=bench.deadline)
    rate = report["rows"] / report["seconds"]
    print_status(f"data: {rate:,.0f} rows/s, memory grew by {report['memory_growth_bytes'] / 1e6:.0f} MB")
    return _build_single("data.rows_per_second", rate, "rows/s", report)


def run_help_case(bench: Bench) -> Outcome:
    """Return the median seconds of `hf-instruct --help`."""
    seconds = sorted(services.measure_help(bench.deadline))
    median = seconds[len(seconds) // 2]
    print_status(f"cli: {median:.3f} s")
    return _build_single("cli.help_seconds", median, "s", {"seconds": seconds})


def _build_single(key: str, value: float, unit: str, report: dict[str, Any]) -> Outcome:
    return Outcome({key: value}, {"ours": {"value": value, "unit": unit, **report}})


OTHER_CASES: dict[str, Callable[[Bench], Outcome]] = {
    "generate": run_generation_case,
    "judge.efficiency_c1": partial(run_judge_case, 1),
    "judge.efficiency_c8": partial(run_judge_case, 8),
    "data.rows_per_second": run_data_case,
    "cli.help_seconds": run_help_case,
    **{case.name: partial(run_memory_case, case) for case in MEMORY_CASES},
}
