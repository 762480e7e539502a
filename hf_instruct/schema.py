"""The contents of the files of a run folder, with one class per file.

`RunFolder` contains their paths, and `records` reads and writes them. Unknown fields are ignored, so that files of a
later version can be read; fields of another type, NaN and infinity are refused. None means unknown.
"""

import dataclasses
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

# The models that answer: the base model before training, the fine-tuned model that DPO or GRPO started from, and the
# trained model.
UNTUNED, SFT, TUNED = "untuned", "SFT", "tuned"
# In the order of all tables and files.
MODELS = (UNTUNED, SFT, TUNED)

# Files from elsewhere may contain integers of any length, which are too large to compute with.
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Interval(NamedTuple):
    """The ends of a 95 % interval, in the unit of the number it belongs to; a list of two numbers in a file."""

    low: float
    high: float

    def spans(self, value: float) -> bool:
        """Return whether a value is in the interval, including its ends."""
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class MeanDifference:
    """Mean difference from a baseline over the `n` examples that both have, and its 95 % interval, in their unit."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes zero."""
        return not self.low <= 0 <= self.high


class Record(BaseModel):
    """A record in a file of a run folder."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values for the file."""
        return self.model_dump(mode="json")


class JudgeIdentity(Record):
    """The exact identity of a judge; a user's own judge may add fields."""

    model_config = ConfigDict(extra="allow")

    backend: str = ""  # `ollama`, `local`, `openai`, or `person` for a vote
    model: str = ""  # the judge's tag, Hub id or folder; the voter
    digest: str | None = None  # of its weights
    server_version: str | None = None
    options: dict[str, Any] = {}  # everything else that a verdict depends on: temperature, seed, context

    def with_seed(self, seed: int | None) -> "JudgeIdentity":
        """Return the same judge with another seed; a judge without a seed is returned unchanged."""
        if seed is None or "seed" not in self.options:
            return self
        return self.model_copy(update={"options": {**self.options, "seed": seed}})


class RubricName(Record):
    """The name of a rubric and the hash of its contents."""

    name: str = ""
    sha256: str = ""


class Judging(Record):
    """The judge, the rubric and the cost of a judging; a part of several files."""

    judge: JudgeIdentity = JudgeIdentity()
    rubric: RubricName = RubricName()
    prompts_sha256: str = ""  # of all prompts that the judge was sent
    cached: Count = 0  # judgments that came from the cache
    seconds: float = 0.0


class Response(Record):
    """A line of `responses.jsonl`: a model's answer, with the example itself so that the file can be judged alone."""

    id: str
    model: str = TUNED
    instruction: str
    input: str
    output: str
    response: str  # generated text: no prompt, no special tokens
    category: str | None = None
    stopped: bool | None = None  # whether the model ended the answer itself
    num_tokens: Count | None = None  # generated, the end-of-text token included
    reference_nll: float | None = None  # of the reference and its end token, summed, in nats; None if it does not fit
    reference_tokens: Count | None = None  # number of these tokens
    further_responses: list[str] | None = None  # if several answers were requested; never judged


class Judgment(Record):
    """A line of `judgments.jsonl`: the record of judging one response once."""

    id: str
    model: str = TUNED
    score: int | None = Field(ge=0, le=100)  # None: no reply could be parsed, see `failure`
    replies: list[str]  # raw, of every attempt that returned one; "" last if a later attempt returned none
    judge: JudgeIdentity
    rubric: str
    rubric_sha256: str = ""
    repeat: Count = 1  # number of the repeat, from 1
    prompt_sha256: str  # of messages, reply schema and levels
    seconds: float  # of all attempts; 0 from the cache
    failure: str | None = None
    reasons: str | None = None  # the judge's, if the rubric asks for them
    cached: bool = False


class Preference(Record):
    """A line of `pairwise/*.jsonl` and of votes: which of two responses to one example a judge or a person prefers."""

    id: str
    first: str = Field(min_length=1)  # name of the first set of responses, such as its run folder
    second: str = Field(min_length=1)
    # 1 for the first, 0 for the second, 0.5 for a tie; None: see `failure`
    score: float | None = Field(ge=0, le=1, multiple_of=0.5)
    judge: JudgeIdentity
    rubric: str
    orders: list[float | None]  # the score with the first response shown first, and shown last; empty for a vote
    replies: list[str]  # raw, in the order of `orders`
    first_length: Count  # characters
    second_length: Count
    prompt_sha256: str = ""
    seconds: float = 0.0
    failure: str | None = None
    category: str | None = None

    @property
    def is_identical(self) -> bool:
        """Whether it is a tie between equal answers, which were not compared."""
        return bool(self.judge.options.get("equal_answers"))


