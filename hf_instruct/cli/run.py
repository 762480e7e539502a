"""`hf-instruct run`: an experiment from its data to its report."""

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  hf-instruct run recipes/gpt2-medium/full.yaml
  hf-instruct run recipes/gpt2-medium/lora.yaml --run-dir runs/low-rate --train.learning_rate 1e-5
  hf-instruct run recipes/gpt2-medium/full.yaml --resume

Any field of the experiment can be set as --SECTION.FIELD VALUE; it beats the file. `train` takes the fields of TRL's
SFTConfig, `lora` those of PEFT's LoraConfig, `generate` those of GenerationConfig; `hf-instruct run --fields` lists
ours.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "run",
        help="prepare, train, answer, judge and report: one experiment from end to end",
        description="Walk an experiment through all stages, in one run folder.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    add_run_options(parser)
    parser.set_defaults(handler=_run, verb="run", takes_overrides=True)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what `run` and `train` have in common."""
    parser.add_argument("experiment", nargs="?", type=Path, help="YAML file of the experiment")
    parser.add_argument("--run-dir", type=Path, help="run folder (default: runs/MODEL-EXPERIMENT)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was cut off")
    parser.add_argument("--force", action="store_true", help="delete what stands in the run folder first")
    parser.add_argument("--fields", action="store_true", help="list every field that can be set, and exit")


def print_fields() -> None:
    """Print every field of ours that an experiment can set, with its default."""
    from hf_instruct.config import describe_fields

    for name, default, text in describe_fields():
        print(f"--{name:25} {text}" + ("" if default is None else f" (default: {default})"))


def _run(options: argparse.Namespace) -> None:
    from hf_instruct.pipeline import STAGES

    if options.fields:
        print_fields()
        return
    run_stages(options, STAGES)
    from hf_instruct.cli.judge import require_verdicts
    from hf_instruct.records import read_json_object
    from hf_instruct.reporting.summary import format_summary
    from hf_instruct.run_folder import RunFolder

    run = RunFolder(options.run_dir)
    print(format_summary(run))
    # Last: training, answers, metrics and the report are good without scores.
    for folder in (run.base, run):
        if scores := read_json_object(folder.scores):
            require_verdicts(scores["n"], scores["total"], files=folder.judgments)


def run_stages(options: argparse.Namespace, stages: tuple[str, ...]) -> None:
    """Walk the experiment that the options name through some stages."""
    from hf_instruct.config import load_experiment
    from hf_instruct.errors import ConfigError
    from hf_instruct.pipeline import default_path, run

    if options.experiment is None:
        raise ConfigError("Name the experiment's YAML file, as in `recipes/gpt2-medium/full.yaml`.")
    options.run_dir = options.run_dir or default_path(options.experiment)
    options.resume_hint = f"Go on with: {_format_resume_command(options)}"
    experiment = load_experiment(options.experiment, getattr(options, "overrides", {}))
    run(experiment, options.run_dir, resume=options.resume, force=options.force, stages=stages)


def _format_resume_command(options: argparse.Namespace) -> str:
    """Return the command that goes on: with the same settings, since others would be another experiment."""
    import json
    import shlex

    from hf_instruct.config import parse_flag_value

    words = ["hf-instruct", options.verb, str(options.experiment), "--run-dir", str(options.run_dir), "--resume"]
    for name, value in getattr(options, "overrides", {}).items():
        # JSON is YAML; a text stands as it is unless it would be read as something else.
        text = value if isinstance(value, str) and parse_flag_value(value) == value else json.dumps(value)
        words.append(f"--{name}={text}")
    return shlex.join(words)
