"""Which judge the settings name: opened for a while, or only checked."""

import contextlib
import logging
from collections.abc import AsyncIterator

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeUnavailable
from hf_instruct.evaluation.judges import Judge

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
    # The clients below take a while to import, so each is imported only where it is used.
    backend: str = await _choose_backend(settings) if settings.backend == "auto" else settings.backend
    if backend == "ollama":
        from hf_instruct.evaluation.ollama import OllamaJudge

        return OllamaJudge(settings)
    if backend == "openai":
        from hf_instruct.evaluation.openai import OpenAIJudge

        return OpenAIJudge(settings)
    from hf_instruct.evaluation.local import LocalJudge

    return LocalJudge(settings)


async def _choose_backend(settings: JudgeSection) -> str:
    from hf_instruct.evaluation.local import DEFAULT_MODEL
    from hf_instruct.evaluation.ollama import find_server

    reason, url = await find_server(settings.base_url)
    if reason is None:
        return "ollama"
    if settings.base_url:
        raise JudgeUnavailable(
            f"No Ollama server answers at {url} (`base_url`; {reason}). Start it there, or name what runs there with "
            "`--judge openai`, or leave `base_url` out to judge with a local model."
        )
    logger.warning(
        "No Ollama server answers at %s (%s), so the local judge %s scores the answers. For the course's judge: start "
        "`ollama serve`, run `ollama pull llama3`, and judge again.",
        url,
        reason,
        settings.model or DEFAULT_MODEL,
    )
    return "local"
