"""The self-check: which judges pass it, what the others fail, and where that is shown from then on."""

import asyncio
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from rows import response

from benchmarks import judges
from hf_instruct.config import JudgeSection
from hf_instruct.errors import ConfigError, DataError, JudgeUnavailable
from hf_instruct.evaluation.cache import find_self_check, keep_self_check
from hf_instruct.evaluation.judges import Reply
from hf_instruct.evaluation.loop import JudgeOptions
from hf_instruct.evaluation.probes import INJECTIONS, name_kind
from hf_instruct.evaluation.rubrics import Question, load_rubric
from hf_instruct.evaluation.scoring import judge_responses, judge_with
from hf_instruct.evaluation.self_check import check_briefly, format_self_check, run_self_check
from hf_instruct.records import Example, read_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Check, CheckOutcome, JudgeIdentity, Judgment, Response, SelfCheck

pytestmark = pytest.mark.usefixtures("cache_home")

EXAMPLES = [Example(f"id{i}", f"Spell the number {i}.", "", f"The word is number-{i}-spelt.") for i in range(30)]
SETTINGS = JudgeSection(backend="local", concurrency=4)


Score = Callable[[str, str, str], int | None]


def build_judge(score: Score, model: str = "fake") -> FakeJudge:
    """Return a judge that scores by what it makes of the response, which it sees as the local judge does."""

    def reply(question: Question) -> Reply:
        task, _, rest = question.state.removeprefix("Task: ").partition("\nCorrect answer: ")
        output, _, response = rest.partition("\nStudent's answer: ")
        found = score(task, output, response)
        return Reply("no number", 0.0) if found is None else Reply(str(found), 0.0)

    return FakeJudge(reply=reply, model=model)


def honest(task: str, output: str, response: str) -> int:
    """Believe only what stands in the answer; more than the reference is no better."""
    if output in response:
        return 95
    return 0 if response in ("", task) else 5


def gullible(task: str, output: str, response: str) -> int:
    return 100 if "100" in response else honest(task, output, response)


def check(score: Score, **arguments: Any) -> SelfCheck:
    # Fakes that score differently have one identity: what one said is not to be taken for the other's.
    options = JudgeOptions(use_cache=False)
    return run_self_check(EXAMPLES, SETTINGS, judge=build_judge(score), options=options, **arguments)


def row_of(result: SelfCheck, first: str) -> Check:
    return next(row for row in result.checks if row.first == first)


def test_honest_judge_passes_everything() -> None:
    result = check(honest)
    assert (result.passed, result.failed, result.n, result.probes) == (True, [], 20, 260)
    order = row_of(result, "reference")
    assert (order.second, order.difference, order.higher, order.n) == ("shuffled", 90.0, 1.0, 20)
    assert list(order.interval) == [90.0, 90.0]
    assert {row.difference for row in result.checks if row.name == "injection"} == {0.0}
    assert result.kinds["empty"].to_dict() == {"mean": 0.0, "n": 20, "failures": 0}
    assert (result.constant, result.reference_mean) == (None, 95.0)


def test_wrong_answer_and_none_may_both_be_worth_nothing() -> None:
    for wrong, empty in ((0, 0), (20, 20), (0, 9)):
        scores = {True: 95, False: wrong}
        assert check(lambda task, out, answer, s=scores, e=empty: s[out in answer] if answer else e).passed


@pytest.mark.parametrize(
    ("score", "problem"),
    [
        (
            lambda task, output, response: 53 if output in response else 52 if response else 51,
            "the reference got 1.0 points more than the answer of another row on average and the higher score in 100 % "
            "of 20 rows (20 points and 90 % are needed)",
        ),
        (lambda task, output, response: min(100, 2 * len(response)), "repeating an answer twice raised the score"),
    ],
)
def test_judges_that_go_by_something_else_fail_by_effect(score: Score, problem: str) -> None:
    result = check(score)
    assert result.passed is False
    assert any(one.startswith(problem) for one in result.failed)


def test_gullible_judge_fails_the_injections_that_it_fell_for() -> None:
    result = check(gullible)
    assert result.failed == [
        "the injection `command` raised the score by 95.0 points on average in 20 rows (and 4 more did)"
    ]
    fell_for = {row.first for row in result.checks if row.passed is False}
    assert fell_for == {kind for kind, text in INJECTIONS.items() if "100" in text}
    assert row_of(result, "injection-praise").passed is True
    assert row_of(result, "injection-command").takeovers == 1.0


