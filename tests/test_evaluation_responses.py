"""Reading responses to judge, joining two sets of them, and where judgments go."""

import gzip
import json
from pathlib import Path

import pytest
from rows import response

from hf_instruct.errors import DataError, RunError
from hf_instruct.evaluation.responses import build_responses, choose_folder, join_responses, load_responses
from hf_instruct.records import build_example_id, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Response, Unpaired

ROW = {"instruction": "Name a color.", "input": "", "output": "Red.", "model_response": "Blue."}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_responses_file_keeps_every_field(tmp_path: Path) -> None:
    rows = [response("a", "", category="misc", stopped=True, num_tokens=3), response("b", "No.", input="x")]
    write_rows(tmp_path / "responses.jsonl", rows)
    assert load_responses(tmp_path / "responses.jsonl") == rows


def test_torn_last_line_is_left_out_and_a_whole_one_is_not(tmp_path: Path) -> None:
    line = json.dumps(ROW)
    assert len(load_responses(write(tmp_path / "a.jsonl", f"{line}\n\n{line[:20]}"))) == 1
    assert len(load_responses(write(tmp_path / "b.jsonl", f"{line}\n{line}"))) == 2


def test_a_table_or_a_compressed_file_is_read_as_data_are(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "instruction,input,output,model_response\nName a color.,,Red.,Blue.\n")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps([ROW]).encode()))
    assert load_responses(tmp_path / "a.csv") == load_responses(tmp_path / "a.json.gz") == build_responses([ROW])


def test_equal_examples_get_ids_of_their_own() -> None:
    base = build_example_id("Name a color.", "", "Red.")
    assert [row.id for row in build_responses([ROW, ROW, ROW])] == [base, f"{base}-2", f"{base}-3"]


def test_a_files_other_models_answers_are_left_out(tmp_path: Path) -> None:
    rows = [{**ROW, "id": f"{n}", "model": name} for n, name in enumerate(("untuned", "tuned", "gpt-4"))]
    path = write(tmp_path / "rows.json", json.dumps(rows))
    assert [(row.id, row.model) for row in load_responses(path)] == [("1", "tuned"), ("2", "tuned")]
    run = RunFolder(tmp_path / "run")
    write_rows(run.responses, [Response(response="a", **{**ROW, "id": m, "model": m}) for m in ("untuned", "tuned")])
    assert [row.id for row in load_responses(run.path)] == ["tuned"]
    assert [row.id for row in load_responses(run.path / "untuned")] == ["untuned"]


def test_all_problems_are_listed(tmp_path: Path) -> None:
    rows = [
        ROW,
        "text",
        {"instruction": "", "input": "", "output": "x", "model_response": "y"},
        {"instruction": "Do.", "input": None, "output": "x"},
        {**ROW, "id": 7},
        {**ROW, "id": "same"},
        {**ROW, "id": "same"},
        {**ROW, "num_tokens": 10**400},
    ]
    path = write(tmp_path / "rows.json", json.dumps(rows))
    with pytest.raises(DataError) as caught:
        load_responses(path)
    problems = str(caught.value).splitlines()
    assert problems[0] == f"7 problems in `{path}`:"
    for line, words in zip(
        problems[1:],
        [
            *(("row 1", "text"), ("row 2", "`instruction`"), ("row 3", "`input`"), ("row 3", "`response`")),
            *(("row 4", "`id`"), ("row 6", "`same`", "row 5"), ("row 7", "`num_tokens`")),
        ],
        strict=True,
    ):
        assert all(word in line for word in words)
    with pytest.raises(DataError, match="lone surrogate"):
        build_responses([{**ROW, "model_response": "\ud83d"}])


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.json", b"", "There are no responses in"),
        ("a.json", b"[", "is not JSON (expecting value); the file seems to be truncated: copy or download it again"),
        ("a.json", b'{"response": "a"}', "row 0: `output`: field required"),
        (
            "a.json",
            b'[{"a": 1}, {"a": 1}]',
            "a.json` has a `response` or `model_response`; `hf-instruct generate` answers",
        ),
        ("a.json", b'["\xff"]', "is not UTF-8 (byte 0xff at position 2 of the file); save the file as UTF-8"),
        ("a.json", b"[]", "There are no responses in"),
        ("a.jsonl", b"{\n" + json.dumps(ROW).encode(), "line 1 is not JSON"),
        ("a.jsonl", b"42", "line 1 is a number (42), not an object"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_responses(tmp_path / name)
    assert text in str(caught.value)


def test_absent_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; use a run folder or a file of responses\.$"):
        load_responses(tmp_path / "none.json")
    with pytest.raises(DataError, match="has no answers of the tuned model"):
        load_responses(tmp_path)


def test_place_of_the_judgments(tmp_path: Path) -> None:
    source = tmp_path / "rows.json"
    assert choose_folder(source, None).judgments == tmp_path / "judgments.jsonl"
    assert choose_folder(source, tmp_path / "new" / "folder").scores == tmp_path / "new" / "folder" / "scores.json"
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    write(source, "[]")
    with pytest.raises(RunError, match=r"^Nothing can be written in .* Use another folder with `--out DIR`\.$"):
        choose_folder(source, source / "below-a-file")


NAMES = ("runs/a", "b.json")
ANSWERS = [response(f"id{number}", f"Blue {number}.", instruction=f"Name color {number}.") for number in range(20)]


def test_answers_are_joined_by_id_with_the_category_that_either_has() -> None:
    first = [ANSWERS[0].model_copy(update={"category": "x"}), *ANSWERS[1:3]]
    second = [ANSWERS[2].model_copy(update={"response": "4", "category": "y"}), ANSWERS[7], ANSWERS[0]]
    joined = join_responses(first, second, NAMES)
    assert [(pair.id, pair.first, pair.second, pair.example.category) for pair in joined.pairs] == [
        ("id0", "Blue 0.", "Blue 0.", "x"),
        ("id2", "Blue 2.", "4", "y"),
    ]
    assert joined[1:] == (NAMES, "id", Unpaired(first=1, second=1))


def test_without_common_ids_the_same_tasks_in_the_same_order_are_joined() -> None:
    other = [row.model_copy(update={"id": f"x{row.id}", "output": "Cyan."}) for row in ANSWERS]
    joined = join_responses(ANSWERS, other, NAMES)
    assert (joined.by, len(joined.pairs), joined.pairs[0].id) == ("order", 20, "id0")


def test_no_overlap_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        join_responses(ANSWERS[:2], ANSWERS[2:5], NAMES)
    assert str(caught.value) == (
        "`runs/a` (2 answers) and `b.json` (3) have no example in common: no id is in both (the first are `id0` and "
        "`id2`), and the instructions differ. Use answers to the same examples."
    )


def test_one_id_for_two_examples_is_an_error() -> None:
    other = [ANSWERS[0].model_copy(update={"instruction": "Name a river."}), *ANSWERS[1:]]
    with pytest.raises(DataError, match=r"1 id.* refer to different examples .*\n  - `id0` asks 'Name color 0\.' in"):
        join_responses(ANSWERS, other, NAMES)
