"""What the views of scores say of the judge that gave them, and which measure they show first."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from hf_instruct.console import format_points
from hf_instruct.evaluation.metrics import format_metric, label_metric
from hf_instruct.models import parse_num_parameters
from hf_instruct.schema import CheckOutcome, JudgeIdentity, RubricName, Scores, ScoreSummary

# Which of a judge's identity makes it another judge. A server's version is told apart only in a note.
JUDGE_IDENTITY = ("backend", "model", "digest", "options")
# With fewer answers the interval of their mean is itself uncertain.
FEW_ANSWERS = 30
# Judges below this have to show that they tell good answers from bad ones.
_SMALL_JUDGE_PARAMETERS = 3e9
_SHOWN_DIGEST_CHARACTERS = 7
SCORE = "score"
# The metric that leads where a judge's scores should not: it has a value between for a partly right answer.
LEADING_METRIC = "rouge_l"


class Leading(NamedTuple):
    """The measure that every view shows first and sorts by.

    Attributes:
        name: `score`, the name of a reference metric, or empty where there is none to go by.
        reason: Why the judge's scores follow, in a clause; empty where they lead. With a reason no view may say of a
            difference in scores that it is higher or lower.
    """

    name: str
    reason: str

    @property
    def is_metric(self) -> bool:
        """Whether a reference metric leads."""
        return self.name not in (SCORE, "")

    @property
    def label(self) -> str:
        """What the measure is called."""
        return label_metric(self.name)

    def show(self, value: float, *, signed: bool = False) -> str:
        """Return one example's value as it is printed."""
        if self.is_metric:
            return format_metric(self.name, value, signed=signed)
        return f"{value:{'+' if signed else ''}g}"


def choose_leading(weaknesses: Iterable[str], metrics: Collection[str]) -> Leading:
    """Return which measure leads: the judge's scores, unless a judge is too weak.

    Args:
        weaknesses: Of each judge whose scores are shown, as `find_weakness` returns it.
        metrics: Names of the reference metrics that all sets of answers have.

    >>> choose_leading(["", "the judge is of unknown size and unchecked"], {"rouge_l"}).name
    'rouge_l'
    """
    reason = next(filter(None, weaknesses), "")
    if not reason:
        return Leading(SCORE, "")
    return Leading(LEADING_METRIC if LEADING_METRIC in metrics else "", reason)


def find_weakness(judge: JudgeIdentity, self_check: CheckOutcome | None) -> str:
    """Return why a judge's scores should not lead, in a clause; empty where they may.

    A judge that passed its check may lead, whatever its size.

    >>> find_weakness(JudgeIdentity(model="smollm2-135m"), None)
    'the judge is small (135 million parameters) and unchecked'
    """
    if self_check and not self_check.probes and self_check.passed:
        # By the rules of older versions, which a useless judge passed too.
        self_check = None
    if self_check and self_check.passed is not None:
        return "" if self_check.passed else f"the judge {describe_check(self_check)}"
    size = parse_num_parameters(judge.model)
    if size is not None and size >= _SMALL_JUDGE_PARAMETERS:
        return ""
    what = "of unknown size" if size is None else f"small ({format_parameters(size)} parameters)"
    return f"the judge is {what} and {'unchecked' if self_check is None else describe_check(self_check)}"


def describe_check(outcome: CheckOutcome) -> str:
    """Return how a judge did when it was checked, to stand behind its name.

    >>> describe_check(CheckOutcome(passed=True, failed=[], n=20))
    'passed its check on 20 examples'
    """
    if outcome.passed is None:
        return f"was checked on only {outcome.n} examples, which say too little"
    if outcome.passed:
        return f"passed its check on {outcome.n} examples"
    more = f" (and {len(outcome.failed) - 1} more)" if len(outcome.failed) > 1 else ""
    return f"failed its check on {outcome.n} examples: {outcome.failed[0]}{more}"


def describe_references(scores: Scores) -> str:
    """Return what a judge gave to answers as good as can be, beside which its mean is read; empty where not known."""
    if scores.equal_mean is not None:
        mean = format_points(scores.equal_mean)
        return f"answers equal to the reference scored {mean} on average (n={scores.equal_n})"
    check = scores.self_check
    if check and check.reference_mean is not None:
        return f"the references themselves scored {format_points(check.reference_mean)} on average (n={check.n})"
    return ""


def format_parameters(count: float) -> str:
    """Return a number of parameters in words.

    >>> format_parameters(135e6), format_parameters(1.7e9)
    ('135 million', '1.7 billion')
    """
    return f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"


def format_mean(scores: ScoreSummary | None) -> str:
    """Return a mean with its standard error, as in `49.6 ± 2.8`; empty where nothing was judged."""
    if scores is None:
        return ""
    if scores.mean is None:
        return "no score"
    error = "" if scores.standard_error is None else f" ± {format_points(scores.standard_error)}"
    return f"{format_points(scores.mean)}{error}"


def format_counts(scores: ScoreSummary) -> str:
    """Return how many answers have a score: `n=109 of 110, 1 failure`."""
    failures = f", {scores.failures} failure{'' if scores.failures == 1 else 's'}" if scores.failures else ""
    return f"n={scores.n} of {scores.total}{failures}"


def label_judge(judge: JudgeIdentity, rubric: RubricName | None = None) -> str:
    """Return who judged, by which rubric, on one line; of a local folder the last part of its path.

    >>> label_judge(JudgeIdentity(backend="ollama", model="llama3", digest="365c0bd3c000"), RubricName(name="course"))
    'llama3@365c0bd (ollama), rubric course'
    """
    digest = (judge.digest or "").removeprefix("sha256:")[:_SHOWN_DIGEST_CHARACTERS]
    label = (short_name(judge.model) or "unnamed judge") + (f"@{digest}" if digest else "")
    label += f" ({judge.backend})" if judge.backend else ""
    if rubric is None or not rubric.name:
        return label
    return f"{label}, rubric {rubric.name}" + (f"@{rubric.sha256[:_SHOWN_DIGEST_CHARACTERS]}" if rubric.sha256 else "")


def short_name(name: str) -> str:
    """Return the last part of a local path, and a Hub id or an alias as it is.

    >>> short_name("./models/SmolLM2/"), short_name("Qwen/Qwen3-8B")
    ('SmolLM2', 'Qwen/Qwen3-8B')
    """
    return Path(name).name if name.startswith(("/", ".", "~")) else name
