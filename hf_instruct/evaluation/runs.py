"""Read what is compared: the scores of a run or a file, and all that says whether they can be compared."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.errors import DataError
from hf_instruct.evaluation.metrics import QUOTIENTS
from hf_instruct.evaluation.score_summary import JUDGE_IDENTITY
from hf_instruct.evaluation.verdict_files import SCORES, Key, Verdicts, build_verdicts, load_verdicts
from hf_instruct.records import Judgment, Response, TrainingRow, as_number, build_example_id, parse_json, read_rows
from hf_instruct.run_folder import RunFolder

_SHOWN_DIGEST_CHARACTERS = 7


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """The scores of one set of answers.

    Attributes:
        name: As the user named it.
        scores: Score from 0 to 100 of each example judged, by id (or by place, from 0); None for a failure. Where the
            answers were judged several times, the mean of an example's scores.
        keyed: Whether the keys are ids.
        judge: The judge's identity; empty where the file does not tell.
        rubric: Name of the rubric; empty where the file does not tell.
        rubric_sha256: Hash of what it asks; empty where that is not known.
        repeats: How often each answer was judged.
        self_check: What a check of the judge found: `passed`, `failed`; None where there was none.
        examples: Hash of the example behind each id, where the answers lie beside the scores.
        categories: Category of each id that has one.
        metrics: Values of the reference metrics by id and name.
        validation_loss: Of the model that answered, in nats a token; None where that is not known.
    """

    name: str
    scores: dict[Key, float | None]
    keyed: bool = True
    judge: dict[str, Any] = dataclasses.field(default_factory=dict)
    rubric: str = ""
    rubric_sha256: str = ""
    repeats: int = 1
    self_check: dict[str, Any] | None = None
    examples: dict[Key, str] = dataclasses.field(default_factory=dict)
    categories: dict[Key, str] = dataclasses.field(default_factory=dict)
    metrics: dict[Key, dict[str, float]] = dataclasses.field(default_factory=dict)
    validation_loss: float | None = None

    @functools.cached_property
    def known(self) -> dict[Key, float]:
        """The scores without the failures."""
        return {key: score for key, score in self.scores.items() if score is not None}

    def by_place(self) -> "ScoredRun":
        """Return the same with places, from 0, as keys."""
        place = {key: number for number, key in enumerate(self.scores)}

        def rekey(values: Mapping[Key, Any]) -> dict[Key, Any]:
            return {place[key]: value for key, value in values.items() if key in place}

        return dataclasses.replace(
            self,
            keyed=False,
            scores=rekey(self.scores),
            examples=rekey(self.examples),
            categories=rekey(self.categories),
            metrics=rekey(self.metrics),
        )


def load_run(source: Any, *, name: str | None = None) -> ScoredRun:
    """Return the scores of a run folder (its tuned side; `RUN/base` is the untuned), of a file, or in memory.

    Args:
        source: A folder with `judgments.jsonl`, such a file, another file of scores as `hf-instruct agree` takes it, a
            sequence of numbers, or a mapping of ids to numbers.
        name: What to call it; by default the path.

    Raises:
        DataError: There are no scores, they are not from 0 to 100, or judging has not finished.
    """
    if not isinstance(source, str | Path):
        verdicts = build_verdicts(source, name or "the scores")
        _check_scores(verdicts, verdicts.name)
        return ScoredRun(verdicts.name, verdicts.values, verdicts.keyed)
    path = Path(source)
    name = name or str(path)
    if path.suffix == ".json" and {"mean", "judge"} <= set(_read_object(path)):
        raise DataError(
            f"`{path}` holds the summary of scores, not the scores; name its folder or the `judgments.jsonl` beside it."
        )
    verdicts = load_verdicts(path)
    _check_scores(verdicts, name)
    run = ScoredRun(name, verdicts.values, verdicts.keyed)
    file = path / "judgments.jsonl" if path.is_dir() else path
    if not verdicts.judge:
        return run
    return _add_run_files(_add_judge(run, file), file, is_folder=path.is_dir())


def _check_scores(verdicts: Verdicts, name: str) -> None:
    if verdicts.kind != SCORES:
        raise DataError(
            f"`{name}` holds preferences, not scores; `hf-instruct rate` rates models by preferences, and "
            "`hf-instruct agree` compares those who prefer."
        )
    wrong = [score for score in verdicts.values.values() if score is not None and not 0 <= score <= 100]
    if wrong:
        raise DataError(f"`{name}` holds {len(wrong)} score(s) outside 0 to 100; the first is {wrong[0]:g}.")


def _add_judge(run: ScoredRun, file: Path) -> ScoredRun:
    """Return a run with what its judgments, and the scores beside them, say of the judge."""
    rows = read_rows(file, Judgment)
    judges = {json.dumps([row.judge, row.rubric], sort_keys=True): row for row in rows}
    if len(judges) > 1:
        shown = ", ".join(describe_judge(row.judge, row.rubric) for row in list(judges.values())[:3])
        raise DataError(
            f"`{file}` holds judgments by {len(judges)} judges ({shown}), which cannot be put together. Judge anew "
            "with `hf-instruct judge`, which keeps each judge's in a file of its own."
        )
    summary = _read_object(file.with_name(file.name.replace("judgments", "scores", 1)).with_suffix(".json"))
    rubric = summary.get("rubric")
    if not isinstance(rubric, Mapping) or rubric.get("name") != rows[0].rubric or summary.get("judge") != rows[0].judge:
        # Scores of an earlier judging, whose rubric may have been another.
        summary, rubric = {}, {}
    checked = summary.get("self_check")
    return dataclasses.replace(
        run,
        judge=rows[0].judge,
        rubric=rows[0].rubric,
        rubric_sha256=str(rubric.get("sha256") or ""),
        self_check=checked if isinstance(checked, dict) else None,
        **_average_repeats(run, file, summary),
    )


def _average_repeats(run: ScoredRun, file: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the means over the repeats that `scores.json` speaks of, and how many there are."""
    repeats = summary.get("repeats")
    count = int(as_number(repeats.get("count")) or 1) if isinstance(repeats, Mapping) else 1
    files: list[Path] = []
    for number in range(2, count + 1):
        files.append(file.with_suffix(f".repeat-{number}.jsonl"))
        if not files[-1].is_file():
            return {}
    if not files:
        return {}
    others = [load_verdicts(other).values for other in files]
    scores: dict[Key, float | None] = {}
    for key, first in run.scores.items():
        found = [score for score in (first, *(other.get(key) for other in others)) if score is not None]
        scores[key] = sum(found) / len(found) if found else None
    return {"scores": scores, "repeats": count}


