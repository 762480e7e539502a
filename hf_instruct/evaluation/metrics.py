"""What can be measured of responses without a judge: how near they are to the reference, and how they end.

The reference is one good answer among many, so these numbers are low for a good answer in other words. They cost
nothing, never vary and no answer can talk them into anything.
"""

import functools
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.evaluation.intervals import Interval, bootstrap_mean, bootstrap_statistic, share_interval
from hf_instruct.evaluation.judgment_files import build_responses
from hf_instruct.evaluation.metric_names import SHARES, format_metric, label_metric
from hf_instruct.records import Response, write_json

if TYPE_CHECKING:
    import numpy

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Scripts written without spaces: kana and Chinese characters.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# When an answer repeats itself: see `is_repetitive`.
_GRAM = 4
_REPEATED_SHARE = 0.3
_COPIES = 4
_LONGEST_BLOCK = 64
# Nats a token; a model that predicts worse has diverged, and e to the power of more is no float.
_MOST_NATS = 700.0


class Term(NamedTuple):
    """What one example adds to a metric: the metric is the sum of `above` by the sum of `below`, over the examples."""

    above: float
    below: float = 1.0


class Measure(NamedTuple):
    """A metric over several examples.

    Attributes:
        mean: In the metric's own unit.
        interval: Its 95 % interval; None for one example.
        n: How many examples it is over.
    """

    mean: float
    interval: Interval | None
    n: int


def measure_responses(responses: Iterable[Response | Mapping[str, Any]]) -> dict[str, Any]:
    """Return the reference metrics of responses, with 95 % intervals: the content of `metrics.json`.

    `exact_match`, `token_f1`, `rouge_l` (0 to 1) and `chrf` (0 to 100) are means over the examples; so are the shares
    `stopped` and `repetitive`. Intervals of shares (`exact_match` too) are Wilson's, the others bootstrapped.
    `length_ratio` is all characters of the responses by all of the references: a mean of ratios would be that of the
    shortest reference. `perplexity` is that of all reference tokens together under the model that answered. What a
    response does not tell (`stopped`, `reference_nll`) is left out, and `n` says so.

    Args:
        responses: `Response` rows, or mappings with `instruction`, `input`, `output` and `response` or
            `model_response`.

    Returns:
        `metrics`: by name, `mean`, `interval` ([low, high], or None for one example) and `n`; `total`: the number of
        responses; `by_category`: the same by category, where examples have one; `examples`: values by id and name.

    Raises:
        DataError: The responses have faults; all are listed.
    """
    rows = build_responses(responses)
    terms = {name: [build_term(row) for row in rows] for name, build_term in _TERMS.items()}
    categories: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.category:
            categories.setdefault(row.category, []).append(index)
    measured: dict[str, Any] = {"metrics": _summarize_all(terms, range(len(rows))), "total": len(rows)}
    if categories:
        measured["by_category"] = {name: _summarize_all(terms, categories[name]) for name in sorted(categories)}
    measured["examples"] = {
        row.id: {
            name: round(value, 6)
            for name, column in terms.items()
            if (term := column[index]) and (value := divide_terms([term], is_log=name in _LOGARITHMIC)) is not None
        }
        for index, row in enumerate(rows)
    }
    return measured


def write_metrics(path: Path, responses: Iterable[Response]) -> dict[str, Any]:
    """Write what `measure_responses` returns, and return it."""
    measured = measure_responses(responses)
    write_json(path, measured)
    return measured


def _summarize_all(terms: Mapping[str, Sequence[Term | None]], indices: Sequence[int]) -> dict[str, Any]:
    summary = {}
    for name, column in terms.items():
        known = [term for index in indices if (term := column[index]) is not None]
        if (measure := summarize_terms(known, is_log=name in _LOGARITHMIC, is_share=name in SHARES)) is not None:
            interval = measure.interval and [round(end, 6) for end in measure.interval]
            summary[name] = {"mean": round(measure.mean, 6), "interval": interval, "n": measure.n}
    return summary


