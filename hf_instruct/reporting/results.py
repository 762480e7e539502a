"""Read the results in a run folder; results of stages that have not run yet are empty."""

import dataclasses
import functools
from collections.abc import Mapping

from hf_instruct.config import Experiment
from hf_instruct.evaluation.intervals import Difference, bound_difference, compare_values, describe_groups
from hf_instruct.evaluation.metrics import METRICS, QUOTIENTS, SHARES, format_metric, label_metric
from hf_instruct.evaluation.people import Corrected, Labelled, correct_win_rate, read_people
from hf_instruct.evaluation.scores import (
    SCORE,
    Leading,
    choose_leading,
    describe_references,
    find_weakness,
    identify_judge,
    label_judge,
)
from hf_instruct.library_fields import LORA_DEFAULTS
from hf_instruct.records import read_file, read_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import (
    MODELS,
    TUNED,
    UNTUNED,
    BenchmarkResult,
    Judgment,
    Metrics,
    MetricValue,
    PairSummary,
    Preference,
    Preflight,
    Provenance,
    Response,
    Scores,
    SelfCheck,
    TrainingRow,
    TrainingSummary,
)


@dataclasses.dataclass(frozen=True)
class ModelResults:
    """The answers of one model, and their results.

    Attributes:
        responses: The answers, in the order of the test split.
        judgments: The newest judgments, by the example's id.
        scores: None until the judge has finished.
        metrics: The reference metrics.
        people: People's scores of some of the responses, by the example's id.
    """

    responses: list[Response]
    judgments: dict[str, Judgment]
    scores: Scores | None
    metrics: Metrics
    people: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def judged(self) -> dict[str, int | None]:
        """The scores by the example's id, None for a failure; without those of responses that no longer exist."""
        ids = {response.id for response in self.responses}
        return {id: judgment.score for id, judgment in self.judgments.items() if not ids or id in ids}

    @property
    def labelled(self) -> Labelled:
        """The judge's scores together with people's."""
        return Labelled(self.judged, self.people)

    @functools.cached_property
    def corrected(self) -> Corrected | None:
        """The mean score, corrected by people's scores; None if there are none."""
        return self.labelled.correct()

    @functools.cached_property
    def values(self) -> dict[str, dict[str, float]]:
        """The values of the reference metrics by name and example id."""
        by_name: dict[str, dict[str, float]] = {}
        for id, values in self.metrics.examples.items():
            for name, value in values.items():
                by_name.setdefault(name, {})[id] = value
        return by_name

    @property
    def score_by_id(self) -> dict[str, int]:
        """The scores by the example's id, without failures."""
        return {id: score for id, score in self.judged.items() if score is not None}

    @property
    def stop_rate(self) -> float | None:
        """The fraction of answers that finished instead of being cut off; None if unknown."""
        stopped = [response.stopped for response in self.responses if response.stopped is not None]
        return sum(stopped) / len(stopped) if stopped else None

    def list_values(self, measure: str) -> Mapping[str, float]:
        """Return the scores, or the values of a reference metric, by the example's id."""
        return self.score_by_id if measure == SCORE else self.values.get(measure, {})


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """A reference metric of each model.

    Attributes:
        name: Its name in `metrics.json`.
        values: Its value for each model that was measured.
        differences: The paired difference of the tuned model from each other model, by the other model.
        start: The model that training began with.
    """

    name: str
    values: Mapping[str, MetricValue]
    differences: Mapping[str, Difference]
    start: str = UNTUNED

    @property
    def tuned(self) -> MetricValue | None:
        """The tuned model's value; None if it was not measured."""
        return self.values.get(TUNED)

    @property
    def before(self) -> MetricValue | None:
        """The value of the model that training began with; None if it was not measured."""
        return self.values.get(self.start)

    @property
    def difference(self) -> Difference | None:
        """The difference that training made; None if one of the two models was not measured."""
        return self.differences.get(self.start)

    @property
    def label(self) -> str:
        """The display name of the metric."""
        return label_metric(self.name)

    @property
    def meaning(self) -> str:
        """A description in a few words; empty for a metric that is not ours."""
        return METRICS[self.name].meaning if self.name in METRICS else ""

    def show(self, value: MetricValue | None) -> str:
        """Return a mean as printed; empty if it is not known."""
        return format_metric(self.name, value.mean) if value else ""

    def show_interval(self, value: MetricValue | None) -> str:
        """Return the ends of a mean's interval; empty if there is none."""
        if value is None or value.interval is None:
            return ""
        return " to ".join(format_metric(self.name, end) for end in value.interval)

    def show_difference(self, model: str | None = None) -> str:
        """Return the difference from a model, by default the one before training, with its interval; or empty."""
        difference = self.differences.get(model or self.start)
        if difference is None:
            return ""
        ends = " to ".join(format_metric(self.name, end, signed=True) for end in difference.interval or ())
        return f"{format_metric(self.name, difference.mean, signed=True)} ({ends})"


