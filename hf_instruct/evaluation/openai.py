"""A judge behind any server that speaks OpenAI's chat API: vLLM, llama.cpp, LM Studio, `transformers serve`, OpenAI."""

import logging
import os
import time
from typing import Any

import httpx

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeError, JudgeUnavailable
from hf_instruct.evaluation.judges import Reply
from hf_instruct.evaluation.rubrics import Question
from hf_instruct.evaluation.server_judge import advise_on_refusal, find_cut
from hf_instruct.redaction import redact
from hf_instruct.servers import Body, NoAnswer, NoServer, Redirected, Server, ServerError, open_http, shorten

logger = logging.getLogger(__name__)

_OPENAI_URL = "https://api.openai.com/v1"
_ACCOUNT_HEADERS = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
_SCHEMA_PROBE = {
    "type": "object",
    "properties": {"score": {"type": "integer"}},
    "required": ["score"],
    "additionalProperties": False,
}


class _Model(Body):
    id: str


class _Models(Body):
    data: list[_Model]


class _Message(Body):
    content: str | None = None
    refusal: str | None = None
    # Where servers that keep thinking apart put it: vLLM, llama.cpp, DeepSeek; OpenRouter.
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(Body):
    message: _Message
    finish_reason: str | None = None


class _Completion(Body):
    choices: list[_Choice]
    model: str | None = None