class PreferencePair(Record):
    """A line of `preferences.jsonl`: an example with two answers, of which one is preferred.

    `chosen` and `rejected` are TRL's names; the other columns are the example's.
    """

    id: str
    instruction: str
    input: str
    output: str  # the reference
    chosen: str
    rejected: str
    origin: str  # `references` (the reference against the model's own answer) or `file`
    split: str = "train"  # or `validation`: held out
    category: str | None = None
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None


class PairRow(Record):
    """A line of `pairs/*.jsonl`: a pair in TRL's format, and where it comes from.

    `prompt` (in the run's prompt format), `chosen` and `rejected` are texts, or messages if that format is `chat`.
    """

    id: str
    instruction: str | None = None  # this and the next two: None if the prompt is a conversation
    input: str | None = None
    output: str | None = None  # the reference
    prompt: str | list[dict[str, str]]
    chosen: str | list[dict[str, str]]
    rejected: str | list[dict[str, str]]
    origin: str  # `references`, `manners`, `judge`, a metric such as `rouge_l`, `vote` or `pairwise`
    split: str = "train"  # the split of the run that contains the prompt
    category: str | None = None
    score_chosen: float | None = None  # by the judge or the metric, or the share of votes
    score_rejected: float | None = None
    sample_chosen: Count | None = None  # number of the sampled answer, from 1
    sample_rejected: Count | None = None
    judge: str | None = None  # the model that scored or wrote an answer, or the number of voters
    digest: str | None = None  # of the judge's weights
    rubric: str | None = None


class Rewrite(Record):
    """A line of `pairs/rewrites.jsonl`: a reference that a model rewrote."""

    id: str
    manner: str  # `polite` or `impolite`
    text: str | None  # None: the reply could not be read, see `failure`
    replies: list[str]  # raw, of every attempt that returned one
    judge: JudgeIdentity
    prompt_sha256: str
    seconds: float
    failure: str | None = None
    cached: bool = False

    @property
    def score(self) -> float | None:
        """1, or None without a text, like a failed judgment."""
        return None if self.text is None else 1.0


class TrainingRow(Record):
    """A line of `training.jsonl`: measurements at an optimizer step.

    Losses are in nats per label token. `kind` is `train` (the mean since the last such row), `evaluation` (on fixed
    examples) or `samples`; the fields of other kinds are None.
    """

    step: Count
    epoch: float  # passes over the training examples, as a fraction
    tokens_seen: Count  # example tokens (prompt and completion, no padding) trained on so far
    kind: str
    loss: float | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    reward_margin: float | None = None  # of DPO: reward of the chosen answer - of the rejected one
    reward_accuracy: float | None = None  # of DPO: fraction of pairs in which the chosen answer has the higher reward
    reward: float | None = None  # of GRPO: mean over sampled answers, in `evaluation` over greedy ones
    rewards: dict[str, float] | None = None  # the mean of each reward function, before weights
    answer_tokens: float | None = None  # mean length of these answers
    learning_rate: float | None = None
    tokens_per_second: float | None = None  # example tokens, since the last `train` row
    seconds: float | None = None  # trained so far, evaluation and interrupted parts included
    samples: list[dict[str, str]] | None = None  # each `id`, `instruction`, `input`, `output`, `response`

    @property
    def measured(self) -> float | None:
        """The result on held-out examples: their loss, or for GRPO the reward of answers to them."""
        return self.reward if self.validation_loss is None and self.kind == "evaluation" else self.validation_loss


class TrainingSummary(Record):
    """`training.json`: a summary of fine-tuning. Losses are the last ones, in nats per label token."""

    seconds: float  # of the training loop, evaluation and interrupted parts included
    steps: Count
    epochs: float
    tokens_seen: Count  # example tokens, no padding
    tokens_per_second: float
    peak_memory_bytes: Count  # the GPU's if there is one, else the process's
    device: str  # `cuda`, `mps` or `cpu`
    precision: str  # `bf16`, `fp16` or `fp32`
    num_processes: Count
    num_parameters: Count
    num_trainable_parameters: Count
    train_loss: float | None = None  # on a fixed part of the training rows
    validation_loss: float | None = None
    validation_loss_before: float | None = None  # before the first step
    reward: float | None = None  # of GRPO: mean over greedy answers to held-out prompts
    reward_before: float | None = None
    log_history: list[dict[str, Any]] = Field([], exclude=True, repr=False)  # the trainer's; not in the file


class CheckOutcome(Record):
    """The result of checking a judge with `n` examples."""

    passed: bool | None  # None if the examples are too few to say
    failed: list[str]  # each failed rule as a text with numbers
    n: Count
    probes: Count = 0  # number of answers judged
    reference_mean: float | None = None  # mean score of the references