def summarize_terms(terms: Sequence[Term], *, is_log: bool = False, is_share: bool = False) -> Measure | None:
    """Return a metric over examples, with its interval; None where it is not defined.

    Args:
        is_log: Whether the quotient is the metric's logarithm.
        is_share: Whether each example adds a yes (1) or a no (0).
    """
    import numpy

    mean = divide_terms(terms, is_log=is_log)
    if mean is None:
        return None
    above, below = (numpy.array([term[side] for term in terms], dtype=float) for side in (0, 1))

    def divide(chosen: "numpy.ndarray") -> float:
        total = below[chosen].sum()
        return float(above[chosen].sum() / total) if total else math.nan

    if is_share:
        interval = share_interval(above.tolist())
    else:
        interval = bootstrap_mean(above.tolist()) if (below == 1).all() else bootstrap_statistic(divide, len(terms))
    if is_log and interval is not None:
        interval = Interval(_power(interval.low), _power(interval.high))
    return Measure(mean, interval, len(terms))


def divide_terms(terms: Sequence[Term], *, is_log: bool = False) -> float | None:
    """Return a metric over examples; None where it is not defined, as a length by that of nothing."""
    below = math.fsum(term.below for term in terms)
    if not below:
        return None
    quotient = math.fsum(term.above for term in terms) / below
    return _power(quotient) if is_log else quotient


def _power(nats: float) -> float:
    return math.exp(min(nats, _MOST_NATS))


