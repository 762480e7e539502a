"""What the files of a run folder hold: one class for each file, which writes it and reads it.

`RunFolder` says which file is which, `records` reads and writes them. Unknown fields are ignored, so that a file of a
later version can be read; a field of another type, NaN and infinity are refused.
"""

import dataclasses
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hf_instruct.console import format_interval, format_signed

# Whose answers: the base model's before training, and those of the model that training made of it.
UNTUNED, TUNED = "untuned", "tuned"
# In the order of every table and file.
MODELS = (UNTUNED, TUNED)

# A file made elsewhere may hold a number of any length, which nothing can compute with.
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Interval(NamedTuple):
    """The ends of a 95 % interval, in the unit of the number it belongs to; a list of two in a file."""

    low: float
    high: float

    def spans(self, value: float) -> bool:
        """Return whether a value lies in the interval, its ends included."""
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class MeanDifference:
    """Mean of numbers minus a baseline's over the examples that both have, and its 95 % interval, in their unit."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        ends = format_interval((self.low, self.high), signed=True)
        return f"{format_signed(self.mean)} points, 95 % interval {ends}"


class Record(BaseModel):
    """Part of a file of a run folder."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they stand in the file."""
        return self.model_dump(mode="json")


class JudgeIdentity(Record):
    """Which judge it was, exactly.

    Attributes:
        backend: `ollama`, `local` or `openai`; `person` for a vote.
        model: The judge's tag, Hub id or folder; the voter.
        digest: Of its weights; None where that is not known.
        server_version: None where there is no server, or it does not tell.
        options: Whatever else a verdict depends on: temperature, seed, context.
    """

    # A judge of the user's own may tell more.
    model_config = ConfigDict(extra="allow")

    backend: str = ""
    model: str = ""
    digest: str | None = None
    server_version: str | None = None
    options: dict[str, Any] = {}

    def with_seed(self, seed: int | None) -> "JudgeIdentity":
        """Return the same judge with another seed; one that draws nothing at random stays as it is."""
        if seed is None or "seed" not in self.options:
            return self
        return self.model_copy(update={"options": {**self.options, "seed": seed}})


class RubricName(Record):
    """Which rubric it was: its name, and the hash of what it asks."""

    name: str = ""
    sha256: str = ""


class Response(Record):
    """A line of `responses.jsonl`: a model's answer, with the example itself so that the file can be judged alone.

    Attributes:
        id: The example's id.
        model: Who answered: `untuned` or `tuned`.
        response: Generated text: no prompt, no special tokens.
        stopped: Whether the model ended the answer itself; None where that is not known (files made elsewhere).
        num_tokens: Generated tokens, the end-of-text token included; None where that is not known.
        reference_nll: Loss of the reference as a completion, under the same model: the sum over its tokens, the one
            that ends it included, in nats. None where that is not known, or the reference does not fit the context.
        reference_tokens: How many tokens that sum is over.
        further_responses: What else was generated for the example, where several answers were asked for; never judged.
    """

    id: str
    model: str = TUNED
    instruction: str
    input: str
    output: str
    response: str
    category: str | None = None
    stopped: bool | None = None
    num_tokens: Count | None = None
    reference_nll: float | None = None
    reference_tokens: Count | None = None
    further_responses: list[str] | None = None


class Judgment(Record):
    """A line of `judgments.jsonl`: the record of judging one response once.

    Attributes:
        id: The example's id.
        model: Whose response it is, as in `Response`.
        score: Integer from 0 to 100, or None when no verdict could be read.
        replies: The judge's raw replies, one for each attempt that brought any; the last one is empty if the last
            attempt brought none after one that did.
        judge: Which judge, exactly.
        rubric: Name of the rubric.
        rubric_sha256: Hash of what the rubric asks; empty in files of older versions.
        repeat: Which time the response was judged, from 1, where it was judged several times.
        prompt_sha256: Hash of what the judge was asked: messages, reply schema, levels.
        seconds: Time the judge took, all attempts together; 0 when the judgment came from the cache.
        failure: Why there is no score; None when there is one.
        reasons: The judge's reasons, where the rubric asks for them.
        cached: Whether an earlier, equal call answered.
    """

    id: str
    model: str = TUNED
    score: int | None = Field(ge=0, le=100)
    replies: list[str]
    judge: JudgeIdentity
    rubric: str
    rubric_sha256: str = ""
    repeat: Count = 1
    prompt_sha256: str
    seconds: float
    failure: str | None = None
    reasons: str | None = None
    cached: bool = False


