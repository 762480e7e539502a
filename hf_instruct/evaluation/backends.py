"""Open the judge of the settings."""

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
    """Yield a prepared judge: `judge` if given, otherwise the one of the settings, which is closed at the end.

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
    """Return the judge of the settings, not yet prepared.

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
            f"No Ollama server answers at {ollama.url} (`base_url`; {problem}). Start it there, use `--judge.backend "
            "openai` for another server, or leave `base_url` out to judge with a local model."
        )
    logger.warning(
        "No Ollama server answers at %s (%s), so the local judge %s is used. To use the course's judge, start "
        "`ollama serve`, run `ollama pull llama3`, and judge again.",
        ollama.url,
        problem,
        settings.model or DEFAULT_MODEL,
    )
    return LocalJudge(settings)


def check_judge(settings: JudgeSection) -> None:
    """Check that judging will work: the rubric is valid, the server is running and has the model.

    For a local judge this checks that the model exists, without loading it.

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
