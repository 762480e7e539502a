"""A judge behind any server that speaks OpenAI's chat API: vLLM, llama.cpp, LM Studio, `transformers serve`, OpenAI."""

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hf_instruct.addresses import is_loopback
from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeError, JudgeUnavailable
from hf_instruct.judging.judges import Reply, shorten
from hf_instruct.judging.rubrics import Question
from hf_instruct.run_folder import redact

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

logger = logging.getLogger(__name__)

_SCHEMA_PROBE = {
    "type": "object",
    "properties": {"score": {"type": "integer"}},
    "required": ["score"],
    "additionalProperties": False,
}


class OpenAIJudge:
    """A model behind `/v1/chat/completions`.

    Args:
        settings: Model, address, options, timeout, retries. The key comes from OPENAI_API_KEY and is written nowhere.
    """

    def __init__(self, settings: JudgeSection) -> None:
        try:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient
        except ImportError as error:
            raise JudgeError(
                "`--judge openai` needs the `openai` package; install it with `pip install 'hf-instruct[openai]'`."
            ) from error
        self._settings = settings
        self._model = settings.model or ""
        self._seed = settings.seed
        self._takes_schema = True
        base_url = settings.base_url or os.environ.get("OPENAI_BASE_URL") or None
        key = os.environ.get("OPENAI_API_KEY") or ("EMPTY" if base_url else "")
        if not key:
            raise JudgeUnavailable(
                "OPENAI_API_KEY is not set. Set it to a key of OpenAI, or name a server of your own with `--base-url`."
            )
        try:
            # The client below would find out only when it connects, in a group of errors.
            urlsplit(base_url or "").port  # noqa: B018
        except ValueError as error:
            raise JudgeUnavailable(
                f"The judge's address {redact(base_url)} is not usable: {error}. It looks like "
                "http://127.0.0.1:8000/v1."
            ) from error
        self._client: AsyncOpenAI = AsyncOpenAI(
            api_key=key,
            base_url=base_url,
            max_retries=settings.retries,
            timeout=settings.timeout_seconds,
            # A proxy named in the environment would be asked for this machine's own server.
            http_client=DefaultAsyncHttpxClient(trust_env=False) if is_loopback(base_url or "") else None,
        )

    @property
    def _url(self) -> str:
        # An address may carry a user and a password.
        return str(self._client.base_url.copy_with(userinfo=b"")).rstrip("/")

    def identity(self) -> dict[str, Any]:
        """Return model, address and options; such a server tells neither digest nor version."""
        return {
            "backend": "openai",
            "model": self._model,
            "digest": None,
            "server_version": None,
            "options": {
                "base_url": self._url,
                "temperature": self._settings.temperature,
                "seed": self._seed,
                "max_completion_tokens": self._settings.max_new_tokens,
                "response_format": "json_schema" if self._takes_schema else None,
            },
        }

    def reseed(self, seed: int) -> None:
        """Ask with another seed from now on."""
        self._seed = seed

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

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
        import openai

        try:
            # No retries: somebody who mistyped the address should not wait for them.
            models = [model.id async for model in self._client.with_options(max_retries=0).models.list()]
        except openai.APIConnectionError as error:
            raise JudgeUnavailable(
                f"No server answers at {self._url} ({shorten(error.__cause__ or error)}). Start it, or name another "
                "with `--base-url` (it mostly ends in /v1)."
            ) from error
        except openai.AuthenticationError as error:
            raise self._refused(error) from error
        # Some servers have no list of models, or one in a form of their own; the first question settles it.
        except (openai.APIError, AttributeError, TypeError, ValueError):
            models = []
        if not self._model:
            self._model = self._only_model(models)
        await self._probe_schema()

    def _only_model(self, models: list[str]) -> str:
        if len(models) == 1:
            logger.info("judging with %s, the only model at %s", models[0], self._url)
            return models[0]
        known = f" It has: {', '.join(f'`{name}`' for name in sorted(models)[:8])}." if models else ""
        raise JudgeUnavailable(f"Name the model that {self._url} should judge with: `--model NAME`.{known}")

    async def _probe_schema(self) -> None:
        """Ask one small question with a schema, and go on without schemas where the server refuses them, saying so."""
        import openai

        messages = [{"role": "user", "content": 'Reply with {"score": 0}.'}]
        try:
            await self._complete(messages, _SCHEMA_PROBE)
        except (TimeoutError, openai.APITimeoutError):
            # Slow, perhaps because it is loading the model; the questions will tell.
            return
        except openai.NotFoundError as error:
            raise JudgeUnavailable(
                f"{self._url} has no model `{self._model}`, or no chat: {shorten(error)}. Check `--model` and "
                "`--base-url`."
            ) from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if not any(word in str(error) for word in ("response_format", "schema", "json")):
                raise self._refused(error) from error
            self._takes_schema = False
            logger.warning(
                "%s does not take a JSON schema (%s); replies are read as text, and more of them may be unreadable.",
                self._url,
                shorten(error),
            )
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APIError as error:
            raise JudgeUnavailable(f"{self._url} does not answer a chat: {shorten(error)}.") from error

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question.

        Raises:
            JudgeUnavailable: The server is gone, or no longer has the model.
            JudgeError: The server refuses every question.
        """
        import openai

        start = time.monotonic()
        failure, final, text = None, False, ""
        try:
            completion = await self._complete(question.messages, question.schema)
            text, failure = self._read(completion)
        except (TimeoutError, openai.APITimeoutError):
            failure = f"no reply within {self._settings.timeout_seconds:g} s"
        except openai.APIConnectionError as error:
            raise JudgeUnavailable(
                f"The server at {self._url} no longer answers ({shorten(error.__cause__ or error)})."
            ) from error
        except openai.BadRequestError as error:
            # Too long a question is one response's fault; anything else would be wrong with all of them.
            if not any(word in str(error) for word in ("context", "too long", "maximum")):
                raise self._refused(error) from error
            failure, final = f"the server refuses the question: {shorten(error)}", True
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise self._refused(error) from error
        except openai.APIError as error:
            failure = f"the server failed: {shorten(error)}"
        except ValueError as error:
            failure = f"the server's answer is not JSON: {shorten(error)}"
        return Reply(text, time.monotonic() - start, failure, final)

    async def _complete(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> "ChatCompletion":
        extra: dict[str, Any] = {}
        if self._takes_schema:
            form = {"name": "verdict", "schema": schema, "strict": True}
            extra["response_format"] = {"type": "json_schema", "json_schema": form}
        # The client would try again after a timeout, and wait as long each time; the judging loop asks once more.
        async with asyncio.timeout(self._settings.timeout_seconds):
            completion: ChatCompletion = await self._client.chat.completions.create(
                model=self._model,
                messages=messages,  # type: ignore[arg-type]  # the client wants a TypedDict for each role
                temperature=self._settings.temperature,
                seed=self._seed,
                max_completion_tokens=self._settings.max_new_tokens,
                **extra,
            )
        return completion

    def _read(self, completion: "ChatCompletion") -> tuple[str, str | None]:
        """Return the text of a completion, and why it is no whole reply."""
        # The client passes on what it could not read: text (a web page, say), or an object without choices.
        choices = getattr(completion, "choices", None)
        if not choices:
            return "", f"the server's answer is not a chat completion: {shorten(completion)}"
        text = choices[0].message.content or ""
        if choices[0].message.refusal:
            return text, f"the judge refused: {shorten(choices[0].message.refusal)}"
        if choices[0].finish_reason == "length":
            return text, f"the reply was cut at {self._settings.max_new_tokens} tokens (`judge.max_new_tokens`)"
        return text, None

    def _refused(self, error: Exception) -> JudgeError:
        return JudgeError(f"{self._url} refuses the question for the model `{self._model}`: {shorten(error)}.")
