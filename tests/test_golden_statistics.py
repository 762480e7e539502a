"""Every statistic of a small fixed data set, against the numbers kept in `fixtures/statistics.json`.

A change of any of them is a change of results, to be listed in the changelog. After such a change,
`python tests/test_golden_statistics.py` writes the file again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rows import judgment, preference, response

from hf_instruct.evaluation.agreement import measure_agreement
from hf_instruct.evaluation.comparison import compare_runs
from hf_instruct.evaluation.metrics import measure_responses
from hf_instruct.evaluation.pair_scores import has_one_sided_lengths, length_controlled_win_rate, win_rate
from hf_instruct.evaluation.ratings import rate_preferences
from hf_instruct.evaluation.rubrics import Rubric
from hf_instruct.evaluation.scores import build_scores
from hf_instruct.records import write_json, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import JudgeIdentity, Judgment, Preference, Response

GOLDEN = Path(__file__).parent / "fixtures" / "statistics.json"
JUDGE = {"backend": "ollama", "model": "llama3:8b", "digest": "365c0bd3c000", "options": {"temperature": 0, "seed": 1}}
WORDS = ["plural", "of", "knife", "is", "knives", "and", "a", "river", "runs", "to", "the", "cold", "sea"]
NAMES = ("low", "middle", "high")


def _responses(shift: int) -> list[Response]:
    rows = []
    for n in range(40):
        reference = [WORDS[(n * 5 + word * 3) % len(WORDS)] for word in range(3 + n % 6)]
        kept = (n * 7 + shift) % (len(reference) + 1)
        answer = reference[:kept] + WORDS[: 0 if kept == len(reference) else n % 4]
        answer *= 6 if n % 13 == shift else 1
        known = {"category": "abc"[n % 3], "stopped": n % 8 > shift}
        loss = {"reference_nll": 2.0 + (n * 3 + shift) % 5, "reference_tokens": 3 + n % 4}
        rows.append(response(f"e{n}", " ".join(answer), " ".join(reference), **known, **loss))
    return rows


def _judgments(shift: int) -> list[Judgment]:
    scores = [None if (n + shift) % 19 == 0 else (n * 37 + shift * n % 11 * 3) % 101 for n in range(40)]
    known = {"judge": JUDGE, "seconds": 0.5}
    return [judgment(f"e{n}", score, prompt_sha256=f"p{n}", **known) for n, score in enumerate(scores)]


def _preferences(judge: dict[str, Any], turn: int = 0) -> list[Preference]:
    rows = []
    for first, second in ((0, 1), (1, 2), (2, 0)):
        for n in range(30):
            score = None if n == 17 else ((n * (3 + turn) + first + turn) % 5 > 1) * 0.5 + (n % 3 > 0) * 0.5
            known = {"first": NAMES[first], "second": NAMES[second], "judge": judge, "rubric": "pairwise"}
            lengths = {"first_length": 40 + n * 11 % 60, "second_length": 30 + n * 7 % 80}
            rows.append(preference(f"e{n}", score, **known, **lengths))
    return rows


def compute_statistics(folder: Path) -> dict[str, Any]:
    """Return all that the package computes from the fixed data, as plain values."""
    runs = []
    for shift, name in enumerate(NAMES):
        run = RunFolder(folder / name)
        write_rows(run.responses, _responses(shift))
        write_rows(run.judgments, _judgments(shift))
        run.write_metrics("tuned", measure_responses(_responses(shift)))
        rubric, categories = (
            Rubric.model_construct(name="course", prompt="{response}"),
            {row.id: row.category for row in _responses(shift)},
        )
        scores = build_scores(_judgments(shift), rubric=rubric, judge=JudgeIdentity(**JUDGE), categories=categories)
        run.write_scores("tuned", scores)
        runs.append(run.path)
    preferences, votes = _preferences(JUDGE), _preferences({"backend": "person", "model": "Ann"}, 1)
    comparison = compare_runs(runs).to_dict()
    for row in comparison["rows"]:
        row["name"] = Path(row["name"]).name
    comparison["baseline"] = Path(comparison["baseline"]).name
    pair = [row for row in preferences if (row.first, row.second) == NAMES[:2]]
    n = sum(row.score is not None for row in pair)
    rates = [
        {"rate": rate.value, "interval": rate.interval, "n": n, "one_sided": one_sided}
        for rate, one_sided in (
            (win_rate(pair), None),
            (length_controlled_win_rate(pair, resamples=50), has_one_sided_lengths(pair)),
        )
    ]
    agreed = (_judgments(0), _judgments(1)), (preferences, votes)
    return {
        "metrics": json.loads((folder / NAMES[1] / "metrics.json").read_text())["tuned"],
        "scores": json.loads((folder / NAMES[0] / "scores.json").read_text())["tuned"],
        "comparison": comparison,
        "agreement": [measure_agreement(*sides).to_dict()["estimates"] for sides in agreed],
        "ratings": rate_preferences(preferences, resamples=50).to_dict(),
        "win_rates": rates,
    }


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name, part in value.items() for key, leaf in _flatten(part, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return {key: leaf for n, part in enumerate(value) for key, leaf in _flatten(part, f"{path}/{n}").items()}
    return {path: value}


def test_statistics_are_those_kept(tmp_path: Path) -> None:
    seen, kept = _flatten(compute_statistics(tmp_path)), _flatten(json.loads(GOLDEN.read_text()))
    assert kept.keys() <= seen.keys()
    for name, value in kept.items():
        is_number = isinstance(value, float)
        assert seen[name] == (pytest.approx(value, rel=1e-9, abs=1e-9) if is_number else value), name


if __name__ == "__main__":
    import tempfile

    sys.stdout.write("writing the golden numbers\n")
    with tempfile.TemporaryDirectory() as temporary:
        write_json(GOLDEN, compute_statistics(Path(temporary)))
