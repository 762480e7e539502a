"""`hf-instruct run`: an experiment from its data to its report; `train`, `dpo` and `grpo`: its data and training."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.cli.flags import format_help
from hf_instruct.console import wrap
from hf_instruct.processes import is_main_process

if TYPE_CHECKING:
    from hf_instruct.run_folder import RunFolder

DESCRIPTION = {
    "run": "Run all stages of an experiment in one run folder.",
    "train": "Prepare the data of an experiment and fine-tune its model. Set fields with --SECTION.FIELD VALUE, as in "
    "`run`.",
    "dpo": "Prepare the data of an experiment and train its model on pairs of answers, one preferred (DPO).",
    "grpo": "Prepare the data of an experiment and train its model on rewards for its own answers (GRPO).",
}
_LAUNCH = "accelerate launch --multi_gpu -m hf_instruct"
EPILOG = {
    "run": """\
examples:
  hf-instruct run demo
  hf-instruct run gpt2-medium/lora --run-dir runs/low-rate --train.learning_rate 1e-5
  hf-instruct run mine.yaml --resume

Set any field of the experiment with --SECTION.FIELD VALUE, or --FIELD VALUE if only one section has it. Flags override
the file. `train` takes the fields of TRL's SFTConfig, `dpo` those of DPOConfig, `grpo` those of GRPOConfig, `lora`
those of PEFT's LoraConfig, and `generate` those of GenerationConfig; `hf-instruct run --fields` lists our own fields.
""",
    "train": f"""\
examples:
  hf-instruct train gpt2-medium/lora
  {_LAUNCH} train gpt2-large/lora
""",
    "dpo": f"""\
examples:
  hf-instruct dpo smollm2-135m/dpo
  {_LAUNCH} dpo smollm2-135m/dpo
""",
    "grpo": f"""\
examples:
  hf-instruct grpo smollm2-135m/grpo
  {_LAUNCH} grpo smollm2-135m/grpo
""",
}

# The sections of an experiment. A field can be set without its section if only one section has it.
SECTIONS = ("data", "model", "train", "lora", "dpo", "preferences", "grpo", "rewards", "generate", "judge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of one of the verbs."""
    verb = parser.get_default("verb")
    parser.add_argument("experiment", nargs="?", type=Path, help="YAML file, or name of a recipe, such as `demo`")
    parser.add_argument("--run-dir", type=Path, help="run folder (default: named after the experiment, in `runs/`)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--force", action="store_true", help="delete what is in the run folder first")
    parser.set_defaults(reward=[])
    if verb != "dpo":
        parser.add_argument(
            "--reward", metavar="FILE.py:NAME", action="append", help="your own reward function, for `grpo`"
        )
    text = "list our own fields with their defaults and exit"
    parser.add_argument("--fields", dest="handler", action="store_const", const=_list_fields, help=text)
    # Training does not answer the test split, and only needs a judge for rewards.
    unused = {"run": (), "grpo": ("generate",)}.get(verb, ("generate", "judge"))
    sections = tuple(section for section in SECTIONS if section not in unused)
    parser.set_defaults(handler=_run if verb == "run" else _train, sections=sections)


def _list_fields(options: argparse.Namespace) -> None:
    from hf_instruct.config import describe_fields
    from hf_instruct.library_fields import describe_libraries

    for name, default, text in describe_fields():
        print(wrap(f"--{name:25} {format_help(default, text)}"))
    print("\nAll fields of these classes can be set in the same way. Our defaults, if they differ from the library's:")
    for section, owner, defaults in describe_libraries():
        listed = ", ".join(f"{name} {value}" for name, value in defaults.items())
        print(wrap(f"--{section}.NAME, of {owner}: {listed}"))


def _run(options: argparse.Namespace) -> None:
    from hf_instruct.pipeline import STAGES

    run = _run_stages(options, STAGES)
    from hf_instruct.cli.judge import require_verdicts
    from hf_instruct.reporting.summary import format_summary
    from hf_instruct.schema import MODELS

    print(format_summary(run))
    print(f"\nNext: hf-instruct chat {shlex.quote(str(run.path))}")
    print(f"      hf-instruct push {shlex.quote(str(run.path))} --to OWNER/NAME --dry-run")
    # Last, because training, answers, metrics and the report are useful without scores.
    for model in MODELS:
        if scores := run.read_scores(model):
            require_verdicts(scores.n, scores.total, files=run.judgments)


def _train(options: argparse.Namespace) -> None:
    run = _run_stages(options, ("data", "train"))
    if is_main_process():
        print(run.model)


def _run_stages(options: argparse.Namespace, stages: tuple[str, ...]) -> "RunFolder":
    """Run some stages of the experiment in the options, and return its run folder."""
    from hf_instruct.config import load_experiment
    from hf_instruct.errors import ConfigError
    from hf_instruct.pipeline import default_path, run
    from hf_instruct.recipes import find_experiment

    if options.experiment is None:
        raise ConfigError("Name a YAML file, or a recipe: `hf-instruct recipes` lists them.")
    options.run_dir = options.run_dir or default_path(options.experiment)
    options.resume_hint = f"Continue with: {_format_resume_command(options)}"
    file = find_experiment(options.experiment)
    if not file.read_bytes().strip():
        raise ConfigError(f"`{file}` is empty; `hf-instruct recipes copy demo FILE` writes one to start from.")
    experiment = load_experiment(file, options.overrides)
    if options.verb in ("dpo", "grpo") and getattr(experiment, options.verb) is None:
        raise ConfigError(
            f"`{options.experiment}` has no `{options.verb}` section, so it fine-tunes (`hf-instruct train`). Use the "
            f"recipe `smollm2-135m/{options.verb}`, or a copy of it with your own settings."
        )
    rewards = {}
    if options.reward:
        from hf_instruct.preferences.rewards import load_reward

        rewards["reward_funcs"] = [load_reward(place) for place in options.reward]
    return run(experiment, options.run_dir, resume=options.resume, force=options.force, stages=stages, **rewards)


def _format_resume_command(options: argparse.Namespace) -> str:
    """Return the command to continue, with the same settings, because others would be another experiment."""
    import json

    from hf_instruct.config import parse_setting

    words = ["hf-instruct", options.verb, str(options.experiment), "--run-dir", str(options.run_dir), "--resume"]
    words += [f"--reward={place}" for place in options.reward]
    for name, value in options.overrides.items():
        # JSON is valid YAML; a text is written unchanged unless it would be parsed as something else.
        text = value if isinstance(value, str) and parse_setting(name, value) == value else json.dumps(value)
        words.append(f"--{name}={text}")
    return shlex.join(words)
