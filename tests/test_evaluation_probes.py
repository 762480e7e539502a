"""Probes: what each is made of, and that the same examples give the same probes."""

import random

import pytest

from hf_instruct.errors import DataError
from hf_instruct.evaluation import probes as probes_module
from hf_instruct.evaluation.probes import INJECTIONS, build_probes, sample_examples
from hf_instruct.records import Example
from hf_instruct.schema import Response

EXAMPLES = [
    Example("a", "Name a color.", "", "Red."),
    Example("b", "Name the same color.", "", "red"),
    Example("c", "Add.", "1 + 1", "2"),
    Example("d", "Say nothing but this.", "", "Say nothing but this"),
]


def answers_of(probes: list[Response], example_id: str) -> dict[str | None, str]:
    return {row.category: row.response for row in probes if row.id == f"{example_id}/{row.category}"}


def test_answers_of_known_worth() -> None:
    answers = answers_of(build_probes(EXAMPLES[:3]), "a")
    # The only other answer that is not the same but for case and the full stop.
    assert answers["shuffled"] == "2"
    assert answers["reference"] == "Red."
    assert answers["empty"] == ""
    assert answers["repeated"] == "Name a color."
    assert answers["doubled"] == "Red.\n\nRed."
    assert answers["shuffled-doubled"] == "2\n\n2"
    assert answers["control"].startswith("2\n\nThat is the answer")
    for kind, text in INJECTIONS.items():
        assert answers[kind] == f"2\n\n{text}"
    assert len(answers) == 13


def test_probe_is_a_response_with_an_id_of_its_own() -> None:
    probes = build_probes(EXAMPLES)
    assert len({row.id for row in probes}) == len(probes) == 4 * 13 - 1
    row = next(row for row in probes if row.id == "c/reference")
    assert (row.instruction, row.input, row.output, row.response, row.category) == (
        "Add.",
        "1 + 1",
        "2",
        "2",
        "reference",
    )


def test_instruction_that_is_the_answer_is_no_wrong_answer() -> None:
    assert "repeated" not in answers_of(build_probes(EXAMPLES), "d")


def test_wrong_answers_are_drawn_from_all_that_differ() -> None:
    words = ["Yes.", "yes", "", " .", "No", "Perhaps.", "YES", "no."]
    pool = [Example(str(number), "Task.", "", words[number * number % 8 - number % 3]) for number in range(60)]
    for example in pool:
        own = example.output.lower().strip(" .")
        different = [row.output for row in pool if row.output.lower().strip(" .") not in ("", own)]
        expected = random.Random(example.id).choice(different)
        assert answers_of(build_probes([example], pool), example.id)["shuffled"] == expected


def test_choosing_wrong_answers_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(probes_module, "_normalize", lambda text: calls.append(text) or text)
    build_probes([Example(str(number), "Task.", "", str(number % 7)) for number in range(500)])
    assert len(calls) < 10 * 500


def test_probes_do_not_depend_on_what_else_is_probed() -> None:
    everything = build_probes(EXAMPLES)
    for example in EXAMPLES:
        alone = build_probes([example], EXAMPLES)
        assert [row for row in everything if row.id.startswith(f"{example.id}/")] == alone


def test_no_wrong_answer_to_be_had() -> None:
    with pytest.raises(DataError) as caught:
        build_probes(EXAMPLES[:2])
    assert "none has an output that differs from that of `a`" in str(caught.value)


def test_larger_sample_holds_the_smaller() -> None:
    rows = [Example(str(number), "Task.", "", "Answer.") for number in range(50)]
    small, large = sample_examples(rows, 5), sample_examples(rows, 20)
    assert {row.id for row in small} < {row.id for row in large}
    assert [row.id for row in large] == sorted((row.id for row in large), key=int)
    assert sample_examples(rows, 99) == rows
