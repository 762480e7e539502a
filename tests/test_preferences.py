"""Pairs from files and from references, and training on them."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from rows import read_log

from hf_instruct.data.sources import build_dataset, load_examples
from hf_instruct.errors import ConfigError, DataError, InstructError, RunError
from hf_instruct.pipeline import run
from hf_instruct.preferences.pairs import Candidate, choose_pair, list_counts, load_pairs
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, read_rows
from hf_instruct.schema import PreferencePair, Response
from hf_instruct.training import dpo
from hf_instruct.training.dpo import tokenize_pairs, train_dpo

SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 2,
    "save_total_limit": 5,
}
TURN = {"role": "user", "content": "Name a color."}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def build_pairs(count: int, *, first: int = 0) -> Any:
    """Return pairs of a few words; the chosen answer is always the same."""
    numbers = range(first, first + count)
    rows = [{"instruction": f"Name the word {number}.", "input": "blue " * (number % 4)} for number in numbers]
    answers = [{"chosen": "Yes, gladly." * (n % 2 + 1), "rejected": f"No {n}. " * (n % 3 + 1)} for n in numbers]
    return load_pairs([row | both for row, both in zip(rows, answers, strict=True)])


PAIRS = {"train": build_pairs(24), "validation": build_pairs(5, first=100)}


def train_tiny(folder: Path, output_dir: Path, *, pairs: Any = None, **options: Any) -> Any:
    model, tokenizer = tiny_models.load_copy(folder)
    args = {**SETTINGS, **options.pop("args", {})}
    summary = train_dpo(model, tokenizer, pairs or PAIRS, output_dir=output_dir, args=args, **options)
    return summary, model


@pytest.fixture(scope="module")
def unbroken(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    return path, *train_tiny(tiny_gpt2, path, keep_checkpoints=True)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Name a color.", "input": "", "output": "Red.", "chosen": "Blue.", "rejected": "No."},
        {"prompt": "Name a color.", "chosen": "Blue.", "rejected": "No."},
        {"prompt": [TURN], "chosen": [answer("Blue.")], "rejected": [answer("No.")]},
        {"chosen": [TURN, answer("Blue.")], "rejected": [TURN, answer("No.")]},
    ],
)
def test_pairs_are_read_in_the_formats_of_trl_and_of_the_course(row: dict[str, Any]) -> None:
    (pair,) = load_pairs([row])
    assert (pair["instruction"], pair["chosen"], pair["rejected"]) == ("Name a color.", "Blue.", "No.")
    assert pair["prompt"] == (row["prompt"] if isinstance(row.get("prompt"), str) else None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction": "A", "chosen": "x", "rejected": ""}], "`data` row 0, `rejected` is empty"),
        ([{"instruction": "A", "chosen": "x"}], "`rejected`"),
        ([{"chosen": [TURN, answer("x")], "rejected": [{**TURN, "content": "Other?"}, answer("y")]}],
         "answer different prompts in rows 0"),
    ],
)  # fmt: skip
def test_pairs_that_say_nothing_are_refused(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError) as error:
        load_pairs(rows)
    assert message in str(error.value)


def test_the_courses_preference_file_is_read_as_it_is(course_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = load_pairs(course_file.with_name("instruction-data-with-preference.json"))
    # In six of its 1,100 rows both answers are the same.
    assert len(pairs) == 1094
    assert "6 of 1100 pairs are left out because `chosen` and `rejected` are equal: rows 122, 226" in caplog.text
    assert pairs[0]["rejected"].endswith('flat out wrong, get it together, the correct spelling is "friend".')


def test_answers_that_equal_the_reference_make_no_pair() -> None:
    left_out: Counter[str] = Counter()
    pairs = [
        choose_pair([Candidate("Red.", 1.0), Candidate(text, 0.0)], left_out) for text in ("Red. \n", "Blue.", " ")
    ]
    assert [pair and (pair[0].text, pair[1].text) for pair in pairs] == [None, ("Red.", "Blue."), None]
    assert list_counts(left_out) == (
        "left out: duplicate answers 1, prompts with fewer than two different answers 2, empty answers 1"
    )


@pytest.mark.parametrize("name", ["alpaca", "phi3"])
def test_ids_are_the_prompt_formats(tiny_gpt2: Path, name: str) -> None:
    _, tokenizer = tiny_models.load_copy(tiny_gpt2)
    prompt_format = PromptFormat.from_name(name)
    rows = tokenize_pairs(PAIRS["train"], tokenizer, prompt_format, max_length=None)
    for pair, row in zip(PAIRS["train"], rows, strict=True):
        for side in ("chosen", "rejected"):
            example = Example(id="", instruction=pair["instruction"], input=pair["input"], output=pair[side])
            assert (row["prompt_ids"], row[f"{side}_ids"]) == prompt_format.encode_example(tokenizer, example)
        assert row["chosen_ids"][-1] == tokenizer.eos_token_id


def test_answers_are_cut_and_prompts_without_room_refused(tiny_gpt2: Path) -> None:
    _, tokenizer = tiny_models.load_copy(tiny_gpt2)
    whole = tokenize_pairs(PAIRS["train"], tokenizer, PromptFormat.from_name("alpaca"), max_length=None)
    longest = max(map(len, whole["prompt_ids"]))
    cut = tokenize_pairs(PAIRS["train"], tokenizer, PromptFormat.from_name("alpaca"), max_length=longest + 2)
    assert max(len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in cut) == longest + 2
    with pytest.raises(DataError, match=r"The prompts of \d+ of 24 pairs leave no space"):
        tokenize_pairs(PAIRS["train"], tokenizer, PromptFormat.from_name("alpaca"), max_length=longest)


def test_training_begins_at_margin_0_and_margins_rise(unbroken: tuple[Path, Any, Any]) -> None:
    path, summary, _ = unbroken
    first, *_, last = read_log(path, "evaluation")
    assert first.reward_margin == pytest.approx(0, abs=1e-6)
    assert first.validation_loss == pytest.approx(0.693147, abs=1e-5)
    assert last.reward_margin > 0.1
    assert last.reward_accuracy == 1
    assert (summary.validation_loss_before, summary.validation_loss) == (first.validation_loss, last.validation_loss)
    assert (path / "loss.png").exists()


@pytest.mark.parametrize(
    ("shape", "lora"),
    [("tiny_gpt2", {"r": 4, "lora_alpha": 8}), pytest.param("tiny_llama", None, marks=pytest.mark.slow)],
)
def test_the_fast_path_computes_what_trl_does(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, lora: Any
) -> None:
    folder = request.getfixturevalue(shape)
    # Plain gradient steps: Adam would turn the rounding of a gradient near zero into a whole step.
    settings = {"max_steps": 4, "learning_rate": 0.01, "optim": "sgd", "save_steps": 100, "eval_steps": 2}
    _, fast = train_tiny(folder, tmp_path / "fast", args=settings, peft_config=lora)
    monkeypatch.setattr(dpo, "build_segments", lambda *_, **__: None)
    _, plain = train_tiny(folder, tmp_path / "plain", args=settings, peft_config=lora)
    for kind in ("train", "evaluation"):
        for one, other in zip(read_log(tmp_path / "fast", kind), read_log(tmp_path / "plain", kind), strict=True):
            # TRL's own evaluation is a mean over batches, of which the last is shorter.
            tolerance = 1e-5 if kind == "train" else 5e-2
            assert one.reward_margin == pytest.approx(other.reward_margin, abs=tolerance, rel=tolerance)
            assert one.loss == pytest.approx(other.loss, abs=1e-5) if kind == "train" else True
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"loss_type": ["ipo"]}, "its loss is more than"),
        ({"neftune_noise_alpha": 0.1}, "adds noise by the length of a row"),
    ],
)
@pytest.mark.slow
def test_what_shared_rows_would_change_is_computed_as_trl_does(
    tiny_gpt2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: dict[str, Any], reason: str
) -> None:
    caplog.set_level("INFO")
    train_tiny(tiny_gpt2, tmp_path, args={"max_steps": 3, "save_steps": 100, **changed})
    assert read_log(tmp_path, "evaluation")[-1].reward_margin > 0
    assert reason in caplog.text


def test_an_adapter_is_compared_with_what_is_below_it(tiny_gpt2: Path, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in tiny_models.load_copy(tiny_gpt2)[0].state_dict().items()}
    _, model = train_tiny(tiny_gpt2, tmp_path, peft_config={"r": 4})
    first, *_, last = read_log(tmp_path, "evaluation")
    assert first.reward_margin == pytest.approx(0, abs=1e-6)
    assert last.reward_margin > 0.1
    assert (tmp_path / "model" / "adapter_config.json").exists()
    trained = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(trained[name], value) for name, value in before.items())


def test_a_resumed_run_ends_as_an_unbroken_one(
    tiny_gpt2: Path, tmp_path: Path, unbroken: tuple[Path, Any, Any]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(unbroken[0], path)
    shutil.rmtree(path / "model")
    for checkpoint in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(path / "checkpoints" / checkpoint)
    _, model = train_tiny(tiny_gpt2, path, resume=True, keep_checkpoints=True)
    assert all(torch.equal(*both) for both in zip(model.parameters(), unbroken[2].parameters(), strict=True))
    assert [row.reward_margin for row in read_log(path, "train")] == [
        row.reward_margin for row in read_log(unbroken[0], "train")
    ]
    shutil.rmtree(path / "model")
    with pytest.raises(RunError, match="different examples"):
        train_tiny(tiny_gpt2, path, resume=True, pairs={**PAIRS, "train": build_pairs(25)})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"sync_ref_model": True}, "the reference is the model that training begins with"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(
    tiny_gpt2: Path, tmp_path: Path, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        train_tiny(tiny_gpt2, tmp_path, args=args)
    assert message in str(error.value)


@pytest.mark.parametrize("pairs", [PAIRS["train"], {"train": PAIRS["train"]}, {**PAIRS, "train": [{"chosen": "x"}]}])
def test_pairs_of_another_form_are_refused_in_a_sentence(tiny_gpt2: Path, tmp_path: Path, pairs: Any) -> None:
    with pytest.raises(ConfigError, match="load_pairs"):
        train_tiny(tiny_gpt2, tmp_path, pairs=pairs)


@pytest.fixture(scope="module")
def experiment(tiny_gpt2: Path, sample_file: Path) -> dict[str, Any]:
    return {
        "data": {"source": str(sample_file), "limit": 40},
        "model": {"name": str(tiny_gpt2)},
        "dpo": {**SETTINGS, "max_steps": 3},
        "generate": {"max_new_tokens": 8, "base": True},
    }


def test_a_run_makes_its_pairs_trains_and_answers(experiment: dict[str, Any], tmp_path: Path) -> None:
    folder = run(experiment, tmp_path / "run", stages=["data", "train", "generate"])
    pairs = read_rows(folder.preferences, PreferencePair)
    assert {pair.split for pair in pairs} == {"train", "validation"}
    assert {pair.origin for pair in pairs} == {"references"}
    asked = {example.instruction + example.input for example in folder.read_split("test")}
    assert not asked & {pair.instruction + pair.input for pair in pairs}
    assert {row.model for row in read_rows(folder.responses, Response)} == {"SFT", "tuned"}
    assert "dpo" in folder.config.read_text()
    assert not (folder.path / "preferences.partial.jsonl").exists()


@pytest.mark.slow
def test_a_run_loads_names_and_saves_its_model_as_fine_tuning_does(
    experiment: dict[str, Any], tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, tokenizer = tiny_models.load_copy(tiny_llama)
    tokenizer.chat_template = tiny_models.CHAT_TEMPLATE.replace("<|im_end|>", "{{ eos_token }}")
    for one in (model, tokenizer):
        one.save_pretrained(tmp_path / "base")
    named = {"name": str(tmp_path / "base"), "attn_implementation": "eager"}
    lora = {"r": 2, "target_modules": ["q_proj"]}
    data = {**experiment["data"], "prompt_format": "chat"}
    values = {**experiment, "model": named, "data": data, "lora": lora}
    folder = run(values, tmp_path / "run", stages=["data", "train"])
    # Eager attention takes no segments.
    assert "LlamaForCausalLM on padded pairs" in caplog.text
    assert "validation loss 0.693 -> " in caplog.text
    assert (folder.model / "chat_template.jinja").read_text() == folder.prompt.read_text()


@pytest.mark.parametrize("name", ["preferences.jsonl", "preferences.partial.jsonl"])
def test_pairs_are_not_kept_for_other_settings(experiment: dict[str, Any], tmp_path: Path, name: str) -> None:
    folder = run(experiment, tmp_path / "run", stages=["data"])
    (folder.path / name).touch()
    for section, values in (("preferences", {"limit": 3}), ("model", {"name": "gpt2-small"})):
        with pytest.raises(RunError, match=f"`{section}."):
            run({**experiment, section: values}, folder.path, resume=True, stages=["data"])
    run({**experiment, "dpo": {**SETTINGS, "beta": 0.2}}, folder.path, resume=True, stages=["data"])
    run(experiment, folder.path, force=True, stages=["data"])
    assert not (folder.path / name).exists()


def test_a_files_pairs_follow_the_splits_of_the_run(
    experiment: dict[str, Any], sample_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = [row | {"chosen": row["output"], "rejected": "No."} for row in load_examples(sample_file, limit=40)]
    extra = [{**rows[0], "id": f"x{n}", "instruction": f"Name the number {n}."} for n in range(20)]
    columns = ("id", "instruction", "input", "output", "chosen", "rejected")
    file = tmp_path / "pairs.json"
    file.write_text("[]")
    changed = {**experiment, "preferences": {"source": str(file)}}
    folder = run(changed, tmp_path / "run", stages=["data"])
    # A prompt that is nearly one of the test split, too.
    nearly = [{**rows[0], "id": "near", "instruction": folder.read_split("test")[0].instruction.upper()}]
    nearly[0]["input"] = folder.read_split("test")[0].input
    file.write_text(json.dumps([{name: row[name] for name in columns} for row in rows + extra + nearly]))
    run(changed, tmp_path / "run", resume=True, stages=["data", "train"])
    sizes = {name: len(folder.read_split(name)) for name in ("train", "test", "validation")}
    found = [pair.split for pair in read_rows(folder.preferences, PreferencePair)]
    assert found.count("train") == sizes["train"] + 19
    assert found.count("validation") == sizes["validation"] + 1
    left_out = f"prompts in the test split {sizes['test']}, near-duplicates of test prompts 1"
    assert f"left out: {left_out}" in caplog.text


def test_a_run_whose_prompts_are_all_tested_has_no_pairs(experiment: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "same.json"
    file.write_text(json.dumps([{"instruction": "Name a color.", "output": f"{n} blue."} for n in range(20)]))
    with pytest.raises(DataError, match="gives no pair for the train split"):
        run({**experiment, "data": {"source": str(file)}}, tmp_path / "run", stages=["data", "train"])


def test_a_file_of_pairs_is_needed_until_the_run_has_them(experiment: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    changed = {**experiment, "preferences": {"source": str(file)}}
    with pytest.raises(DataError, match=r"pairs\.json"):
        run(changed, tmp_path / "run", stages=["data", "train"])
    assert not (tmp_path / "run").exists()
    file.write_text(json.dumps([{"instruction": f"Name {n}.", "chosen": "Yes.", "rejected": "No."} for n in range(30)]))
    folder = run(changed, tmp_path / "run", stages=["data", "train"])
    # As after a kill in the middle of training.
    folder.training_summary.unlink()
    shutil.rmtree(folder.model)
    file.unlink()
    run(changed, folder.path, resume=True, stages=["data", "train"])
    assert folder.model.is_dir()


def test_another_prompt_format_than_the_models_is_refused(
    experiment: dict[str, Any], tiny_gpt2: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "sft" / "model")
    (tmp_path / "sft" / "prompt.jinja").write_text("{{ instruction }}: ")
    changed = {**experiment, "model": {"name": str(tmp_path / "sft" / "model")}}
    with pytest.raises(InstructError, match="differs from the one the model was fine-tuned with"):
        run(changed, tmp_path / "run", stages=["data", "train"])


def test_an_experiment_trains_once_and_by_known_settings(experiment: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run({**experiment, "train": {"seed": 1}, "dpo": {"beta": "much", "output_dir": "x"}}, tmp_path / "run")
    for text in ("`dpo`, `train` cannot be combined", "`dpo.beta` is 'much'", "`dpo.output_dir` cannot be set"):
        assert text in str(error.value)


def test_pairs_are_a_dataset_with_trls_columns() -> None:
    assert {"chosen", "rejected", "instruction"} <= set(build_dataset([], PreferencePair).column_names)
