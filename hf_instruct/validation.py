"""Describe pydantic's problems with a file or settings in sentences that name the field and the value seen."""

from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hf_instruct.errors import did_you_mean, quote_names

# Maximum number of characters of a wrong value in a message.
_LONGEST_SHOWN = 200


def describe_unknown(dotted: str, allowed: Iterable[str]) -> str:
    """Return the message for an unknown field, with the nearest known one."""
    allowed = sorted(allowed)
    listed = f" Choose from {quote_names(allowed)}." if len(allowed) <= 20 else ""
    return f"`{dotted}` is unknown.{did_you_mean(dotted.rpartition('.')[2], allowed) or listed}"


def format_problems(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return a text for each of pydantic's problems with a model's fields; `prefix` is put before their names."""
    problems = []
    for problem in error.errors():
        location = [part for part in problem["loc"] if part not in ("[key]", "[one]", "[several]")]
        dotted = prefix + ".".join(map(str, location))
        if problem["type"] == "extra_forbidden":
            owner: Any = model
            for part in location[:-1]:
                owner = owner if isinstance(part, int) else _find_model(owner.model_fields[part].annotation)
            text = describe_unknown(dotted, owner.model_fields)
        elif problem["type"] == "missing":
            text = f"`{dotted}` is missing"
        elif problem["type"] == "value_error":
            text = f"`{dotted}` {problem['ctx']['error']}" if dotted else str(problem["ctx"]["error"])
        else:
            seen = repr(problem["input"])
            seen = seen if len(seen) <= _LONGEST_SHOWN else f"{seen[:_LONGEST_SHOWN]}…"
            text = f"`{dotted}` is {seen}; {_word(problem)}"
        problems.append(text)
    return problems


def _word(problem: ErrorDetails) -> str:
    """Return the message of a problem in the words of this project's messages."""
    if problem["type"] == "model_type":
        return "it must be a section, with its fields below it"
    text = describe_syntax(problem["msg"]).removeprefix("Value error, ")
    text = text.replace("Input should be", "it must be").replace("a valid dictionary", "a mapping")
    return text[0].lower() + text[1:]


def _find_model(annotation: Any) -> Any:
    """Return the first model in an annotation, such as that of a list's items, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_find_model, get_args(annotation))), None)


def describe_problem(error: ValidationError, index: int = 0) -> str:
    """Return one of pydantic's problems, by default the first, as a clause that names the field."""
    problem = error.errors(include_url=False)[index]
    # Names in the file may be long and contain anything.
    place = " ".join(".".join(map(str, problem["loc"])).split())[:80]
    text = _word(problem).removeprefix("invalid JSON: ")
    return f"`{place}`: {text}" if place else text


def describe_syntax(message: str) -> str:
    """Return a message of pydantic's JSON parser about a text of one line in plain words."""
    return message.replace("recursion limit exceeded", "nested too deeply").replace(" at line 1 column", " at column")
