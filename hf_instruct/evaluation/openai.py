"""A judge on any server with OpenAI's chat API: vLLM, llama.cpp, LM Studio, `transformers serve`, or OpenAI itself."""

import logging
import os
from typing import Any

from hf_instruct.config import JudgeSection
from hf_instruct.console import redact
from hf_instruct.errors import JudgeError, JudgeUnavailable, quote_names
from hf_instruct.evaluation.judges import Reply, ServerJudge
from hf_instruct.evaluation.rubrics import Question, build_schema
from hf_instruct.servers import Body, NoAnswer, NoServer, Redirected, ServerError, one_line

logger = logging.getLogger(__name__)

_TRIAL = [{"role": "user", "content": 'Reply with {"score": 0}.'}]
_OPENAI_URL = "https://api.openai.com/v1"
_ACCOUNT_HEADERS = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}


class _Model(Body):
    id: str


class _Models(Body):
    data: list[_Model]


class _Message(Body):
    content: str | None = None
    refusal: str | None = None
    # The reasoning, if the server returns it separately: vLLM, llama.cpp and DeepSeek; OpenRouter.
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(Body):
    message: _Message
    finish_reason: str | None = None


class _Completion(Body):
    choices: list[_Choice]
    model: str | None = None


class OpenAIJudge(ServerJudge):
    """A model behind `/v1/chat/completions`.

    Args:
        settings: Model, address, options, timeout, retries. The key comes from OPENAI_API_KEY and is never written to
            disk.
    """

    def __init__(self, settings: JudgeSection) -> None:
        base_url = settings.base_url or os.environ.get("OPENAI_BASE_URL") or None
        key = os.environ.get("OPENAI_API_KEY")
        if not key and not base_url:
            raise JudgeUnavailable(
                "OPENAI_API_KEY is not set. Set it to an OpenAI key, or use your own server with `--judge.base_url`."
            )
        headers = {header: value for header, name in _ACCOUNT_HEADERS.items() if (value := os.environ.get(name))}
        where = f"The judge's address `{redact(base_url)}`"
        url = base_url or _OPENAI_URL
        super().__init__(settings, url, name="The server", key=key or "EMPTY", where=where, **headers)
        self._model = settings.model or ""
        self._takes_schema = True
        # The model named in replies, because a tag such as `gpt-4o` may refer to another one later.
        self._answered_as: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return model, address and options; these servers report neither digest nor version."""
        think = {"think": self._settings.think} if self._settings.think else {}
        other_name = {"answered_as": self._answered_as} if self._answered_as not in (None, self._model) else {}
        return {
            "backend": "openai",
            "model": self._model,
            "digest": None,
            "server_version": None,
            "options": {
                "base_url": self.url,
                "temperature": self._settings.temperature,
                "seed": self._seed,
                "max_completion_tokens": self._settings.max_new_tokens,
                "response_format": "json_schema" if self._takes_schema else None,
                **think,
                **other_name,
            },
        }

    async def prepare(self) -> None:
        """Check that the server answers, choose the model, and test whether it supports a JSON schema.

        Raises:
            JudgeUnavailable: The server does not answer, does not have the model, or has several and none is chosen.
        """
        try:
            # No retries, so that a mistyped address is reported immediately.
            models = [model.id for model in (await self._server.call("models", _Models, retry=False)).data]
        except NoAnswer as error:
            raise JudgeUnavailable(
                f"No server answers at {self.url} ({error}). Start it, or set another address with "
                "`--judge.base_url` (it usually ends in /v1)."
            ) from error
        except Redirected as error:
            raise self._useless(error) from error
        except ServerError as error:
            if error.status == 401:
                raise self._refusal(error) from error
            # Some servers have no list of models, or use another format; the test question below decides.
            models = []
        if not self._model and len(models) != 1:
            available = f" It has: {quote_names(sorted(models)[:8])}." if models else ""
            raise JudgeUnavailable(f"Choose the model of {self.url} to judge with: `--judge.model NAME`.{available}")
        if not self._model:
            self._model = models[0]
            logger.info("Judging with %s, the only model at %s", self._model, self.url)
        await self._probe_schema()

    async def _probe_schema(self) -> None:
        """Ask one small question with a schema, and continue without schemas if the server refuses them."""
        try:
            await self._complete(_TRIAL, build_schema(score={"type": "integer"}))
        except NoServer as error:
            raise JudgeUnavailable(f"{self._where} no longer answers ({error}).") from error
        except NoAnswer:
            # The server may be loading the model; if it is down, the first question fails.
            return
        except ServerError as error:
            if error.status is None or error.status == 200:
                raise self._useless(error) from error
            about_schema = any(word in str(error) for word in ("response_format", "schema", "json"))
            if error.status not in (400, 422) or not about_schema:
                raise self._refusal(error) from error
            self._takes_schema = False
            logger.warning(
                "%s does not support a JSON schema (%s); replies are parsed as text, and more of them may fail.",
                self.url,
                error,
            )

    async def _ask(self, question: Question) -> Reply:
        completion = await self._complete(question.messages, question.schema)
        if not completion.choices:
            return Reply("", failure="the server's completion has no choices")
        message = completion.choices[0].message
        text = message.content or ""
        if message.refusal:
            return Reply(text, failure=f"the judge refused: {one_line(message.refusal)}")
        is_cut = completion.choices[0].finish_reason == "length"
        thinking = message.reasoning_content or message.reasoning
        return Reply(text, failure=self._find_cut(text, thinking, is_cut=is_cut))

    async def _complete(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> _Completion:
        """Return the completion of a chat, by the same model as earlier ones.

        Raises:
            JudgeError: It names another model. `system_fingerprint` is not compared, because OpenAI's changes many
                times a day for the same model.
        """
        think = self._settings.think
        form = {"name": "verdict", "schema": schema, "strict": True}
        body = {
            "model": self._model,
            "messages": messages,
            "temperature": self._settings.temperature,
            "seed": self._seed,
            "max_completion_tokens": self._settings.max_new_tokens,
            "reasoning_effort": think if isinstance(think, str) else None,
            "response_format": {"type": "json_schema", "json_schema": form} if self._takes_schema else None,
        }
        sent = {name: value for name, value in body.items() if value is not None}
        completion = await self._server.call("chat/completions", _Completion, sent)
        self._answered_as = self._answered_as or completion.model
        if completion.model and completion.model != self._answered_as:
            raise JudgeError(
                f"{self.url} answered as `{one_line(self._answered_as)}` before but now as "
                f"`{one_line(completion.model)}`, so the scores would be from two different judges. Choose one with "
                "`--judge.model`, and judge again."
            )
        return completion

    def _useless(self, error: ServerError) -> JudgeUnavailable:
        return JudgeUnavailable(
            f"The server at {self.url} is not OpenAI-compatible ({error}). Set another address with "
            "`--judge.base_url` (it usually ends in /v1)."
        )

    def _refusal(self, error: ServerError) -> JudgeError:
        if error.status == 404:
            return JudgeUnavailable(
                f"{self._where} does not have the model `{self._model}`, or does not support chat: {error}. Check "
                "`--judge.model` and `--judge.base_url`."
            )
        return super()._refusal(error)
