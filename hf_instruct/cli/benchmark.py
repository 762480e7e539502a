"""`hf-instruct benchmark`: a run, or any model, on tasks of lm-eval."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.cli.flags import add_trust_flag, natural, whole
from hf_instruct.console import align, format_json, pluralize

if TYPE_CHECKING:
    from hf_instruct.schema import BenchmarkResult, MeanDifference

DESCRIPTION = """\
Evaluate a model on public benchmarks with lm-eval, and print each metric with its standard error.

RUN_OR_MODEL is a run folder, or an alias, Hub id or folder of a model. A run's results are saved to its benchmarks.json
after each task. Questions are plain text, the default of lm-eval and of published numbers, not in the prompt format of
the run."""

EPILOG = """\
examples:
  hf-instruct benchmark runs/demo --tasks everyday_choice --base
  hf-instruct benchmark runs/gpt2-medium-full --tasks mmlu,hellaswag --limit 100
  hf-instruct benchmark gpt2-medium --tasks arc_easy --num-fewshot 5 --json
  hf-instruct benchmark runs/demo --tasks my_task --include-path my-tasks

`everyday_choice` is packaged and needs no network: 40 easy questions with four answers each. Other tasks download
their data from the Hub on first use, unless their YAML names local `data_files`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="run folder; or an alias, Hub id or folder of a model")
    parser.add_argument("--tasks", required=True, metavar="NAME,...", help="tasks, groups or tags of lm-eval")
    parser.add_argument("--limit", type=natural, metavar="N", help="only the first N questions of each task")
    parser.add_argument(
        "--num-fewshot", type=whole, metavar="N", help="number of few-shot examples (default: the task's)"
    )
    parser.add_argument("--batch-size", type=natural, default=8, metavar="N", help="requests per batch (default: 8)")
    parser.add_argument("--base", action="store_true", help="also evaluate the model before training")
    parser.add_argument(
        "--include-path",
        dest="include",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder with your own task YAMLs; can be repeated",
    )
    parser.add_argument(
        "--apply-chat-template", action="store_true", help="put questions into the tokenizer's chat template"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="precision of the weights (default: float32)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_trust_flag(parser)
    parser.set_defaults(handler=_benchmark, resume_hint="Finished tasks are kept; run the same command to continue.")


def _benchmark(options: argparse.Namespace) -> None:
    from hf_instruct.evaluation.harness import BenchmarkOptions, benchmark_run
    from hf_instruct.run_folder import RunFolder

    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(BenchmarkOptions)}
    tasks = [name.strip() for name in options.tasks.split(",")]
    results = benchmark_run(options.model, tasks, options=BenchmarkOptions(**settings), base=options.base)
    if options.json:
        print(format_json({kind: [row.to_dict() for row in rows] for kind, rows in results.items()}))
    else:
        tuned = results.pop("tuned")
        start, base = next(iter(results.items()), ("", []))
        _print_table(tuned, RunFolder(Path(options.model)).read_provenance().label(start) if base else "", base)


def _print_table(results: "Sequence[BenchmarkResult]", start: str, base: "Sequence[BenchmarkResult]") -> None:
    """Print the results of the requested tasks next to the start model's; members of groups are only in the file."""
    rows = [row for row in results if row.shown]
    values = {(row.task, row.metric, row.filter): _format_value(row) for row in base}
    last = [start, "tuned", "difference, 95 %"] if base else ["value ± error"]
    table = [["task", "metric", "n", "few-shot", *last]]
    for row in rows:
        name = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
        last = [_format_value(row)]
        if base:
            last = [values[row.task, row.metric, row.filter], *last, _format_difference(row.difference)]
        table.append(
            [row.task, name, f"{row.n:,}", "mixed" if row.num_fewshot is None else str(row.num_fewshot), *last]
        )
    print("\n".join(align(table, right={2, 3})))
    if same := [f"{row.task} {row.metric}" for row in rows if row.difference and not row.difference.is_shown]:
        print(f"\nNo difference shown (the interval contains 0): {', '.join(same)}")
    style = "in the tokenizer's chat template" if rows[0].chat_template else "as plain text"
    limited = f"; the first {rows[0].limit:,} questions of each task" if rows[0].limit else ""
    print(f"\nlm-eval {rows[0].lm_eval_version}, {rows[0].dtype}, questions {style}{limited}; ± is the standard error")
    if more := len({row.task for row in results if not row.shown}):
        print(f"and {pluralize(more, 'member')} of groups, in the results")


def _format_value(row: "BenchmarkResult") -> str:
    if row.value is None:
        return "no number"
    return f"{row.value:.3f}" + ("" if row.standard_error is None else f" ± {row.standard_error:.3f}")


def _format_difference(difference: "MeanDifference | None") -> str:
    if difference is None:
        return "-"
    return f"{difference.mean:+.3f}, {difference.low:+.3f} to {difference.high:+.3f}"
