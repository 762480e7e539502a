"""Read a score or a preference out of a judge's reply, or say why it cannot be read. Text in, number out."""

import json
import re
from typing import Any, NamedTuple

from hf_instruct.errors import VerdictError
from hf_instruct.judging.rubrics import Rubric

_SHOWN_CHARACTERS = 80
# What models put around a number: Markdown, quotes.
_MARKUP = re.compile(r"[*_`\"'#>]+")
_THINKING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL | re.IGNORECASE)
# Any number in any script: `\d` also matches digits such as those of Arabic, which no accepted form has.
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WHOLE = r"(?P<number>[0-9]{1,9})(?:\.0{1,9})?"
_PREFERENCE = re.compile(
    r"(?:(?:better|verdict)\s*(?:is|:)?\s*)?(?:answer\s+)?\[{0,2}(?P<better>a|b|tie)\]{0,2}(?:\s+is\s+better)?\s*\.?",
    re.IGNORECASE,
)


class Verdict(NamedTuple):
    """What a judge decided.

    Attributes:
        score: Integer from 0 to 100.
        reasons: The judge's reasons, where it gave any.
    """

    score: int
    reasons: str | None = None


def parse_verdict(text: str, rubric: Rubric) -> Verdict:
    """Return the verdict in a judge's reply.

    Accepted are a JSON object with `score`, the number alone, `Score: 85`, `85/100` and `85 out of 100`, with or
    without Markdown around them. Other numbers in the reply are tolerated only among the reasons that a rubric asks
    for; otherwise nobody could say which of them is the score.

    Args:
        text: The whole reply.
        rubric: Says which integers are allowed, and what score each stands for.

    Raises:
        VerdictError: The reply holds no score, more than one, or one that is not an allowed integer.

    >>> rubric = Rubric("course", "")
    >>> [parse_verdict(text, rubric).score for text in ('{"score": 85}', "85", "Score: 85", "85/100", "**85**", "85.0")]
    [85, 85, 85, 85, 85, 85]
    >>> parse_verdict("85 or 90", rubric)
    Traceback (most recent call last):
    hf_instruct.errors.VerdictError: The reply '85 or 90' holds more than one number.
    >>> parse_verdict("101", rubric)
    Traceback (most recent call last):
    hf_instruct.errors.VerdictError: The reply '101' gives 101; allowed are the integers from 0 to 100.
    """
    text = _strip(text)
    if text.startswith("{"):
        return _parse_json(text, rubric)
    return _parse_prose(text, rubric)


def parse_preference(text: str) -> float:
    """Return what a judge prefers: 1 for the answer it knows as A, 0 for B, 0.5 for a tie.

    Accepted are a JSON object with `better`, and `A`, `B` or `tie` alone, also as in `Answer A` or `[[A]]`.

    Args:
        text: The whole reply.

    Raises:
        VerdictError: The reply names none of the three, or more than that.

    >>> [parse_preference(text) for text in ('{"better": "A"}', "B", "**Tie**", "Better: answer B.", "[[A]]")]
    [1.0, 0.0, 0.5, 0.0, 1.0]
    >>> parse_preference("A, or perhaps B")
    Traceback (most recent call last):
    hf_instruct.errors.VerdictError: The reply 'A, or perhaps B' is none of A, B and tie.
    """
    text = _strip(text)
    plain: Any = _MARKUP.sub("", text)
    if text.startswith("{"):
        value = _load_object(text)
        if "better" not in value:
            raise VerdictError(f"The reply {_show(text)} is JSON without `better`.")
        plain = value["better"]
    match = _PREFERENCE.fullmatch(plain.strip()) if isinstance(plain, str) else None
    if match is None:
        raise VerdictError(f"The reply {_show(text)} is none of A, B and tie.")
    return {"a": 1.0, "b": 0.0, "tie": 0.5}[match["better"].lower()]


def _strip(text: str) -> str:
    """Return a reply without its thinking and without the fence of a code block around it.

    Raises:
        VerdictError: Nothing is left.
    """
    text = _THINKING.sub("", text).strip()
    if fenced := _FENCE.match(text):
        text = fenced[1].strip()
    if not text:
        raise VerdictError("The reply is empty.")
    return text


def _load_object(text: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(text, object_pairs_hook=_refuse_repeats)
    # Besides what is not JSON: ValueError for a number of more than 4,300 digits, RecursionError for deep nesting.
    except (ValueError, RecursionError) as error:
        # Never a verdict out of half an object: the reply may have been cut within it.
        raise VerdictError(f"The reply {_show(text)} begins like JSON and is not JSON.") from error
    return value


def _parse_json(text: str, rubric: Rubric) -> Verdict:
    value = _load_object(text)
    if "score" not in value:
        raise VerdictError(f"The reply {_show(text)} is JSON without `score`.")
    number = value["score"]
    if isinstance(number, str) and (match := re.fullmatch(_WHOLE, number.strip())):
        number = int(match["number"])
    # NaN and infinity are no integers either, and neither is True, although Python counts it among them.
    if isinstance(number, bool) or not isinstance(number, int | float) or number != number or abs(number) > 1e9:
        raise VerdictError(f"The reply {_show(text)} gives a `score` that is not an integer.")
    if number != int(number):
        raise VerdictError(f"The reply {_show(text)} gives {number}, which is not an integer.")
    reasons = value.get("reasons")
    return _build_verdict(int(number), text, rubric, reasons if isinstance(reasons, str) and reasons.strip() else None)


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _parse_prose(text: str, rubric: Rubric) -> Verdict:
    plain = _MARKUP.sub("", text).strip()
    share = rf"(?:\s*/\s*{rubric.highest}|\s+out\s+of\s+{rubric.highest})"
    alone = re.fullmatch(rf"(?:(?:final\s+)?score\s*(?:is|[:=])?\s*)?{_WHOLE}{share}?\s*\.?", plain, re.IGNORECASE)
    if alone:
        return _build_verdict(int(alone["number"]), text, rubric, None)
    # With other numbers around, a label counts only where the line ends behind it: not in "Score: 80 to 90".
    end = r"\s*\.?\s*$" if rubric.reasons else r"(?![\w%]|[.,/-]\d|\s*/|\s+out\s+of\s+\d)"
    labelled = re.compile(rf"\bscore\s*(?:is|[:=])\s*{_WHOLE}{share}?{end}", re.IGNORECASE | re.MULTILINE)
    numbers = {int(match["number"]) for match in labelled.finditer(plain)}
    rest = labelled.sub(" ", plain)
    if len(numbers) == 1 and (rubric.reasons or not _NUMBER.search(rest)):
        reasons = re.sub(r"^\s*reasons?\s*:\s*", "", rest, flags=re.IGNORECASE).strip() if rubric.reasons else None
        return _build_verdict(numbers.pop(), text, rubric, reasons or None)
    amount = len(_NUMBER.findall(plain))
    what = "no number" if amount == 0 else "more than one number" if amount > 1 else "a number, but not as the score"
    raise VerdictError(f"The reply {_show(text)} holds {what}.")


def _build_verdict(number: int, text: str, rubric: Rubric, reasons: str | None) -> Verdict:
    if not rubric.lowest <= number <= rubric.highest:
        raise VerdictError(
            f"The reply {_show(text)} gives {number}; "
            f"allowed are the integers from {rubric.lowest} to {rubric.highest}."
        )
    return Verdict(rubric.score_of(number), reasons)


def _show(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
