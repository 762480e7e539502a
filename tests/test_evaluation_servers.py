"""Judging with servers nobody here wrote: `transformers serve`, alone and behind `ollama-proxy-plus`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from judge_servers import ollama_proxy, transformers_server

from hf_instruct.evaluation.responses import load_responses
from hf_instruct.evaluation.scoring import JudgmentSet, judge_responses
from hf_instruct.records import read_rows
from hf_instruct.schema import Judgment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Path:
    from hf_instruct.models import WHEEL_MODEL, resolve_model

    return Path(resolve_model(WHEEL_MODEL))


@pytest.fixture(scope="module")
def upstream(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with transformers_server(model, tmp_path_factory.mktemp("transformers")) as url:
        yield url


def assert_verdicts_or_named_failures(judged: JudgmentSet) -> None:
    for row in judged.judgments:
        assert row.replies
        assert (row.score is None) == bool(row.failure)
        assert row.score is not None or len(row.replies) == 2
        assert row.seconds > 0


def test_ollamas_protocol(upstream: str, model: Path, sample_responses_file: Path, tmp_path: Path) -> None:
    responses = load_responses(sample_responses_file)[:6]
    with ollama_proxy(upstream, tmp_path) as url:
        judged = judge_responses(
            responses,
            judge="ollama",
            model=f"local/{model}",
            base_url=url,
            out=tmp_path / "out",
            cache=False,
            max_new_tokens=12,
        )
    assert_verdicts_or_named_failures(judged)
    assert judged.scores.total == 6
    assert judged.scores.judge.server_version == "0.6.5"
    assert read_rows(tmp_path / "out" / "judgments.jsonl", Judgment) == judged.judgments


def test_openais_protocol(upstream: str, model: Path, sample_responses_file: Path) -> None:
    responses = load_responses(sample_responses_file)[:3]
    judged = judge_responses(
        responses, judge="openai", model=str(model), base_url=upstream, cache=False, max_new_tokens=12
    )
    assert [row.id for row in judged.judgments] == [row.id for row in responses]
    for row in judged.judgments:
        assert (row.score is None) == bool(row.failure)