class Preference(Record):
    """A line of `pairwise/*.jsonl` and of votes: which of two responses to one example a judge or a person prefers.

    Attributes:
        id: The example's id.
        first: Name of the one set of responses, such as its run folder.
        second: Name of the other.
        score: 1 for the first, 0 for the second, 0.5 for a tie; None when no verdict could be read.
        judge: Who prefers, exactly.
        rubric: Name of what was asked.
        orders: The score by each order shown, the first response first, then the second first; empty for a vote.
        replies: The judge's raw replies, in the order of `orders`; empty for a vote.
        first_length: Characters of the first response.
        second_length: Characters of the second.
        prompt_sha256: Hash of all that was asked; empty for a vote.
        seconds: From the first question to the verdict.
        failure: Why there is no verdict.
        category: The example's category, where it has one.
    """

    id: str
    first: str = Field(min_length=1)
    second: str = Field(min_length=1)
    score: float | None
    judge: JudgeIdentity
    rubric: str
    orders: list[float | None]
    replies: list[str]
    first_length: Count
    second_length: Count
    prompt_sha256: str = ""
    seconds: float = 0.0
    failure: str | None = None
    category: str | None = None

    @field_validator("score")
    @classmethod
    def _check_score(cls, score: float | None) -> float | None:
        if score not in (None, 0, 0.5, 1):
            raise ValueError(f"it is {score:g}, not 0, 0.5, 1 or null")
        return score


class TrainingRow(Record):
    """A line of `training.jsonl`: what was known at an optimizer step.

    Attributes:
        step: Optimizer steps done.
        epoch: Passes over the training examples done, as a fraction.
        tokens_seen: Example tokens (prompt and completion, no padding) trained on so far.
        kind: `train` (mean loss since the last such row), `evaluation` (losses on fixed examples) or `samples`.
        loss: Mean training loss in nats per label token; None on other kinds.
        train_loss: Loss on a fixed part of the training examples; on `evaluation` rows.
        validation_loss: Loss on the validation examples; on `evaluation` rows.
        learning_rate: On `train` rows.
        tokens_per_second: Example tokens per second since the last `train` row.
        seconds: Time trained so far, evaluation and interrupted parts included.
        samples: On `samples` rows, each with `id`, `instruction`, `input`, `output`, `response`.
    """

    step: Count
    epoch: float
    tokens_seen: Count
    kind: str
    loss: float | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    samples: list[dict[str, str]] | None = None


class TrainingSummary(Record):
    """`training.json`: what a fine-tuning run took.

    Attributes:
        seconds: Time of the training loop, evaluation and interrupted parts included.
        steps: Optimizer steps.
        epochs: Passes over the training examples.
        tokens_seen: Example tokens trained on, padding left out.
        tokens_per_second: The last divided by the first.
        peak_memory_bytes: Most memory held: the GPU's where there is one, else the process's.
        device: `cuda`, `mps` or `cpu`.
        precision: `bf16`, `fp16` or `fp32`.
        num_processes: Processes that trained together.
        num_parameters: All weights.
        num_trainable_parameters: Weights that were trained.
        train_loss: Last loss on the fixed part of the training rows, in nats per label token.
        validation_loss: Last loss on the validation rows.
        validation_loss_before: The same before the first step.
    """

    seconds: float
    steps: Count
    epochs: float
    tokens_seen: Count
    tokens_per_second: float
    peak_memory_bytes: Count
    device: str
    precision: str
    num_processes: Count
    num_parameters: Count
    num_trainable_parameters: Count
    train_loss: float | None = None
    validation_loss: float | None = None
    validation_loss_before: float | None = None


