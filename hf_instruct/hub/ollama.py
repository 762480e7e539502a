"""A model for Ollama: its Modelfile, and its upload to a running server."""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from hf_instruct.errors import PublishError
from hf_instruct.hub.templates import PromptShape, build_go_template
from hf_instruct.prompts import CHAT
from hf_instruct.servers import (
    Body,
    ServerError,
    check_status,
    open_ollama,
    parse_body,
    read_answer,
    shorten,
    shown_url,
)

# A longer window takes memory for every user of the server; who needs it sets `num_ctx` higher.
LARGEST_WINDOW = 4096
_ANSWER_SECONDS = 10.0
_CHUNK = 1 << 20
# Source: https://github.com/ollama/ollama, `types/model/name.go`.
_NAME = re.compile(r"(?:(?:[\w.-]+(?::\d+)?/)?[\w][\w-]{0,79}/)?[\w][\w.-]{0,79}(?::[\w][\w.-]{0,79})?", re.ASCII)

_NO_JOINT = "# This prompt format says other words when there is an input: put it into the instruction's text."


@dataclasses.dataclass(frozen=True)
class Modelfile:
    """What Ollama needs beside the weights.

    Attributes:
        template: The prompt of one turn, in Go's template language.
        system: The system text of a conversation that has none; empty for none.
        parameters: Options that hold unless a request says otherwise.
        note: Comment lines for whoever reads the file.
    """

    template: str
    system: str
    parameters: dict[str, Any]
    note: str

    def format(self, weights: str) -> str:
        """Return the text of the file.

        Args:
            weights: Name of the GGUF beside it.
        """
        lines = [self.note, f"FROM ./{weights}", f'TEMPLATE """{self.template}"""']
        if self.system:
            lines.append(f'SYSTEM """{self.system}"""')
        for name, value in self.parameters.items():
            for one in value if isinstance(value, list) else [value]:
                lines.append(f"PARAMETER {name} {json.dumps(one, ensure_ascii=False)}")
        return "\n".join(lines) + "\n"


def build_modelfile(shape: PromptShape, *, context: int | None) -> Modelfile:
    """Return the Modelfile of a model that answers as it was trained: greedily, to the prompt it was trained on.

    Args:
        shape: The training prompt.
        context: Most tokens the model can attend to; None where it does not say.
    """
    parameters = {
        "temperature": 0,
        "num_ctx": min(context or LARGEST_WINDOW, LARGEST_WINDOW),
        # 1.1 before Ollama 0.32.10, which changes greedy answers.
        "repeat_penalty": 1.0,
        "stop": find_stop_words(shape),
    }
    return Modelfile(build_go_template(shape), shape.default_system, parameters, _write_note(shape))


def find_stop_words(shape: PromptShape) -> list[str]:
    """Return the texts that no answer holds: the end of one, and the heading of the next question."""
    words = [shape.answer_end.strip()]
    lines = [line.strip() for line in (shape.head + shape.system_before + shape.before).splitlines() if line.strip()]
    # A line of prose could stand in an answer; a heading or a special token does not.
    if lines and lines[-1].startswith(("#", "<", "[")):
        words.append(lines[-1])
    return [word for word in dict.fromkeys(words) if word]


def _write_note(shape: PromptShape) -> str:
    lines = [f"# The TEMPLATE is the prompt that the model was trained on, `{shape.name}`."]
    if shape.joint is None:
        lines.append(_NO_JOINT)
    elif shape.name != CHAT or shape.joint != "\n":
        joined = json.dumps(f"INSTRUCTION{shape.joint}INPUT", ensure_ascii=False)
        lines.append(f"# An instruction with an input, as it was in training: {joined}")
    return "\n".join(lines)


def check_name(name: str) -> str:
    """Return a model's name.

    Raises:
        PublishError: Ollama would refuse it.
    """
    if not _NAME.fullmatch(name):
        raise PublishError(
            f"`--create {name}` is not a name for an Ollama model. It looks like `my-model`, `my-model:q8` or "
            "`me/my-model:q8`: letters, digits, `.`, `_` and `-`, up to 80 of them."
        )
    return name


class _Version(Body):
    version: str


class _Progress(Body):
    status: str = ""


class OllamaServer:
    """A running Ollama, to put models on.

    Args:
        base_url: Its address; OLLAMA_HOST, else this machine, by default.

    Raises:
        ConfigError: The address is not usable.
    """

    def __init__(self, base_url: str | None = None) -> None:
        self._http = open_ollama(httpx.Client, base_url)
        self.url = shown_url(self._http)

    def check(self) -> str:
        """Return the server's version.

        Raises:
            PublishError: No Ollama answers.
        """
        with self._translated("asked for its version"):
            return read_answer(self._http.get("/api/version", timeout=_ANSWER_SECONDS), _Version).version

    def upload(self, path: Path) -> str:
        """Put a file on the server, unless it has it, and return its digest.

        Raises:
            PublishError: The server is gone or refuses it.
        """
        hasher = hashlib.sha256()
        for chunk in _read_chunks(path):
            hasher.update(chunk)
        digest = f"sha256:{hasher.hexdigest()}"
        with self._translated(f"given `{path.name}`"):
            if self._http.head(f"/api/blobs/{digest}").status_code != httpx.codes.OK:
                size = {"Content-Length": str(path.stat().st_size)}
                check_status(self._http.post(f"/api/blobs/{digest}", content=_read_chunks(path), headers=size))
        return digest

    def create(
        self, name: str, modelfile: Modelfile, *, digest: str, on_status: Callable[[str], None] = lambda status: None
    ) -> None:
        """Make a model of an uploaded GGUF; one of the same name is replaced.

        Args:
            name: What to call it.
            modelfile: Its template and options.
            digest: From `upload`.
            on_status: Called with each step that the server tells of.

        Raises:
            PublishError: The server refuses it, or breaks off.
        """
        body: dict[str, Any] = {
            "model": check_name(name),
            "files": {"model.gguf": digest},
            "template": modelfile.template,
            "parameters": modelfile.parameters,
        }
        if modelfile.system:
            body["system"] = modelfile.system
        status = ""
        with (
            self._translated(f"asked to create `{name}`"),
            self._http.stream("POST", "/api/create", json=body, extensions={"lines": True}) as answer,
        ):
            if not answer.is_success:
                answer.read()
                check_status(answer)
            for line in answer.iter_lines():
                status = shorten(parse_body(line, _Progress).status)
                on_status(status)
        if status != "success":
            after = f" after `{status}`" if status else ""
            raise PublishError(f"Ollama at {self.url} broke off while it created `{name}`{after}. Try again.")

    @contextlib.contextmanager
    def _translated(self, asked: str) -> Iterator[None]:
        try:
            yield
        except ServerError as error:
            if error.status is None:
                raise PublishError(f"What answers at {self.url}, {asked}, is not Ollama: {error}.") from error
            raise PublishError(f"Ollama at {self.url}, {asked}, answered {error.status}: {error}.") from error
        except (httpx.HTTPError, OSError) as error:
            raise PublishError(
                f"No Ollama server answers at {self.url} ({str(error) or type(error).__name__}). Start it with "
                "`ollama serve`, or name another with `--base-url` or OLLAMA_HOST."
            ) from error


def _read_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
