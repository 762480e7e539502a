"""`python -m benchmarks.gpu`: training steps and answers on one GPU, ours beside others', as Markdown tables.

The contestants, the batches and the losses are those of `python -m benchmarks`; a turn is long (two epochs of the
course's data in the first case), because a step takes milliseconds and PyTorch's allocator settles only after many.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.__main__ import DATA
from benchmarks.bench import Bench, median_rate, print_status
from benchmarks.contestants import TrainingJob
from benchmarks.generation import GenerationJob
from benchmarks.others import compare_answers
from benchmarks.processes import BenchmarkError, Deadline, run_job
from benchmarks.training import check_losses, merge_turns

_ALL = ("ours", "trl-tuned", "trl-default", "course")


@dataclasses.dataclass(frozen=True)
class GpuCase:
    """A row of the table.

    Attributes:
        title: What is trained.
        shape: The model's, a name of `benchmarks.inputs`.
        batch_size: Examples in a step.
        steps: Measured steps; 224 and 10 of warm-up are two epochs in batches of 8.
        contestants: Who takes part.
        lora: Whether an adapter is trained.
    """

    title: str
    shape: str
    batch_size: int
    steps: int
    contestants: tuple[str, ...] = _ALL
    lora: bool = False


CASES = [
    GpuCase("GPT-2 medium 355M, batch 8, two epochs", "gpt2-medium", 8, 224),
    GpuCase("Llama's shape, 1.1B, batch 32", "llama-1b", 32, 30, _ALL[:3]),
    GpuCase("GPT-2 medium 355M, batch 32", "gpt2-medium", 32, 60),
    GpuCase("GPT-2 medium, LoRA r 16, batch 8", "gpt2-medium", 8, 60, _ALL[:3], lora=True),
]
# How many of the course's 110 test prompts each contestant answers, with 64 tokens each; one that batches takes all of
# its prompts as one batch.
ANSWERS = {"ours": 110, "batched": 110, "ours-bf16": 110, "batched-bf16": 110, "one-by-one-bf16": 8, "course": 2}


def run_answers(shape: str, bench: Bench, *, dry: bool) -> dict[str, dict[str, Any]]:
    """Return what each contestant's answers took, by name: the report of its job and how many equal ours in float32.

    Raises:
        BenchmarkError: A contestant failed.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, count in ANSWERS.items():
        prompts = 2 if dry else count
        job = GenerationJob(name, bench.model(shape), bench.data, prompts, 8 if dry else 64, prompts, prompts)
        found[name] = run_job("generation", job)
        found[name]["equal"] = compare_answers(found["ours"]["responses"], found[name]["responses"])
        print_status(f"{shape}: {name}: {_format_answers(found[name])}")
    return found


def _format_answers(found: dict[str, Any]) -> str:
    tokens = found["new_tokens"] / found["seconds"]
    return f"{found['seconds'] * 1000:.1f} ms, {tokens:,.0f} tokens/s, {found['peak_memory_bytes'] / 1e9:.1f} GB"


def run_case(case: GpuCase, bench: Bench) -> dict[str, dict[str, Any]]:
    """Return what each contestant took, by name; see `benchmarks.training.merge_turns`.

    Raises:
        BenchmarkError: A contestant failed, or its losses are not the others'.
    """
    found = {}
    for name in case.contestants:
        job = TrainingJob(
            name,
            model=bench.model(case.shape),
            data=bench.data,
            batch_size=case.batch_size,
            warm_up=10,
            steps=case.steps,
            lora=case.lora,
        )
        found[name] = merge_turns([run_job("contestants", job)])
        print_status(f"{case.title}: {name}: {_format_cell(found[name])}")
    # TRL's default clips gradients, and has gone its own way by the time the warm-up is over.
    check_losses({name: one for name, one in found.items() if name != "trl-default"})
    return found


def _format_cell(found: dict[str, Any]) -> str:
    tokens = median_rate(found["example_tokens"], found["seconds"])
    return f"{found['seconds_per_step'] * 1000:.0f} ms, {tokens:,.0f} tokens/s, {found['peak_memory_gb']:.1f} GB"


def format_table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return a Markdown table: a row for each case, a column for each contestant."""
    rows = ["| " + " | ".join(["a step (median)", *_ALL]) + " |", "|---" * (len(_ALL) + 1) + "|"]
    for title, found in results.items():
        cells = [_format_cell(found[name]) if name in found else "" for name in _ALL]
        rows.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases, print the table and write all numbers; return 1 where a case failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, default=DATA, help="the course's instruction-data.json")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    parser.add_argument("--only", choices=("training", "answers"), help="leave the others out")
    parser.add_argument("--dry", action="store_true", help="tiny models and three steps, on any device")
    options = parser.parse_args(arguments)
    # The batches differ in length from step to step; without it memory is cut into pieces, TRL's most of all.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    answers: dict[str, dict[str, Any]] = {}
    results: dict[str, dict[str, dict[str, Any]]] = {}
    failed = False

    def save() -> None:
        if options.output:
            numbers = {"answers": answers, "steps": results}
            options.output.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="hf-instruct-bench-") as folder:
        bench = Bench("dry" if options.dry else "full", str(options.data.resolve()), Path(folder), Deadline())
        if options.only != "training":
            answers |= run_answers("gpt2-medium", bench, dry=options.dry)
            save()
            print("| an answer of GPT-2 medium | time | equal to ours in float32 |\n|---|---|---|")
            for name, found in answers.items():
                print(f"| {name} | {_format_answers(found)} | {found['equal']:.0%} of {len(found['responses'])} |")
        for case in CASES if options.only != "answers" else []:
            chosen = dataclasses.replace(case, batch_size=2, steps=3) if options.dry else case
            try:
                results[case.title] = run_case(chosen, bench)
            except BenchmarkError as error:
                failed = True
                print_status(f"{case.title}: FAILED: {error}")
            save()
    if results:
        print(format_table(results))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
