"""`hf-instruct judge`: score responses, compare two sets of them, check the judge, or measure without one."""

import argparse
import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.cli.flags import add_field_flags, collect_fields, natural
from hf_instruct.console import wrap

if TYPE_CHECKING:
    from hf_instruct.config import JudgeSection
    from hf_instruct.evaluation.loop import JudgeOptions
    from hf_instruct.run_folder import RunFolder

DESCRIPTION = "Score responses with a language model that sees the task, the reference and the response."
EPILOG = """\
Run `hf-instruct judge ACTION --help` for details. `score` is the default action.

examples:
  hf-instruct judge runs/my-run                              judge a run folder, also again with another judge
  hf-instruct judge instruction-data-with-response.json      a file of responses; --out DIR for the scores
  hf-instruct judge runs/my-run --limit 10                   only 10 answers; without the limit, the rest
  hf-instruct judge runs/my-run --judge ollama --pull        Llama 3 with Ollama, downloaded if it is missing
  hf-instruct judge runs/my-run --judge openai --base-url http://127.0.0.1:8000/v1 --concurrency 32
  hf-instruct judge pairwise runs/a --baseline runs/b        which of two answers is better, in both orders
  hf-instruct judge check runs/my-run                        test the judge with answers of known quality
  hf-instruct judge metrics runs/my-run                      without a judge: exact match, ROUGE-L, chrF and others

Answers that are already judged are not judged again; run the same command to continue after an interruption. Set other
fields of the `judge` section as in `--judge.num_ctx 8192`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    parser.set_defaults(actions=("score", "pairwise", "check", "metrics"))

    score = actions.add_parser("score", help="score each response (the default action)")
    _add_source(score, _score)
    add_field_flags(score, "judge", "rubric", "repeats")
    look = "judge only the first N answers, without checking the judge or writing scores.json"
    score.add_argument("--limit", metavar="N", type=natural, help=look)
    _add_judge_flags(score)

    pairwise = actions.add_parser("pairwise", help="judge which of two answers is better, in both orders")
    _add_source(pairwise, _pairwise)
    pairwise.add_argument(
        "--baseline",
        metavar="RUN_OR_FILE",
        type=Path,
        required=True,
        help="run or file with the answers to compare with",
    )
    _add_judge_flags(pairwise)

    check = actions.add_parser("check", help="test the judge with answers of known quality")
    _add_source(check, _check, nargs="?")
    check.add_argument("--limit", metavar="N", type=int, help="examples to use (default: 20)")
    check.add_argument("--strict", action="store_true", help="exit with status 1 if the judge fails")
    add_field_flags(check, "judge", "rubric")
    _add_judge_flags(check)

    _add_source(actions.add_parser("metrics", help="compare with the references, without a judge"), _metrics)


def _add_source(parser: argparse.ArgumentParser, handler: object, *, nargs: str | None = None) -> None:
    what = "a run folder, or a file of responses" + (" (default: packaged examples)" if nargs else "")
    parser.add_argument("source", metavar="RUN_OR_FILE", type=Path, nargs=nargs, help=what)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder for the results of a file (default: the file's folder)"
    )
    parser.set_defaults(handler=handler)


def _add_judge_flags(parser: argparse.ArgumentParser) -> None:
    fields = ("backend", "model", "base_url", "concurrency", "timeout_seconds")
    add_field_flags(parser, "judge", *fields, switches=("pull",))
    parser.add_argument("--no-cache", action="store_true", help="do not read or write the verdict cache")
    parser.add_argument("--force", action="store_true", help="judge all answers again")
    hint = "Judgments are kept; run the same command without `--force` to continue."
    parser.set_defaults(sections=("judge",), resume_hint=hint)


def _score(options: argparse.Namespace) -> None:
    from hf_instruct.evaluation.metrics import format_metrics
    from hf_instruct.evaluation.responses import choose_folder, load_responses
    from hf_instruct.evaluation.stage import judge, judge_sets, measure_sets
    from hf_instruct.schema import TUNED

    run = _open_run(options)
    section = _build_section(options, run)
    folder = run or choose_folder(options.source, options.out)
    how = _build_options(options, limit=options.limit)
    if run:
        with run.locked():
            judged = judge(run, section, options=how)
    else:
        sets = {TUNED: load_responses(options.source)}
        judged = judge_sets(sets, folder, section, options=how)
        measure_sets(sets, folder)
    for model, result in judged.items():
        label = f"{model:9}" if run else ""
        text = f"{label}{result}\nmetrics  {format_metrics(folder.read_metrics(model))}"
        print(wrap(text.replace("\n", "\n" + " " * len(label))))
    is_part = any(result.left_out for result in judged.values())
    print(folder.judgments, *([] if is_part else [folder.scores]), folder.metrics, sep="\n")
    for result in judged.values():
        require_verdicts(result.scores.n, result.scores.total, folder.judgments)


def _pairwise(options: argparse.Namespace) -> None:
    from os.path import normpath

    from hf_instruct.evaluation.pairwise import choose_pair_file, prefer
    from hf_instruct.evaluation.responses import join_responses, load_responses
    from hf_instruct.run_folder import RunFolder, split_model

    first, second = load_responses(options.source), load_responses(options.baseline)
    names = normpath(options.source), normpath(options.baseline)
    joined = join_responses(first, second, names)
    run = RunFolder(split_model(options.source)[0])
    is_run = run.config.is_file()
    # The run's settings of the judge also apply here; its rubric and repeats are only for scores.
    section = _build_section(options, run if is_run else None)
    file = choose_pair_file(options.source, options.baseline, options.out)
    with run.locked() if is_run else contextlib.nullcontext():
        judged = prefer(joined, section, file=file, options=_build_options(options))
    print(wrap(f"{judged}\n{file}\n{file.with_suffix('.json')}"))
    num_asked = judged.summary.total - judged.summary.identical
    require_verdicts(num_asked - judged.summary.failures, num_asked, file)


def _check(options: argparse.Namespace) -> None:
    from hf_instruct.data.loaders import EVERYDAY
    from hf_instruct.data.sources import read_examples
    from hf_instruct.data.splits import split_examples
    from hf_instruct.errors import JudgeError
    from hf_instruct.evaluation.responses import choose_folder
    from hf_instruct.evaluation.scores import describe_check
    from hf_instruct.evaluation.self_check import DEFAULT_LIMIT, format_self_check, run_self_check

    run = _open_run(options)
    if run:
        examples = run.read_split("test")
    elif options.source:
        examples = read_examples(str(options.source))
    else:
        examples = read_examples(split_examples(EVERYDAY)["test"])
    section = _build_section(options, run)
    out = run.path if run else None
    if not run and (options.source or options.out):
        out = choose_folder(options.source or Path("the packaged examples"), options.out).path
    limit = DEFAULT_LIMIT if options.limit is None else options.limit
    with run.locked() if run else contextlib.nullcontext():
        result = run_self_check(examples, section, limit=limit, out=out, options=_build_options(options))
    print(wrap(format_self_check(result)))
    judgments = out / "self_check" / "judgments.jsonl" if out else None
    if out:
        print(f"{out / 'self_check.json'}\n{judgments}")
    require_verdicts(result.probes - result.failures, result.probes, judgments)
    if options.strict and result.passed is False:
        raise JudgeError(f"The judge {describe_check(result)}.")


def _metrics(options: argparse.Namespace) -> None:
    from hf_instruct.evaluation.metrics import format_table
    from hf_instruct.evaluation.responses import choose_folder, load_responses
    from hf_instruct.evaluation.stage import measure_sets, read_sets
    from hf_instruct.schema import TUNED

    run = _open_run(options)
    folder = run or choose_folder(options.source, options.out)
    # All sets are read before any result is written.
    sets = read_sets(run) if run else {TUNED: load_responses(options.source)}
    with run.locked() if run else contextlib.nullcontext():
        measured = measure_sets(sets, folder)
    label = folder.read_provenance().label if run else lambda _: "responses"
    print(format_table({label(model): metrics for model, metrics in measured.items()}))
    print(folder.metrics)


def _open_run(options: argparse.Namespace) -> "RunFolder | None":
    """Return the run that `source` names, or None if it is a file or absent.

    Raises:
        InstructError: There is no such file, the folder is not a run, or `--out` is set for a run.
    """
    from hf_instruct.errors import ConfigError, DataError
    from hf_instruct.run_folder import RunFolder

    source = options.source
    if source is None:
        return None
    if not source.exists():
        raise DataError(f"`{source}` does not exist; use a run folder or a file of responses.")
    if not source.is_dir():
        return None
    if options.out:
        raise ConfigError("`--out` is for files of responses; the results of a run go to its folder. Leave it out.")
    run = RunFolder(source)
    run.load_experiment()
    return run


def _build_section(options: argparse.Namespace, run: "RunFolder | None") -> "JudgeSection":
    """Return the `judge` section of the flags, which replace the run's settings."""
    from hf_instruct.config import build_experiment
    from hf_instruct.evaluation.stage import load_judge_settings

    fields = collect_fields(options)["judge"]
    values = load_judge_settings(run, fields) if run else fields
    return build_experiment({"judge": values}, where="the flags", deep=False).judge


def _build_options(options: argparse.Namespace, limit: int | None = None) -> "JudgeOptions":
    from hf_instruct.console import redact
    from hf_instruct.evaluation.loop import JudgeOptions

    # `--force` would discard the judgments from before the interruption.
    command = redact(shlex.join(["hf-instruct", *(word for word in sys.argv[1:] if word != "--force")]))
    resume_hint = f"Continue with the same command: `{command}`."
    return JudgeOptions(use_cache=not options.no_cache, force=options.force, limit=limit, resume_hint=resume_hint)


def require_verdicts(num_verdicts: int, num_asked: int, files: Path | None) -> None:
    """Raise an error if a judge was asked and none of its replies could be used.

    Raises:
        JudgeError: None could be used. The error names `files`, which contains the replies, unless it is None.
    """
    from hf_instruct.errors import JudgeError

    if num_asked and not num_verdicts:
        where = f" `{files}` has the replies and the reasons." if files else ""
        raise JudgeError(
            f"No reply of the judge could be used: all {num_asked} failed.{where} Choose another judge with "
            "`--judge.backend` and `--judge.model`."
        )