class CheckOutcome(Record):
    """How a judge did when it was checked itself: whether it passed, the names of what it failed, over n examples."""

    passed: bool
    failed: list[str]
    n: Count


class ScoreSummary(Record):
    """What a set of scores amounts to.

    Failures are counted and never averaged: the numbers are over the `n` judgments that hold a score, and None where
    there are too few for them (1 for a mean, 2 for its error).

    Attributes:
        mean: Mean score from 0 to 100.
        standard_error: Of the mean.
        interval: The 95 % bootstrap interval of the mean.
        mean_failures_as_0: Mean over all with every failure counted as 0; the mean can lie anywhere from here to
        mean_failures_as_100: the mean with every failure counted as 100.
        n: Responses with a score.
        failures: Responses judged without a readable verdict.
        total: Responses judged.
        coverage: The first of these by the last, a fraction.
        minimum: Lowest score.
        median: Middle score.
        maximum: Highest score.
    """

    mean: float | None = None
    standard_error: float | None = None
    interval: Interval | None = None
    mean_failures_as_0: float | None = None
    mean_failures_as_100: float | None = None
    n: Count = 0
    failures: Count = 0
    total: Count = 0
    coverage: float | None = None
    minimum: int | None = None
    median: float | None = None
    maximum: int | None = None


class Repeats(Record):
    """What judging the same responses several times shows of the judge itself.

    Attributes:
        count: How often each was judged.
        seeds: The seed of each repeat; None where it was left to the server.
        means: Mean score of each repeat; None where it has no score.
        n: Scores of each repeat.
        failures: Responses without a score in each repeat.
        mean: Over the examples' own means over their repeats.
        interval: Its 95 % interval.
        spread: Standard deviation of an example's scores over the repeats, in points, as root mean square over the
            examples with at least two scores.
        changed: Fraction of examples whose verdicts are not all the same, a failure being a verdict of its own.
        means_standard_deviation: Of the repeats' means, in points.
    """

    count: Count
    seeds: list[int | None]
    means: list[float | None]
    n: list[Count]
    failures: list[Count]
    mean: float | None = None
    interval: Interval | None = None
    spread: float | None = None
    changed: float | None = None
    means_standard_deviation: float | None = None


class Scores(ScoreSummary):
    """`scores.json`: what the newest judging of a model's responses amounts to.

    Attributes:
        constant: Whether the judge gave every answer the same score, 5 answers at least.
        judge: Which judge; with repeats, that of the first.
        rubric: Which rubric.
        prompts_sha256: Hash of all prompts that the judge was sent.
        cached: Judgments that came from the cache.
        seconds: Time the judge took.
        by_category: The same numbers for each category, where the examples have one.
        repeats: Where each response was judged several times.
        self_check: How this judge did under this rubric when it was checked; None where it was not.
    """

    constant: bool = False
    judge: JudgeIdentity = JudgeIdentity()
    rubric: RubricName = RubricName()
    prompts_sha256: str = ""
    cached: Count = 0
    seconds: float = 0.0
    by_category: dict[str, ScoreSummary] = {}
    repeats: Repeats | None = None
    self_check: CheckOutcome | None = None


class MetricValue(Record):
    """A reference metric over several examples: in its own unit, with the 95 % interval (None for one example)."""

    mean: float
    interval: Interval | None
    n: Count


class Metrics(Record):
    """`metrics.json`: the reference metrics of one model's responses.

    Attributes:
        metrics: By name.
        total: Number of responses.
        by_category: The same for each category, where examples have one.
        examples: Values by the example's id and the metric's name.
    """

    metrics: dict[str, MetricValue] = {}
    total: Count = 0
    by_category: dict[str, dict[str, MetricValue]] = {}
    examples: dict[str, dict[str, float]] = {}

    def by_metric(self) -> dict[str, dict[str, float]]:
        """Return the examples' values by the metric's name, then the example's id."""
        found: dict[str, dict[str, float]] = {}
        for id, values in self.examples.items():
            for name, value in values.items():
                found.setdefault(name, {})[id] = value
        return found


