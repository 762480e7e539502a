import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models

from hf_instruct.config import Experiment, build_experiment
from hf_instruct.errors import ConfigError, DataError, InstructError, ModelLoadError
from hf_instruct.evaluation.harness import benchmark_run
from hf_instruct.generation.chat_model import ChatModel
from hf_instruct.generation.stage import answer, check_answering, load_model_of_run, write_course_file
from hf_instruct.pipeline import answer_run, clear_from
from hf_instruct.records import append_rows, read_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Response
from hf_instruct.training.stage import run_sft

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
    tuned, base = run.read_responses(), run.read_responses("untuned")
    assert read_rows(run.responses, Response) == [*base, *tuned]
    assert [row.id for row in tuned] == [row.id for row in base] == [example.id for example in EXAMPLES]
    assert [row.response for row in tuned] != [row.response for row in base]
    assert all(row.num_tokens == 4 and row.stopped is False for row in tuned)


def test_the_untuned_model_ends_answers_in_the_token_of_training(run: RunFolder, tiny_llama: Path) -> None:
    values = {"model": {"name": str(tiny_llama)}, "train": {"eos_token": "!"}}
    settings = build_experiment(values, where="here", deep=False)
    tokenizers = {which: load_model_of_run(run, settings, which)[1] for which in ("untuned", "tuned")}
    # The tuned model's is saved with it, and this one was trained without that setting.
    assert {which: one.eos_token for which, one in tokenizers.items()} == {"untuned": "!", "tuned": "<|endoftext|>"}


@pytest.mark.parametrize(
    ("setting", "number", "reason"),
    [
        ({}, 5, "copied all 5 answers"),
        ({"max_new_tokens": 3}, 5, "`generate.max_new_tokens` is set otherwise here"),
        ({}, 3, "it has answered 3 of these 5 examples"),
    ],
)
def test_after_preference_training_the_untuned_answers_are_those_of_the_run_before(
    run: RunFolder,
    tiny_gpt2: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    setting: dict[str, object],
    number: int,
    reason: str,
) -> None:
    caplog.set_level("INFO")
    before = RunFolder(tmp_path / "before")
    before.save_experiment(experiment(tiny_gpt2))
    before.model.symlink_to(tiny_gpt2)
    write_rows(before.responses, [Response(**vars(e), model="untuned", response="?") for e in EXAMPLES[:number]])
    values = {"model": {"name": str(before.model)}, "dpo": {}, "generate": {"max_new_tokens": 4, **setting}}
    answer(run, build_experiment(values, where="here", deep=False))
    is_copied = reason.startswith("copied")
    assert [row.response for row in run.read_responses("untuned")] == ["?"] * (5 * is_copied)
    assert len(run.read_responses("SFT")) == len(run.read_responses()) == 5
    assert reason in caplog.text


def test_a_missing_local_base_model_is_not_looked_for_on_the_hub(
    run: RunFolder, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = experiment(Path("models/mine"))
    run.save_experiment(settings)
    run.add_provenance(base_model_is_local=True)
    for name in ("train", "validation"):
        write_rows(run.split(name), EXAMPLES)
    # Whoever asks the Hub is given this one.
    monkeypatch.setattr("hf_instruct.models.resolve_model", lambda name: str(tiny_llama))
    uses: list[Callable[[], object]] = [
        lambda: answer(run, settings),
        lambda: ChatModel.load(str(run.path), base=True),
        lambda: run_sft(run, settings),
        lambda: benchmark_run(str(run.path), ["everyday_choice"], base=True),
    ]
    for use in uses:
        with pytest.raises(
            ModelLoadError, match="trained from the model in the local folder `models/mine`, which does not exist in"
        ):
            use()
    run.model.unlink()
    with pytest.raises(ModelLoadError, match="`models/mine`"):
        check_answering(run, settings)
    # The tuned model needs no untuned one.
    run.model.symlink_to(tiny_llama)
    answer(run, experiment(Path("models/mine"), base=False))


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

    monkeypatch.setattr("hf_instruct.generation.answers.append_rows", keep)
    answer(run, settings)
    assert sorted(appended) == ["e0", "e2"]
    assert run.responses.read_bytes() == whole
    # A whole file is left alone, and its model not even loaded.
    stamp = run.responses.stat().st_mtime_ns
    run.model.unlink()
    answer(run, settings)
    assert run.responses.stat().st_mtime_ns == stamp


def test_the_courses_file(run: RunFolder) -> None:
    row = Response(id="a", instruction="Say ü.", input="", output="ü", response="ü!", stopped=True, num_tokens=3)
    append_rows(run.responses, [row])
    path = write_course_file(run)
    assert path.name == "instruction-data-with-response.json"
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"instruction": "Say ü.", "input": "", "output": "ü", "model_response": "ü!"}
    ]
    assert "ü" in path.read_text(encoding="utf-8")


