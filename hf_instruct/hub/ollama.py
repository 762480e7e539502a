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
_LARGEST_WINDOW = 4096
_ANSWER_SECONDS = 10.0
_CHUNK = 1 << 20
# Source: https://github.com/ollama/ollama, `types/model/name.go`.
_NAME = re.compile(r"(?:(?:[\w.-]+(?::\d+)?/)?[\w][\w-]{0,79}/)?[\w][\w.-]{0,79}(?::[\w][\w.-]{0,79})?", re.ASCII)


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
        """Return the text of the file, for the GGUF of a name beside it."""
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

    Raises:
        PublishError: The prompt cannot be written as a template of Go's.
    """
    parameters = {
        "temperature": 0,
        "num_ctx": min(context or _LARGEST_WINDOW, _LARGEST_WINDOW),
        # 1.1 before Ollama 0.32.10, which changes greedy answers.
        "repeat_penalty": 1.0,
        "stop": find_stop_words(shape),
    }
    note = f"# The TEMPLATE is the prompt that the model was trained on, `{shape.name}`."
    if shape.joint is None:
        note += "\n# This prompt format says other words when there is an input: put it into the instruction's text."
    elif shape.name != CHAT:
        joined = json.dumps(f"INSTRUCTION{shape.joint}INPUT", ensure_ascii=False)
        note += f"\n# An instruction with an input, as it was in training: {joined}"
    return Modelfile(build_go_template(shape), shape.default_system, parameters, note)


def find_stop_words(shape: PromptShape) -> list[str]:
    """Return the texts that no answer holds: the end of one, and the heading of the next question."""
    words = [shape.answer_end.strip()]
    lines = [line.strip() for line in (shape.head + shape.system_before + shape.before).splitlines() if line.strip()]
    # A line of prose could stand in an answer; a heading or a special token does not.
    if lines and lines[-1].startswith(("#", "<", "[")):
        words.append(lines[-1])
    return [word for word in dict.fromkeys(words) if word]


def check_name(name: str) -> None:
    """Raise `PublishError` for a model's name that Ollama would refuse."""
    if not _NAME.fullmatch(name):
        raise PublishError(
            f"`--create {name}` is not a name for an Ollama model. It looks like `my-model`, `my-model:q8` or "
            "`me/my-model:q8`: letters, digits, `.`, `_` and `-`, up to 80 of them."
        )


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
        self.url = shown_url(self._http.base_url)

    def check(self) -> str:
        """Return the server's version.

        Raises:
            PublishError: No Ollama answers.
        """
        with self._translated("asked for its version"):
            return read_answer(self._http.get("/api/version", timeout=_ANSWER_SECONDS), _Version).version

    def create(
        self, name: str, modelfile: Modelfile, weights: Path, *, on_status: Callable[[str], None] = lambda status: None
    ) -> None:
        """Upload a GGUF, unless the server has it, and create a model from it; one of the same name is replaced.

        Args:
            name: What to call it.
            modelfile: Its template and options.
            weights: The GGUF.
            on_status: Called with each step that the server tells of.

        Raises:
            PublishError: The server is gone, refuses it, or breaks off.
        """
        body: dict[str, Any] = {
            "model": name,
            "files": {"model.gguf": self._upload(weights)},
            "template": modelfile.template,
            "parameters": modelfile.parameters,
            **({"system": modelfile.system} if modelfile.system else {}),
        }
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
            raise PublishError(f"Ollama at {self.url} broke off after `{status}` while it created `{name}`. Try again.")

    def _upload(self, path: Path) -> str:
        with path.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            file.seek(0)
            with self._translated(f"given `{path.name}`"):
                if self._http.head(f"/api/blobs/{digest}").status_code != httpx.codes.OK:
                    size = {"Content-Length": str(path.stat().st_size)}
                    chunks = iter(lambda: file.read(_CHUNK), b"")
                    check_status(self._http.post(f"/api/blobs/{digest}", content=chunks, headers=size))
        return digest

    @contextlib.contextmanager
    def _translated(self, asked: str) -> Iterator[None]:
        try:
            yield
        except ServerError as error:
            said = "which is not Ollama's answer" if error.status is None else f"status {error.status}"
            raise PublishError(f"What answers at {self.url}, {asked}, said: {error} ({said}).") from error
        except (httpx.HTTPError, OSError) as error:
            raise PublishError(
                f"No Ollama server answers at {self.url} ({str(error) or type(error).__name__}). Start it with "
                "`ollama serve`, or name another with `--base-url` or OLLAMA_HOST."
            ) from error
