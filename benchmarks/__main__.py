"""`python -m benchmarks`: measure everything, print one table, write one JSON file. `make bench` runs it."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench, Mode, Outcome, print_status
from benchmarks.others import OTHER_CASES
from benchmarks.processes import PROJECT, BenchmarkError, Deadline, SkipError
from benchmarks.results import build_document, describe_machine, format_table, select_cases, write_plot
from benchmarks.training import TRAINING_CASES, run_training_case

DATA = PROJECT.parent / "shared" / "data" / "instruction-data.json"
OUTPUT = PROJECT / "benchmarks" / "results" / "latest.json"
PLOT = PROJECT / "docs" / "images" / "performance.png"
# Ten minutes, less what the last table and a slow disk may take.
QUICK_SECONDS = 570.0

CASES: dict[str, Callable[[Bench], Outcome]] = {
    **{case.name: partial(run_training_case, case) for case in TRAINING_CASES},
    **OTHER_CASES,
}
# In a quick run what comes last may find no time left, so short cases and the first comparisons go first.
_ORDER = [
    "train.gpt2.b8",
    "cli.help_seconds",
    "judge.efficiency_c1",
    "judge.efficiency_c8",
    "data.rows_per_second",
    "generate",
    "train.gpt2.b32",
    "train.gpt2-medium.b8",
    "train.long_answers",
    "memory.gpt2-medium_lora_gb",
    "memory.gpt2-medium_full_gb",
    "train.gpt2-medium.lora.b8",
    "train.gpt2-medium.b32",
    "memory.gpt2-xl_lora_gb",
]


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for, and return its exit status: 1 where a case failed."""
    options = build_parser().parse_args(arguments)
    if options.show:
        document = json.loads(options.show.read_text(encoding="utf-8"))
        _present(document, options.plot)
        return 0
    if not options.data.is_file():
        print(
            f"There is no data at `{options.data}`. The benchmark trains on the course's instruction-data.json "
            "(https://github.com/rasbt/LLMs-from-scratch, ch07/01_main-chapter-code); name your copy with `--data`, "
            "or make bench BENCH_ARGS='--data FILE'.",
            file=sys.stderr,
        )
        return 2
    mode: Mode = "dry" if options.dry else "quick" if options.quick else "full"
    names = select_cases(CASES, options.only)
    if not names:
        print(f"`--only` {' '.join(options.only)} begins no case; there are: {', '.join(CASES)}.", file=sys.stderr)
        return 2
    # A part of a run, or one of tiny models, must not take the place of a whole one.
    output = options.output or (None if options.only or options.dry else OUTPUT)
    document = run_cases(names, mode=mode, data=options.data.resolve(), output=output)
    plot = options.plot or (PLOT if mode == "full" and not options.only else None)
    _present(document, plot)
    if output:
        print(f"\nwritten: {output}")
    return 1 if document["failed"] else 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="fewer steps and cases; ends within ten minutes")
    parser.add_argument("--dry", action="store_true", help="tiny models: shows that all works, measures nothing")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PREFIX", help="only cases whose names begin so, as train.gpt2.b8"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the course's instruction-data.json")
    parser.add_argument(
        "--output", type=Path, help="JSON file (default: benchmarks/results/latest.json; none with --only)"
    )
    parser.add_argument("--plot", type=Path, help="image file (default: docs/images/performance.png, full run only)")
    parser.add_argument("--show", type=Path, metavar="JSON", help="measure nothing, show an earlier run")
    return parser


def run_cases(names: list[str], *, mode: Mode, data: Path, output: Path | None) -> dict[str, object]:
    """Run cases and return the document; it is written after each, so that breaking off loses one case at most."""
    outcomes: dict[str, Outcome] = {}
    failed: dict[str, str] = {}
    skipped = {name: "not asked for (`--only`)" for name in CASES if name not in names}
    with tempfile.TemporaryDirectory(prefix="hf-instruct-bench-") as folder:
        deadline = Deadline(QUICK_SECONDS if mode == "quick" else None)
        bench = Bench(mode, str(data), Path(folder), deadline)
        for name in sorted(names, key=_ORDER.index):
            try:
                outcomes[name] = CASES[name](bench)
            except SkipError as reason:
                skipped[name] = str(reason)
            except BenchmarkError as error:
                failed[name] = str(error)
                print_status(f"{name}: FAILED: {error}")
            ordered = {case: outcomes[case] for case in CASES if case in outcomes}
            document = build_document(ordered, skipped=skipped, failed=failed, mode=mode)
            document["machine"] = describe_machine(bench.known_peaks)
            document["seconds"] = round(deadline.elapsed(), 1)
            if output:
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def _present(document: dict[str, object], plot: Path | None) -> None:
    print(format_table(document))
    if plot:
        write_plot(document, plot)
        print(f"drawn: {plot}")


if __name__ == "__main__":
    sys.exit(main())
