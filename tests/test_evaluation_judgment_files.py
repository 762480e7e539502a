"""Reading responses to judge, and where judgments go."""

import json
from pathlib import Path

import pytest

from hf_instruct.errors import DataError, RunError
from hf_instruct.evaluation.judgment_files import build_responses, choose_files, load_responses
from hf_instruct.records import build_example_id, write_rows
from hf_instruct.schema import Response

ROW = {"instruction": "Name a color.", "input": "", "output": "Red.", "model_response": "Blue."}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_course_file(course_responses_file: Path) -> None:
    responses = load_responses(course_responses_file)
    assert len(responses) == 110
    assert len({response.id for response in responses}) == 110
    assert responses[0].response == "The car is as fast as a bullet."


def test_responses_file_keeps_every_field(tmp_path: Path) -> None:
    rows = [
        Response(
            id="a",
            instruction="Do.",
            input="",
            output="Done.",
            response="",
            category="misc",
            stopped=True,
            num_tokens=3,
        ),
        Response(id="b", instruction="Do.", input="x", output="Done.", response="No."),
    ]
    write_rows(tmp_path / "responses.jsonl", rows)
    assert load_responses(tmp_path / "responses.jsonl") == rows


def test_torn_last_line_is_left_out_and_a_whole_one_is_not(tmp_path: Path) -> None:
    line = json.dumps(ROW)
    assert len(load_responses(write(tmp_path / "a.jsonl", f"{line}\n\n{line[:20]}"))) == 1
    assert len(load_responses(write(tmp_path / "b.jsonl", f"{line}\n{line}"))) == 2


def test_equal_examples_get_ids_of_their_own() -> None:
    base = build_example_id("Name a color.", "", "Red.")
    assert [row.id for row in build_responses([ROW, ROW, ROW])] == [base, f"{base}-2", f"{base}-3"]


def test_all_faults_are_listed(tmp_path: Path) -> None:
    rows = [
        ROW,
        "text",
        {"instruction": "", "input": "", "output": "x", "model_response": "y"},
        {"instruction": "Do.", "input": None, "output": "x"},
        {**ROW, "model_response": "\ud83d"},
        {**ROW, "id": 7},
        {**ROW, "id": "same"},
        {**ROW, "id": "same"},
        {**ROW, "num_tokens": 10**400},
    ]
    path = write(tmp_path / "rows.json", json.dumps(rows))
    with pytest.raises(DataError) as caught:
        load_responses(path)
    assert str(caught.value).splitlines() == [
        f"8 problems in `{path}`:",
        "  - row 2 is 'text', not an object",
        "  - row 3 has an empty `instruction`",
        "  - row 4 has neither `response` nor `model_response`",
        "  - row 4 has None as `input`, which should be text",
        "  - row 5 has half of a surrogate pair in `model_response`, which is no character; mend or remove it",
        "  - row 6 has 7 as `id`, which should be text",
        "  - row 8 has the id `same` of row 7; ids must differ",
        f"  - row 9 has 1{'0' * 39}… as `num_tokens`, which should be a whole number",
    ]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.json", b"", "is empty; it should hold a JSON list of responses, or one object a line."),
        ("a.json", b"[", "is not JSON: Expecting value: line 1 column 2 (char 1). It should hold a list of responses."),
        ("a.json", b'{"a": 1}', "holds one JSON object; it should hold a list of objects."),
        ("a.json", b"\xff\xfe", "is not UTF-8 text (byte 0); save it as UTF-8."),
        ("a.json", b"[]", "There are no responses in"),
        ("a.jsonl", b"{\n" + json.dumps(ROW).encode(), "line 1 is not JSON"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_responses(tmp_path / name)
    assert text in str(caught.value)


def test_absent_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; name a run folder or a file of responses\.$"):
        load_responses(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"is a folder without `responses\.jsonl`"):
        load_responses(tmp_path)


def test_place_of_the_judgments(tmp_path: Path) -> None:
    source = tmp_path / "rows.json"
    assert choose_files(source, None).judgments == tmp_path / "judgments.jsonl"
    assert choose_files(source, tmp_path / "new" / "folder").scores == tmp_path / "new" / "folder" / "scores.json"
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    write(source, "[]")
    with pytest.raises(RunError, match=r"^Nothing can be written in .* Name another folder with `--out DIR`\.$"):
        choose_files(source, source / "below-a-file")
