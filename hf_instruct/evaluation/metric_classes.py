"""The reference metrics as `evaluate.Metric` classes, for programs that measure with the `evaluate` library.

    >>> from hf_instruct import RougeL
    >>> RougeL().compute(predictions=["It was Jane Austen"], references=["Jane Austen"])
    {'rouge_l': 0.6666666666666666}

`compute(..., per_example=True)` adds the value of each example, to draw intervals from. Nothing is fetched, and on a
single process nothing is written: examples are collected in memory. `evaluate.combine` takes them.

Imports `evaluate`, and so torch; the functions of `metrics`, which these call, need neither.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import evaluate

from hf_instruct.errors import DataError
from hf_instruct.evaluation import metrics
from hf_instruct.evaluation.metrics import Term

# Type of each column. `evaluate` calls responses predictions.
_TEXTS = {"predictions": "string", "references": "string"}
_ALL_COLUMNS = {*_TEXTS, "stopped", "reference_nll", "reference_tokens"}


class _ReferenceMetric(evaluate.Metric):
    """A metric that is a mean over examples, or a quotient of two sums over them."""

    # Set by each metric: its name in the result, and the columns it takes with their types.
    key = ""
    columns: ClassVar[dict[str, str]] = _TEXTS
    is_log = False

    def __init__(self, config_name: str | None = None, *, keep_in_memory: bool | None = None, **settings: Any) -> None:
        """Take the settings of `evaluate.Metric`.

        Args:
            config_name: Name of a variant; these metrics have none.
            keep_in_memory: By default, unless several processes share a folder (`num_process`) or `cache_dir` names it.
            **settings: The other settings of `evaluate.Metric`.
        """
        if keep_in_memory is None:
            keep_in_memory = settings.get("num_process", 1) == 1 and settings.get("cache_dir") is None
        super().__init__(config_name, keep_in_memory=keep_in_memory, **settings)

    def _build_data_dir(self) -> str:
        if self.keep_in_memory:
            # `evaluate` 0.4.6 makes a folder in the user's cache here, also for what never uses it.
            return str(Path(self._data_dir_root, self.name, self.config_name))
        folder: str = super()._build_data_dir()
        return folder

    def _finalize(self) -> None:
        if self.keep_in_memory and self.buf_writer is None:
            raise DataError("There is nothing to measure: neither given to `compute` nor added before.")
        super()._finalize()

    def _info(self) -> evaluate.MetricInfo:
        documentation = type(self).__doc__ or ""
        return evaluate.MetricInfo(
            description=documentation.split("\n\n")[0],
            citation="",
            inputs_description=documentation,
            features=datasets.Features({name: datasets.Value(kind) for name, kind in self.columns.items()}),
        )

    def _compute(self, *, per_example: bool = False, **columns: Any) -> dict[str, Any]:
        # What `evaluate.combine` gives to all metrics, and another of these takes, is no mistake.
        if unknown := [f"`{name}`" for name in columns if name not in _ALL_COLUMNS]:
            raise DataError(f"{type(self).__name__} takes no {', '.join(unknown)}; it takes `per_example`.")
        values = [list(columns[name]) for name in self.columns]
        for name, column in zip(self.columns, values, strict=True):
            if None in column:
                raise DataError(
                    f"`{name}` holds None at index {column.index(None)}; leave the example out, or mend it."
                )
        if not values[0]:
            raise DataError(f"There is nothing to measure: `{next(iter(self.columns))}` is empty.")
        terms: Sequence[Term] = [self._term(*example) for example in zip(*values, strict=True)]
        total = metrics.divide_terms(terms, is_log=self.is_log)
        if total is None:
            raise DataError(f"{type(self).__name__} is not defined for these examples: all references are empty.")
        result: dict[str, Any] = {self.key: total}
        if per_example:
            result[f"{self.key}_per_example"] = [metrics.divide_terms([term], is_log=self.is_log) for term in terms]
        return result

    def _term(self, *example: Any) -> Term:
        raise NotImplementedError


class ExactMatch(_ReferenceMetric):
    """Share of predictions equal to their reference, 0 to 1, both normalized as SQuAD does; see `exact_match`.

    Takes `predictions` and `references`, lists of text; `per_example=True` adds `exact_match_per_example`.
    """

    key = "exact_match"

    def _term(self, prediction: str, reference: str) -> Term:
        return Term(metrics.exact_match(prediction, reference))


class TokenF1(_ReferenceMetric):
    """Mean F1 of the words shared with the reference, 0 to 1, both normalized as SQuAD does; see `token_f1`.

    Takes `predictions` and `references`, lists of text; `per_example=True` adds `token_f1_per_example`.
    """

    key = "token_f1"

    def _term(self, prediction: str, reference: str) -> Term:
        return Term(metrics.token_f1(prediction, reference))


class RougeL(_ReferenceMetric):
    """Mean ROUGE-L by `rouge-score`, 0 to 1, with words of any script; see `rouge_l`.

    Takes `predictions` and `references`, lists of text; `per_example=True` adds `rouge_l_per_example`.
    """

    key = "rouge_l"

    def _term(self, prediction: str, reference: str) -> Term:
        return Term(metrics.rouge_l(prediction, reference))


class ChrF(_ReferenceMetric):
    """Mean over the examples of chrF2 by `sacrebleu`, 0 to 100; not the chrF of the corpus; see `chrf`.

    Takes `predictions` and `references`, lists of text; `per_example=True` adds `chrf_per_example`.
    """

    key = "chrf"

    def _term(self, prediction: str, reference: str) -> Term:
        return Term(metrics.chrf(prediction, reference))


class LengthRatio(_ReferenceMetric):
    """Characters of all predictions by characters of all references.

    Takes `predictions` and `references`, lists of text; `per_example=True` adds `length_ratio_per_example`, with None
    where the reference is empty.
    """

    key = "length_ratio"

    def _term(self, prediction: str, reference: str) -> Term:
        return metrics.length_term(prediction, reference)


class RepetitiveShare(_ReferenceMetric):
    """Share of predictions that say the same again and again, 0 to 1; see `is_repetitive`.

    Takes `predictions`, a list of text; `per_example=True` adds `repetitive_per_example`.
    """

    key = "repetitive"
    columns: ClassVar[dict[str, str]] = {"predictions": "string"}

    def _term(self, prediction: str) -> Term:
        return Term(metrics.is_repetitive(prediction))


class StoppedShare(_ReferenceMetric):
    """Share of responses that the model ended itself, 0 to 1, as `Response.stopped` tells.

    Takes `stopped`, a list of true and false; `per_example=True` adds `stopped_per_example`.
    """

    key = "stopped"
    columns: ClassVar[dict[str, str]] = {"stopped": "bool"}

    def _term(self, stopped: bool) -> Term:
        return Term(stopped)


class ReferencePerplexity(_ReferenceMetric):
    """Perplexity of all reference tokens together under the model that answered, from their losses.

    Takes `reference_nll`, the loss of each reference in nats, summed over its tokens, and `reference_tokens`, as
    `generate_responses(..., reference_loss=True)` gives them; `per_example=True` adds `perplexity_per_example`.
    """

    key = "perplexity"
    columns: ClassVar[dict[str, str]] = {"reference_nll": "float64", "reference_tokens": "int64"}
    is_log = True

    def _term(self, nll: float, tokens: int) -> Term:
        term = metrics.perplexity_term(nll, tokens)
        if term is None:
            raise DataError(f"A loss of {nll} nats over {tokens} tokens has no perplexity; leave the example out.")
        return term
