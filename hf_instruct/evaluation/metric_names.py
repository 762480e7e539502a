"""How the reference metrics are called and printed, wherever they are shown."""

from typing import NamedTuple


class MetricName(NamedTuple):
    """A metric for people.

    Attributes:
        label: Its name.
        meaning: What it says, in a few words.
    """

    label: str
    meaning: str


# By the name in `metrics.json`, in the order in which they are shown.
METRICS = {
    "exact_match": MetricName("exact match", "equal to the reference"),
    "token_f1": MetricName("token F1", "words shared with the reference, 0 to 1"),
    "rouge_l": MetricName("ROUGE-L", "words in the reference's order, 0 to 1"),
    "chrf": MetricName("chrF", "character n-grams shared with the reference, 0 to 100"),
    "length_ratio": MetricName("length", "characters for each of the reference's"),
    "stopped": MetricName("ended by itself", "not cut off"),
    "repetitive": MetricName("repeats itself", "says the same again and again"),
    "perplexity": MetricName("perplexity", "of the reference under the model; lower is better"),
}
# Quotients of sums over all examples: a mean of the examples' own quotients would be another number.
QUOTIENTS = frozenset({"length_ratio", "perplexity"})
# Shares of yes and no: each example has 1 or 0.
SHARES = frozenset({"exact_match", "stopped", "repetitive"})


def label_metric(name: str) -> str:
    """Return a metric's label; a name that is not ours with spaces for underscores."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ")


def format_metric(name: str, value: float, *, signed: bool = False) -> str:
    """Return a value of a metric as it is printed.

    >>> format_metric("stopped", 0.916), format_metric("chrf", 48.13), format_metric("token_f1", 0.514, signed=True)
    ('92 %', '48.1', '+0.51')
    """
    sign = "+" if signed else ""
    if name in SHARES:
        return f"{100 * value:{sign}.0f} %"
    return f"{value:{sign}.{1 if name == 'chrf' or abs(value) >= 10 else 2}f}"