class OpenAIJudge:
    """A model behind `/v1/chat/completions`.

    Args:
        settings: Model, address, options, timeout, retries. The key comes from OPENAI_API_KEY and is written nowhere.
        delays: Seconds before each further try of a call that failed for a passing reason.
    """

    def __init__(self, settings: JudgeSection, *, delays: list[float] | None = None) -> None:
        self._settings = settings
        self._model = settings.model or ""
        self._seed = settings.seed
        self._takes_schema = True
        # The model that replies name: a tag such as `gpt-4o` may stand for another one tomorrow.
        self._answered_as: str | None = None
        base_url = settings.base_url or os.environ.get("OPENAI_BASE_URL") or None
        key = os.environ.get("OPENAI_API_KEY")
        if not key and not base_url:
            raise JudgeUnavailable(
                "OPENAI_API_KEY is not set. Set it to a key of OpenAI, or name a server of your own with `--base-url`."
            )
        headers = {header: value for header, name in _ACCOUNT_HEADERS.items() if (value := os.environ.get(name))}
        where = f"The judge's address `{redact(base_url)}`"
        http = open_http(httpx.AsyncClient, base_url or _OPENAI_URL, key=key or "EMPTY", where=where, **headers)
        timeout, retries = settings.timeout_seconds, settings.retries
        self._server = Server(http, timeout_seconds=timeout, retries=retries, delays=delays)

    def identity(self) -> dict[str, Any]:
        """Return model, address and options; such a server tells neither digest nor version."""
        think = {"think": self._settings.think} if self._settings.think else {}
        other_name = {"answered_as": self._answered_as} if self._answered_as not in (None, self._model) else {}
        return {
            "backend": "openai",
            "model": self._model,
            "digest": None,
            "server_version": None,
            "options": {
                "base_url": self._server.url,
                "temperature": self._settings.temperature,
                "seed": self._seed,
                "max_completion_tokens": self._settings.max_new_tokens,
                "response_format": "json_schema" if self._takes_schema else None,
                **think,
                **other_name,
            },
        }

    def reseed(self, seed: int | None) -> None:
        """Ask with another seed from now on."""
        self._seed = seed

    async def close(self) -> None:
        """Close the connections."""
        await self._server.aclose()

    async def check(self) -> None:
        """Check all that `prepare` does; nothing is loaded for it.

        Raises:
            JudgeUnavailable: The server does not answer, or has no such model, or several and none was named.
        """
        await self.prepare()

    async def prepare(self) -> None:
        """Check that the server answers, settle the model, and find out whether it takes a JSON schema.

        Raises:
            JudgeUnavailable: It does not answer, or has no such model, or several and none was named.
        """
        try:
            # No retries: somebody who mistyped the address should not wait for them.
            models = [model.id for model in (await self._server.call("models", _Models, retry=False)).data]
        except NoAnswer as error:
            raise JudgeUnavailable(
                f"No server answers at {self._server.url} ({error}). Start it, or name another with `--base-url` (it "
                "mostly ends in /v1)."
            ) from error
        except Redirected as error:
            raise self._useless(error) from error
        except ServerError as error:
            if error.status == 401:
                raise self._refused(error) from error
            # Some servers have no list of models, or one in a form of their own; the first question settles it.
            models = []
        if not self._model:
            self._model = self._only_model(models)
        await self._probe_schema()

    def _only_model(self, models: list[str]) -> str:
        if len(models) == 1:
            logger.info("judging with %s, the only model at %s", models[0], self._server.url)
            return models[0]
        known = f" It has: {', '.join(f'`{name}`' for name in sorted(models)[:8])}." if models else ""
        raise JudgeUnavailable(f"Name the model that {self._server.url} should judge with: `--model NAME`.{known}")

    async def _probe_schema(self) -> None:
        """Ask one small question with a schema, and continue without schemas where the server refuses them."""
        messages = [{"role": "user", "content": 'Reply with {"score": 0}.'}]
        try:
            await self._complete(messages, _SCHEMA_PROBE)
        except NoServer as error:
            raise self._gone(error) from error
        except NoAnswer:
            # Slow, perhaps because it is loading the model; the questions will tell.
            return
        except ServerError as error:
            if error.status is None or error.status == 200:
                raise self._useless(error) from error
            if error.status == 404:
                raise JudgeUnavailable(
                    f"{self._server.url} has no model `{self._model}`, or no chat: {error}. Check `--model` and "
                    "`--base-url`."
                ) from error
            about_schema = any(word in str(error) for word in ("response_format", "schema", "json"))
            if error.status not in (400, 422) or not about_schema:
                raise self._refused(error) from error
            self._takes_schema = False
            logger.warning(
                "%s does not take a JSON schema (%s); replies are read as text, and more of them may be unreadable.",
                self._server.url,
                error,
            )

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question.

        Raises:
            JudgeUnavailable: The server is gone, or no longer has the model.
            JudgeError: The server refuses every question, or answers with another model than before.
        """
        start = time.monotonic()
        failure, final, text = None, False, ""
        try:
            completion = await self._complete(question.messages, question.schema)
            text, failure = self._read(completion)
        except NoServer as error:
            raise self._gone(error) from error
        except ServerError as error:
            failure, final = self._judge_error(error), error.status == 400
        return Reply(text, time.monotonic() - start, failure, final)

    async def _complete(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> _Completion:
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
        self._confirm(completion.model)
        return completion

    def _confirm(self, model: str | None) -> None:
        """Make sure that a reply names the model that the replies before it did.

        Not compared is `system_fingerprint`: OpenAI's changes with how the same model is served, many times a day.

        Raises:
            JudgeError: It names another.
        """
        self._answered_as = self._answered_as or model
        if model and model != self._answered_as:
            raise JudgeError(
                f"{self._server.url} answered as `{shorten(self._answered_as)}` before and now as `{shorten(model)}`, "
                "so the scores would be those of two judges. Name one of them with `--model`, and judge again."
            )

    def _read(self, completion: _Completion) -> tuple[str, str | None]:
        """Return the text of a completion, and why it is no whole reply."""
        if not completion.choices:
            return "", "the server's completion has no choices"
        message = completion.choices[0].message
        text = message.content or ""
        if message.refusal:
            return text, f"the judge refused: {shorten(message.refusal)}"
        thinking = message.reasoning_content or message.reasoning
        is_cut = completion.choices[0].finish_reason == "length"
        return text, find_cut(text, thinking, is_cut=is_cut, settings=self._settings)

    def _judge_error(self, error: ServerError) -> str:
        """Return what was wrong with one question, or raise what will be wrong with every one."""
        if error.status is None:
            return str(error)
        # Too long a question is one response's problem; anything else would be wrong with all of them.
        if error.status == 400 and any(word in str(error) for word in ("context", "too long", "maximum")):
            return f"the server refuses the question: {error} (status 400)"
        if error.status in (400, 401, 403, 404):
            raise self._refused(error)
        return f"the server failed: {error} (status {error.status})"

    def _gone(self, error: ServerError) -> JudgeUnavailable:
        return JudgeUnavailable(f"The server at {self._server.url} no longer answers ({error}).")

    def _useless(self, error: ServerError) -> JudgeUnavailable:
        return JudgeUnavailable(
            f"What answers at {self._server.url} is not an OpenAI-compatible server ({error}). Name the address of one "
            "with `--base-url` (it mostly ends in /v1)."
        )

    def _refused(self, error: ServerError) -> JudgeError:
        return JudgeError(
            f"{self._server.url} refuses the question for the model `{self._model}`: {error} (status {error.status})."
            f"{advise_on_refusal(str(error))}"
        )
