"""`hf-instruct judge --metrics-only`: the reference metrics of responses, for whoever has no judge."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_instruct.console import align


def measure(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Write `metrics.json` for a run folder or a file of responses, and print it as a table.

    Raises:
        ConfigError: A flag is for judging.
        InstructError: The source cannot be read, or nothing can be written there.
    """
    from hf_instruct.errors import ConfigError
    from hf_instruct.evaluation.judgment_files import choose_files, load_responses
    from hf_instruct.evaluation.metrics import write_metrics
    from hf_instruct.run_folder import RunFolder

    given = [f"`--judge.{name}`" for name in settings]
    given += [f"`--{name.replace('_', '-')}`" for name in ("no_cache", "force") if getattr(options, name)]
    if given:
        raise ConfigError(f"`--metrics-only` asks no judge, and {', '.join(given)} is for one; leave it out.")
    if not options.source.is_dir():
        responses = load_responses(options.source)
        path = choose_files(options.source, options.out).metrics
        _print_table({"responses": write_metrics(path, responses)})
        print(path)
        return
    if options.out:
        raise ConfigError("`--out` is for files of responses; a run's metrics belong in its folder. Leave it out.")
    run = RunFolder(options.source)
    run.load_experiment()
    with run.locked():
        # All are read before any is written.
        sides = {"tuned": (run, load_responses(run.responses))}
        if run.base.responses.exists():
            sides = {"base": (run.base, load_responses(run.base.responses)), **sides}
        _print_table({name: write_metrics(folder.metrics, rows) for name, (folder, rows) in sides.items()})
    for folder, _ in sides.values():
        print(folder.metrics)


def _print_table(sides: Mapping[str, Mapping[str, Any]]) -> None:
    from hf_instruct.evaluation.metric_names import METRICS
    from hf_instruct.evaluation.metrics import format_mean

    rows = [["", *(f"{name}, n {measured['total']}" for name, measured in sides.items())]]
    for metric, (label, _) in METRICS.items():
        found = [measured["metrics"].get(metric) for measured in sides.values()]
        if not any(found):
            continue
        row = [label]
        for measured, values in zip(sides.values(), found, strict=True):
            text = format_mean(metric, values) if values else "not known"
            row.append(f"{text}, n {values['n']}" if values and values["n"] != measured["total"] else text)
        rows.append(row)
    print("\n".join(align(rows)))
    print("(95 % intervals in brackets)")


def format_line(path: Path) -> str:
    """Return the metrics in a file as one line."""
    from hf_instruct.evaluation.metrics import format_metrics
    from hf_instruct.records import read_json_object

    return f"metrics  {format_metrics(read_json_object(path))}"
