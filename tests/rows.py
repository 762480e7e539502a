"""Rows of a run's files with the fields that a test is about; the others get some value."""

from pathlib import Path
from typing import Any

from hf_instruct.records import read_rows
from hf_instruct.schema import Judgment, Preference, Response, TrainingRow

JUDGE = {"backend": "ollama", "model": "llama3", "digest": "365c0bd3c000", "options": {"temperature": 0, "seed": 1}}
ANN = {"backend": "person", "model": "Ann"}


def response(id: str, response: str = "A.", output: str = "Done.", **fields: Any) -> Response:
    return Response(
        **{"id": id, "instruction": f"Task {id}.", "input": "", "output": output, "response": response} | fields
    )


def judgment(id: str, score: int | None, **fields: Any) -> Judgment:
    known = {"replies": ["{}"], "judge": JUDGE, "rubric": "course", "prompt_sha256": f"p{id}", "seconds": 0.1}
    return Judgment(**{"id": id, "score": score} | known | fields)


def preference(id: str, score: float | None, **fields: Any) -> Preference:
    """Return what Ann prefers of the runs `a` and `b`."""
    known = {"first": "runs/a", "second": "runs/b", "judge": ANN, "rubric": "vote", "orders": [], "replies": []}
    return Preference(**{"id": id, "score": score, "first_length": 1, "second_length": 1} | known | fields)


def read_log(folder: Path, kind: str) -> list[TrainingRow]:
    """Return the rows of a kind in the training log of a run folder."""
    return [row for row in read_rows(folder / "training.jsonl", TrainingRow) if row.kind == kind]