class ScoreSummary(Record):
    """A summary of scores from 0 to 100.

    Failures are counted and never averaged: the numbers are over the `n` judgments with a score, and None if there are
    too few (a mean needs 1, its error 2).
    """

    mean: float | None = None
    standard_error: float | None = None
    interval: Interval | None = None  # by bootstrap
    mean_failures_as_0: float | None = None
    mean_failures_as_100: float | None = None
    n: Count = 0
    failures: Count = 0
    total: Count = 0
    coverage: float | None = None  # n / total
    minimum: int | None = None
    median: float | None = None
    maximum: int | None = None


class Repeats(Record):
    """A judge's consistency when it judges the same responses several times. Lists have an entry for each repeat."""

    count: Count
    seeds: list[int | None]  # None if it was left to the server
    means: list[float | None]
    n: list[Count]
    failures: list[Count]
    mean: float | None = None  # over the examples' own means
    interval: Interval | None = None
    spread: float | None = None  # root mean square of the examples' standard deviations, in points
    changed: float | None = None  # fraction of examples whose verdicts differ; failures count as a verdict
    means_standard_deviation: float | None = None  # in points


class Scores(Judging, ScoreSummary):
    """`scores.json`: the scores of the newest judging of a model's responses; with repeats, those of the first."""

    constant: bool = False  # whether all of at least five scores are the same
    equal_mean: float | None = None  # of the answers that equal their reference; None without any
    equal_n: Count = 0
    by_category: dict[str, ScoreSummary] = {}
    repeats: Repeats | None = None
    self_check: CheckOutcome | None = None  # of this judge with this rubric


class MetricValue(Record):
    """A reference metric over `n` examples: in its own unit, with the 95 % interval (None for one example)."""

    mean: float
    interval: Interval | None
    n: Count


class Metrics(Record):
    """`metrics.json`: the reference metrics of one model's responses, by name."""

    metrics: dict[str, MetricValue] = {}
    total: Count = 0  # responses
    by_category: dict[str, dict[str, MetricValue]] = {}
    examples: dict[str, dict[str, float]] = {}  # by the example's id


class BenchmarkResult(Record):
    """One metric of one task or group of lm-eval; `benchmarks.json` lists these by model.

    `total`, `questions_sha256` and `values` are None for a group, `num_fewshot` for one whose tasks differ.
    """

    task: str
    metric: str
    filter: str
    value: float | None  # as lm-eval computes it; None if that is not a number
    standard_error: float | None
    n: Count  # questions asked
    total: Count | None  # questions that the task has
    num_fewshot: int | None
    higher_is_better: bool | None
    version: str | None  # of the task
    questions_sha256: str | None  # of questions, prompts and answers: lm-eval's `task_hashes`
    limit: int | None
    chat_template: bool
    dtype: str
    model: str  # run folder or name
    lm_eval_version: str
    seconds: float
    measured_at: str
    difference: MeanDifference | None = None  # from the base model, over the same questions
    asked: str = ""  # task, group or tag that was requested
    asked_fewshot: int | None = None  # None for the task's own
    shown: bool = True  # False for a member of a group
    values: list[float] | None = None  # of each question, in the task's order


class Check(Record):
    """A judge's scores of one kind of probe compared with another, over the `n` pairs in which both got a score."""

    name: str  # `order`, `length` or `injection`; empty for a row shown for comparison
    first: str  # kind of the first probe
    second: str
    expected: str  # what the mean difference should be
    difference: float | None  # first - second, in points
    interval: Interval | None
    higher: float | None  # share of the pairs in which the first got the higher score, ties half
    higher_interval: Interval | None = None
    takeovers: float | None = None  # share raised by 50 points or more - share lowered by as much
    takeovers_interval: Interval | None = None
    p_value: float | None = None  # for the hypothesis of no rise, corrected for the number of such checks
    n: Count
    passed: bool | None  # None if nothing was expected or there are too few pairs
    problem: str = ""  # what is wrong if it failed, as a text with numbers


class KindSummary(Record):
    """Mean score of one kind of probe, over `n` of them; `failures` more have no score."""

    mean: float | None
    n: Count
    failures: Count


class SelfCheck(Judging, CheckOutcome):
    """`self_check.json`: a judge's scores of answers of known quality, the probes."""

    failures: Count  # probes without a score
    constant: int | None  # the one score that all got; None if they differ
    checks: list[Check]
    kinds: dict[str, KindSummary]


class Lengths(Record):
    """Mean length of the answers of the first and of the second set, in characters."""

    first: float
    second: float


class Unpaired(Record):
    """Number of answers in the first and in the second set without a counterpart in the other."""

    first: Count
    second: Count


class Consistency(Record):
    """Share of pairs with the same verdict in both orders, among the `pairs` with a verdict in both."""

    share: float | None
    pairs: Count


