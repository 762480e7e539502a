"""Parse a score or a preference from a judge's reply.

The same rules apply to scores and preferences:

1. Thinking does not count: everything up to the last `</think>` is ignored, and a reply that ends while still thinking
    has no verdict.
2. The last complete JSON object with the key counts. An object that also occurs in the judged text is a quote, unless
    it is the whole reply.
3. Without such an object, the reply must be the bare value, or contain exactly one value after a label, not counting
    values that the judged text has after the same label.
"""

import json
import re
from typing import Any, NamedTuple

from hf_instruct.errors import VerdictError
from hf_instruct.evaluation.rubrics import Rubric

_SHOWN_CHARACTERS = 80
# Markdown and quotes that models put around a value.
_MARKUP = re.compile(r"[*_`\"'#>]+")
# The tags of Qwen, DeepSeek and Mistral, and gpt-oss's channels, with or without their special tokens.
_THINKING_END = re.compile(
    r"</think(?:ing)?>|\[/THINK\]|<\|channel\|>final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|assistantfinal",
    re.IGNORECASE,
)
_THINKING_START = re.compile(r"<think(?:ing)?>|\[THINK\]|<\|channel\|>(?:analysis|commentary)", re.IGNORECASE)
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)```", re.DOTALL | re.IGNORECASE)
# Other braces are part of prose.
_OBJECT_START = re.compile(r"\{\s*(?:[\"'}]|\w+\s*:)")
# Pairs show keys that occur twice, of which a dict would keep the last. `strict` would reject line breaks in strings.
_DECODER = json.JSONDecoder(object_pairs_hook=list, strict=False)
# ASCII digits only, because `\d` also matches digits of other scripts.
_WHOLE = r"[0-9]{1,9}(?:\.0{1,9})?"
_LETTER = r"(?:answer\s+)?\[{0,2}(?P<value>a|b|tie)\]{0,2}"


class Verdict(NamedTuple):
    """A parsed verdict.

    Attributes:
        score: Integer from 0 to 100; for two answers, 1 for the first, 0 for the second, 0.5 for a tie.
        reasons: The judge's reasons, if it gave any.
    """

    score: float
    reasons: str | None = None


class _Form(NamedTuple):
    """The syntax of a value. The patterns are for text without markup, with a group `value`.

    Attributes:
        key: Its key in JSON, in lower case.
        bare: Pattern of a reply that only consists of the value.
        label: Pattern of a label with the rest of its line.
        value: Pattern of the complete rest of that line, if it is a value.
    """

    key: str
    bare: str
    label: str
    value: str


class _Span(NamedTuple):
    """Start and end of an object in a reply; `fields` is None if it is not JSON, not complete, or repeats a key."""

    start: int
    end: int
    fields: dict[str, Any] | None


_PREFERENCE = _Form(
    key="better",
    bare=rf"(?:(?:better|verdict)\s+)?{_LETTER}(?:\s+is\s+better)?\s*\.?",
    label=r"(?:\b(?:better|verdict)\s*(?:is\b|[:=])\s*|(?=\[\[))(?P<value>\S.*)",
    value=rf"{_LETTER}\s*\.?\s*",
)


def parse_verdict(text: str, rubric: Rubric, judged: str = "") -> Verdict:
    r"""Return the verdict in a judge's reply.

    Accepts a JSON object with `score`, the number alone, and `Score: 85`, `85/100` and `85 out of 100`, with or
    without Markdown around them. A label counts only if no other number follows on its line. A fraction of anything
    but the rubric's highest number, as in `8/10` or `85%`, is never a score.

    Args:
        text: The complete reply.
        rubric: Determines the allowed integers and their scores.
        judged: The response, which the reply may quote.

    Raises:
        VerdictError: The reply contains no score, several scores, or a score that is not allowed.

    >>> from hf_instruct.evaluation.rubrics import load_rubric
    >>> rubric = load_rubric("course")
    >>> [parse_verdict(text, rubric).score for text in ('{"score": 85}', "85", "Score: 85", "85/100", "**85**", "85.0")]
    [85, 85, 85, 85, 85, 85]
    >>> parse_verdict('It claims\nScore: 100\n\n{"reasons": "wrong", "score": 0}', rubric)
    Verdict(score=0, reasons='wrong')
    >>> parse_verdict("It claims\nScore: 100", rubric, judged="Lyon.\nScore: 100")
    Traceback (most recent call last):
    hf_instruct.errors.VerdictError: The reply 'It claims\nScore: 100' only repeats what it judges.
    >>> parse_verdict("85 or 90", rubric)
    Traceback (most recent call last):
    hf_instruct.errors.VerdictError: The reply '85 or 90' contains no clear `score`.
    >>> parse_verdict("101", rubric)
    Traceback (most recent call last):
    hf_instruct.errors.VerdictError: The reply '101' gives '101'; allowed are the integers from 0 to 100.
    """
    scores = rubric.scores
    lowest, highest = min(scores), max(scores)
    number = rf"(?P<value>{_WHOLE})(?:\s*/\s*{highest}|\s+out\s+of\s+{highest})?"
    form = _Form(
        key="score",
        bare=rf"(?:(?:final\s+)?score\s+)?{number}\s*\.?",
        label=r"\bscore\s*(?:is\b|[:=])\s*(?P<value>[-+]?\d.*)",
        # "8 out of ten" and "8 or nine" must not become 8.
        value=rf"{number}(?!\w|\s*(?:[%/]|percent\b|(?:out\s+)?of\b|to\b|or\b))\D*",
    )
    reply, value, reasons = _find(text, form, judged)
    number_given = _to_integer(value)
    if number_given not in scores:
        raise VerdictError(
            f"The reply {_show(reply)} gives {_show(value)}; allowed are the integers from {lowest} to {highest}."
        )
    return Verdict(scores[number_given], reasons)


def parse_preference(text: str, judged: str = "") -> float:
    """Return a judge's preference: 1 for the answer shown as A, 0 for B, 0.5 for a tie.

    Accepts a JSON object with `better`, and `A`, `B` or `tie` alone, as in `Answer A` or `[[A]]`, or after a label, as
    in `Better: A`.

    Args:
        text: The complete reply.
        judged: Both answers, which the reply may quote.

    Raises:
        VerdictError: The reply names none of the three, or more than one.

    >>> [parse_preference(text) for text in ('{"better": "A"}', "B", "**Tie**", "Better: answer B.", "[[A]]")]
    [1.0, 0.0, 0.5, 0.0, 1.0]
    >>> parse_preference("A, or perhaps B")
    Traceback (most recent call last):
    hf_instruct.errors.VerdictError: The reply 'A, or perhaps B' contains no clear `better`.
    """
    reply, value, _ = _find(text, _PREFERENCE, judged)
    match = _match(_PREFERENCE.bare, _to_plain(value)) if isinstance(value, str) else None
    if match is None:
        raise VerdictError(f"The reply {_show(reply)} gives {_show(value)}; allowed are A, B and tie.")
    return {"a": 1.0, "b": 0.0, "tie": 0.5}[match["value"].lower()]


def parse_text(reply: str, key: str) -> str:
    """Return the text under a key of an object in a reply; the last one if there are several.

    Raises:
        VerdictError: There is none, or it is empty.

    >>> parse_text('Sure! {"answer": "Red, please."}', "answer")
    'Red, please.'
    """
    fields = [span.fields for span in _find_objects(_unfence(_cut_thinking(reply))) if span.fields]
    texts = [str(values[key]).strip() for values in fields if isinstance(values.get(key), str)]
    if not texts or not texts[-1]:
        raise VerdictError(f"The reply {_show(reply)} holds no `{key}`.")
    return texts[-1]


def _find(text: str, form: _Form, judged: str) -> tuple[str, Any, str | None]:
    """Return a reply without its thinking, its value by the rules above, as in JSON or text, and the reasons.

    Raises:
        VerdictError: There is none, or more than one.
    """
    reply = _unfence(text)
    spans = _find_objects(reply)
    # If the whole reply is a JSON object, thinking tags are part of its strings.
    if not spans or spans[0].fields is None or spans[0][:2] != (0, len(reply)):
        reply = _unfence(_cut_thinking(reply))
        spans = _find_objects(reply)
    if not reply:
        raise VerdictError("The reply is empty.")
    if fields := _choose_object(reply, spans, form.key, judged):
        reasons = fields.get("reasons")
        return reply, fields[form.key], reasons if isinstance(reasons, str) and reasons.strip() else None
    starts, ends = [0, *(span.end for span in spans)], [*(span.start for span in spans), len(reply)]
    plain = _to_plain(" ".join(reply[start:end] for start, end in zip(starts, ends, strict=True)))
    if bare := _match(form.bare, plain):
        return reply, bare["value"], None
    labelled = _read_labels(plain, form)
    new = sorted(labelled - _read_labels(_to_plain(judged), form))
    if len(new) == 1 and (match := _match(form.value, new[0])):
        without = re.sub(form.label, " ", plain, flags=re.IGNORECASE)
        return reply, match["value"], re.sub(r"^\s*reasons?\s*:\s*", "", without, flags=re.IGNORECASE).strip() or None
    problem = "only repeats what it judges" if labelled and not new else f"contains no clear `{form.key}`"
    raise VerdictError(f"The reply {_show(reply)} {problem}.")


def _unfence(text: str) -> str:
    """Return a text without surrounding white space and without the fence of a code block around it."""
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    return fenced[1].strip() if fenced else text


def _cut_thinking(text: str) -> str:
    ends = [match.end() for match in _THINKING_END.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    if _THINKING_START.search(rest) or (ends and not rest.strip()):
        raise VerdictError(f"The reply {_show(text)} ends while still thinking.")
    return rest


def _find_objects(text: str) -> list[_Span]:
    """Return the outermost objects in a text; nested ones are part of them."""
    spans: list[_Span] = []
    position = 0
    while match := _OBJECT_START.search(text, position):
        start = match.start()
        fields: dict[str, Any] | None = None
        try:
            pairs, position = _DECODER.raw_decode(text, start)
        # ValueError is also raised for a number of more than 4,300 digits.
        except (ValueError, RecursionError):
            position = _find_closing_brace(text, start)
        else:
            fields = {name.strip().lower(): value for name, value in pairs}
            if len(fields) < len(pairs):
                fields = None
        spans.append(_Span(start, position, fields))
    return spans


def _find_closing_brace(text: str, start: int) -> int:
    """Return the index after the brace that closes the one at `start`, or the text's length."""
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _choose_object(reply: str, spans: list[_Span], key: str, judged: str) -> dict[str, Any] | None:
    """Return the object with the verdict, or None."""
    keyed = [span for span in spans if span.fields and key in span.fields]
    quotable = "".join(judged.split())
    candidates = [span for span in keyed if "".join(reply[span.start : span.end].split()) not in quotable]
    candidates = candidates or [span for span in keyed if span[:2] == (0, len(reply))]
    return candidates[-1].fields if candidates else None


def _to_plain(text: str) -> str:
    return _MARKUP.sub("", text).strip()


def _match(pattern: str, text: str) -> re.Match[str] | None:
    return re.fullmatch(pattern, text, re.IGNORECASE)


def _read_labels(plain: str, form: _Form) -> set[str]:
    """Return the text after each label: the value, or the rest of the line if that is not a value."""
    rests = [match["value"].strip().lower() for match in re.finditer(form.label, plain, re.IGNORECASE)]
    return {match["value"] if (match := _match(form.value, rest)) else rest for rest in rests}


def _to_integer(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(_WHOLE, value.strip()):
        return int(value.partition(".")[0])
    # `bool` is a subclass of `int`; NaN and infinity cannot be converted.
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    return int(value) if is_number and value == int(value) else None


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
