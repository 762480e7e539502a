"""Metrics of responses without a judge: similarity to the reference, and how the responses end.

The reference is one good answer among many, so a good answer in other words scores low. The metrics are free and
deterministic, and answers cannot manipulate them.

Each of them is also an `evaluate.Metric`, for programs that measure with the `evaluate` library:

    >>> from hf_instruct.evaluation.metrics import RougeL
    >>> RougeL().compute(predictions=["It was Jane Austen"], references=["Jane Austen"])
    {'rouge_l': 0.6666666666666666}

`compute(..., per_example=True)` adds the value of each example, to compute intervals from. Nothing is downloaded, and
with a single process nothing is written. `evaluate`, and with it torch, is only imported for these classes.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.console import align
from hf_instruct.errors import DataError, quote_names
from hf_instruct.evaluation.intervals import bootstrap_mean, estimate, share_interval
from hf_instruct.evaluation.responses import build_responses
from hf_instruct.evaluation.text_metrics import chrf, exact_match, is_repetitive, rouge_l, token_f1
from hf_instruct.schema import Interval, Metrics, MetricValue, Response

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset

# Nats per token. A model with more has diverged, and e to a higher power overflows.
_MAX_NATS = 700.0


_IN_LINE = frozenset({"exact_match", "rouge_l", "chrf", "stopped", "perplexity"})


class Term(NamedTuple):
    """The part of one example in a metric, which is the sum of `above` over all examples divided by that of `below`."""

    above: float
    below: float = 1.0


@dataclasses.dataclass(frozen=True)
class Metric:
    """One reference metric.

    Attributes:
        label: Display name.
        meaning: Description in a few words.
        class_name: Name of its `evaluate.Metric` class.
        columns: Columns it is computed from, as `evaluate` names them; predictions are responses.
        function: Computes an example's value or `Term` from these columns; None if it is not defined.
        is_share: Whether an example's value is yes (1) or no (0).
        is_quotient: Whether the metric is a quotient of sums, rather than the mean of the examples' values.
        is_log: Whether that quotient is the metric's logarithm.
        decimals: Decimals printed for values below 10.
    """

    label: str
    meaning: str
    class_name: str
    function: Callable[..., "float | Term | None"]
    columns: tuple[str, ...] = ("predictions", "references")
    is_share: bool = False
    is_quotient: bool = False
    is_log: bool = False
    decimals: int = 2

    def build_term(self, *example: Any) -> Term | None:
        """Return the term of one example, given the values of `columns`; None if it is not defined or one is None."""
        value = None if None in example else self.function(*example)
        return value if value is None or isinstance(value, Term) else Term(value)

    def divide(self, terms: Sequence[Term]) -> float | None:
        """Return the metric over examples; None if it is not defined, such as a ratio to length 0."""
        below = math.fsum(term.below for term in terms)
        if not below:
            return None
        quotient = math.fsum(term.above for term in terms) / below
        return _power(quotient) if self.is_log else quotient

    def summarize(self, terms: Sequence[Term], groups: Sequence[str] = ()) -> MetricValue | None:
        """Return the metric over examples, with its interval; None if it is not defined.

        Args:
            terms: Term of each example.
            groups: Instruction of each example; rows with the same one count as one draw in the interval of a mean.
        """
        import numpy

        mean = self.divide(terms)
        if mean is None:
            return None
        above, below = numpy.array(terms, dtype=float).T

        def divide(chosen: "numpy.ndarray") -> list[float]:
            total = below[chosen].sum()
            return [float(above[chosen].sum() / total) if total else math.nan]

        interval: Interval | None
        if self.is_quotient:
            interval = estimate(divide, len(terms))[0].interval
        else:
            interval = (share_interval if self.is_share else bootstrap_mean)(above.tolist(), groups)
        if interval is not None:
            interval = Interval(*(round(_power(end) if self.is_log else end, 6) for end in interval))
        return MetricValue(mean=round(mean, 6), interval=interval, n=len(terms))


def _power(nats: float) -> float:
    return math.exp(min(nats, _MAX_NATS))


def measure_responses(responses: "Dataset | Iterable[Response | Mapping[str, Any]] | str | Path") -> Metrics:
    """Return the reference metrics of responses, with 95 % intervals.

    `exact_match`, `token_f1`, `rouge_l` (0 to 1) and `chrf` (0 to 100) are means over the examples; so are the shares
    `stopped` and `repetitive`. Intervals of shares (`exact_match` too) are Wilson's, the others are bootstrapped.
    `length_ratio` is the number of characters of all responses divided by that of all references; the shortest
    references would dominate a mean of ratios. `perplexity` is that of all reference tokens together under the model
    that answered. Responses without a value (`stopped`, `reference_nll`) are left out of it, and `n` counts the others.

    Args:
        responses: A `Dataset` or mappings with `instruction`, `input`, `output` and `response` or `model_response`; or
            a run folder or file of responses.

    Raises:
        DataError: The responses have problems; all are listed.
    """
    rows = build_responses(responses)
    terms = {
        name: [metric.build_term(*(getattr(row, _FIELDS[column][0]) for column in metric.columns)) for row in rows]
        for name, metric in METRICS.items()
    }
    categories: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.category:
            categories.setdefault(row.category, []).append(index)
    return Metrics(
        metrics=_summarize_all(terms, range(len(rows)), rows),
        total=len(rows),
        by_category={name: _summarize_all(terms, categories[name], rows) for name in sorted(categories)},
        examples={
            row.id: {
                name: round(value, 6)
                for name, column in terms.items()
                if (term := column[index]) and (value := METRICS[name].divide([term])) is not None
            }
            for index, row in enumerate(rows)
        },
    )


def _summarize_all(
    terms: Mapping[str, Sequence[Term | None]], indices: Sequence[int], rows: Sequence[Response]
) -> dict[str, MetricValue]:
    summaries = {}
    for name, column in terms.items():
        defined = [(term, rows[index].instruction) for index in indices if (term := column[index]) is not None]
        summaries[name] = METRICS[name].summarize([term for term, _ in defined], [task for _, task in defined])
    return {name: summary for name, summary in summaries.items() if summary is not None}


def _length_term(response: str, reference: str) -> Term:
    return Term(len(response.strip()), len(reference.strip()))


def _perplexity_term(nll: float, tokens: int) -> Term | None:
    return Term(nll, tokens) if tokens >= 1 and math.isfinite(nll) else None


# The field of a `Response` for each column, and the type of its values.
_FIELDS = {
    "predictions": ("response", "string"),
    "references": ("output", "string"),
    "stopped": ("stopped", "bool"),
    "reference_nll": ("reference_nll", "float64"),
    "reference_tokens": ("reference_tokens", "int64"),
}

METRICS = {
    "exact_match": Metric("exact match", "equal to the reference", "ExactMatch", exact_match, is_share=True),
    "token_f1": Metric("token F1", "words shared with the reference, 0 to 1", "TokenF1", token_f1),
    "rouge_l": Metric("ROUGE-L", "words in the reference's order, 0 to 1", "RougeL", rouge_l),
    "chrf": Metric("chrF", "character n-grams shared with the reference, 0 to 100", "ChrF", chrf, decimals=1),
    "length_ratio": Metric(
        "length", "characters per character of the reference", "LengthRatio", _length_term, is_quotient=True
    ),
    "stopped": Metric("finished", "not cut off", "StoppedShare", float, ("stopped",), is_share=True),
    "repetitive": Metric(
        "repeats itself",
        "repeats a phrase",
        "RepetitiveShare",
        is_repetitive,
        ("predictions",),
        is_share=True,
    ),
    "perplexity": Metric(
        "perplexity",
        "of the reference and its end token under the model; lower is better",
        "ReferencePerplexity",
        _perplexity_term,
        ("reference_nll", "reference_tokens"),
        is_quotient=True,
        is_log=True,
    ),
}
"""All metrics by the name in `metrics.json`, in the order in which they are shown."""

QUOTIENTS = frozenset(name for name, metric in METRICS.items() if metric.is_quotient)
SHARES = frozenset(name for name, metric in METRICS.items() if metric.is_share)


def label_metric(name: str) -> str:
    """Return a metric's label; for an unknown metric, its name with spaces instead of underscores."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ")


