from types import SimpleNamespace

import pytest

from hf_instruct.data.checks import (
    Problem,
    RawRow,
    RawTable,
    build_examples,
    check_examples,
    group_by_prompt,
    raise_problems,
    shorten,
)
from hf_instruct.data.tokens import TokenCount
from hf_instruct.errors import DataError
from hf_instruct.records import Example, build_example_id


def build_table(*rows: dict[str, object], file: str = "mine.json") -> RawTable:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return RawTable(file, [RawRow(f"row {number}", row) for number, row in enumerate(rows)], columns, [])


def texts(problems: list[Problem]) -> list[str]:
    return [str(problem) for problem in problems]


def test_a_row_becomes_an_example_as_it_stands() -> None:
    checked = build_examples(
        build_table({"instruction": " Add. ", "input": "1 2", "output": "3\n", "category": "sums"})
    )
    id = build_example_id(" Add. ", "1 2", "3\n")
    assert checked.examples == [Example(id, " Add. ", "1 2", "3\n", "sums")]
    assert checked.rows == ["row 0"]
    assert checked.problems == []
    assert checked.notices == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is null; write the output, or delete the row"),
        ("", "is empty; write the output, or delete the row"),
        (" \n\t", "is empty; write the output, or delete the row"),
        (42, "is a number (42), not text; write it as one text"),
        (True, "is a boolean (true), not text; write it as one text"),
        (["a"], "is a list, not text; write it as one text"),
        ({"a": 1}, "is an object, not text; write it as one text"),
        (float("inf"), "is a number (inf), not text; write it as one text"),
        ("a\0b", "has a NUL character at position 1; delete that character"),
        (
            "a\ud800",
            "has half of a surrogate pair, which no UTF-8 file can hold; replace it by the whole character",
        ),
    ],
)
def test_each_bad_output_is_named(value: object, problem: str) -> None:
    checked = build_examples(build_table({"instruction": "Add.", "output": value}))
    assert texts(checked.problems) == [f"`mine.json` row 0, `output` {problem}"]
    assert checked.examples == []


def test_all_faults_of_all_rows_are_found_in_order() -> None:
    table = build_table(
        {"instruction": "a", "output": "b"},
        {"instruction": "a"},
        {"instruction": "", "output": None, "input": 5, "category": []},
    )
    table.problems.append(Problem("mine.json", "row 1", None, "is odd", "mend it"))
    checked = build_examples(table)
    assert texts(checked.problems) == [
        "`mine.json` row 1 is odd; mend it",
        "`mine.json` row 1, `output` is missing; add it, or delete the row",
        "`mine.json` row 2, `instruction` is empty; write the instruction, or delete the row",
        "`mine.json` row 2, `input` is a number (5), not text; write it as one text",
        "`mine.json` row 2, `output` is null; write the output, or delete the row",
        "`mine.json` row 2, `category` is a list, not text; write it as one text",
    ]
    assert [example.output for example in checked.examples] == ["b"]


def test_input_and_category_may_be_absent_or_null() -> None:
    checked = build_examples(
        build_table(
            {"instruction": "a", "output": "b"},
            {"instruction": "a", "output": "c", "input": None, "category": None},
            {"instruction": "a", "output": "d", "category": 3},
        )
    )
    assert [(e.input, e.category) for e in checked.examples] == [("", None), ("", None), ("", "3")]
    assert checked.problems == []


def test_a_column_of_no_row_is_one_fault_with_the_nearest_first() -> None:
    table = build_table({"question": "a", "outputs": "b"}, {"question": "a", "outputs": "c"}, file="q.csv")
    checked = build_examples(table, map={"instruction": "questions"})
    assert texts(checked.problems) == [
        "`q.csv`, `questions` is not a column; the columns are `question`, `outputs` (a CSV's first line names them): "
        "name the right one with `--map instruction=COLUMN`",
        "`q.csv`, `output` is not a column; the columns are `outputs`, `question` (a CSV's first line names them): "
        "name the right one with `--map output=COLUMN`",
    ]
    assert checked.examples == []
    assert checked.notices == []


def test_a_map_renames_columns() -> None:
    table = build_table({"q": "a", "a": "b", "kind": "k", "key": 7})
    checked = build_examples(table, map={"instruction": "q", "output": "a", "category": "kind", "id": "key"})
    assert checked.examples == [Example("7", "a", "", "b", "k")]


def test_columns_not_used_are_one_notice_that_spots_a_misspelt_input() -> None:
    table = build_table({"instruction": "a", "inputs": "i", "output": "b", "\x1b[2J": 1})
    assert build_examples(table).notices == [
        "`mine.json`: columns not used: `inputs`, `\\x1b[2J`. If `inputs` is the input, add `--map input=inputs`."
    ]


def test_no_rows_is_a_fault() -> None:
    assert texts(build_examples(build_table()).problems) == [
        "`mine.json` holds no rows; add rows, or name another source"
    ]


def test_equal_rows_get_ids_of_their_own_that_do_not_change_when_rows_follow() -> None:
    row = {"instruction": "a", "output": "b"}
    id = build_example_id("a", "", "b")
    assert [e.id for e in build_examples(build_table(row, row, {**row, "output": "c"}, row)).examples] == [
        id,
        f"{id}-2",
        build_example_id("a", "", "c"),
        f"{id}-3",
    ]
    assert [e.id for e in build_examples(build_table(row, row)).examples] == [id, f"{id}-2"]


def test_own_ids_are_kept_where_every_row_has_one_of_its_own() -> None:
    rows = [{"id": id, "instruction": "a", "output": "b"} for id in (1, "x", 10**30)]
    assert [e.id for e in build_examples(build_table(*rows)).examples] == ["1", "x", "1" + "0" * 30]