def test_a_missing_model_or_split(run: RunFolder, tiny_llama: Path) -> None:
    run.model.unlink()
    with pytest.raises(InstructError, match="model"):
        answer(run, experiment(tiny_llama, base=False))
    run.split("test").unlink()
    with pytest.raises(DataError, match=r"test.jsonl` does not exist; run the stage that writes it first"):
        answer(run, experiment(tiny_llama))
    assert not run.responses.exists()


def test_files_of_processes_that_were_cut_off_are_merged(run: RunFolder, tiny_llama: Path) -> None:
    """However many they were, and wherever they stopped."""
    settings = experiment(tiny_llama, base=False)
    answer(run, settings)
    whole = run.responses.read_bytes()
    rows = read_rows(run.responses, Response)
    # As after three processes: one cut off in a row, one by the kill of the merge, of which all is written already.
    write_rows(run.responses, [rows[1]])
    write_rows(run.response_part(0), [rows[4], rows[1]])
    run.response_part(1).write_bytes(whole.splitlines()[3][:30])
    write_rows(run.response_part(2), [rows[0]])
    answer(run, settings)
    assert run.responses.read_bytes() == whole
    assert run.response_parts() == []
    # Answering again keeps nothing of the processes before.
    append_rows(run.response_part(3), rows[:1])
    clear_from(run, "generate")
    assert run.response_parts() == []
    write_rows(run.responses, rows)
    # As killed after the last batch, before the rows were put in order.
    write_rows(run.responses, [rows[3], *rows[:3], rows[4]])
    answer(run, settings)
    assert run.responses.read_bytes() == whole


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"generate.do_sample": True, "generate.temperature": -1.0}, "`temperature`"),
        (
            {"generate.max_new_tokens": 250},
            "5 of 5 prompts with `generate.max_new_tokens` 250 do not fit into the model's 256",
        ),
        ({"generate.stop_strings": ["x"]}, "refused by Transformers"),
        ({"generate.temperatur": 1.0}, "Did you mean `temperature`"),
    ],
)
def test_settings_that_cannot_work_delete_nothing(
    run: RunFolder, tiny_llama: Path, overrides: dict, message: str
) -> None:
    settings = experiment(tiny_llama, base=False)
    run.save_experiment(settings)
    answer(run, settings)
    before = {path: path.read_bytes() for path in (run.responses, run.config)}
    with pytest.raises((ConfigError, DataError)) as caught:
        answer_run(run, overrides, force=True)
    assert message in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before


def test_an_adapter_has_the_context_of_its_base_model(run: RunFolder, tiny_gpt2: Path, tiny_llama: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    run.model.unlink()
    get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)).save_pretrained(run.model)
    tokenizer.save_pretrained(run.model)
    settings = experiment(tiny_gpt2, base=False)
    run.save_experiment(settings)
    with pytest.raises(DataError, match="the model's 256 positions"):
        answer_run(run, {"generate.max_new_tokens": 250}, force=True)
    answer_run(run, {"generate.max_new_tokens": 2}, force=True)
    assert len(read_rows(run.responses, Response)) == 5
