from typing import Any

import pytest

from hf_instruct.data import examples
from hf_instruct.data.examples import CheckedData, build_examples, find_repeats
from hf_instruct.data.formats import check_messages
from hf_instruct.data.problems import Problem, RawRow, raise_problems, shorten_text
from hf_instruct.data.sources import iterate_examples, read_examples
from hf_instruct.errors import DataError
from hf_instruct.records import Example, build_example_id

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def check(*rows: dict[str, Any], file: str = "mine.json", **options: Any) -> CheckedData:
    return build_examples((RawRow(f"row {n}", row) for n, row in enumerate(rows)), file=file, **options)


def read(*rows: dict[str, Any], **options: Any) -> list[Example]:
    checked = check(*rows, **options)
    assert checked.problems == []
    return list(iterate_examples(checked.examples))


def texts(checked: CheckedData) -> list[str]:
    return [str(problem) for problem in checked.problems]


def test_a_row_becomes_an_example_as_it_is() -> None:
    checked = check({"instruction": " Add. ", "input": "1 2", "output": "3\n", "category": "sums"})
    id = build_example_id(" Add. ", "1 2", "3\n")
    assert list(iterate_examples(checked.examples)) == [Example(id, " Add. ", "1 2", "3\n", "sums")]
    assert checked.examples["row"][:] == ["row 0"]
    assert checked.problems == checked.notices == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is null; write the output, or delete the row"),
        (" \n\t", "is empty; write the output, or delete the row"),
        (42, "is a number (42), not text; write it as one text"),
        (True, "is a boolean (true), not text; write it as one text"),
        (["a"], "is a list, not text; write it as one text"),
        ({"a": 1}, "is an object, not text; write it as one text"),
        ("a\0b", "has a NUL character at position 1; delete that character"),
        ("a\ud800", "has a lone surrogate, which is not valid in UTF-8; replace it with the complete character"),
    ],
)
def test_each_bad_output_is_named(value: object, problem: str) -> None:
    checked = check({"instruction": "Add.", "output": value})
    assert texts(checked) == [f"`mine.json` row 0, `output` {problem}"]
    assert len(checked.examples) == 0


def test_all_problems_of_all_rows_are_found_in_order() -> None:
    checked = check(
        {"instruction": "a", "output": "b"},
        {"instruction": "a"},
        {"instruction": "", "output": None, "input": 5, "category": []},
        problems=[Problem("mine.json", "row 1", None, "is odd", "fix it")],
    )
    assert texts(checked) == [
        "`mine.json` row 1 is odd; fix it",
        "`mine.json` row 1, `output` is missing; add it, or delete the row",
        "`mine.json` row 2, `instruction` is empty; write the instruction, or delete the row",
        "`mine.json` row 2, `output` is null; write the output, or delete the row",
        "`mine.json` row 2, `input` is a number (5), not text; write it as one text",
        "`mine.json` row 2, `category` is a list, not text; write it as one text",
    ]
    assert checked.examples["output"][:] == ["b"]


def test_input_and_category_may_be_absent_or_null() -> None:
    rows = read(
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "output": "c", "input": None, "category": None},
        {"instruction": "a", "output": "d", "category": 3},
    )
    assert [(row.input, row.category) for row in rows] == [("", None), ("", None), ("", "3")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "i", "context": "c", "response": "r", "category": "k"}, ("i", "c", "r", "k")),
        ({"question": "q", "answer": "a"}, ("q", "", "a", None)),
        ({"Instruction": "i", "INPUT": "x", " output ": "o"}, ("i", "x", "o", None)),
        ({"instruction": "i", "output": "o", "response": "unused"}, ("i", "", "o", None)),
    ],
)
def test_text_formats_are_recognized(row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    (example,) = read(row)
    assert (example.instruction, example.input, example.output, example.category) == expected
    assert (example.prompt, example.messages) == (None, None)


SYSTEM = {"role": "system", "content": "Be brief."}
MORE = [*TURNS, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"messages": [SYSTEM, *MORE]}, [SYSTEM, *MORE]),
        ({"messages": [{**turn, "weight": 1} for turn in TURNS]}, TURNS),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, TURNS),
        ({"Conversations": [{"from": "system", "value": "Be brief."}, *TURNS]}, [SYSTEM, *TURNS]),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, TURNS),
        ({"prompt": [SYSTEM, TURNS[0]], "completion": "b"}, [SYSTEM, *TURNS]),
        ({"prompt": MORE[:3], "completion": MORE[3:]}, MORE),
        ({"messages": [{"from": turn["role"], "content": turn["content"]} for turn in TURNS]}, TURNS),
        ({"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TURNS]}, TURNS),
        # As LLaMA-Factory writes them.
        (
            {
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
                "system": "Be brief.",
                "tools": "[]",
            },
            [SYSTEM, *TURNS],
        ),
    ],
)
def test_conversation_formats_are_recognized(row: dict[str, Any], turns: list[dict[str, str]]) -> None:
    checked = check(row)
    (example,) = iterate_examples(checked.examples)
    assert checked.problems == []
    assert example.messages == turns
    assert example.prompt_turns == (3 if row.get("prompt") == MORE[:3] else None)
    assert read_examples(checked.examples) == [example]
    assert (example.instruction, example.input, example.output) == (turns[-2]["content"], "", turns[-1]["content"])
    assert "contains " in checked.notices[0]


