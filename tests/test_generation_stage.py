import json
import logging
from pathlib import Path

import pytest
import tiny_models

from hf_instruct.config import Experiment, build_experiment
from hf_instruct.errors import DataError, InstructError
from hf_instruct.generation.stage import answer, write_course_file
from hf_instruct.records import Response, append_rows, read_rows, write_rows
from hf_instruct.run_folder import RunFolder

EXAMPLES = tiny_models.tiny_examples(5)


@pytest.fixture
def run(tmp_path: Path, tiny_gpt2: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    write_rows(folder.split("test"), EXAMPLES)
    # The tuned model of these tests is the tiny one itself.
    folder.model.symlink_to(tiny_gpt2)
    return folder


def experiment(tiny_llama: Path, **generate: object) -> Experiment:
    values = {"model": {"name": str(tiny_llama)}, "generate": {"max_new_tokens": 4, "batch_size": 2, **generate}}
    return build_experiment(values, where="here", deep=False)


def test_both_models_answer_in_the_order_of_the_split(run: RunFolder, tiny_llama: Path) -> None:
    answer(run, experiment(tiny_llama))
    tuned, base = read_rows(run.responses, Response), read_rows(run.base.responses, Response)
    assert [row.id for row in tuned] == [row.id for row in base] == [example.id for example in EXAMPLES]
    assert [row.response for row in tuned] != [row.response for row in base]
    assert all(row.num_tokens == 4 and row.stopped is False for row in tuned)


def test_the_untuned_model_can_be_left_out(run: RunFolder, tiny_llama: Path) -> None:
    answer(run, experiment(tiny_llama, base=False))
    assert not run.base.path.exists()
    assert len(read_rows(run.responses, Response)) == 5


def test_a_cut_off_stage_appends_only_what_is_missing(
    run: RunFolder, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = experiment(tiny_llama, base=False)
    answer(run, settings)
    whole = run.responses.read_bytes()
    rows = read_rows(run.responses, Response)

    # As killed after two batches, in their order of length, while it wrote a third.
    write_rows(run.responses, [rows[3], rows[1], rows[4]])
    with run.responses.open("ab") as file:
        file.write(whole.splitlines()[0][:20])
    appended: list[str] = []

    def keep(path: Path, batch: list[Response]) -> None:
        appended.extend(row.id for row in batch)
        append_rows(path, batch)

    monkeypatch.setattr("hf_instruct.generation.stage.append_rows", keep)
    answer(run, settings)
    assert sorted(appended) == ["e0", "e2"]
    assert run.responses.read_bytes() == whole


def test_a_whole_file_is_left_alone(run: RunFolder, tiny_llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = experiment(tiny_llama, base=False)
    answer(run, settings)
    stamp = run.responses.stat().st_mtime_ns
    run.model.unlink()  # not even loaded
    with caplog.at_level(logging.INFO, logger="hf_instruct"):
        answer(run, settings)
    assert run.responses.stat().st_mtime_ns == stamp
    assert caplog.messages == [f"Answering, tuned: all 5 answers are in {run.responses}"]


def test_the_courses_file(run: RunFolder) -> None:
    row = Response("a", "Say ü.", "", "ü", "ü!", stopped=True, num_tokens=3)
    append_rows(run.responses, [row])
    path = write_course_file(run)
    assert path.name == "instruction-data-with-response.json"
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"instruction": "Say ü.", "input": "", "output": "ü", "model_response": "ü!"}
    ]
    assert "ü" in path.read_text(encoding="utf-8")


def test_nothing_to_answer_with_or_for(run: RunFolder, tiny_llama: Path) -> None:
    run.model.unlink()
    with pytest.raises(InstructError, match="model"):
        answer(run, experiment(tiny_llama, base=False))
    with pytest.raises(DataError, match="does not exist; run the stage that writes it first"):
        write_course_file(run)
    run.split("test").unlink()
    with pytest.raises(DataError, match=r"test.jsonl` does not exist; run the stage that writes it first"):
        answer(run, experiment(tiny_llama))
    assert not run.responses.exists()