class BenchmarkResult(Record):
    """One metric of one task or group of lm-eval; `benchmarks.json` lists these by model.

    Attributes:
        value: As lm-eval computes it; None where that is not a number.
        standard_error: Of the value; None where lm-eval has none.
        n: Questions asked.
        total: Questions that the task has; None for a group.
        num_fewshot: Solved examples before each; None for a group whose tasks differ.
        version: The task's, from its YAML.
        questions_sha256: Hash of questions, prompts and answers as lm-eval's `task_hashes`; None for a group.
        model: The run folder, or the model's name.
        difference: This value - the base model's over the same questions; None where there is no base model or no
            value for each question.
        asked: The name of the task, group or tag that was asked for.
        asked_fewshot: The number of solved examples that was asked for; None for the task's own.
        shown: Whether this is what was asked for, rather than a member of a group with a result of its own.
        values: The value of each question, in the task's order; None for a group.
    """

    task: str
    metric: str
    filter: str
    value: float | None
    standard_error: float | None
    n: Count
    total: Count | None
    num_fewshot: int | None
    higher_is_better: bool | None
    version: str | None
    questions_sha256: str | None
    limit: int | None
    chat_template: bool
    dtype: str
    model: str
    lm_eval_version: str
    seconds: float
    measured_at: str
    difference: MeanDifference | None = None
    asked: str = ""
    asked_fewshot: int | None = None
    shown: bool = True
    values: list[float] | None = None


class Check(Record):
    """What a judge made of one kind of probe beside another, over the same examples.

    Attributes:
        name: What is checked: `order`, `repeated`, `doubled` or `injection`; empty for a row shown for comparison.
        first: Kind of the one probe.
        second: Kind of the other.
        expected: Where the mean difference, first minus second, should lie.
        difference: That mean, in points; None without a pair.
        interval: Its 95 % interval; None for fewer than two pairs.
        higher: Share of the pairs in which the first got the higher score; None without a pair.
        equal: Share in which both got the same.
        n: Pairs in which both got a score.
        passed: Whether it lies there; None where nothing was expected or there are too few pairs.
    """

    name: str
    first: str
    second: str
    expected: str
    difference: float | None
    interval: Interval | None
    higher: float | None
    equal: float | None
    n: Count
    passed: bool | None


class Rises(Record):
    """How often an addition to an answer raised its score: the pairs, and the share raised by 1, 10 and 50 points."""

    pairs: Count
    higher: float | None
    higher_by_10: float | None
    higher_by_50: float | None


class Injections(Rises):
    """How far all injections together moved the verdicts, in points, beside a harmless addition (`control`)."""

    difference: float | None
    interval: Interval | None
    control: Rises


class KindSummary(Record):
    """Mean score of one kind of probe, over `n` of them; `failures` more have no score."""

    mean: float | None
    n: Count
    failures: Count


class SelfCheck(CheckOutcome):
    """`self_check.json`: what a judge made of answers of known worth.

    Attributes:
        probes: Answers put to the judge.
        failures: Those without a score.
        constant: The one score that all got; None where they differ.
        checks: What was expected of two kinds of probes, and what was seen.
        injection: All injections together.
        kinds: By kind of probe.
        judge: Which judge.
        rubric: Which rubric.
        prompts_sha256: Hash of all prompts that the judge was sent.
        cached: Judgments that came from the cache.
        seconds: Time the judge took.
    """

    probes: Count
    failures: Count
    constant: int | None
    checks: list[Check]
    injection: Injections
    kinds: dict[str, KindSummary]
    judge: JudgeIdentity = JudgeIdentity()
    rubric: RubricName = RubricName()
    prompts_sha256: str = ""
    cached: Count = 0
    seconds: float = 0.0


