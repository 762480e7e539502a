"""Get answers from an OpenAI-compatible server: vLLM, llama.cpp, Ollama's `/v1`, or OpenAI."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hf_instruct.config import GenerateSection
from hf_instruct.console import redact
from hf_instruct.errors import ConfigError, InstructError, RunError, quote_names
from hf_instruct.generation.answers import answer_to_file, build_response, build_seed
from hf_instruct.prompts import CHAT, PromptFormat, build_prompt_messages
from hf_instruct.records import Example, recover_rows, write_rows
from hf_instruct.schema import Response
from hf_instruct.servers import Body, NoServer, Server, ServerError, run_sync

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A request may be queued, and a long answer takes minutes.
_TIMEOUT_SECONDS = 600.0
_RETRIES = 3
# Sampling settings that vLLM and llama.cpp support under the names of `GenerationConfig`.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
# Values that mean that a setting is off.
_OFF = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "typical_p": 1.0, "do_sample": False}


class _Message(Body):
    content: str | None = None


class _Choice(Body):
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None


class _Usage(Body):
    completion_tokens: int | None = None


class _Completion(Body):
    choices: list[_Choice]
    usage: _Usage | None = None


def build_completion_prompts(
    examples: Sequence[Example], prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase"
) -> list[dict[str, Any]]:
    """Return the prompt of each example as text for `/v1/completions`, without the server's BOS token.

    Conversations, and texts in which a user wrote a special token, are sent as token ids, which a server cannot
    interpret differently.
    """
    adds_begin = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    prompts: list[dict[str, Any]] = []
    for example, ids in zip(examples, prompt_format.encode_prompts(tokenizer, examples), strict=True):
        texts = (example.prompt or "", example.instruction, example.input)
        if example.messages or prompt_format.find_special_tokens(tokenizer, *texts):
            prompts.append({"prompt": ids})
            continue
        text = example.prompt or prompt_format.format_prompt(*texts[1:], tokenizer=tokenizer)
        if prompt_format.name == CHAT and adds_begin:
            text = text.removeprefix(str(tokenizer.bos_token))
        prompts.append({"prompt": text})
    return prompts


def check_endpoint(section: GenerateSection) -> None:
    """Check that servers support the settings.

    Raises:
        ConfigError: They do not, or `generate.model` is missing; all problems are listed.
    """
    supported = {*GenerateSection.model_fields, *_SAMPLING}
    refused = [
        f"`generate.{name}` is {value!r}; leave it out"
        for name, value in section.model_dump().items()
        if name not in supported and value is not None and value != _OFF.get(name)
    ]
    if not section.model:
        refused.append("`generate.model` is not set; set the name of the server's model with `--generate.model NAME`")
    if refused:
        raise ConfigError(f"A server does not support these settings (it supports {', '.join(_SAMPLING)}):", refused)


def answer_at_endpoint(
    section: GenerateSection,
    examples: Sequence[Example],
    prompts: Sequence[Mapping[str, Any]],
    *,
    on_response: Callable[[Response], None],
) -> None:
    """Answer examples with a server, several at a time; the key comes from OPENAI_API_KEY.

    Args:
        section: The `generate` section, with `endpoint`, `model` and settings.
        examples: The examples to answer.
        prompts: For each example, `prompt` for `/v1/completions` or `messages` for `/v1/chat/completions`.
        on_response: Called with each response as it arrives.

    Raises:
        ConfigError: The address or a setting is not usable.
        InstructError: The server does not answer, or refuses an example; `on_response` got all earlier responses.
    """
    check_endpoint(section)
    run_sync(_answer(section, list(zip(examples, prompts, strict=True)), on_response))


async def _answer(
    section: GenerateSection,
    requests: Sequence[tuple[Example, Mapping[str, Any]]],
    on_response: Callable[[Response], None],
) -> None:
    url = str(section.endpoint).rstrip("/")
    url += "" if urlsplit(url).path else "/v1"
    server = Server(
        url,
        key=os.environ.get("OPENAI_API_KEY"),
        where=f"The endpoint `{redact(url)}`",
        timeout_seconds=_TIMEOUT_SECONDS,
        retries=_RETRIES,
    )
    waiting = iter(requests)

    async def work() -> None:
        # All workers share one iterator, so that a slow answer does not delay others.
        for example, prompt in waiting:
            on_response(await _ask(server, section, example, prompt))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(section.concurrency, len(requests))):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        await server.aclose()


async def _ask(server: Server, section: GenerateSection, example: Example, prompt: Mapping[str, Any]) -> Response:
    is_chat = "messages" in prompt
    settings: dict[str, Any] = {"temperature": 0}
    if section.do_sample:
        values = section.model_dump()
        settings = {name: values[name] for name in _SAMPLING if values.get(name) is not None}
        settings["seed"] = build_seed(section.seed, example) % 2**31
    limit = "max_completion_tokens" if is_chat else "max_tokens"
    body = {"model": section.model, **prompt, limit: section.max_new_tokens, **settings}
    try:
        completion = await server.call("chat/completions" if is_chat else "completions", _Completion, body)
        if not completion.choices:
            raise ServerError("the answer has no choices")
    except NoServer as error:
        raise InstructError(
            f"No server answers at {server.url} ({error}). Start it, or use another one with `--generate.endpoint`."
        ) from error
    except ServerError as error:
        status = f" (status {error.status})" if error.status else ""
        raise InstructError(f"{server.url} did not answer example `{example.id}`: {error}{status}.") from error
    choice = completion.choices[0]
    text = choice.text if choice.message is None else choice.message.content
    ended = {"stop": True, "length": False}
    return build_response(
        example,
        response=(text or "").strip(),
        stopped=ended.get(choice.finish_reason or ""),
        num_tokens=completion.usage.completion_tokens if completion.usage else None,
    )


def answer_source(section: GenerateSection, examples: Sequence[Example], path: Path, *, force: bool = False) -> None:
    """Answer examples with a server's chat model, and write a file of responses; existing rows are kept.

    Args:
        section: The `generate` section, with `endpoint`, `model`, `limit` and settings.
        examples: The examples to answer.
        path: The file; in the order of the examples when complete.
        force: Delete existing responses and answer all examples again.

    Raises:
        ConfigError: A setting is not usable.
        RunError: The file contains another model's answers.
        InstructError: The server does not answer, or refuses an example.
    """
    check_endpoint(section)
    if force:
        path.unlink(missing_ok=True)
    if others := {row.model for row in recover_rows(path, Response)} - {str(section.model)}:
        raise RunError(
            f"`{path}` contains answers of {quote_names(sorted(others))}, not of `{section.model}`. Use another file "
            "with `--out`, or delete these answers with `--force`."
        )

    def answer(waiting: list[Example], keep: Callable[[list[Response]], None]) -> None:
        prompts = [{"messages": build_prompt_messages(example)} for example in waiting]
        answer_at_endpoint(section, waiting, prompts, on_response=lambda row: keep([row]))

    model = str(section.model)
    answer_to_file(path, examples[: section.limit], answer, title=f"Answering, {model}", model=model)
    rows = {row.id: row for row in recover_rows(path, Response)}
    write_rows(path, [rows[example.id] for example in examples if example.id in rows])
