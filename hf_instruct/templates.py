"""Render users' Jinja templates in a sandbox, and turn every failure into one sentence."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Environment, Template

# No prompt is nearly as long; this only keeps a template from filling the machine's memory.
_MAX_CHARACTERS = 100_000_000
_MAX_POWER_BITS = 100_000


@dataclasses.dataclass(frozen=True)
class UserTemplate:
    """A template that may come from somebody else.

    Attributes:
        name: Its name in error messages, as in "`prompt` of the rubric `mine.yaml`".
        source: Jinja source.
        keep_trailing_newline: Whether a newline at the very end of the source is part of the text.
    """

    name: str
    source: str
    keep_trailing_newline: bool = False

    def render(self, values: Mapping[str, Any], *, row: str | None = None) -> str:
        """Return the text for the given values.

        Args:
            values: The template's variables.
            row: Id of the example that the values come from, for the error.

        Raises:
            ConfigError: The template cannot be compiled, or fails on these values.

        >>> UserTemplate("`prompt`", "{{ 6 // length }}").render({"length": 0}, row="a1")
        Traceback (most recent call last):
        hf_instruct.errors.ConfigError: `prompt` is not a usable Jinja template for the example `a1`: integer division \
or modulo by zero.
        """
        place = f" for the example `{row}`" if row is not None else ""
        with translated_template_errors(f"{self.name} is not a usable Jinja template{place}"):
            return self._write(values)

    @functools.cached_property
    def _compiled(self) -> "Template":
        return _build_sandbox(self.keep_trailing_newline).from_string(self.source)

    def _write(self, values: Mapping[str, Any]) -> str:
        parts, length = [], 0
        for part in self._compiled.generate(values):
            parts.append(part)
            length += len(part)
            if length > _MAX_CHARACTERS:
                raise MemoryError
        return "".join(parts)


@contextlib.contextmanager
def translated_template_errors(problem: str) -> Iterator[None]:
    """Turn any error of a template into one sentence.

    Args:
        problem: The sentence up to the reason.

    Raises:
        ConfigError: The template failed.
    """
    from jinja2 import TemplateError

    try:
        yield
    # A template may raise any error of Python's operators and methods. It is compiled to Python, so Python's compiler
    # may also refuse it. RecursionError is a RuntimeError.
    except (
        *(TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError),
        *(RuntimeError, SyntaxError, TypeError, ValueError),
    ) as error:
        raise ConfigError(f"{problem}: {_describe(error)}.") from error


@functools.cache
def _build_sandbox(keep_trailing_newline: bool) -> "Environment":
    from jinja2 import DictLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        # Jinja evaluates constants when it compiles, except with intercepted operators.
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            # `'x' * 10**10` would fill the memory, and `10**10**10` would never finish.
            texts = [len(value) for value in (left, right) if hasattr(value, "__len__")]
            numbers = [value for value in (left, right) if isinstance(value, int)]
            if operator == "*" and texts and numbers and texts[0] * numbers[0] > _MAX_CHARACTERS:
                raise MemoryError
            if operator == "**" and len(numbers) == 2 and left.bit_length() * right > _MAX_POWER_BITS:
                raise MemoryError
            return super().call_binop(context, operator, left, right)

    # With an empty loader, a template that includes a file fails with the name of that file.
    return Sandbox(keep_trailing_newline=keep_trailing_newline, undefined=StrictUndefined, loader=DictLoader({}))


def _describe(error: Exception) -> str:
    from jinja2 import TemplateNotFound, TemplateSyntaxError

    match error:
        case RecursionError():
            return "it is nested too deeply, or recurses endlessly"
        case MemoryError():
            return "it needs too much memory for a prompt"
        case TemplateNotFound():
            return f"it includes the file `{error.name}`, but a template must be self-contained"
        case TemplateSyntaxError():
            return f"{str(error.message).rstrip('.')} (line {error.lineno})"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