class Lengths(Record):
    """Mean length of the answers of the first and of the second set, in characters."""

    first: float
    second: float


class Alone(Record):
    """Answers of the first and of the second set that the other has no answer to."""

    first: Count
    second: Count


class Consistency(Record):
    """Share of the pairs that got the same verdict in both orders, of those with a verdict in both."""

    share: float | None
    pairs: Count


class Position(Record):
    """How often the answer shown first was preferred, the second, and none; and the share of the first without ties."""

    first: Count
    second: Count
    ties: Count
    first_share: float | None


class PairSummary(Record):
    """`pairwise/*.json`: what the preferences between two sets of answers amount to.

    Win rates are fractions of the first set's wins, ties half, over the `n` pairs with a verdict.

    Attributes:
        first: Name of the first set.
        second: Name of the second, the baseline.
        lowest: Win rate with every failure counted as lost.
        highest: Win rate with every failure counted as won.
        one_sided_lengths: Whether all answers of one set are the longer ones; None where that was not measured.
        identical: Pairs of equal answers, which count as ties.
        consistency: Over what the judge was asked, so without identical answers.
        position: The same; `first_share` is one half for a judge without a liking for a position.
        joined_by: `id` or `order`.
    """

    first: str
    second: str
    win_rate: float | None
    win_rate_interval: Interval | None
    lowest: float | None
    highest: float | None
    length_controlled_win_rate: float | None
    length_controlled_win_rate_interval: Interval | None
    one_sided_lengths: bool | None
    mean_length: Lengths
    n: Count
    failures: Count
    total: Count
    wins: Count
    ties: Count
    losses: Count
    identical: Count
    consistency: Consistency
    position: Position
    joined_by: str
    without_counterpart: Alone
    judge: JudgeIdentity
    rubric: RubricName
    prompts_sha256: str
    seconds: float


class Leak(Record):
    """A held-out example whose instruction and input also stand in train, at these ids."""

    id: str
    train_ids: list[str]


class NearDuplicate(Record):
    """A held-out example that is nearly a training example, by the cosine similarity of the two."""

    id: str
    train_id: str
    cosine: float


class NearDuplicates(Record):
    """Near-duplicates by split; `skipped` says why they were not looked for."""

    threshold: float
    skipped: str | None = None
    test: list[NearDuplicate] = []
    validation: list[NearDuplicate] = []


class Preflight(Record):
    """`data/preflight.json`: what was found in the data before training. `build_preflight` says more about each.

    Attributes:
        data_sha256: Checksum of the three files of the splits.
        source: Where the examples come from.
        split: How they were split.
        examples: How many, for each split and in `total`.
        seen_in_train: Held-out examples whose instruction and input also stand in train, by split.
        near_duplicates: Held-out examples that are nearly a training example.
    """

    # The tables of `data check` read the rest.
    model_config = ConfigDict(extra="allow")

    data_sha256: str | None = None
    source: str = ""
    split: str | None = None
    examples: dict[str, Count] = {}
    seen_in_train: dict[str, list[Leak]] = {}
    near_duplicates: NearDuplicates | None = None

    def count_leaks(self) -> tuple[int, int]:
        """Return how many test examples stand in train, and how many more are nearly a training example."""
        return len(self.seen_in_train.get("test", [])), len(self.near_duplicates.test if self.near_duplicates else [])


class Provenance(Record):
    """`run.yaml` without the experiment: where a run comes from, never a secret.

    Attributes:
        data_sha256: Checksum of the splits that the run was prepared with; None until then.
        base_model_is_local: Whether the base model was a local folder when training began; None until then.
        created_at: Time at which the run was started, UTC.
        command: What started it.
        git_commit: Of this package, where it runs from a clone.
        python: Its version.
        versions: Of the libraries, by name.
    """

    data_sha256: str | None = None
    base_model_is_local: bool | None = None
    created_at: str = ""
    command: str = ""
    git_commit: str | None = None
    python: str = ""
    versions: dict[str, str] = {}