def format_metric(name: str, value: float, *, signed: bool = False) -> str:
    """Return a value of a metric as printed, or a difference if `signed`, which for shares is in percentage points.

    >>> format_metric("stopped", 0.916), format_metric("chrf", 48.13), format_metric("token_f1", 0.514, signed=True)
    ('92 %', '48.1', '+0.51')
    >>> format_metric("stopped", 0.05, signed=True)
    '+5 pp'
    """
    sign, metric = "+" if signed else "", METRICS.get(name)
    if metric and metric.is_share:
        return f"{100 * value:{sign}.0f} {'pp' if signed else '%'}"
    return f"{value:{sign}.{1 if abs(value) >= 10 else metric.decimals if metric else 2}f}"


def format_metrics(measured: Metrics) -> str:
    """Return some of the metrics in one line; `metrics.json` contains the others and the intervals.

    >>> values = {"exact_match": MetricValue(mean=0.12, interval=Interval(0.06, 0.18), n=110),
    ...           "rouge_l": MetricValue(mean=0.514, interval=Interval(0.47, 0.55), n=110)}
    >>> format_metrics(Metrics(metrics=values))
    'exact match 12 %, ROUGE-L 0.51 [0.47, 0.55]'
    """
    return ", ".join(
        f"{label_metric(name)} {format_value(name, value) if name == 'rouge_l' else format_metric(name, value.mean)}"
        for name, value in measured.metrics.items()
        if name in _IN_LINE
    )


