"""`hf-instruct generate`: answer the test split of a run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.cli.flags import FieldFlag, add_field_flags, add_trust_flag, collect_fields, natural

if TYPE_CHECKING:
    from hf_instruct.run_folder import RunFolder

DESCRIPTION = "Answer a run's test split with the untuned and the tuned model. Continues if it was interrupted."
EPILOG = """\
examples:
  hf-instruct generate runs/gpt2-medium-full
  hf-instruct generate runs/gpt2-medium-full --generate.max_new_tokens 64 --force
  hf-instruct generate runs/gpt2-medium-full --format course
  hf-instruct generate runs/gpt2-medium-full --limit 20                  only 20 examples; without the limit, the rest
  hf-instruct generate runs/gpt2-medium-full --strategy beam --force
  hf-instruct generate runs/gpt2-medium-full --preset creative --num-return 5 --seed 7 --force
  hf-instruct generate --presets
  hf-instruct generate runs/mine --endpoint http://127.0.0.1:8000/v1 --model mine
                                       use the run's model on a server (vLLM, llama.cpp, Ollama)
  hf-instruct generate runs/mine/data/test.jsonl --endpoint http://127.0.0.1:11434/v1 --model llama3 --out llama3.jsonl
                                       use a reference model through the chat API; `judge` and `compare` accept the file
  accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/generate.py runs/gpt2-medium-full

strategies: greedy (the default), beam, sample, top-k, top-p, min-p, typical, beam-sample. Any field of
`GenerationConfig` overrides them, as in `--generate.temperature 0.5`. Answers generated with other settings, and their
scores, are only deleted with `--force`. `hf-instruct explore` shows the effect of a strategy.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", type=Path, nargs="?", help="run folder; a source of examples with `--out`")
    parser.add_argument("--force", action="store_true", help="delete the existing answers and answer again")
    parser.add_argument(
        "--format",
        choices=["jsonl", "course"],
        default="jsonl",
        help="`course` also writes the course's instruction-data-with-response.json",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--strategy", metavar="NAME", help="decoding strategy; see below")
    how.add_argument("--preset", metavar="NAME", help="decoding settings for a kind of task; `--presets` lists them")
    text = "list strategies and presets with their sources"
    parser.add_argument("--presets", dest="handler", action="store_const", const=_print_presets, help=text)
    add_field_flags(parser, "generate", "seed", "limit", "endpoint", "model", "concurrency")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.jsonl", help="write answers to any examples to this file (with `--endpoint`)"
    )
    parser.add_argument(
        "--num-return",
        action=FieldFlag,
        field="generate.num_return_sequences",
        type=natural,
        metavar="N",
        help="answers per example, with sampling or beams; the first is judged, the others are saved as "
        "`further_responses`",
    )
    add_trust_flag(parser)
    parser.set_defaults(
        handler=_generate,
        usage_error=parser.error,
        sections=("generate",),
        resume_hint="Answers are kept; run the same command without `--force` to continue.",
    )


def _generate(options: argparse.Namespace) -> None:
    if options.run is None:
        options.usage_error("the following arguments are required: run")
    if options.out:
        _answer_source(options)
        return
    from hf_instruct.pipeline import answer_run
    from hf_instruct.processes import is_main_process
    from hf_instruct.run_folder import RunFolder

    run = RunFolder(options.run, trust_remote_code=options.trust_remote_code)
    answer_run(run, _build_overrides(options, run), force=options.force)
    if not is_main_process():
        return
    print(run.responses)
    if options.format == "course":
        from hf_instruct.generation.stage import write_course_file

        print(write_course_file(run))


def _answer_source(options: argparse.Namespace) -> None:
    from hf_instruct.config import build_experiment
    from hf_instruct.data.sources import read_examples
    from hf_instruct.errors import ConfigError
    from hf_instruct.generation.endpoint import answer_source
    from hf_instruct.generation.strategies import build_generation_settings

    fields = collect_fields(options)["generate"]
    if "endpoint" not in fields or options.preset or options.format == "course":
        raise ConfigError(
            "`--out` needs `--endpoint URL` and `--model NAME`, and cannot be used with `--preset` or `--format`."
        )
    if options.strategy:
        fields = build_generation_settings(options.strategy, **fields)
    section = build_experiment({"generate": fields}, where="the flags").generate
    answer_source(section, read_examples(str(options.run)), options.out, force=options.force)
    print(options.out)


def _build_overrides(options: argparse.Namespace, run: "RunFolder") -> dict[str, Any]:
    """Return the fields that the flags set, by dotted name: those of a preset or a strategy, then the others.

    Raises:
        RunError: The folder is not a run.
        ConfigError: There is no such strategy or preset, or fields are set that have no effect with it.
    """
    from hf_instruct.errors import ConfigError
    from hf_instruct.generation.strategies import STRATEGY_FIELDS, build_generation_settings, find_strategy

    overrides = dict(options.overrides)
    stored = run.load_experiment().generate.model_dump()
    if overrides.get("generate.model") and not overrides.get("generate.endpoint", stored["endpoint"]):
        raise ConfigError("`--model` is the name of a model on a server; add `--endpoint URL`.")
    if stored["limit"]:
        # Set by an earlier command.
        overrides.setdefault("generate.limit", None)
    if not (options.strategy or options.preset):
        return overrides
    # Fields of other sections are refused later, as for every verb.
    fields = {name.partition(".")[2]: value for name, value in overrides.items() if name.startswith("generate.")}
    chosen = find_strategy(options.preset or options.strategy, preset=bool(options.preset))
    settings = build_generation_settings(chosen, **fields)
    # Fields that another strategy had set in this run are removed.
    stale = {name: None for name in STRATEGY_FIELDS if stored.get(name) is not None and name not in settings}
    return {**overrides, **{f"generate.{name}": value for name, value in {**stale, **settings}.items()}}


def _print_presets(options: argparse.Namespace) -> None:
    from hf_instruct.generation.strategies import load_strategies

    for title, presets in (("strategies (`--strategy NAME`)", False), ("presets (`--preset NAME`)", True)):
        print(f"{title}\n")
        for each in load_strategies(presets=presets).values():
            print(f"  {each.name:<13}{each.description}\n{'':<15}{_format(each.settings)}\n{'':<15}{each.source}")
        print()


def _format(settings: Any) -> str:
    return ", ".join(f"{name} {str(value).lower()}" for name, value in settings.items())
