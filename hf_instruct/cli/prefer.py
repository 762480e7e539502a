"""`hf-instruct prefer`: pairs of a better and a worse answer, made of a run."""

import argparse
import shlex
from pathlib import Path

from hf_instruct.cli.flags import add_field_flags, add_trust_flag, collect_fields, natural

DESCRIPTION = """\
Write pairs of a better and a worse answer to a run's training and validation prompts, for an experiment with a `dpo`
section or any other trainer. An interrupted command continues where it stopped."""
EPILOG = """\
examples:
  hf-instruct prefer runs/demo                               each reference against the model's own answer
  hf-instruct prefer runs/demo --by rouge_l --samples 8      the best of eight sampled answers against the worst
  hf-instruct prefer runs/demo --by judge --judge ollama --min-gap 20
  hf-instruct prefer runs/demo --by votes.jsonl              what people, or a judge shown two answers, preferred
  hf-instruct prefer runs/demo --by manners --judge openai --base-url http://127.0.0.1:8000/v1
                                       the course's pairs: a model makes each reference more or less polite
  hf-instruct run dpo --preferences.source runs/demo/pairs/rouge_l.jsonl

Prompts that are in the test split, or near-duplicates of one there, are left out. Answers are kept in the run's
`pairs/`, in a folder named after their settings, so ranking them in another way does not sample them again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--by",
        metavar="WAY",
        default="references",
        help="`references`, `exact_match`, `token_f1`, `rouge_l`, `chrf`, `judge`, `manners`, or a file of votes or "
        "preferences (default: references)",
    )
    parser.add_argument("--samples", metavar="N", type=natural, default=4, help="answers to each prompt (default: 4)")
    parser.add_argument("--temperature", metavar="T", type=float, help="of the samples (default: 0.8)")
    parser.add_argument(
        "--min-gap", metavar="G", type=float, help="least difference of two scores (default: a tenth of their scale)"
    )
    parser.add_argument("--out", metavar="FILE.jsonl", type=Path, help="default: RUN/pairs/WAY.jsonl")
    parser.add_argument("--force", action="store_true", help="use a judge that failed its check")
    add_field_flags(parser, "generate", "max_new_tokens", "seed", "batch_size", "limit")
    names = ("backend", "model", "base_url", "concurrency", "rubric")
    add_field_flags(parser, "judge", *names, switches=("pull",))
    add_trust_flag(parser)
    hint = "What was answered and judged is kept; the same command continues."
    parser.set_defaults(handler=_prefer, sections=("generate", "judge"), resume_hint=hint)


def _prefer(options: argparse.Namespace) -> None:
    from hf_instruct.console import wrap
    from hf_instruct.evaluation.loop import JudgeOptions
    from hf_instruct.preferences.prefer import build_preferences
    from hf_instruct.run_folder import RunFolder

    sections = collect_fields(options)
    if options.temperature is not None:
        sections["generate"]["temperature"] = options.temperature
    pairs = build_preferences(
        RunFolder(options.run, trust_remote_code=options.trust_remote_code),
        by=options.by,
        samples=options.samples,
        min_gap=options.min_gap,
        **sections,
        options=JudgeOptions(resume_hint=options.resume_hint, refuse_failed=not options.force),
        out=options.out,
    )
    print(wrap(f"{pairs}\n{pairs.path}"))
    print(f"Next: hf-instruct run dpo --preferences.source {shlex.quote(str(pairs.path))}")