@pytest.mark.parametrize("bad", [None, "", "two\nlines", 1.5, True, "\ud800", 1])
def test_own_ids_that_do_not_serve_are_noticed_and_a_fault_where_mapped(bad: object) -> None:
    table = build_table({"id": 1, "instruction": "a", "output": "b"}, {"id": bad, "instruction": "a", "output": "c"})
    checked = build_examples(table)
    counts = "0 without, 1 repeated" if type(bad) is int else "1 without, 0 repeated"
    problem = f"is no id of its own on every row ({counts})"
    assert checked.notices == [f"`mine.json`: column `id` {problem}; ids are made from the text instead."]
    assert [e.id for e in checked.examples] == [build_example_id("a", "", "b"), build_example_id("a", "", "c")]
    assert texts(build_examples(table, map={"id": "id"}).problems) == [
        f"`mine.json`, `id` {problem}; map another column, or leave `id` out of the map: ids are then made from the "
        "text"
    ]


def test_a_source_known_for_gaps_leaves_them_out_and_says_so() -> None:
    rows = [{"instruction": "a", "output": output} for output in ("b", "", None, " ", "c")]
    checked = build_examples(build_table(*rows, file="alpaca"), drop_without_output=True)
    assert [e.output for e in checked.examples] == ["b", "c"]
    assert checked.rows == ["row 0", "row 4"]
    assert checked.notices == ["`alpaca`: 3 rows without an output are left out."]
    assert checked.problems == []


def test_warnings_name_repeated_prompts_long_rows_and_special_tokens() -> None:
    examples = [Example(str(n), "a", "", output) for n, output in enumerate(["x", "x", "y"])]
    examples += [Example("3", "b", "i", "z"), Example("4", "b", "i", "z")]
    counter = SimpleNamespace(
        model="gpt2-medium",
        max_length=4,
        count=lambda e: TokenCount(5 if e.output == "y" else 4, 1),
        find_special_tokens=lambda e: ["<|endoftext|>"] if e.input else [],
    )
    warnings = check_examples(examples, file="f.json", counter=counter)  # type: ignore[arg-type]
    assert texts(warnings) == [
        "`f.json` row 0 has the same instruction and input (but not output) as row 1 and row 2; keep one, or "
        "choose the split `grouped`, which keeps them together",
        "`f.json` row 3 has the same instruction and input (and output) as row 4; keep one, or choose the "
        "split `grouped`, which keeps them together",
        "`f.json` row 2 has 5 tokens, more than `max_length` 4; shorten it or raise `max_length`, else training cuts "
        "its "
        "end off",
        *(
            f"`f.json` row {row} contains `<|endoftext|>`, a special token of `gpt2-medium`; delete it if another "
            "program left it there; kept, it is trained on and answered as plain text"
            for row in (3, 4)
        ),
    ]


def test_warnings_use_the_places_given_and_cut_long_lists() -> None:
    examples = [Example(str(n), "a", "", str(n)) for n in range(13)]
    (warning,) = check_examples(examples, file="f", rows=[f"line {n}" for n in range(1, 14)])
    assert warning.row == "line 1"
    assert warning.what == (
        "has the same instruction and input (but not output) as line 2, line 3, line 4, line 5, line 6, line 7, line "
        "8, "
        "line 9, line 10, line 11 and 2 more"
    )


def test_groups_hold_positions() -> None:
    examples = [Example(str(n), *pair, "o") for n, pair in enumerate([("a", ""), ("a", "i"), ("a", "")])]
    assert group_by_prompt(examples) == {("a", ""): [0, 2], ("a", "i"): [1]}


def test_at_most_fifty_faults_are_listed_and_all_are_counted() -> None:
    problems = [Problem("f.json", f"row {n}", "output", "is empty", "write it") for n in range(1234)]
    with pytest.raises(DataError) as caught:
        raise_problems(problems)
    lines = str(caught.value).splitlines()
    assert lines[0] == "1,234 problems in `f.json`:"
    assert lines[1] == "  - `f.json` row 0, `output` is empty; write it"
    assert lines[-1] == "  - and 1,184 more"
    assert len(lines) == 52
    raise_problems([])


def test_long_names_are_cut() -> None:
    assert shorten("x" * 100) == "x" * 39 + "…"
    assert shorten("\ud800" * 100, 10) == "\\ud800\\ud…"


@pytest.mark.parametrize(
    ("map", "fields"),
    [
        ({"instruction": "output", "output": "output"}, ("instruction", "output")),
        ({"instruction": "output"}, ("instruction", "output")),
        ({"instruction": "input", "input": "input"}, ("instruction", "input")),
    ],
)
def test_no_two_fields_are_read_from_one_column(map: dict[str, str], fields: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=f"reads both `{fields[0]}` and `{fields[1]}` from the column"):
        build_examples(build_table({"input": "a", "output": "b"}), map=map)


def test_an_optional_field_is_not_read_from_a_column_that_is_mapped_to_another() -> None:
    checked = build_examples(build_table({"input": "a", "output": "b"}), map={"instruction": "input"})
    assert [(example.instruction, example.input, example.output) for example in checked.examples] == [("a", "", "b")]
    assert (checked.problems, checked.notices) == ([], [])


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_are_refused_without_advice_that_cannot_work(column: str) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (problem,) = build_examples(build_table({column: turns})).problems
    assert problem.what == "holds conversations, which are not read yet"
    assert "--map" not in problem.remedy


def test_rows_without_any_column_are_a_fault() -> None:
    (problem,) = build_examples(build_table({}, {})).problems
    assert problem.what == "names no column in any row"
