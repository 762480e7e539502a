"""The judge stage: scores the responses in a run folder."""

import dataclasses
import os
import shlex
from collections.abc import Mapping
from itertools import chain
from typing import Any

from hf_instruct.config import JudgeSection
from hf_instruct.console import redact
from hf_instruct.errors import ConfigError
from hf_instruct.evaluation.judges import opened_judge
from hf_instruct.evaluation.loop import JudgeOptions
from hf_instruct.evaluation.metrics import measure_responses
from hf_instruct.evaluation.ollama import parse_ollama_host
from hf_instruct.evaluation.responses import load_responses
from hf_instruct.evaluation.rubrics import load_rubric
from hf_instruct.evaluation.scoring import JudgmentSet, judge_with
from hf_instruct.evaluation.self_check import check_briefly, refuse_failed_judge
from hf_instruct.local_server import is_loopback
from hf_instruct.records import Example
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import MODELS, TUNED, Metrics, Response
from hf_instruct.servers import run_sync


def judge(run: RunFolder, settings: JudgeSection, *, options: JudgeOptions | None = None) -> dict[str, JudgmentSet]:
    """Judge the responses of the tuned model and, if enabled, those of the run's other models.

    The reference metrics, which need no judge, are written first, for all models and even if no judge can be reached.
    Judgments in the run are reused if they still count.

    Returns:
        The judgments by model, in the order of `schema.MODELS`.

    Raises:
        DataError: There are no responses.
        JudgeError: Judging cannot continue; finished judgments are kept.
    """
    if options is None:
        # The user has to name a server on another machine again; see `load_judge_settings`.
        url = settings.base_url
        words = ["hf-instruct", "judge", str(run.path), *(["--base-url", redact(url)] if url else [])]
        options = JudgeOptions(resume_hint=f"Continue with `{shlex.join(words)}`.")
    sets = read_sets(run)
    load_rubric(settings.rubric)
    measure_sets(sets, run)
    judged = {model: rows for model, rows in sets.items() if settings.base or model == TUNED}
    return judge_sets(judged, run, settings, options=options)


def read_sets(run: RunFolder) -> dict[str, list[Response]]:
    """Return a run's responses by model, for the tuned model and all others with responses.

    Raises:
        DataError: The tuned model has no responses.
    """
    sets = {model: run.read_responses(model) for model in MODELS} | {TUNED: load_responses(run.path)}
    return {model: rows for model, rows in sets.items() if rows}


def measure_sets(sets: Mapping[str, list[Response]], folder: RunFolder) -> dict[str, Metrics]:
    """Return the reference metrics of several models' responses, and write them into a folder."""
    metrics_by_model = {model: measure_responses(rows) for model, rows in sets.items()}
    for model, metrics in metrics_by_model.items():
        folder.write_metrics(model, metrics)
    return metrics_by_model


def load_judge_settings(run: RunFolder, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's `judge` settings, overridden by those that the user passes now.

    The folder may be from somebody else. A server on another machine would receive the user's API key, so the user has
    to name it too; and a model is only pulled if the user allows it now.

    Raises:
        RunError: The folder does not exist or is not a run folder.
        ConfigError: `run.yaml` names a server on another machine, and neither `given` nor the environment does.
    """
    stored = run.load_experiment().judge
    settings = {**stored.model_dump(), "pull": False, **given}
    if not stored.base_url or "base_url" in given or settings["backend"] == "local":
        return settings
    variable = "OPENAI_BASE_URL" if settings["backend"] == "openai" else "OLLAMA_HOST"
    url = parse_ollama_host(stored.base_url)
    if not is_loopback(url) and url != parse_ollama_host(os.environ.get(variable, "")):
        address = shlex.quote(redact(stored.base_url))
        raise ConfigError(
            f"`{run.config}` uses a judge on another machine, which would receive your API key, and the run folder "
            f"may come from somebody else. If you trust that server, add `--judge.base_url {address}`, or set "
            f"{variable} to it."
        )
    return settings


def judge_sets(
    sets: Mapping[str, list[Response]], folder: RunFolder, settings: JudgeSection, *, options: JudgeOptions
) -> dict[str, JudgmentSet]:
    """Judge several models' responses with one judge, opened once, and write the results to one folder.

    If enabled, the judge itself is briefly checked first, on the examples of the responses; not if `options.limit`
    leaves out responses.

    Raises:
        ConfigError: The rubric is not usable, or fails for a response.
        JudgeError: Judging cannot continue; finished judgments are kept. Or the judge failed its check and
            `options.refuse_failed` is set.
    """
    # Building all questions finds errors in the rubric before a model is loaded or a server is called.
    rubric = load_rubric(settings.rubric)
    for row in chain(*sets.values()):
        rubric.build_question(row)

    async def work() -> dict[str, JudgmentSet]:
        async with opened_judge(settings) as judge:
            if settings.check and all(rows == rows[: options.limit] for rows in sets.values()):
                rows = chain(*sets.values())
                examples = {row.id: Example(row.id, row.instruction, row.input, row.output) for row in rows}
                await check_briefly(judge, [*examples.values()], settings, out=folder.path, options=options)
            if options.refuse_failed:
                advice = ". Choose another with `--judge` and `--model`, or use its scores anyway with `--force`."
                refuse_failed_judge(judge, settings, advice)
            label = folder.read_provenance().label
            titled = {name: dataclasses.replace(options, title=f"Judging, {label(name)}") for name in sets}
            return {
                name: await judge_with(judge, responses, settings, files=folder, options=titled[name])
                for name, responses in sets.items()
            }

    return run_sync(work())