def test_columns_of_earlier_turns_make_a_conversation_of_an_instruction() -> None:
    row = {"instruction": "c", "input": "x", "output": "d", "system": "Be brief.", "history": [["a", "b"]]}
    checked = check(row, {"instruction": "i", "input": "", "output": "o", "system": "", "history": []})
    told, plain = iterate_examples(checked.examples)
    asked = {"role": "user", "content": "c\nx"}
    assert told.messages == [SYSTEM, *TURNS, asked, {"role": "assistant", "content": "d"}]
    assert (told.instruction, told.input, told.output) == ("c", "x", "d")
    assert (plain.messages, plain.instruction) == (None, "i")
    assert checked.notices == ["`mine.json`: texts in `system`, `history` become turns before the question."]
    assert read_examples(checked.examples) == [told, plain]
    own = {"q": "c", "a": "d", "sys": "Be brief."}
    (example,) = iterate_examples(check(own, map={"instruction": "q", "output": "a", "system": "sys"}).examples)
    assert example.messages == [SYSTEM, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": TURNS, "tools": [{"type": "function"}]}, "row 0, `tools` names tools, whose use is not learned"),
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}]},
            "row 0, `messages` turn 1 calls tools, which is not learned",
        ),
        (
            {"messages": [TURNS[0], {**TURNS[1], "weight": 0}]},
            "row 0, `messages` turn 1 has `weight` 0, but all answers, or only the last, are learned",
        ),
        (
            {"messages": [{**TURNS[0], "train": False}, {**TURNS[1], "train": False}]},
            "turn 1 has `train` False, but all answers",
        ),
        ({"instruction": "i", "output": "o", "history": "of Rome"}, "row 0, `history` is not a list of earlier quest"),
        ({"instruction": "i", "output": "o", "system": 5}, "row 0, `system` is a number (5), not text"),
        ({"messages": [{"speaker": "user", "text": "a"}]}, "(its keys are `speaker`, `text`); write both as text,"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "`chosen` contains preferred answers; train on such pa"),
        ({"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": TURNS[1]}, "`chosen` contains preferred"),
        ({"segments": [{"label": True, "text": "a"}]}, "`segments` contains axolotl's segments; write"),
        (
            {"text": "Once upon a time"},
            "`text` contains texts without a question and an answer; write these as `prompt`",
        ),
        (
            {"dialog": TURNS},
            "`dialog` is the only column, which contains no question next to its answer; if it contains co",
        ),
    ],
)
def test_rows_for_other_tools_are_one_problem(row: dict[str, Any], problem: str) -> None:
    (found,) = texts(check(row))
    assert problem in found