def format_value(name: str, value: MetricValue) -> str:
    """Return a metric's mean as printed, with the ends of its interval if it has one."""
    mean, interval = format_metric(name, value.mean), value.interval
    return f"{mean} [{', '.join(format_metric(name, end) for end in interval)}]" if interval else mean


def format_table(sides: Mapping[str, Metrics]) -> str:
    """Return all metrics of one or several models as a table, with a column for each model."""
    rows = [["", *(f"{name}, n {measured.total}" for name, measured in sides.items())]]
    for name, metric in METRICS.items():
        values = [(measured.total, measured.metrics.get(name)) for measured in sides.values()]
        if any(value for _, value in values):
            rows.append([metric.label, *(_format_cell(name, value, total) for total, value in values)])
    return "\n".join([*align(rows), "(95 % intervals in brackets)"])


def _format_cell(name: str, value: MetricValue | None, total: int) -> str:
    if value is None:
        return "not known"
    return format_value(name, value) + (f", n {value.n}" if value.n != total else "")


def __getattr__(class_name: str) -> Any:
    name = next((name for name, metric in METRICS.items() if metric.class_name == class_name), None)
    if name is None:
        raise AttributeError(f"module {__name__!r} has no attribute {class_name!r}")
    # Cached for the next lookup.
    globals()[class_name] = metric_class = _build_class(name)
    return metric_class


def _build_class(name: str) -> type:
    """Return a metric's `evaluate.Metric`."""
    import datasets
    import evaluate

    metric = METRICS[name]

    class ReferenceMetric(evaluate.Metric):
        def __init__(
            self, config_name: str | None = None, *, keep_in_memory: bool | None = None, **settings: Any
        ) -> None:
            if keep_in_memory is None:
                # On disk only if several processes share a folder, or the caller names one.
                keep_in_memory = settings.get("num_process", 1) == 1 and settings.get("cache_dir") is None
            super().__init__(config_name, keep_in_memory=keep_in_memory, **settings)

        def _build_data_dir(self) -> Any:
            if not self.keep_in_memory:
                return super()._build_data_dir()
            # `evaluate` 0.4.6 creates a folder in the user's cache here, even if it is never used.
            return str(Path(self._data_dir_root, self.name, self.config_name))

        def _finalize(self) -> None:
            if self.keep_in_memory and self.buf_writer is None:
                raise DataError("There is nothing to measure; pass data to `compute` or add it before.")
            super()._finalize()

        def _info(self) -> Any:
            takes = ", ".join(f"`{column}`" for column in metric.columns)
            return evaluate.MetricInfo(
                description=f"{metric.label}: {metric.meaning}",
                citation="",
                inputs_description=f"Takes {takes}; `per_example=True` adds `{name}_per_example`.",
                features=datasets.Features({column: datasets.Value(_FIELDS[column][1]) for column in metric.columns}),
            )

        def _compute(self, *, per_example: bool = False, **columns: Any) -> dict[str, Any]:
            return _compute(name, columns, per_example=per_example)

    ReferenceMetric.__name__ = ReferenceMetric.__qualname__ = metric.class_name
    ReferenceMetric.__doc__ = f"{metric.label[0].upper()}{metric.label[1:]}: {metric.meaning}."
    return ReferenceMetric


def _compute(name: str, columns: Mapping[str, Any], *, per_example: bool) -> dict[str, Any]:
    metric = METRICS[name]
    # `evaluate.combine` passes all columns to all metrics, so those of our other metrics are ignored.
    if unknown := columns.keys() - _FIELDS:
        raise DataError(f"{metric.class_name} does not accept {quote_names(sorted(unknown))}, only `per_example`.")
    examples = zip(*(columns[column] for column in metric.columns), strict=True)
    terms = [metric.build_term(*example) for example in examples]
    if None in terms:
        raise DataError(
            f"{metric.class_name} is not defined for the example at index {terms.index(None)}; leave it out."
        )
    total = metric.divide(defined := [term for term in terms if term is not None])
    if total is None:
        raise DataError(f"{metric.class_name} is not defined: there are no examples, or no references.")
    extra = {f"{name}_per_example": [metric.divide([term]) for term in defined]} if per_example else {}
    return {name: total, **extra}
