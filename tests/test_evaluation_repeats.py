"""Judging several times: separate questions, separate files, and how far the judge agrees with itself."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from fake_ollama import Answer, FakeOllama
from rows import judgment, response

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeUnavailable
from hf_instruct.evaluation.judges import Reply
from hf_instruct.evaluation.loop import JudgeOptions
from hf_instruct.evaluation.rubrics import Question
from hf_instruct.evaluation.scores import build_repeats, format_repeats
from hf_instruct.evaluation.scoring import JudgmentSet, judge_responses, judge_with
from hf_instruct.pipeline import clear_from
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Scores

pytestmark = pytest.mark.usefixtures("cache_home")

RESPONSES = [response(f"id{i}", f"Answer {i}.", instruction=f"Task {i}.") for i in range(3)]


class SeededJudge(FakeJudge):
    """Scores by its seed: 10 a seed, and one more for each example."""

    def __init__(self) -> None:
        super().__init__(reply=self._score)
        self.seeds: list[int] = []

    def _score(self, question: Question) -> Reply:
        self.seeds.append(self.seed)
        return Reply(str(10 * self.seed + "012".index(question.state.split("Task ")[1][0])), 0.5)


class SeedlessJudge(SeededJudge):
    def identity(self) -> dict[str, Any]:
        return {"backend": "local", "model": "fake", "digest": "d", "options": {}}

    def reseed(self, seed: int) -> None: ...


def run(
    judge: Any, files: RunFolder | None = None, *, repeats: int = 3, responses: Any = RESPONSES, **options: Any
) -> JudgmentSet:
    settings = JudgeSection(concurrency=1, repeats=repeats, seed=1)
    return asyncio.run(judge_with(judge, responses, settings, files=files, options=JudgeOptions(**options)))


def test_numbers_by_hand() -> None:
    rows = [
        [judgment("a", 60), judgment("a", 50), judgment("a", None), judgment("a", 7)],
        [judgment("a", 80), judgment("a", 50), judgment("a", 30), judgment("a", None)],
    ]
    found = build_repeats(rows, seeds=[5, 6])
    assert found.count == 2
    assert found.seeds == [5, 6]
    assert found.means == [pytest.approx(117 / 3), pytest.approx(160 / 3)]
    assert (found.n, found.failures) == ([3, 3], [1, 1])
    # Means of the examples: 70, 50, 30, 7.
    assert found.mean == pytest.approx(157 / 4)
    # Variances of the two examples with two scores: 200 and 0.
    assert found.spread == pytest.approx(math.sqrt(100))
    assert found.changed == 0.75
    assert found.means_standard_deviation == pytest.approx((160 / 3 - 117 / 3) / math.sqrt(2))
    assert found.interval[0] < found.mean < found.interval[1]


def test_nothing_but_failures_is_none_not_nan() -> None:
    found = build_repeats([[judgment("a", None)], [judgment("a", None)]], seeds=[1, 2])
    assert [getattr(found, name) for name in ("means", "mean", "interval", "spread", "changed")] == [
        [None, None],
        None,
        None,
        None,
        0.0,
    ]
    lines = format_repeats(Scores(repeats=found))
    assert lines == "2 repeats (seeds 1, 2): means no score, no score"


def test_each_repeat_is_asked_with_its_own_seed(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    judge = SeededJudge()
    judged = run(judge, files)
    assert judge.seeds == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert judge.seed == 1
    assert files.read_judgments() == judged.judgments
    assert files.read_judgments(repeat=3) == judged.repeats[1]
    assert [one.score for one in judged.repeats[1]] == [30, 31, 32]
    assert judged.repeats[1][0].judge.options["seed"] == 3
    scores = files.read_scores()
    assert (scores.mean, scores.judge.options["seed"]) == (11.0, 1)
    assert scores.repeats.means == [11.0, 21.0, 31.0]
    assert scores.repeats.mean == 21.0
    assert (scores.repeats.spread, scores.repeats.means_standard_deviation) == (10.0, 10.0)
    assert str(judged).splitlines()[1:] == [
        "3 repeats (seeds 1, 2, 3): means 11.0, 21.0, 31.0",
        "mean over the repeats 21.0, 95 % interval 20.0 to 22.0",
        "variation of the judge: 10.0 points per example, 10.0 points per mean; 100 % of the verdicts changed",
    ]


def test_no_repeats_no_key(tmp_path: Path) -> None:
    judged = run(SeededJudge(), RunFolder(tmp_path), repeats=1)
    assert judged.scores.repeats is None
    assert judged.repeats == []
    assert len(str(judged).splitlines()) == 1


def test_repeats_go_on_where_they_stopped(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    dying = SeededJudge()
    dying.dies_after = 5
    with pytest.raises(JudgeUnavailable) as caught:
        run(dying, files, use_cache=False, resume_hint="Go on with `again`.")
    assert str(caught.value) == (
        f"The server is gone. 2 of 3 are judged, saved to `{tmp_path}/judgments.jsonl`. Go on with `again`."
    )
    assert not files.scores.exists()
    judge = SeededJudge()
    run(judge, files, use_cache=False)
    assert judge.seeds == [2, 3, 3, 3]


def test_more_repeats_later_keep_the_first(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    run(SeededJudge(), files, repeats=1, use_cache=False)
    judge = SeededJudge()
    run(judge, files, repeats=2, use_cache=False)
    assert judge.seeds == [2, 2, 2]


@pytest.mark.parametrize("kind", [SeededJudge, SeedlessJudge])
def test_cache_takes_repeats_for_separate_questions(kind: type[SeededJudge]) -> None:
    judge = kind()
    run(judge)
    assert len(judge.asked) == 9
    run(judge)
    assert len(judge.asked) == 9


@pytest.mark.parametrize("kind", [SeededJudge, SeedlessJudge])
def test_repeats_of_the_newest_judging_are_read(tmp_path: Path, kind: type[SeededJudge]) -> None:
    files = RunFolder(tmp_path)
    first = run(kind(), files, use_cache=False)
    run(SeedlessJudge() if kind is SeededJudge else SeededJudge(), files, repeats=1, use_cache=False)
    assert files.read_judgments(repeat=2) == []
    again = run(kind(), files, use_cache=False)
    assert again.repeats == first.repeats
    assert [files.read_judgments(repeat=number) for number in (2, 3)] == first.repeats


def test_clearing_the_judge_stage_takes_the_repeats_along(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    run(SeededJudge(), folder)
    clear_from(folder, "judge")
    assert list(folder.path.rglob("*.json*")) == []


def test_ollama_gets_the_seed(server: FakeOllama) -> None:
    server.reply = lambda body: Answer(json.dumps({"score": body["options"]["seed"] % 100}))
    judged = judge_responses(RESPONSES, judge="ollama", base_url=server.url, repeats=2, seed=20, temperature=0)
    assert [body["options"]["seed"] for body in server.chats] == [20, 20, 20, 21, 21, 21]
    assert [one.score for one in judged.judgments] == [20] * 3
    assert [one.judge.options["seed"] for one in judged.judgments] == [20] * 3
    assert str(judged).splitlines()[-1] == (
        "At temperature 0 the variation only comes from the server; `--judge.temperature 0.7` shows how certain the "
        "judge is."
    )


def test_judge_that_draws_nothing_says_so() -> None:
    judged = run(SeedlessJudge(), repeats=2)
    assert judged.scores.repeats.spread == 0.0
    assert str(judged).splitlines()[-1] == ("The local judge is deterministic, so one repeat is enough.")