def normalize_answer(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation, English articles and needless white space.

    Source: the evaluation script of SQuAD 1.1, https://rajpurkar.github.io/SQuAD-explorer/

    >>> normalize_answer("The author was  Jane Austen.")
    'author was jane austen'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(response: str, reference: str) -> float:
    """Return 1 where the two texts are equal once normalized as SQuAD does, else 0.

    Texts that hold nothing but punctuation and articles are compared as they are.

    >>> exact_match("Jane Austen", "jane austen."), exact_match("", "."), exact_match("!", "!")
    (1.0, 0.0, 1.0)
    """
    texts = normalize_answer(response), normalize_answer(reference)
    return float(texts[0] == texts[1]) if any(texts) else _equal(response, reference)


def token_f1(response: str, reference: str) -> float:
    """Return the F1 of the words that two texts share, normalized as SQuAD does; order does not count.

    Words are what white space separates, so that in a language written without it the whole text is one: read chrF
    there.

    >>> token_f1("It was Jane Austen", "Jane Austen.")
    0.6666666666666666
    """
    words, expected = normalize_answer(response).split(), normalize_answer(reference).split()
    if not words and not expected:
        return _equal(response, reference)
    shared = sum((Counter(words) & Counter(expected)).values())
    return 2 * shared / (len(words) + len(expected))


def rouge_l(response: str, reference: str) -> float:
    """Return ROUGE-L as `rouge-score` does: the F1 of the longest common subsequence of words, without stemming.

    Words are those of `split_words`. On English text they are those of `rouge-score`, which would drop all letters
    but a to z, and whose table takes memory for every word of the one text times every word of the other.

    >>> rouge_l("It was Jane Austen", "Jane Austen.")
    0.6666666666666666
    """
    words, expected = split_words(response), split_words(reference)
    if not words and not expected:
        return _equal(response, reference)
    return 2 * count_common(words, expected) / (len(words) + len(expected))


def chrf(response: str, reference: str) -> float:
    """Return chrF2 by `sacrebleu`, of one sentence, 0 to 100: character n-grams up to 6, recall counting twice.

    Its mean over examples is not the chrF of the corpus, which adds up n-grams first: long answers weigh more there.
    """
    if not response.strip() and not reference.strip():
        return 100.0
    return float(_chrf_scorer().sentence_score(response, [reference]).score)


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits; each Chinese character and kana is one.

    >>> split_words("Café no. 5: 東京")
    ['café', 'no', '5', '東', '京']
    """
    return _WORD.findall(text.lower())


def is_repetitive(text: str) -> bool:
    """Return whether a text says the same again and again.

    It does where more than 30 % of its runs of four words stood in it before, or where up to 64 words come four times
    in a row. A text without words, such as `!!!!!!!!`, goes by its characters.

    Source: the share of repeated n-grams is seq-rep-4 of Welleck et al., https://arxiv.org/abs/1908.04319

    >>> is_repetitive("Very, very good. It is very, very late."), is_repetitive("It is. It is. It is. It is. It")
    (False, True)
    """
    words = split_words(text) or list("".join(text.split()))
    grams = [tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1)]
    if grams and 1 - len(set(grams)) / len(grams) > _REPEATED_SHARE:
        return True
    for size in range(1, min(len(words) // _COPIES, _LONGEST_BLOCK) + 1):
        run = 0
        for word, later in zip(words, words[size:], strict=False):
            run = run + 1 if word == later else 0
            if run == size * (_COPIES - 1):
                return True
    return False


def count_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two lists of words.

    A row of the usual table is the bits of one integer, so all of its cells are computed in a few operations.

    Source: Hyyrö, Bit-Parallel LCS-length Computation Revisited, 2004.

    >>> count_common(["a", "b", "c", "d"], ["b", "x", "d", "a"])
    2
    """
    short, long = sorted((first, second), key=len)
    places: dict[str, int] = dict.fromkeys(set(short) & set(long), 0)
    for number, word in enumerate(short):
        if word in places:
            places[word] |= 1 << number
    whole = row = (1 << len(short)) - 1
    for word in long:
        if matches := row & places.get(word, 0):
            row = (row + matches | row - matches) & whole
    return len(short) - row.bit_count()


def _equal(response: str, reference: str) -> float:
    return float(response.split() == reference.split())


@functools.cache
def _chrf_scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def length_term(response: str, reference: str) -> Term:
    """Return the lengths of two texts, in characters."""
    return Term(len(response.strip()), len(reference.strip()))


def perplexity_term(nll: float | None, tokens: int | None) -> Term | None:
    """Return the loss of a reference, in nats, and its tokens; None where there is none that can be added up."""
    if nll is None or tokens is None or tokens < 1 or not math.isfinite(nll):
        return None
    return Term(nll, tokens)


# By the name in `metrics.json`, what a response adds; None where it does not tell.
_TERMS: dict[str, Callable[[Response], Term | None]] = {
    "exact_match": lambda row: Term(exact_match(row.response, row.output)),
    "token_f1": lambda row: Term(token_f1(row.response, row.output)),
    "rouge_l": lambda row: Term(rouge_l(row.response, row.output)),
    "chrf": lambda row: Term(chrf(row.response, row.output)),
    "length_ratio": lambda row: length_term(row.response, row.output),
    "stopped": lambda row: None if row.stopped is None else Term(row.stopped),
    "repetitive": lambda row: Term(is_repetitive(row.response)),
    "perplexity": lambda row: perplexity_term(row.reference_nll, row.reference_tokens),
}
_LOGARITHMIC = {"perplexity"}
_IN_LINE = {"exact_match", "rouge_l", "chrf", "stopped", "perplexity"}


def format_metrics(measured: Mapping[str, Any]) -> str:
    """Return some of the metrics in one line; `metrics.json` holds the others and the intervals.

    >>> format_metrics({"metrics": {"exact_match": {"mean": 0.12, "interval": [0.06, 0.18], "n": 110},
    ...                             "rouge_l": {"mean": 0.514, "interval": [0.47, 0.55], "n": 110}}})
    'exact match 12 %, ROUGE-L 0.51 [0.47, 0.55]'
    """
    parts = []
    for name, values in measured["metrics"].items():
        if name not in _IN_LINE:
            continue
        value = format_mean(name, values) if name == "rouge_l" else format_metric(name, values["mean"])
        parts.append(f"{label_metric(name)} {value}")
    return ", ".join(parts)


def format_mean(name: str, values: Mapping[str, Any]) -> str:
    """Return a metric's mean as it is printed, with the ends of its interval where it has one."""
    mean, interval = format_metric(name, values["mean"]), values["interval"]
    return f"{mean} [{', '.join(format_metric(name, end) for end in interval)}]" if interval else mean
