"""Which judge the settings name, opened for as long as it is needed."""

import contextlib
import logging
from collections.abc import AsyncIterator

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeUnavailable
from hf_instruct.evaluation.judges import Judge
from hf_instruct.evaluation.rubrics import load_rubric
from hf_instruct.servers import run_sync

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def opened_judge(settings: JudgeSection, judge: Judge | None = None) -> AsyncIterator[Judge]:
    """Give a prepared judge: `judge` where there is one, else the one that the settings name, closed at the end.

    Raises:
        JudgeUnavailable: It does not answer, or lacks the model.
    """
    if judge is not None:
        yield judge
        return
    opened = await choose_judge(settings)
    try:
        await opened.prepare()
        yield opened
    finally:
        await opened.close()


async def choose_judge(settings: JudgeSection) -> Judge:
    """Return the judge that the settings name, not prepared yet.

    Raises:
        JudgeUnavailable: `auto` and an address were given, and no Ollama answers there.
    """
    # The clients take a while to import, so each is imported only where it is used.
    if settings.backend == "openai":
        from hf_instruct.evaluation.openai import OpenAIJudge

        return OpenAIJudge(settings)
    from hf_instruct.evaluation.local import DEFAULT_MODEL, LocalJudge

    if settings.backend == "local":
        return LocalJudge(settings)
    from hf_instruct.evaluation.ollama import OllamaJudge

    ollama = OllamaJudge(settings)
    problem = await ollama.find_problem() if settings.backend == "auto" else None
    if problem is None:
        return ollama
    await ollama.close()
    if settings.base_url:
        raise JudgeUnavailable(
            f"No Ollama server answers at {ollama.url} (`base_url`; {problem}). Start it there, or name what runs "
            "there with `--judge.backend openai`, or leave `base_url` out to judge with a local model."
        )
    logger.warning(
        "No Ollama server answers at %s (%s), so the local judge %s scores the answers. For the course's judge: start "
        "`ollama serve`, run `ollama pull llama3`, and judge again.",
        ollama.url,
        problem,
        settings.model or DEFAULT_MODEL,
    )
    return LocalJudge(settings)


def check_judge(settings: JudgeSection) -> None:
    """Make sure now that judging will work later: the rubric is usable, the server runs and has the model.

    A local judge's weights are not loaded for this; that it can be found is.

    Raises:
        ConfigError: The rubric is not usable.
        ModelLoadError: The local judge's model cannot be found.
        JudgeUnavailable: The server does not answer, or lacks the model.
    """
    load_rubric(settings.rubric)

    async def work() -> None:
        judge = await choose_judge(settings)
        try:
            await judge.check()
        finally:
            await judge.close()

    run_sync(work())