@dataclasses.dataclass(frozen=True)
class RunResults:
    """All results of a run.

    Attributes:
        folder: The run folder.
        experiment: The experiment of the run.
        provenance: Command, versions, commit, time.
        preflight: The findings of the data stage.
        training_rows: The training log.
        training: Seconds, memory, tokens and device of fine-tuning.
        sides: The results of each of `schema.MODELS`; empty for models without files.
        self_check: The judge's check on answers of known quality; None if it was not checked.
        benchmarks: The tuned model's results on tasks of lm-eval.
        pairwise: Summaries of pairwise judging, one for each baseline, each with the win rate corrected by people's
            votes on its pairs, or None without votes.
    """

    folder: RunFolder
    experiment: Experiment
    provenance: Provenance
    preflight: Preflight
    training_rows: list[TrainingRow]
    training: TrainingSummary | None
    sides: Mapping[str, ModelResults]
    self_check: SelfCheck | None
    benchmarks: list[BenchmarkResult]
    pairwise: list[tuple[PairSummary, Corrected | None]]

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.folder.path.resolve().name

    @property
    def sizes(self) -> str:
        """The number of examples in each split, in words; empty if there are none yet."""
        sizes = self.preflight.examples
        return ", ".join(f"{sizes[name]:,} {name}" for name in ("train", "validation", "test") if name in sizes)

    @property
    def method(self) -> str:
        """The training method: `full fine-tuning`, or LoRA with rank and alpha; for DPO and GRPO, also on what."""
        if self.experiment.lora is None:
            method = "full fine-tuning"
        else:
            lora = {**LORA_DEFAULTS, **self.experiment.lora}
            method = f"LoRA (r {lora['r']}, alpha {lora['lora_alpha']})"
        if self.experiment.method == "SFT":
            return method
        if self.experiment.method == "GRPO":
            weights = self.experiment.rewards.weights
            named = " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
            named = " + ".join(filter(None, (named, self.provenance.reward)))
            return f"GRPO on {named}, {method}"
        is_own = self.experiment.preferences.source == "references"
        pairs = "a reference and the model's own answer" if is_own else "a preference dataset"
        return f"DPO on pairs of {pairs}, {method}"

    @property
    def tuned(self) -> ModelResults:
        """The results of the tuned model."""
        return self.sides[TUNED]

    @property
    def start(self) -> str:
        """The model that training began with: `untuned`, or `SFT` for a fine-tuned one."""
        return self.experiment.start

    def label(self, model: str | None = None) -> str:
        """Return the display name of a model, by default of the one that training began with."""
        return self.provenance.label(model or self.start)

    @property
    def before(self) -> ModelResults:
        """The results of the model that training began with."""
        return self.sides[self.start]

    @property
    def others(self) -> list[str]:
        """The models other than the tuned one that have answers or were measured."""
        empty = ModelResults([], {}, None, Metrics())
        return [name for name in MODELS if name != TUNED and self.sides[name] != empty]

    @property
    def scores(self) -> list[Scores]:
        """The scores of each model that has any."""
        return [side.scores for side in self.sides.values() if side.scores]

    @property
    def judges(self) -> list[str]:
        """Labels of the judge and the rubric: only one, unless the models were judged differently."""
        return list(dict.fromkeys(label_judge(scores.judge, scores.rubric) for scores in self.scores))

    @property
    def judging_differences(self) -> list[str]:
        """The facts in which the models were judged differently; empty if judged alike, or if only one was judged."""
        judged = [{**identify_judge(scores.judge), "rubric": scores.rubric} for scores in self.scores]
        names = dict.fromkeys(name for facts in judged for name in facts)
        return [name for name in names if any(facts.get(name) != judged[0].get(name) for facts in judged)]

    @property
    def references(self) -> list[str]:
        """Each judge's scores of references or of answers equal to them, in words, for comparison with its means."""
        most_first = sorted(self.scores, key=lambda scores: scores.equal_n, reverse=True)
        return [*filter(None, map(describe_references, most_first if self.judging_differences else most_first[:1]))]

    @property
    def comparable_scores(self) -> Scores | None:
        """The scores of the model that training began with, if the models were judged alike; otherwise None."""
        return None if self.judging_differences else self.before.scores

    @functools.cached_property
    def differences(self) -> dict[str, Difference]:
        """The paired difference in score of the tuned model from each other model; empty if judged differently."""
        if not self.tuned.scores or self.judging_differences:
            return {}
        differences = {}
        for name in self.others:
            side = self.sides[name]
            if side.scores and (difference := self._compare(SCORE, name)):
                bounds = bound_difference(self.tuned.judged, side.judged)
                differences[name] = dataclasses.replace(difference, bounds=bounds)
        return differences

    def _compare(self, measure: str, model: str) -> Difference | None:
        """Return the tuned model's difference from another model; None for fewer than two common examples."""
        values, base = self.tuned.list_values(measure), self.sides[model].list_values(measure)
        ids = [id for id in base if id in values]
        if len(ids) < 2:
            return None
        alike = [self._tasks.get(id, id) for id in ids]
        pairs = [values[id] for id in ids], [base[id] for id in ids]
        return compare_values(*pairs, alike, is_share=measure in SHARES)

    @property
    def difference(self) -> Difference | None:
        """The difference in score that training made; None if it is not known."""
        return self.differences.get(self.start)

    @property
    def people(self) -> list[str]:
        """The judge's means and their difference, corrected by people's scores, in words; empty without any."""
        means = {self.label(name): side.corrected for name, side in self.sides.items()}
        lines = [f"{label}: {mean.describe()}" for label, mean in means.items() if mean]
        difference = self.tuned.labelled.subtract(self.before.labelled).correct() if self.difference else None
        if difference and difference.mean is not None:
            lines.append(f"tuned - {self.label()}: {difference.describe('examples on both sides', signed=True)}")
        return lines

    @functools.cached_property
    def _tasks(self) -> dict[str, str]:
        return {row.id: row.instruction for side in self.sides.values() for row in side.responses}

    @property
    def alike(self) -> str:
        """How similar rows widen the interval of the leading measure, in words; usually empty."""
        before, after = (side.list_values(self.leading.name) for side in (self.before, self.tuned))
        ids = [id for id in before if id in after]
        categories = {row.id: row.category for row in self.tuned.responses if row.category}
        by_category = [categories.get(id) for id in ids] if categories else []
        differences = [after[id] - before[id] for id in ids]
        return describe_groups(differences, [self._tasks.get(id, id) for id in ids], by_category)

    @property
    def lengths(self) -> str:
        """The length of the answers before and after DPO or GRPO, in words; empty after fine-tuning."""
        row = next((row for row in self.metrics if row.name == "length_ratio" and row.before and row.tuned), None)
        if row is None or self.experiment.method == "SFT":
            return ""
        return f"length of the answers {row.show(row.before)} -> {row.show(row.tuned)} of their references'"

    @functools.cached_property
    def metrics(self) -> list[MetricRow]:
        """The reference metrics that any model has, in a fixed order; those that are not ours come last."""
        means = {model: side.metrics.metrics for model, side in self.sides.items()}
        rows = []
        for name in dict.fromkeys([*METRICS, *(name for by_name in means.values() for name in by_name)]):
            values = {model: by_name[name] for model, by_name in means.items() if name in by_name}
            # The mean of quotients is not the quotient that is shown.
            compared = self.others if name not in QUOTIENTS else []
            differences = {model: paired for model in compared if (paired := self._compare(name, model))}
            if values:
                rows.append(MetricRow(name, values, differences, self.start))
        return rows

    @functools.cached_property
    def leading(self) -> Leading:
        """The measure that all views show first and sort by."""
        sides = [set(side.values) for side in self.sides.values() if side.responses or side.scores or side.values]
        metrics = set.intersection(*sides) if sides else set()
        weaknesses = (find_weakness(scores.judge, scores.self_check) for scores in self.scores)
        return choose_leading(weaknesses, metrics, is_scored=bool(self.scores))

    @property
    def evaluations(self) -> list[TrainingRow]:
        """The rows with evaluations on held-out examples, by step."""
        rows = {row.step: row for row in self.training_rows if row.measured is not None}
        return [rows[step] for step in sorted(rows)]

    @property
    def measure(self) -> str:
        """The measure of these evaluations."""
        return "mean reward" if self.experiment.method == "GRPO" else "validation loss"