def _add_run_files(run: ScoredRun, file: Path, *, is_folder: bool) -> ScoredRun:
    """Return a run with what lies beside its judgments: the answers' examples, metrics, the validation loss."""
    if file.name != "judgments.jsonl":
        return run
    folder = RunFolder(file.parent)
    responses: list[Response] = []
    if folder.responses.is_file():
        with contextlib.suppress(DataError):
            responses = read_rows(folder.responses, Response)
    responses = [row for row in responses if row.id]
    if is_folder and not folder.scores.is_file() and len(run.scores) < len(responses):
        raise DataError(
            f"`{run.name}` is not judged to the end ({len(run.scores)} of {len(responses)} answers); "
            f"`hf-instruct judge` goes on with it."
        )
    metrics = _read_object(folder.metrics).get("examples")
    return dataclasses.replace(
        run,
        examples={row.id: build_example_id(row.instruction, row.input, row.output) for row in responses},
        categories={row.id: row.category for row in responses if row.category},
        metrics=_parse_metrics(metrics) if isinstance(metrics, Mapping) else {},
        validation_loss=_find_validation_loss(folder),
    )


def _parse_metrics(examples: Mapping[str, Any]) -> dict[Key, dict[str, float]]:
    """Return the numbers of each example, but for those whose mean over examples is not the metric."""
    return {
        str(key): {
            name: number
            for name, value in (values.items() if isinstance(values, Mapping) else ())
            if name not in QUOTIENTS and (number := as_number(value)) is not None
        }
        for key, values in examples.items()
    }


def _find_validation_loss(folder: RunFolder) -> float | None:
    """Return the last validation loss of a run, or, of the untuned side of one, that before the first step."""
    is_base = folder.path.name == "base" and not folder.config.is_file()
    log = RunFolder(folder.path.parent).training_log if is_base else folder.training_log
    if not log.is_file():
        return None
    rows = [row for row in read_rows(log, TrainingRow) if row.validation_loss is not None]
    found = [row.validation_loss for row in rows if not is_base or row.step == 0]
    return found[-1] if found else None


def _read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty where there is none, or something else."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def describe_judge(judge: Mapping[str, Any], rubric: str, rubric_sha256: str = "") -> str:
    """Return who judged, by what, on one line.

    >>> describe_judge({"model": "llama3", "digest": "365c0bd3c000"}, "course", "f870155da365")
    'judge llama3@365c0bd, rubric course@f870155'
    """
    if not judge:
        return "an unnamed judge"
    tag = str(judge.get("model") or "unnamed")
    if digest := judge.get("digest"):
        tag += f"@{str(digest)[:_SHOWN_DIGEST_CHARACTERS]}"
    mark = f"@{rubric_sha256[:_SHOWN_DIGEST_CHARACTERS]}" if rubric_sha256 else ""
    text = f"judge {tag}, rubric {rubric}{mark}"
    return "".join(character for character in text if character.isprintable())


def find_judging_differences(runs: Sequence[ScoredRun]) -> list[str]:
    """Return in what the runs were judged differently, each with the values seen; empty where nothing is known.

    A run that does not tell its judge, or the hash of its rubric, is not held against the others.
    """
    known = [run for run in runs if run.judge]
    options = _shorten_options([run.judge.get("options") for run in known])
    fields = {f"judge.{name}": [(run, run.judge.get(name)) for run in known] for name in JUDGE_IDENTITY}
    fields["judge.options"] = list(zip(known, options, strict=True))
    fields["rubric"] = [(run, run.rubric) for run in known]
    if len({run.rubric for run in known}) == 1:
        # Another name says it already: another rubric always has another hash.
        hashed = [run for run in known if run.rubric_sha256]
        fields["rubric (SHA-256)"] = [(run, run.rubric_sha256[:_SHOWN_DIGEST_CHARACTERS]) for run in hashed]
    differences = []
    for name, pairs in fields.items():
        owners: dict[str, list[str]] = {}
        for run, value in pairs:
            owners.setdefault(str(value), []).append(run.name)
        if len(owners) > 1:
            seen = "; ".join(f"{value} ({', '.join(names)})" for value, names in owners.items())
            differences.append(f"`{name}`: {seen}")
    return differences


def _shorten_options(values: list[Any]) -> list[Any]:
    """Return options without what all of them have alike."""
    if not all(isinstance(value, Mapping) for value in values):
        return values
    names = {name for value in values for name in value}
    differing = sorted(name for name in names if len({json.dumps(value.get(name)) for value in values}) > 1)
    return [", ".join(f"{name} {value.get(name)}" for name in differing) for value in values]