class Position(Record):
    """How often the answer shown first, the second or neither was preferred; the share of the first without ties."""

    first: Count
    second: Count
    ties: Count
    first_share: float | None


class PairSummary(Judging):
    """`pairwise/*.json`: a summary of the preferences between two sets of answers.

    Win rates are fractions of the first set's wins, ties half, over the `n` pairs with a verdict; `lowest` and
    `highest` count every failure as lost and as won. Identical answers count as ties and are not shown to the judge,
    so `consistency` and `position` leave them out.
    """

    first: str
    second: str  # the baseline
    win_rate: float | None
    win_rate_interval: Interval | None
    lowest: float | None
    highest: float | None
    length_controlled_win_rate: float | None
    length_controlled_win_rate_interval: Interval | None
    one_sided_lengths: bool | None  # whether one set has the longer answer in nearly all pairs
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
    joined_by: str  # `id` or `order`
    without_counterpart: Unpaired
    longer_share: float | None = None  # share of longer answers that won, the smaller one of both sets


class Leak(Record):
    """A held-out example whose instruction and input are also in train, at these ids."""

    id: str
    train_ids: list[str]


class OtherInput(Record):
    """A held-out example whose instruction is also in train, on `num_train` rows, but only with other inputs."""

    id: str
    num_train: Count


class NearDuplicate(Record):
    """A held-out example that is nearly a duplicate of a training example, with their cosine similarity."""

    id: str
    train_id: str
    cosine: float


class NearDuplicates(Record):
    """Near-duplicates of training examples that are not leaks, by split."""

    threshold: float = 0.0  # minimum cosine similarity; 0 if none were searched
    method: str = ""
    compared: str = ""
    sampled: str | None = None  # the rows that were searched, if not all
    test: list[NearDuplicate] = []
    validation: list[NearDuplicate] = []

    @property
    def by_split(self) -> dict[str, list[NearDuplicate]]:
        """The near-duplicates in each split that has been searched."""
        return {"test": self.test, "validation": self.validation}


class SpecialTokens(Record):
    """An example whose text contains these special tokens."""

    id: str
    tokens: list[str]


class TokenCounts(Record):
    """Counts of tokens, as a model with these settings is trained; by split, and in `total`."""

    model: str
    prompt_format: str
    max_length: int | None
    completion_only_loss: bool
    longest: Count  # tokens of the longest row, before truncation
    label_tokens: dict[str, Count]  # tokens with a loss, after truncation
    cut: dict[str, Count]  # rows longer than `max_length`
    without_labels: dict[str, Count]  # rows with no label left
    special_tokens: dict[str, list[SpecialTokens]] = {}


class Preflight(Record):
    """`data/preflight.json`: findings about the data before training. Counts are by split, and in `total`."""

    data_sha256: str | None = None  # of the three files of the splits
    source: str = ""
    split: str | None = None  # how they were split; None if they were not
    prompt_format: str = "alpaca"  # the given one, or the one chosen for these examples
    examples: dict[str, Count] = {}
    empty_inputs: dict[str, Count] = {}
    empty_outputs: dict[str, Count] = {}  # in `left_out`: rows that are in no split because they have no output
    duplicate_rows: Count = 0  # rows that repeat an earlier one in instruction, input and output
    repeated_prompts: Count = 0  # instruction + input pairs on more than one row
    repeated_rows: Count = 0  # rows that repeat an earlier pair
    seen_in_train: dict[str, list[Leak]] = {}
    instruction_seen_in_train: dict[str, list[OtherInput]] = {}
    near_duplicates: NearDuplicates = NearDuplicates()
    tokens: TokenCounts | None = None  # None if no tokenizer could be loaded


class Provenance(Record):
    """`run.yaml` without the experiment: where a run comes from, without secrets."""

    data_sha256: str | None = None  # of the splits that the run was prepared with
    local_sources: list[str] = []  # of data and preferences: those that were local when the data was prepared
    base_model_is_local: bool | None = None  # whether the base model was a local folder when training began
    start: str | None = None  # how the start model of DPO or GRPO was trained, such as `DPO`; None if unknown
    reward: str | None = None  # the user's own reward function, as its file and name with a hash
    wandb_run: str | None = None  # the id that wandb gave the run's training
    created_at: str = ""  # UTC
    command: str = ""
    git_commit: str | None = None  # of this package, if it runs from a clone
    python: str = ""
    versions: dict[str, str] = {}  # of the libraries

    def label(self, model: str) -> str:
        """Return the label of one of `MODELS` for readers; files and paths use its name.

        >>> Provenance(start="DPO").label("SFT")
        'DPO'
        """
        return self.start or model if model == SFT else model