def read_results(run: RunFolder, experiment: Experiment | None = None) -> RunResults:
    """Return the results in a run folder.

    Args:
        run: The run folder.
        experiment: The experiment of the run; by default that in its `run.yaml`.

    Raises:
        RunError: The folder does not contain a run.
        DataError: A file of the run cannot be read or is invalid.
    """
    return RunResults(
        folder=run,
        experiment=experiment or run.load_experiment(),
        provenance=run.read_provenance(),
        preflight=read_file(run.preflight, Preflight) or Preflight(),
        training_rows=read_rows(run.training_log, TrainingRow) if run.training_log.is_file() else [],
        training=read_file(run.training_summary, TrainingSummary),
        sides={model: _read_model(run, model) for model in MODELS},
        self_check=read_file(run.self_check, SelfCheck),
        benchmarks=(read_file(run.benchmarks, dict[str, list[BenchmarkResult]]) or {}).get(TUNED, []),
        pairwise=_read_pairs(run),
    )


def _read_model(run: RunFolder, model: str) -> ModelResults:
    responses = run.read_responses(model)
    return ModelResults(
        responses=responses,
        judgments={judgment.id: judgment for judgment in run.read_judgments(model)},
        scores=run.read_scores(model),
        metrics=run.read_metrics(model),
        people=read_people(run, responses),
    )


def _read_pairs(run: RunFolder) -> list[tuple[PairSummary, Corrected | None]]:
    pairs = []
    for path in sorted(run.pairwise.glob("*.json")):
        if summary := read_file(path, PairSummary):
            file = path.with_suffix(".jsonl")
            pairs.append((summary, correct_win_rate(file, read_rows(file, Preference)) if file.is_file() else None))
    return pairs
