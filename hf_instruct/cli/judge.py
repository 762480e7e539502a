"""`hf-instruct judge`: score responses with a language model as the judge."""

import argparse
from pathlib import Path
from typing import Any

from hf_instruct.cli.judge_flags import build_options, build_section, collect_settings, require_verdicts

_EXAMPLES = """\
examples:
  hf-instruct judge runs/my-run                              again, or with another judge, over a run folder
  hf-instruct judge instruction-data-with-response.json      a file of responses; --out DIR for where the scores go
  hf-instruct judge runs/a --pairwise --baseline runs/b      which of two answers is better, asked in both orders
  hf-instruct judge runs/my-run --metrics-only               no judge at all: exact match, ROUGE-L, chrF and the like
  hf-instruct judge runs/my-run --judge ollama --pull        Llama 3 through Ollama, downloaded if it is missing
  hf-instruct judge runs/my-run --judge openai --base-url http://127.0.0.1:8000/v1 --concurrency 32

What is judged already is not judged again; interrupted, the same command goes on. Judgments by another judge or rubric
stay beside the new ones, under a name of their own. Fields of an experiment's `judge` section without a flag of their
own are set as in `--judge.num_ctx 8192`.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "judge",
        help="score responses from 0 to 100, with Ollama, a local model or any OpenAI-compatible server",
        description="Put each response, with its task and its reference, to a language model that scores it.",
        epilog=_EXAMPLES,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source", metavar="RUN_OR_FILE", type=Path, nargs="?", help="a run folder, or a file of responses"
    )
    parser.add_argument(
        "--judge",
        choices=("auto", "ollama", "local", "openai"),
        help="who judges; `auto`: Ollama if it runs, else local",
    )
    parser.add_argument("--model", metavar="TAG", help="the judge's model: a tag of Ollama's, a Hub id, a folder")
    parser.add_argument("--rubric", metavar="R", help="course, fenced, critique, five-point, or a YAML file")
    parser.add_argument(
        "--base-url", metavar="URL", help="address of the server (default: OLLAMA_HOST, OPENAI_BASE_URL)"
    )
    parser.add_argument("--concurrency", metavar="N", type=int, help="calls under way at once")
    parser.add_argument("--timeout-seconds", metavar="S", type=float, help="longest wait for one reply")
    parser.add_argument("--repeats", metavar="K", type=int, help="judge K times with different seeds (default: 1)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the judgments of a file go (default: beside it)")
    parser.add_argument("--pull", action="store_true", default=None, help="let Ollama download a model that it lacks")
    parser.add_argument("--no-cache", action="store_true", help="neither use nor keep verdicts in the user's cache")
    parser.add_argument("--force", action="store_true", help="judge anew what is judged already")
    other = parser.add_argument_group("instead of a score for each response")
    other.add_argument("--metrics-only", action="store_true", help="no judge: only compare with the references")
    other.add_argument("--pairwise", action="store_true", help="which of two answers is better, asked in both orders")
    other.add_argument("--baseline", metavar="RUN_OR_FILE", type=Path, help="the other answers, with `--pairwise`")
    other.add_argument("--self-check", action="store_true", help="test the judge itself with answers of known worth")
    other.add_argument("--limit", metavar="N", type=int, help="with `--self-check`: examples to use (default: 20)")
    other.add_argument("--strict", action="store_true", help="with `--self-check`: exit 1 when the judge fails it")
    parser.set_defaults(
        handler=_judge,
        takes_overrides=True,
        resume_hint="What was judged is kept; the same command without `--force` goes on.",
    )


def _judge(options: argparse.Namespace) -> None:
    from hf_instruct.errors import ConfigError, DataError

    settings = collect_settings(options)
    if options.pairwise and options.self_check:
        raise ConfigError("`--pairwise` and `--self-check` are two different jobs; give one of them.")
    if options.metrics_only and (options.pairwise or options.self_check):
        raise ConfigError("`--metrics-only` asks no judge; leave out `--pairwise` and `--self-check`.")
    if options.baseline and not options.pairwise:
        raise ConfigError("`--baseline` names the other answers of `--pairwise`; add `--pairwise`, or leave it out.")
    if not options.self_check and (options.limit is not None or options.strict):
        flag = "--strict" if options.limit is None else "--limit"
        raise ConfigError(f"`{flag}` belongs to `--self-check`; add `--self-check`, or leave it out.")
    if options.self_check:
        from hf_instruct.cli.judge_check import check_judge

        check_judge(options, settings)
        return
    if options.source is None:
        raise ConfigError("Name what to judge: a run folder, or a file of responses.")
    if options.pairwise:
        from hf_instruct.cli.judge_pairs import judge_pairs

        judge_pairs(options, settings)
        return
    if not options.source.exists():
        raise DataError(f"`{options.source}` does not exist; name a run folder or a file of responses.")
    if options.metrics_only:
        from hf_instruct.cli.judge_metrics import measure

        measure(options, settings)
    elif options.source.is_dir():
        _judge_run(options, settings)
    else:
        _judge_file(options, settings)


def _judge_run(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    from hf_instruct.cli.judge_metrics import format_line
    from hf_instruct.errors import ConfigError
    from hf_instruct.evaluation.stage import judge
    from hf_instruct.run_folder import RunFolder

    if options.out:
        raise ConfigError("`--out` is for files of responses; a run's judgments belong in its folder. Leave it out.")
    run = RunFolder(options.source)
    experiment = run.load_experiment()
    section = build_section(run.load_judge_settings(settings))
    with run.locked():
        judged = judge(run, experiment.model_copy(update={"judge": section}), options=build_options(options))
    for name, folder in (("base", run.base), ("tuned", run)):
        if name in judged:
            lines = str(judged[name]).replace("\n", "\n       ")
            print(f"{name:5}  {lines}")
            print(f"       {format_line(folder.metrics)}")
            print(f"       {folder.judgments}\n       {folder.scores}\n       {folder.metrics}")
    for name, folder in (("base", run.base), ("tuned", run)):
        if name in judged:
            require_verdicts(judged[name].scores["n"], judged[name].scores["total"], files=folder.judgments)


def _judge_file(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    from hf_instruct.cli.judge_metrics import format_line
    from hf_instruct.evaluation.judgment_files import choose_files, load_responses
    from hf_instruct.evaluation.metrics import write_metrics
    from hf_instruct.evaluation.stage import judge_sets

    section = build_section(settings)
    responses = load_responses(options.source)
    files = choose_files(options.source, options.out)
    judged = judge_sets({"responses": (responses, files)}, section, options=build_options(options))
    write_metrics(files.metrics, responses)
    print(judged["responses"])
    print(format_line(files.metrics))
    print(f"{files.judgments}\n{files.scores}\n{files.metrics}")
    scores = judged["responses"].scores
    require_verdicts(scores["n"], scores["total"], files=files.judgments)