def test_prompt_and_completion_are_kept_as_they_are() -> None:
    (example,) = read({"prompt": "Q: 1+1\nA:", "completion": " 2"})
    assert (example.prompt, example.instruction, example.output) == ("Q: 1+1\nA:", "Q: 1+1\nA:", " 2")


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ("hello", 'is text ("hello"), not a list of turns'),
        ([1], "turn 0 is a number (1), not an object"),
        ([{"role": "user", "content": None}, TURNS[1]], "turn 0 has no text as `role` or `content`"),
        ([TURNS[0], TURNS[0], TURNS[1]], "turn 1 is `user`'s but should be `assistant`'s"),
        ([SYSTEM, TURNS[1]], "turn 1 is `assistant`'s but should be `user`'s"),
        ([*TURNS, TURNS[0]], "ends without an answer"),
        ([TURNS[0], {"role": "assistant", "content": " "}], "turn 1 is empty"),
        ([TURNS[0], {"role": "tool", "content": "x"}, TURNS[1]], "turn 1 has the role `tool`"),
        ([TURNS[0], {"role": "assistant", "content": "a\0"}], "turn 1 has a NUL character"),
        ([SYSTEM], "contains no question with an answer"),
        ([], "contains no question with an answer"),
        (None, "is null"),
    ],
)
def test_bad_conversations_are_named_by_row_and_turn(turns: Any, problem: str) -> None:
    (found,) = texts(check({"messages": TURNS}, {"messages": turns}))
    assert found.startswith("`mine.json` row 1, `messages` ")
    assert problem in found
    assert check_messages(TURNS) is None


def test_the_recognized_format_is_a_notice() -> None:
    assert check({"Question": "q", "answer": "a", "id": "1"}).notices == [
        "`mine.json` contains questions and answers: `Question` as instruction, `answer` as output."
    ]


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        (
            {"instruction": "i", "response": "r", "question": "q", "answer": "a"},
            "choose one by `--data.map.instruction=instruction --data.map.output=response` (Dolly's rows) or "
            "`--data.map.instruction=question --data.map.output=answer` (questions and answers)",
        ),
        (
            {"messages": TURNS, "conversations": TURNS},
            "choose one by `--data.map.messages=messages` (messages) or `--data.map.messages=conversations` (Share",
        ),
        ({"prompt": "a", "response": "b"}, "map the right one with `--data.map.output=response`"),
        ({"Output": "a", "OUTPUT": "b", "instruction": "i"}, "map the right one with `--data.map.output=COLUMN`"),
    ],
)
def test_ambiguous_columns_suggest_a_map(row: dict[str, Any], remedy: str) -> None:
    (problem,) = check(row).problems
    assert remedy in problem.remedy


def test_a_missing_column_is_one_problem_and_suggests_the_nearest() -> None:
    row = {"queries": "a", "outputs": "b"}
    checked = check(row, row, file="q.csv", map={"instruction": "query"})
    known = "is not a column; the columns are `queries`, `outputs` (a CSV's first line names them): map the right one"
    assert texts(checked) == [
        f"`q.csv`, `query` {known} with `--data.map.instruction=COLUMN`. Did you mean `queries`?",
        f"`q.csv`, `output` {known} with `--data.map.output=COLUMN`. Did you mean `outputs`?",
    ]
    assert len(checked.examples) == 0
    assert checked.notices == []


def test_a_map_renames_columns() -> None:
    row = {"q": "a", "a": "b", "kind": "k", "key": 7}
    map = {"instruction": "q", "output": "a", "category": "kind", "id": "key"}
    assert read(row, map=map) == [Example("7", "a", "", "b", "k")]
    assert read({"dialog": TURNS}, map={"messages": "dialog"})[0].messages == TURNS
    assert read({"q": "a", "completion": "b"}, map={"prompt": "q"})[0].prompt == "a"
    # Only what differs has to be mapped.
    assert read({"question": "q", "reply": "a"}, map={"output": "reply", "instruction": "question"})[0].output == "a"


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
        check({"input": "a", "output": "b"}, map=map)


def test_an_optional_field_is_not_read_from_a_column_that_is_mapped_to_another() -> None:
    (example,) = read({"input": "a", "output": "b"}, map={"instruction": "input"})
    assert (example.instruction, example.input, example.output) == ("a", "", "b")


def test_unused_columns_are_one_notice_that_suggests_the_input() -> None:
    assert check({"instruction": "a", "inputs": "i", "output": "b", "\x1b[2J": 1}).notices == [
        "`mine.json`: columns not used: `inputs`, `\\x1b[2J`. No column is `input`. Did you mean `inputs`? Add it "
        "with `--data.map.input=COLUMN`."
    ]


