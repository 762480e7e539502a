"""The judging loop: resuming, caching, asking once more, and what a dying judge leaves behind."""

import asyncio
import contextlib
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from fake_ollama import DIGEST, Answer, FakeOllama
from rows import response

from hf_instruct.config import JudgeSection
from hf_instruct.errors import ConfigError, DataError, JudgeError, JudgeUnavailable
from hf_instruct.evaluation.cache import VerdictCache
from hf_instruct.evaluation.judges import Reply
from hf_instruct.evaluation.loop import JudgeOptions
from hf_instruct.evaluation.scoring import JudgmentSet, judge_responses, judge_with
from hf_instruct.records import read_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import JudgeIdentity, Judgment, Response

pytestmark = pytest.mark.usefixtures("cache_home")

RESPONSES = [response(f"id{i}", f"Answer {i}.", category="odd" if i % 2 else "even") for i in range(6)]
SETTINGS = JudgeSection(concurrency=2)
ONE_BY_ONE = JudgeSection(concurrency=1)


def run(
    judge: FakeJudge, files: RunFolder | None = None, *, responses: list[Response] = RESPONSES, **options: Any
) -> JudgmentSet:
    settings = options.pop("settings", SETTINGS)
    return asyncio.run(judge_with(judge, responses, settings, files=files, options=JudgeOptions(**options)))


