"""A model for Ollama: its Modelfile, and Ollama's command line."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
from typing import Any

from hf_instruct.console import clean_message
from hf_instruct.errors import PublishError
from hf_instruct.hub.templates import PromptShape, build_go_template
from hf_instruct.prompts import CHAT

# A longer window takes memory for every user of the server; who needs it sets `num_ctx` higher.
_LARGEST_WINDOW = 4096
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
        context: Most tokens the model can attend to; None if it does not say.

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
        note += "\n# This prompt format differs if there is an input: put the input into the instruction."
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
            f"`--create {name}` is not a valid name for an Ollama model. It should look like `my-model`, "
            "`my-model:q8` or `me/my-model:q8`: letters, digits, `.`, `_` and `-`, up to 80 of them."
        )


def run_ollama(*arguments: str, base_url: str | None = None, shown: bool = True) -> None:
    """Run Ollama's own command.

    Args:
        arguments: What follows `ollama`.
        base_url: The server's address; OLLAMA_HOST, else this machine, by default.
        shown: Whether it shows its progress, on standard error.

    Raises:
        PublishError: It is not installed, or fails: no server answers, or it refuses.
    """
    command = shlex.join(["ollama", *arguments])
    program = shutil.which("ollama")
    if program is None:
        raise PublishError(
            f"`{command}` cannot run, because `ollama` is not on the PATH. Install it from https://ollama.com."
        )
    address = {"OLLAMA_HOST": base_url} if base_url else {}
    # Standard output is for results.
    output = 2 if shown else subprocess.PIPE
    done = subprocess.run([program, *arguments], stdout=output, stderr=output, text=True, env={**os.environ, **address})
    if done.returncode:
        said = "see its output above" if shown else clean_message(done.stderr).strip()
        raise PublishError(
            f"`{command}` failed ({said}). Check that the server is running; start it with `ollama serve`."
        )