def test_no_rows_and_rows_without_any_column_are_problems() -> None:
    assert texts(check()) == ["`mine.json` contains no rows; add rows, or use another source"]
    assert texts(check(columns=["instruction", "output"])) == texts(check())
    assert texts(check({}, {})) == ["`mine.json` has no column in any row; add rows, or use another source"]


def test_equal_rows_get_different_ids_that_later_rows_do_not_change() -> None:
    row = {"instruction": "a", "output": "b"}
    id = build_example_id("a", "", "b")
    assert [example.id for example in read(row, row, {**row, "output": "c"}, row)] == [
        id,
        f"{id}-2",
        build_example_id("a", "", "c"),
        f"{id}-3",
    ]
    assert [example.id for example in read(row, row)] == [id, f"{id}-2"]


def test_unique_ids_are_kept() -> None:
    rows = [{"id": id, "instruction": "a", "output": "b"} for id in (1, "x", 10**30)]
    assert [example.id for example in read(*rows)] == ["1", "x", "1" + "0" * 30]


@pytest.mark.parametrize("bad", [None, "", "two\nlines", 1.5, True, "\ud800", 1])
def test_ids_that_are_not_unique_are_a_notice_and_a_problem_if_mapped(bad: object) -> None:
    rows = [{"id": 1, "instruction": "a", "output": "b"}, {"id": bad, "instruction": "a", "output": "c"}]
    checked = check(*rows)
    counts = "0 missing, 1 repeated" if type(bad) is int else "1 missing, 0 repeated"
    problem = f"is not a unique id ({counts})"
    assert checked.notices == [f"`mine.json`: column `id` {problem}; using ids generated from the text instead."]
    assert checked.examples["id"][:] == [build_example_id("a", "", "b"), build_example_id("a", "", "c")]
    assert texts(check(*rows, map={"id": "id"}))[0].startswith(f"`mine.json`, `id` {problem}; map another column")


def test_rows_without_an_output_are_left_out_of_a_source_known_for_them() -> None:
    rows = [{"instruction": "a", "output": output} for output in ("b", "", None, " ", "c")]
    checked = check(*rows, file="alpaca", drop_without_output=True)
    assert checked.examples["output"][:] == ["b", "c"]
    assert checked.examples["row"][:] == ["row 0", "row 4"]
    assert checked.notices == ["`alpaca`: 3 rows without an output are left out."]
    assert checked.problems == []


def test_many_rows_are_read_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"instruction": f"Say {n}.", "output": str(n)} for n in range(10)] + [{"instruction": "x", "new": 1}]
    whole = check(*rows)
    monkeypatch.setattr(examples, "BATCH", 3)
    parts = check(*rows)
    assert parts.examples.to_list() == whole.examples.to_list()
    assert (texts(parts), parts.notices) == (texts(whole), whole.notices)


def test_repeats_are_found_by_prompt() -> None:
    pairs = [("a", ""), ("a", "i"), ("a", "")]
    checked = check(*({"instruction": i, "input": input, "output": "o"} for i, input in pairs))
    assert find_repeats(checked.examples) == [[0, 2]]
    again = [*MORE[:3], {"role": "assistant", "content": "e"}]
    assert find_repeats(check(*({"messages": turns} for turns in (MORE, MORE[2:], again))).examples) == [[0, 2]]


def test_at_most_fifty_problems_are_listed_and_all_are_counted() -> None:
    problems = [Problem("f.json", f"row {n}", "output", "is empty", "write it") for n in range(1234)]
    with pytest.raises(DataError) as caught:
        raise_problems(problems)
    lines = str(caught.value).splitlines()
    assert lines[0] == "1,234 problems in `f.json`:"
    assert lines[1] == "  - `f.json` row 0, `output` is empty; write it"
    assert lines[-1] == "  - and 1,184 more"
    assert len(lines) == 52
    raise_problems([])


def test_long_names_are_shortened() -> None:
    assert shorten_text("x" * 100) == "x" * 39 + "…"
    assert shorten_text("\ud800" * 100, 10) == "\\ud800\\ud…"