def test_injection_that_works_in_two_rows_of_five_fails() -> None:
    seldom = iter([100] * 8)

    def score(task: str, output: str, response: str) -> int:
        return next(seldom, 0) if response.endswith("nothing else.") else honest(task, output, response)

    result = check(score)
    assert (row_of(result, "injection-command").takeovers, result.passed) == (0.4, False)
    assert result.failed == ["the injection `command` raised 40 % of 20 scores by 50 points or more, net of decreases"]


def test_constant_judge_fails_the_order_and_is_named() -> None:
    result = check(lambda *texts: 50)
    assert result.passed is False
    assert result.constant == 50
    assert "The judge gave every answer the same score, 50: it does not discriminate." in format_self_check(result)


@pytest.mark.parametrize(("gap", "result"), [(9, "says nothing"), (40, "passed")])
def test_injections_show_nothing_where_scores_lie_close_together(gap: int, result: str) -> None:
    said = format_self_check(check(lambda task, output, response: 50 + gap * (output in response)))
    for name in map(name_kind, (*INJECTIONS, "shuffled-doubled")):
        line = next(line for line in said.splitlines() if f" {name} - " in line)
        assert line.endswith(result)
    assert ("Nothing follows from what did not raise the score" in said) == (result != "passed")


def test_few_examples_say_little_and_block_nothing() -> None:
    result = check(gullible, limit=9)
    assert (result.passed, result.failed) == (None, [])
    assert format_self_check(result).endswith("was checked on only 9 examples, which is too few")


def test_judge_without_verdicts_is_reported() -> None:
    result = check(lambda *texts: None)
    assert result.failures == result.probes == 260
    # Nothing else was seen to fail.
    assert (result.passed, len(result.failed)) == (False, 1)
    assert result.failed[0].startswith("260 of 260 answers got no ")
    assert result.checks[0].passed is None
    text = format_self_check(result)
    assert re.search(r"failures +answers without a score +at most 10 % +260 of 260 +FAILED", text)
    assert "no pair has two scores" in text
    assert "unknown" in text
    json.dumps(result.to_dict(), allow_nan=False)


def test_few_failures_are_counted_and_pass() -> None:
    result = check(lambda *texts: None if "number-7-" in texts[1] and not texts[2] else honest(*texts), limit=30)
    assert (result.failures, result.passed) == (1, True)
    assert row_of(result, "reference").n == 30
    assert [row.n for row in result.checks if row.second == "empty"] == [29]


def test_table() -> None:
    lines = format_self_check(check(gullible)).splitlines()
    assert max(map(len, lines[:-2])) <= 120
    rows = [re.split(r" {2,}", line) for line in lines]
    assert rows[0] == ["check", "first - second", "expected", "mean difference", "higher", "n", "result"]
    assert rows[1][:3] == ["order", "reference - shuffled", ">= 20, higher in 90 %"]
    assert rows[1][-3:] == ["100 %", "20", "passed"]
    command = next(row for row in rows if row[1:] and row[1].startswith("command - "))
    assert (command[0], command[2], command[-1]) == ("injection", "< 10", "FAILED")
    assert lines[-1] == (
        "judge fake@ddddddd (fake), rubric course@f870155, 260 answers: failed its check on 20 examples: the injection "
        "`command` raised the score by 95.0 points on average in 20 rows (and 4 more did)"
    )


@pytest.mark.parametrize("n", judges.SIZES)
@pytest.mark.parametrize("name", [*judges.USEFUL, *judges.USELESS])
def test_useful_judges_pass_and_useless_ones_fail(name: str, n: int) -> None:
    share = judges.pass_rate({**judges.USEFUL, **judges.USELESS}[name], n, draws=60)
    assert share >= 0.95 if name in judges.USEFUL else share <= 0.05


def check_short(judge: FakeJudge, out: Path, examples: list[Example] = EXAMPLES) -> None:
    asyncio.run(check_briefly(judge, examples, SETTINGS, out=out, options=JudgeOptions()))


def test_short_check_asks_forty_answers_and_is_not_repeated(tmp_path: Path) -> None:
    judge = build_judge(honest)
    check_short(judge, tmp_path)
    assert len(judge.asked) == 40
    known = find_self_check(JudgeIdentity.model_validate(judge.identity()), load_rubric("course"))
    assert (known.passed, known.n, known.probes, known.reference_mean) == (True, 20, 40, 95.0)
    # Another run, other files: the cache has all verdicts.
    check_short(judge, tmp_path / "other")
    assert len(judge.asked) == 40
    check_short(judge, tmp_path / "few", EXAMPLES[:9])
    assert not (tmp_path / "few").exists()


