"""Where responses to judge come from, and where their judgments go."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.errors import DataError, JudgeError, RunError
from hf_instruct.records import as_number, build_example_id, write_json
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Judgment, Response, Scores

_TEXTS = ("instruction", "input", "output")
_ANSWERS = ("response", "model_response")
_MAY_BE_EMPTY = ("input", "response", "model_response")
_KINDS: dict[str, tuple[Any, str]] = {
    "stopped": (bool, "true or false"),
    "num_tokens": (int, "a whole number"),
    "reference_nll": (int | float, "a number"),
    "reference_tokens": (int, "a whole number"),
}


@dataclasses.dataclass(frozen=True)
class JudgmentFiles:
    """The files that judging one set of responses writes.

    Attributes:
        folder: Where they lie.
        repeat: Which repeat this is, counted from 1; the first has the plain name, for whoever reads only one.
    """

    folder: Path
    repeat: int = 1

    @property
    def judgments(self) -> Path:
        """`Judgment` rows."""
        return self.folder / f"judgments{self._suffix}.jsonl"

    @property
    def scores(self) -> Path:
        """Their summary, that of all repeats together."""
        return self.folder / "scores.json"

    @property
    def metrics(self) -> Path:
        """The reference metrics of the responses: computed, not judged."""
        return self.folder / "metrics.json"

    def set_aside(self, rows: Sequence[Judgment]) -> Path:
        """Move the judgments, which are these rows, to a file named after who made them.

        Their scores go with those of the first repeat, and so do the further repeats: without them they repeat nothing.

        Returns:
            The new name of the judgments.
        """
        moved = [self, *self._list_repeats()] if self.repeat == 1 else [self]
        label = base = _label(rows)
        number = 1
        while any(files._kept(label).exists() for files in moved):
            number += 1
            label = f"{base}-{number}"
        for files in moved:
            files.judgments.replace(files._kept(label))
        if self.repeat == 1:
            with contextlib.suppress(FileNotFoundError):
                self.scores.replace(self.folder / f"scores.{label}.json")
        return self._kept(label)

    def _list_repeats(self) -> "list[JudgmentFiles]":
        numbers = [path.name.split(".")[1].removeprefix("repeat-") for path in self.folder.glob("judgments.repeat-*")]
        return [JudgmentFiles(self.folder, int(number)) for number in numbers if number.isdecimal()]

    def _kept(self, label: str) -> Path:
        return self.folder / f"judgments.{label}{self._suffix}.jsonl"

    @property
    def _suffix(self) -> str:
        return "" if self.repeat == 1 else f".repeat-{self.repeat}"


def choose_files(source: Path, out: Path | None) -> JudgmentFiles:
    """Return where the judgments of a file of responses go: `out`, else beside the file.

    Raises:
        RunError: Nothing can be written there.
    """
    folder = out or source.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The only sure test: permissions do not show a read-only file system, or a full one.
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".hf-instruct.")
        os.close(descriptor)
        Path(name).unlink()
    except OSError as error:
        raise RunError(
            f"Nothing can be written in `{folder}` ({error.strerror}), where the judgments of `{source}` would go. "
            "Name another folder with `--out DIR`."
        ) from error
    return JudgmentFiles(folder)


def load_responses(path: Path) -> list[Response]:
    """Return the responses in a run folder, in such a folder's `responses.jsonl`, or in a JSON list like the course's.

    Each object holds `instruction`, `input`, `output` and `response` or `model_response`; `id`, `category` and the
    other fields of a `Response` are kept where they are.

    Raises:
        DataError: The file cannot be read, or holds faults; all of them are listed.
    """
    if path.is_dir() and RunFolder(path).responses.is_file():
        path = RunFolder(path).responses
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"`{path}` does not exist; name a run folder or a file of responses.") from error
    except IsADirectoryError as error:
        raise DataError(f"`{path}` is a folder without `responses.jsonl`; `hf-instruct generate` writes it.") from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    if not text.strip():
        raise DataError(f"`{path}` is empty; it should hold a JSON list of responses, or one object a line.")
    if path.suffix == ".jsonl":
        places, rows, faults = _parse_lines(text)
    else:
        places, rows, faults = _parse_list(text, path)
    return _build_checked(rows, places, faults, where=f"`{path}`")


def build_responses(rows: Iterable[Response | Mapping[str, Any]], *, where: str = "the responses") -> list[Response]:
    """Return responses from rows as `load_responses` takes them; those that are responses already stay as they are.

    Raises:
        DataError: All faults found.
    """
    values = [row.to_dict() if isinstance(row, Response) else row for row in rows]
    return _build_checked(values, [f"row {number}" for number in range(1, len(values) + 1)], [], where=where)


def _parse_lines(text: str) -> tuple[list[str], list[Any], list[str]]:
    places, rows, faults = [], [], []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
            places.append(f"line {number}")
        except (ValueError, RecursionError) as error:
            # A last line without its newline was torn when its writer was killed.
            if number < len(lines):
                faults.append(f"line {number} is not JSON: {error}")
    return places, rows, faults


def _parse_list(text: str, path: Path) -> tuple[list[str], list[Any], list[str]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"`{path}` is not JSON: {error}. It should hold a list of responses.") from error
    if not isinstance(rows, list):
        kind = "object" if isinstance(rows, dict) else type(rows).__name__
        raise DataError(f"`{path}` holds one JSON {kind}; it should hold a list of objects.")
    return [f"row {number}" for number in range(1, len(rows) + 1)], rows, []


def _build_checked(rows: list[Any], places: list[str], faults: list[str], *, where: str) -> list[Response]:
    responses: list[Response] = []
    taken: dict[str, str] = {}
    copies: Counter[str] = Counter()
    for row, place in zip(rows, places, strict=True):
        found = _check_row(row)
        if not found and row.get("id") in taken:
            found = [f"has the id `{row['id']}` of {taken[row['id']]}; ids must differ"]
        faults += [f"{place} {fault}" for fault in found]
        if not found:
            responses.append(_build_response(row, taken, copies))
            taken[responses[-1].id] = place
    if faults:
        raise DataError.listing(faults, f"in {where}")
    if not responses:
        raise DataError(f"There are no responses in {where}.")
    return responses


def _check_row(row: Any) -> list[str]:
    if not isinstance(row, Mapping):
        return [f"is {_show(row)}, not an object"]
    answer = next((name for name in _ANSWERS if name in row), None)
    faults = [] if answer else ["has neither `response` nor `model_response`"]
    for name in (*_TEXTS, *([answer] if answer else [])):
        if name not in row:
            faults.append(f"has no `{name}`")
        elif not isinstance(row[name], str):
            faults.append(f"has {_show(row[name])} as `{name}`, which should be text")
        elif not row[name].strip() and name not in _MAY_BE_EMPTY:
            faults.append(f"has an empty `{name}`")
        elif any("\ud800" <= character <= "\udfff" for character in row[name]):
            faults.append(f"has half of a surrogate pair in `{name}`, which is no character; mend or remove it")
    for name in ("id", "category"):
        if not isinstance(row.get(name), str | None):
            faults.append(f"has {_show(row[name])} as `{name}`, which should be text")
    for name, (kinds, kind) in _KINDS.items():
        value = row.get(name)
        # To Python, true and false are whole numbers.
        is_right = isinstance(value, bool) == (kinds is bool) and isinstance(value, kinds)
        if value is not None and not (is_right and (kinds is bool or as_number(value) is not None)):
            faults.append(f"has {_show(value)} as `{name}`, which should be {kind}")
    return faults


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _build_response(row: Mapping[str, Any], taken: Mapping[str, str], copies: Counter[str]) -> Response:
    texts: dict[str, Any] = {name: row[name] for name in _TEXTS}
    identifier = row.get("id")
    if not identifier:
        identifier = base = build_example_id(**texts)
        # The same example may occur twice, answered differently. Counted: from 2 up each time would be quadratic.
        while identifier in taken:
            copies[base] += 1
            identifier = f"{base}-{copies[base] + 1}"
    answer = row["response"] if "response" in row else row["model_response"]
    extra: dict[str, Any] = {name: row.get(name) for name in ("category", *_KINDS)}
    return Response(id=identifier, response=answer, **texts, **extra)


def _label(rows: Sequence[Judgment]) -> str:
    """Return a file name's part for judgments: who made them, and a hash that tells apart what was judged."""
    first = rows[0]
    asked = hashlib.sha256("\n".join(sorted(f"{row.prompt_sha256}{row.judge}" for row in rows)).encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{first.judge.model}-{first.rubric}-{asked[:6]}")


def write_scores(files: JudgmentFiles, scores: Scores) -> None:
    """Write what judgments amount to.

    Raises:
        JudgeError: It cannot be written.
    """
    try:
        write_json(files.scores, scores)
    except OSError as error:
        raise JudgeError(f"The scores cannot be written: {error}.") from error
