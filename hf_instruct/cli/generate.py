"""`hf-instruct generate`: answer the test split of a run."""

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  hf-instruct generate runs/gpt2-medium-full
  hf-instruct generate runs/gpt2-medium-full --generate.max_new_tokens 64 --force
  hf-instruct generate runs/gpt2-medium-full --format course
  accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/generate.py runs/gpt2-medium-full
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "generate",
        help="answer the held-out test split",
        description="Answer a run's test split with the untuned and the tuned model. Goes on where it was cut off.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--force", action="store_true", help="delete the answers there are, and answer anew")
    parser.add_argument(
        "--format",
        choices=["jsonl", "course"],
        default="jsonl",
        help="`course` also writes the answers as the course's instruction-data-with-response.json",
    )
    parser.set_defaults(
        handler=_generate,
        takes_overrides=True,
        resume_hint="What was answered is kept; the same command without `--force` goes on.",
    )


def _generate(options: argparse.Namespace) -> None:
    from hf_instruct.pipeline import rerun_stage
    from hf_instruct.processes import is_main_process
    from hf_instruct.run_folder import RunFolder

    run = RunFolder(options.run)
    rerun_stage(run, "generate", getattr(options, "overrides", {}), force=options.force)
    if not is_main_process():
        return
    print(run.responses)
    if options.format == "course":
        from hf_instruct.generation.stage import write_course_file

        print(write_course_file(run))