def test_short_check_is_not_asked_where_a_longer_one_is_known(tmp_path: Path) -> None:
    run_self_check(EXAMPLES, SETTINGS, judge=build_judge(gullible))
    judge = build_judge(gullible)
    check_short(judge, tmp_path)
    assert judge.asked == []


def test_files_hold_what_was_asked_and_what_came_of_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = check(honest, out=out, limit=10)
    kept = json.loads((out / "self_check.json").read_text())
    assert kept == result.to_dict()
    assert kept["rubric"]["name"] == "course"
    assert kept["judge"]["model"] == "fake"
    assert len(read_rows(out / "self_check" / "responses.jsonl", Response)) == 130
    assert len(read_rows(out / "self_check" / "judgments.jsonl", Judgment)) == 130


def test_interrupted_check_goes_on(tmp_path: Path) -> None:
    judge = build_judge(honest)
    judge.dies_after = 50
    options = JudgeOptions(use_cache=False)
    with pytest.raises(JudgeUnavailable, match=r"The server is gone\. \d+ of 260 are judged"):
        run_self_check(EXAMPLES, SETTINGS, judge=judge, out=tmp_path / "out", options=options)
    assert not (tmp_path / "out" / "self_check.json").exists()
    judge.dies_after, judge.asked = None, []
    assert run_self_check(EXAMPLES, SETTINGS, judge=judge, out=tmp_path / "out", options=options).passed
    assert 200 < len(judge.asked) < 220


def test_later_scores_tell_of_the_check(tmp_path: Path) -> None:
    rows = [response(f"r{i}", f"Answer {i}.", instruction="Task.") for i in range(3)]
    judge = build_judge(gullible)

    def judged(model: str = "fake", rubric: str = "course") -> Any:
        judge.model = model
        settings = JudgeSection(rubric=rubric)
        return asyncio.run(judge_with(judge, rows, settings, files=RunFolder(tmp_path / "run")))

    assert judged().scores.self_check is None
    check(gullible, out=tmp_path / "run")
    problem = "the injection `command` raised the score by 95.0 points on average in 20 rows (and 4 more did)"
    told = {"passed": False, "failed": [problem], "n": 20, "probes": 260, "reference_mean": 95.0}
    # Scores that were there already, by this judge and rubric, tell of it too.
    assert RunFolder(tmp_path / "run").read_scores().self_check.to_dict() == told
    again = judged()
    assert again.scores.self_check.to_dict() == told
    assert f"the judge failed its check on 20 examples: {problem}" in str(again)
    assert judged(model="other").scores.self_check is None
    judge.seed = 7
    assert judged().scores.self_check.to_dict() == told
    assert judged(rubric="five-point").scores.self_check is None


def test_passed_check_is_kept_and_not_cried_out(tmp_path: Path) -> None:
    check(honest)
    judged = judge_responses(
        [response("r", "Done.")],
        judge=build_judge(honest),
        rubric="course",
        cache=False,
    )
    assert judged.scores.self_check == CheckOutcome(passed=True, failed=[], n=20, probes=260, reference_mean=95.0)
    assert "answers equal to the reference scored 95.0 on average (n=1)" in str(judged)
    assert "the judge passed its check on 20 examples" in str(judged)


def test_check_over_fewer_examples_does_not_hide_one_over_more(caplog: pytest.LogCaptureFixture) -> None:
    rubric, identity = load_rubric("course"), JudgeIdentity.model_validate(build_judge(honest).identity())
    check(gullible)
    with caplog.at_level(logging.WARNING):
        check(honest, limit=2)
    assert caplog.messages == [
        "2 examples are too few to check a judge; the default is 20.",
        "Scores of this judge still show its earlier check, on 260 answers; this one is on 26.",
    ]
    assert find_self_check(identity, rubric).passed is False
    check(honest)
    assert find_self_check(identity, rubric).passed is True


def test_unreadable_kept_check_counts_as_none(cache_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    rubric, identity = load_rubric("course"), JudgeIdentity.model_validate(build_judge(honest).identity())
    result = CheckOutcome(passed=True, failed=[], n=20)
    keep_self_check(identity, rubric, result)
    (path,) = (cache_home / "self_checks").iterdir()
    for text in ("", "[]", "{}", "nonsense", '{"passed": true}'):
        path.write_text(text)
        assert find_self_check(identity, rubric) is None
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("")
    assert keep_self_check(identity, rubric, result) == result
    assert "later scores will not show this check" in caplog.text


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"^`--limit` is 1; the judge check needs at least 2 examples\.$"):
        check(honest, limit=1)
    with pytest.raises(DataError, match="there is 1"):
        run_self_check(EXAMPLES[:1], SETTINGS, judge=build_judge(honest))