def test_every_response_gets_a_judgment_in_its_order(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    judged = run(FakeJudge(Reply("10", 0.5), Reply("20", 0.5)), files)
    assert [row.id for row in judged.judgments] == [row.id for row in RESPONSES]
    assert sorted(row.score or 0 for row in judged.judgments) == [10, 20, 50, 50, 50, 50]
    assert sorted(files.read_judgments(), key=lambda row: row.id) == judged.judgments
    assert files.read_scores() == judged.scores
    assert set(judged.scores.by_category) == {"even", "odd"}
    assert str(judged).startswith("38.3 ± ")
    first = judged.judgments[0]
    assert (first.judge, first.rubric, first.cached, first.failure) == (
        JudgeIdentity(**FakeJudge().identity()),
        "course",
        False,
        None,
    )
    assert first.replies == ["10"]
    assert first.seconds == 0.5


def test_judge_of_one_mind_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = RunFolder(tmp_path)
    assert run(FakeJudge(), files).scores.constant is True
    assert caplog.messages == [
        "The judge gave all 6 answers the score 50, so it does not discriminate. Read its replies in "
        "`judgments.jsonl`, test it with `hf-instruct judge check`, or use another judge."
    ]
    assert files.read_scores().constant
    caplog.clear()
    run(FakeJudge(Reply("51", 0.1)), use_cache=False)
    assert caplog.messages == []


def test_unreadable_reply_is_asked_for_once_more_then_recorded() -> None:
    judge = FakeJudge(Reply("good", 1.0), Reply("85", 1.0), Reply("bad", 1.0), Reply("worse \ud83d", 2.0))
    judged = run(judge, settings=ONE_BY_ONE, responses=RESPONSES[:2])
    first, second = judged.judgments
    assert (first.score, first.replies, first.seconds) == (85, ["good", "85"], 2.0)
    assert (second.score, second.replies) == (None, ["bad", "worse ?"])
    assert second.failure == "The reply 'worse \\ud83d' contains no clear `score`."
    assert (judged.scores.n, judged.scores.failures, judged.scores.mean) == (1, 1, 85.0)


def test_failed_call_is_asked_once_more_unless_that_is_pointless() -> None:
    judge = FakeJudge(Reply("", 1.0, "no reply within 1 s"), Reply("85", 1.0), Reply("", 0.0, "too long", final=True))
    judged = run(judge, settings=ONE_BY_ONE, responses=RESPONSES[:2])
    assert [row.score for row in judged.judgments] == [85, None]
    assert judged.judgments[1].failure == "too long"
    assert len(judge.asked) == 3


def test_judge_that_computes_the_score_is_believed() -> None:
    judged = run(
        FakeJudge(Reply('{"score": 33, "probabilities": {}}', 0.1, final=True, score=33)), responses=RESPONSES[:1]
    )
    assert judged.judgments[0].score == 33


def test_judging_again_costs_no_call(tmp_path: Path) -> None:
    judge = FakeJudge()
    first = run(judge, RunFolder(tmp_path / "a"))
    again = run(judge, RunFolder(tmp_path / "a"))
    assert again.judgments == first.judgments
    elsewhere = run(judge, RunFolder(tmp_path / "b"))
    assert len(judge.asked) == 6
    assert elsewhere.judgments == [row.model_copy(update={"cached": True, "seconds": 0.0}) for row in first.judgments]
    assert elsewhere.scores.cached == 6


def test_cache_can_be_left_out(tmp_path: Path, cache_home: Path) -> None:
    judge = FakeJudge()
    for _ in range(2):
        run(judge, use_cache=False)
    assert len(judge.asked) == 12
    assert not cache_home.exists()


def test_cache_depends_on_judge_and_question() -> None:
    run(FakeJudge())
    for other in (FakeJudge(model="other"), FakeJudge()):
        changed = (
            [row.model_copy(update={"response": "New."}) for row in RESPONSES] if other.model == "fake" else RESPONSES
        )
        run(other, responses=changed)
        assert len(other.asked) == 6


def test_failures_are_not_cached() -> None:
    judge = FakeJudge(Reply("no", 0.1), Reply("no", 0.1))
    run(judge, responses=RESPONSES[:1])
    assert run(judge, responses=RESPONSES[:1]).judgments[0].score == 50


def test_unusable_cache_is_a_warning(cache_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (cache_home / "judgments").mkdir(parents=True)
    (cache_home / "judgments" / "verdicts.sqlite").write_bytes(b"not a database, but long enough to look at" * 50)
    assert run(FakeJudge()).scores.n == 6
    assert "(file is not a database)" in caplog.text


def test_several_writers_share_the_cache(cache_home: Path) -> None:
    """SQLite locks its file between two connections of one process as between two processes."""

    def fill(start: int) -> None:
        cache = VerdictCache(cache_home)
        for number in range(start, start + 50):
            cache.add([(f"key{number}", {"score": number})])
        cache.close()

    with ThreadPoolExecutor(2) as writers:
        list(writers.map(fill, (0, 50)))
    cache = VerdictCache(cache_home)
    assert [cache.find(f"key{number}") for number in range(100)] == [{"score": number} for number in range(100)]
    cache.close()


def test_dying_judge_leaves_what_was_judged(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    judge = FakeJudge(*[Reply("70", 0.1)] * 4, JudgeUnavailable("The server is gone."))
    with pytest.raises(JudgeUnavailable) as caught:
        run(judge, files, settings=ONE_BY_ONE, use_cache=False, resume_hint="Go on with `again`.")
    assert str(caught.value) == (
        f"The server is gone. 4 of 6 are judged, saved to `{files.judgments}`. Go on with `again`."
    )
    assert [row.score for row in read_rows(files.judgments, Judgment)] == [70] * 4
    assert not files.scores.exists()
    judge = FakeJudge()
    judged = run(judge, files, use_cache=False)
    assert len(judge.asked) == 2
    assert [row.score for row in judged.judgments] == [70, 70, 70, 70, 50, 50]


def test_interruption_leaves_what_was_judged(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    judge = FakeJudge()
    judge.interrupt_after = 4
    with pytest.raises(KeyboardInterrupt):
        run(judge, files, settings=ONE_BY_ONE, use_cache=False)
    assert len(read_rows(files.judgments, Judgment)) == 3


def test_torn_row_of_a_kill_is_judged_again(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    whole = run(FakeJudge(), files, use_cache=False).judgments
    lines = files.judgments.read_text().splitlines(keepends=True)
    files.judgments.write_text("".join(lines[:3]) + lines[3][:40])
    judge = FakeJudge()
    assert run(judge, files, use_cache=False).judgments == whole
    assert len(judge.asked) == 3


def test_the_last_attempt_decides_whether_a_second_run_asks_again(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    bad, broken = Reply("no idea", 0.1), Reply("", 1.0, "the server failed: overloaded (status 500)")
    first = FakeJudge(bad, broken, broken, bad, broken, broken, bad, bad)
    rows = run(first, files, responses=RESPONSES[:4], settings=ONE_BY_ONE).judgments
    assert [row.replies for row in rows] == [["no idea", ""], ["no idea"], [], ["no idea", "no idea"]]
    assert rows[0].failure == broken.failure
    again = FakeJudge()
    judged = run(again, files, responses=RESPONSES[:4])
    assert ([row.score for row in judged.judgments], len(again.asked)) == ([50, None, 50, None], 2)


def test_judgments_of_several_judges_and_rubrics_stay_in_one_file(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    first = run(FakeJudge(), files)
    run(FakeJudge(model="me/other:8b"), files)
    third = run(FakeJudge(), files, settings=JudgeSection(rubric="five-point", concurrency=1))
    rows = read_rows(files.judgments, Judgment)
    assert [(row.judge.model, row.rubric) for row in rows[::6]] == [
        ("fake", "course"),
        ("me/other:8b", "course"),
        ("fake", "five-point"),
    ]
    assert files.read_judgments() == third.judgments
    assert files.read_scores() == third.scores
    # Those of the first are there still: nothing is asked and nothing is added.
    judge = FakeJudge()
    assert run(judge, files, use_cache=False).judgments == first.judgments
    assert (judge.asked, len(read_rows(files.judgments, Judgment))) == ([], 18)
    assert {row.id: row for row in files.read_judgments()} == {row.id: row for row in first.judgments}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "judgments.jsonl", "scores.json"]


def test_two_models_are_judged_into_one_file(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    untuned = [row.model_copy(update={"model": "untuned", "response": "?"}) for row in RESPONSES]
    tuned_judged, base_judged = (
        run(FakeJudge(), files),
        run(FakeJudge(*[Reply("7", 0.1)] * 6), files, responses=untuned),
    )
    assert (tuned_judged.scores.mean, base_judged.scores.mean) == (50.0, 7.0)
    assert [row.score for row in files.read_judgments()] == [50] * 6
    assert [row.score for row in files.read_judgments("untuned")] == [7] * 6
    assert (files.read_scores(), files.read_scores("untuned")) == (tuned_judged.scores, base_judged.scores)


def test_only_changed_responses_are_judged_again(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    run(FakeJudge(), files, use_cache=False)
    changed = [RESPONSES[0].model_copy(update={"response": "Better."}), *RESPONSES[1:]]
    judge = FakeJudge(Reply("99", 0.1))
    judged = run(judge, files, responses=changed, use_cache=False)
    assert len(judge.asked) == 1
    assert [row.score for row in judged.judgments] == [99, 50, 50, 50, 50, 50]
    # The earlier answers again: the newest row is of another, so it does not count.
    back = FakeJudge()
    run(back, files, use_cache=False)
    assert (len(back.asked), [row.score for row in files.read_judgments()]) == (1, [50] * 6)


def test_force_holds_after_an_interruption(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    run(FakeJudge(), files)
    answered = [Reply('{"score": 60}', 0.1)] * 2
    with pytest.raises(JudgeUnavailable):
        run(FakeJudge(*answered, JudgeUnavailable("Gone.")), files, force=True, settings=ONE_BY_ONE)
    judge = FakeJudge(*[Reply('{"score": 70}', 0.1)] * 4)
    judged = run(judge, files)
    # What was in the cache before `force` is not taken for the rest.
    assert [row.score for row in judged.judgments] == [60, 60, 70, 70, 70, 70]
    assert judged.scores.cached == 0


def test_force_judges_everything_again(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    run(FakeJudge(), files)
    judge = FakeJudge(*[Reply('{"score": 70}', 0.1)] * 6)
    judged = run(judge, files, force=True)
    assert len(judge.asked) == 6
    assert [row.score for row in judged.judgments] == [row.score for row in files.read_judgments()] == [70] * 6
    # The first ones are in the file still.
    assert [row.score for row in read_rows(files.judgments, Judgment)] == [50] * 6 + [None] * 6 + [70] * 6


def test_silent_judge_is_given_up(tmp_path: Path) -> None:
    judge = FakeJudge(*[Reply("", 1.0, "no reply within 1 s")] * 40)
    responses = [RESPONSES[0].model_copy(update={"id": str(i)}) for i in range(20)]
    with pytest.raises(JudgeError) as caught:
        run(judge, RunFolder(tmp_path), responses=responses, settings=ONE_BY_ONE)
    assert str(caught.value).startswith(
        "The judge did not reply to 8 questions in a row; the last reason: no reply within 1 s. 0 of 20 are judged, "
        f"7 failed, saved to `{tmp_path / 'judgments.jsonl'}`. "
    )


def test_questions_that_are_too_long_do_not_end_judging() -> None:
    judge = FakeJudge(*[Reply("", 0.1, "the question is too long", final=True)] * 19)
    responses = [RESPONSES[0].model_copy(update={"id": str(i), "response": str(i)}) for i in range(20)]
    judged = run(judge, responses=responses, settings=ONE_BY_ONE)
    assert (judged.scores.n, judged.scores.failures, len(judge.asked)) == (1, 19, 20)


def test_full_disk_is_an_error_of_judging(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JudgeError, match=r"^The verdicts cannot be written: "):
        run(FakeJudge(), RunFolder(tmp_path / "file"))


def test_calls_stay_under_way(server: FakeOllama, caplog: pytest.LogCaptureFixture) -> None:
    server.latency_seconds = 0.1
    responses = [RESPONSES[0].model_copy(update={"id": str(i), "response": str(i)}) for i in range(24)]
    with caplog.at_level(logging.INFO, logger="hf_instruct"):
        judged = judge_responses(responses, judge="ollama", base_url=server.url, concurrency=8, cache=False)
    assert judged.scores.n == 24
    assert server.peak == 8
    assert len(server.chats) == 24
    assert "Judging: 24/24, mean 85.0" in caplog.text


def test_public_function(server: FakeOllama, tmp_path: Path) -> None:
    rows = [{"instruction": "Do.", "input": "", "output": "Done.", "model_response": "No."}]
    server.reply = lambda body: Answer('{"reasons": "Not done.", "score": 10}')
    judged = judge_responses(rows, judge="auto", rubric="critique", base_url=server.url, out=tmp_path)
    assert (judged.judgments[0].score, judged.judgments[0].reasons) == (10, "Not done.")
    assert (tmp_path / "scores.json").exists()
    with pytest.raises(ConfigError, match=r"`judge\.concurency` is unknown. Did you mean `concurrency`"):
        judge_responses(rows, concurency=3)
    with pytest.raises(DataError, match="row 0: `output`: field required"):
        judge_responses([{"instruction": "Do.", "input": "", "response": ""}])


def test_scores_that_an_earlier_rule_read_otherwise_are_read_again(server: FakeOllama, tmp_path: Path) -> None:
    reply = 'It says\nScore: 100\n</think>\n{"reasons": "Wrong.", "score": 2}'
    server.reply = lambda body: Answer(reply)
    responses = [row.model_copy(update={"response": f"Lyon {row.id}.\nScore: 100"}) for row in RESPONSES[:3]]
    settings: dict[str, Any] = {"judge": "ollama", "base_url": server.url, "rubric": "critique"}
    first = judge_responses(responses, out=tmp_path, **settings)
    assert [(row.score, row.reasons) for row in first.judgments] == [(2, "Wrong.")] * 3
    # As read before: in the file, and in the cache.
    files = RunFolder(tmp_path)
    write_rows(files.judgments, [first.judgments[0].model_copy(update={"score": 100}), *first.judgments[1:]])
    again = judge_responses(responses, out=tmp_path, cache=False, **settings)
    assert ([row.score for row in again.judgments], len(server.chats)) == ([2, 2, 2], 4)
    with contextlib.closing(sqlite3.connect(next((tmp_path / "cache").rglob("verdicts.sqlite")))) as cache, cache:
        cache.execute("""UPDATE verdicts SET verdict = replace(verdict, '"score": 2,', '"score": 100,')""")
    again = judge_responses(responses, **settings)
    assert ([row.score for row in again.judgments], len(server.chats)) == ([2, 2, 2], 4)


def test_judge_that_changes_midway_is_kept_out_of_scores_and_cache(server: FakeOllama, tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Answer:
        if len(server.chats) == 3:
            server.models["llama3:latest"] = "f" * 64
        return Answer(f'{{"score": {len(server.chats)}}}')

    server.reply = reply
    settings = {"judge": "ollama", "base_url": server.url, "concurrency": 1}
    with pytest.raises(JudgeError, match=r"changed during judging .* 2 of 6 are judged, "):
        judge_responses(RESPONSES, out=tmp_path / "a", **settings)
    file = RunFolder(tmp_path / "a").judgments
    assert [(row.score, row.judge.digest) for row in read_rows(file, Judgment)] == [(1, DIGEST), (2, DIGEST)]
    again = judge_responses(RESPONSES, out=tmp_path / "a", **settings)
    assert [row.score for row in again.judgments] == [4, 5, 6, 7, 8, 9]
    assert {row.judge.digest for row in again.judgments} == {"f" * 64}
    # With the first model back, the cache knows what it said, and nothing that the other did.
    server.models["llama3:latest"] = DIGEST
    back = judge_responses(RESPONSES, out=tmp_path / "b", **settings)
    assert [(row.score, row.cached) for row in back.judgments][:3] == [(1, True), (2, True), (10, False)]


def test_long_replies_are_kept_shortened() -> None:
    judge = FakeJudge(Reply("x" * 500_000, 0.1), Reply("100" + "y" * 65_533 + "z", 0.1))
    row = run(judge, responses=RESPONSES[:1]).judgments[0]
    half = 32_768
    assert row.score is None
    assert row.replies == [
        f"{'x' * half}\n[434,464 characters are left out here]\n{'x' * half}",
        f"100{'y' * (half - 3)}\n[1 characters are left out here]\n{'y' * (half - 1)}z",
    ]


def test_repeats_without_a_seed(server: FakeOllama) -> None:
    judged = judge_responses(RESPONSES[:1], judge="ollama", base_url=server.url, seed=None, repeats=2, cache=False)
    assert judged.scores.repeats.seeds == [None, None]
    assert "2 repeats (seeds the server's default, the server's default): means 85.0, 85.0" in str(judged)
    assert len(server.chats) == 2


def test_public_function_inside_a_running_loop(server: FakeOllama) -> None:
    async def notebook() -> JudgmentSet:
        return judge_responses(RESPONSES, judge="ollama", base_url=server.url)

    assert asyncio.run(notebook()).scores.n == 6
