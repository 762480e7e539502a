"""Training on rewards for the model's own answers."""

import functools
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from fake_ollama import Answer, FakeOllama
from rows import read_log
from trl import GRPOTrainer

from hf_instruct.cli.main import main
from hf_instruct.config import build_experiment
from hf_instruct.data.splits import load_splits
from hf_instruct.errors import ConfigError, DataError, InstructError, JudgeError, RunError, TrainingError
from hf_instruct.generation import decoding_loop
from hf_instruct.library_fields import REFUSED_TRAINING
from hf_instruct.pipeline import run
from hf_instruct.preferences.rewards import build_rewards, load_reward
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, read_rows
from hf_instruct.reporting.results import read_results
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Response
from hf_instruct.training import grpo
from hf_instruct.training.arguments import build_arguments
from hf_instruct.training.fast.casts import halve_linear_weights
from hf_instruct.training.grpo import train_grpo
from hf_instruct.yaml_text import dump_yaml

SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "num_generations": 4,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 6,
    "learning_rate": 3e-2,
    "num_train_epochs": 8,
    "eval_steps": 3,
    "save_steps": 2,
    "save_total_limit": 5,
}


def build_examples(count: int, *, first: int = 0) -> list[Example]:
    numbers = range(first, first + count)
    return [
        Example(str(n), f"Name the word {n}.", "blue " * (n % 4), "Red.", "words" if n % 2 else "") for n in numbers
    ]


# Enough to resume from, and to see what training did.
SELDOM = {"eval_steps": 12, "save_steps": 8}
DATA = {"train": build_examples(12), "validation": build_examples(4, first=100)}


def count_a(completions: list[str], **_: Any) -> list[float]:
    """Reward the letter: something that a random model can learn."""
    return [text.count("a") / 6 for text in completions]


def train_tiny(folder: Path, output_dir: Path, **options: Any) -> tuple[Any, Any]:
    model, tokenizer = tiny_models.load_copy(folder, dropout=0.0)
    args = {**SETTINGS, **options.pop("args", {})}
    options = {"data": DATA, "reward_funcs": [count_a], **options}
    summary = train_grpo(model, tokenizer, output_dir=output_dir, args=args, **options)
    return summary, model


@pytest.fixture(scope="module")
def unbroken(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    return path, *train_tiny(tiny_gpt2, path, keep_checkpoints=True, args=SELDOM)


def test_rewards_rise(unbroken: tuple[Path, Any, Any]) -> None:
    path, summary, _ = unbroken
    rows = read_log(path, "train")
    assert sum(row.reward for row in rows[-3:]) > sum(row.reward for row in rows[:3]) + 0.3
    first, *_, last = read_log(path, "evaluation")
    assert (summary.reward_before, summary.reward) == (first.reward, last.reward)
    assert last.rewards == {"count_a": last.reward}
    assert last.validation_loss is None
    assert (path / "loss.png").exists()


# Each of the three beside each of the others.
@pytest.mark.parametrize(
    ("shape", "lora", "beta"),
    [
        ("tiny_gpt2", {"r": 4, "lora_alpha": 8}, 0.0),
        pytest.param("tiny_gpt2", None, 0.1, marks=pytest.mark.slow),
        pytest.param("tiny_llama", None, 0.0, marks=pytest.mark.slow),
        pytest.param("tiny_llama", {"r": 4, "lora_alpha": 8}, 0.1, marks=pytest.mark.slow),
    ],
)
def test_the_fast_path_draws_and_computes_what_trl_does(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, lora: Any, beta: float
) -> None:
    folder = request.getfixturevalue(shape)
    # Plain gradient steps: Adam would turn the rounding of a gradient near zero into a whole step.
    settings = {"max_steps": 3, "learning_rate": 0.1, "optim": "sgd", "save_steps": 100, "beta": beta}
    _, fast = train_tiny(folder, tmp_path / "fast", args=settings, peft_config=lora)
    if shape == "tiny_llama":
        for name in ("_generate_single_turn", "_get_per_token_logps_and_entropies", "log"):
            monkeypatch.delattr(grpo.InstructGRPOTrainer, name)
    else:
        # TRL has GPT-2 count the padding among its positions, so it is compared with our own slow path.
        monkeypatch.setattr(grpo, "build_segments", lambda *_, **__: None)
        monkeypatch.setattr(grpo, "can_decode", lambda _: False)
    _, plain = train_tiny(folder, tmp_path / "plain", args=settings, peft_config=lora)
    for one, other in zip(read_log(tmp_path / "fast", "train"), read_log(tmp_path / "plain", "train"), strict=True):
        assert one.reward == other.reward
        assert one.loss == pytest.approx(other.loss, abs=1e-6)
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_reference_is_the_model_that_training_begins_with(tiny_gpt2: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
    for parameter in model.parameters():
        # Other weights than those in the folder that its config names.
        parameter.data.mul_(1.5)
    args = {**SETTINGS, "max_steps": 2, "beta": 0.1}
    summary = train_grpo(model, tokenizer, DATA, reward_funcs=[count_a], output_dir=tmp_path, args=args)
    first, second = (row["kl"] for row in summary.log_history if "kl" in row)
    assert first == pytest.approx(0, abs=1e-6)
    assert second > 1e-3


def build_trainer(model: Any, tokenizer: Any, folder: Path, **changed: Any) -> grpo.InstructGRPOTrainer:
    rows = grpo.build_prompts(load_splits(DATA)["train"], tokenizer, PromptFormat.from_name("alpaca"))
    # What TRL would tokenize again.
    rows = rows.map(lambda _: {"prompt": "the same text"})
    arguments = build_arguments({**SETTINGS, "report_to": "none", **changed}, folder, kind="GRPOConfig")
    given = {"reward_funcs": [count_a], "train_dataset": rows, "eval_dataset": rows, "processing_class": tokenizer}
    return grpo.InstructGRPOTrainer(model, arguments, end_id=0, **given)


def lay_out(prompts: list[list[int]], answers: list[list[int]]) -> torch.Tensor:
    """Return rows as TRL makes them: prompts filled up on the left, answers on the right."""
    width, longest = max(map(len, prompts)), max(map(len, answers))
    return torch.tensor(
        [
            [0] * (width - len(prompt)) + prompt + answer + [0] * (longest - len(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    )


@pytest.mark.parametrize("shape", ["tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("fast", [True, False])
def test_log_probabilities_are_those_of_each_answer_alone(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, fast: bool
) -> None:
    model, tokenizer = tiny_models.load_copy(request.getfixturevalue(shape))
    if not fast:
        monkeypatch.setattr(grpo, "build_segments", lambda *_, **__: None)
    trainer = build_trainer(model, tokenizer, tmp_path)
    prompts = trainer.train_dataset[:4]["prompt_ids"]
    answers = [[5, 6, 7], [5], [5, 6, 9, 8], [300]]
    ids = lay_out(prompts, answers)
    mask = lay_out([[1] * len(one) for one in prompts], [[1] * len(one) for one in answers])
    longest = max(map(len, answers))
    logps, *_ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, longest, compute_entropy=True)
    for prompt, answer, row in zip(prompts, answers, logps, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        alone = logits[range(len(answer)), answer]
        assert torch.allclose(row[: len(answer)], alone, atol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_unbroken_one(
    tiny_gpt2: Path, tmp_path: Path, unbroken: tuple[Path, Any, Any]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(unbroken[0], path)
    shutil.rmtree(path / "model")
    for checkpoint in (path / "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name.partition("-")[2]) > 16:
            shutil.rmtree(checkpoint)
    _, model = train_tiny(tiny_gpt2, path, resume=True, keep_checkpoints=True, args=SELDOM)
    assert all(torch.equal(*both) for both in zip(model.parameters(), unbroken[2].parameters(), strict=True))
    assert [row.reward for row in read_log(path, "train")] == [row.reward for row in read_log(unbroken[0], "train")]
    shutil.rmtree(path / "model")
    with pytest.raises(RunError, match="different examples"):
        train_tiny(tiny_gpt2, path, resume=True, data={**DATA, "train": build_examples(13)}, args=SELDOM)


def test_checkpoints_fall_between_generations(tiny_gpt2: Path, tmp_path: Path) -> None:
    args = {"num_iterations": 3, "max_steps": 8, "save_steps": 1, "save_total_limit": None}
    train_tiny(tiny_gpt2, tmp_path, args=args, keep_checkpoints=True)
    names = {int(path.name.partition("-")[2]) for path in (tmp_path / "checkpoints").glob("checkpoint-*")}
    assert names == {3, 6}


@pytest.mark.slow
def test_a_run_resumes_where_generations_and_steps_do_not_meet(tiny_gpt2: Path, tmp_path: Path) -> None:
    args = {"per_device_train_batch_size": 4, "steps_per_generation": 3, "gradient_accumulation_steps": 2}
    args |= {"num_train_epochs": 1, "save_steps": 1, "save_total_limit": None}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _, expected = train_tiny(tiny_gpt2, whole, args=args, keep_checkpoints=True)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "model")
    last = max((cut / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    if last.name == "checkpoint-6":
        shutil.rmtree(last)
    _, model = train_tiny(tiny_gpt2, cut, args=args, resume=True)
    assert all(torch.equal(*both) for both in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "returned 1 values for 16 answers"),
        ([float("nan")] * 16, "is nan; it must be a number, or None"),
        (["good"] * 16, "is 'good'; it must be a number"),
        (None, "The reward `flawed` failed on the answers to "),
    ],
)
def test_a_reward_that_is_none_ends_training_with_its_name(
    tiny_gpt2: Path, tmp_path: Path, values: Any, message: str
) -> None:
    def flawed(completions: list[str], **_: Any) -> Any:
        return [0.0] * len(completions) if len(completions) != 16 else values

    with pytest.raises(TrainingError, match=re.escape(message)):
        train_tiny(tiny_gpt2, tmp_path, reward_funcs=[flawed])


def test_rewards_of_every_kind(tiny_gpt2: Path, tmp_path: Path) -> None:
    _, tokenizer = tiny_models.load_copy(tiny_gpt2)

    class Letter:
        def __call__(self, completions: list[str], **_: Any) -> Any:
            return np.array([text.count("b") for text in completions], dtype=np.float32)

    def odd(completions: list[str], category: list[str], **_: Any) -> list[float | None]:
        return [1.0 if name else None for name in category]

    def never(completions: list[str], **_: Any) -> list[None]:
        return [None] * len(completions)

    def same(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """Sampled and held-out answers are read alike."""
        assert completions == tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return [0.0] * len(completions)

    functions = [odd, Letter(), functools.partial(count_a), never, same]
    args = {"max_steps": 1, "reward_weights": [2.0, 1.0, 1.0, 1.0, 1.0]}
    train_tiny(tiny_gpt2, tmp_path / "some", reward_funcs=functions, args=args)
    for kind in ("train", "evaluation"):
        row = read_log(tmp_path / "some", kind)[0]
        assert list(row.rewards) == ["odd", "Letter", "count_a", "same"]
        assert row.rewards["odd"] == 1
    # Half of the prompts held out have a category.
    assert row.reward == pytest.approx(1 + row.rewards["Letter"] + row.rewards["count_a"])
    train_tiny(tiny_gpt2, tmp_path / "none", reward_funcs=[never], args={"max_steps": 1})
    assert read_log(tmp_path / "none", "train")[0].reward is None


@pytest.mark.slow
def test_sampling_may_be_set_as_in_trl(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = {"max_steps": 2, "generation_kwargs": {"temperature": 0.7, "max_new_tokens": 4}}
    train_tiny(tiny_llama, tmp_path / "ours", args=args)
    monkeypatch.delattr(grpo.InstructGRPOTrainer, "_generate_single_turn")
    train_tiny(tiny_llama, tmp_path / "trl", args=args)
    ours, theirs = (
        [(row.reward, row.answer_tokens) for row in read_log(tmp_path / name, "train")] for name in ("ours", "trl")
    )
    assert ours == theirs
    assert ours[0][1] <= 4


def test_an_adapter_of_halved_weights_answers_by_generate(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_loop, "can_decode", lambda model: False)
    model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
    halve_linear_weights(model)
    args = {**SETTINGS, "bf16": True, "max_steps": 1, "top_k": 5}
    train_grpo(model, tokenizer, DATA, reward_funcs=[count_a], output_dir=tmp_path, args=args, peft_config={"r": 4})
    assert len(read_log(tmp_path, "train")) == 1


def test_each_prompt_is_answered_by_its_own_ids(tiny_gpt2: Path, tmp_path: Path) -> None:
    trainer = build_trainer(*tiny_models.load_copy(tiny_gpt2), tmp_path)
    rows = trainer.train_dataset
    batch = trainer._generate_and_score_completions([row for row in rows for _ in range(4)])
    ids = [ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    assert ids[::4] == rows["prompt_ids"]


def test_a_head_in_float32_is_trls_computation(tiny_llama: Path, tmp_path: Path) -> None:
    trainer = build_trainer(*tiny_models.load_copy(tiny_llama), tmp_path, cast_lm_head_to_fp32=True, bf16=True)
    assert trainer._segments is None


def test_bad_input_is_refused_in_a_sentence(tiny_gpt2: Path, tmp_path: Path) -> None:
    for options, error, message in (
        ({"reward_funcs": []}, ConfigError, "`reward_funcs` is empty"),
        ({"args": {"max_completion_length": 250}}, DataError, "16 of 16 prompts with `grpo.max_completion_length` 250"),
        ({"args": {"max_completion_length": None}}, ConfigError, "`grpo.max_completion_length` is null"),
        ({"args": {"nonsense": 1}}, ConfigError, "nonsense"),
        ({"args": {"log_completions_hub_repo": "me/x"}}, ConfigError, "would be published unchecked"),
        ({"args": {"num_generations": 5}}, ConfigError, "must be divisible by num_generations"),
        ({"data": {**DATA, "validation": []}}, DataError, "validation contain no examples"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            train_tiny(tiny_gpt2, tmp_path / "run", **options)


def test_rewards_by_name() -> None:
    texts, references = ["Jane Austen", " emma", "Emma Woodhouse"], ["Jane Austen.", "Emma", "Emma"]
    functions = build_rewards(["exact_match", "token_f1", "length", "stopped"], ends={7})
    values = [f(completions=texts, output=references, completion_ids=[[1, 7], [7], [7, 1]]) for f in functions]
    assert values == [
        [1, 1, 0],
        [1, 1, pytest.approx(2 / 3)],
        [pytest.approx(11 / 12), 1, pytest.approx(4 / 14)],
        [1, 1, 0],
    ]
    assert [function.__name__ for function in functions] == ["exact_match", "token_f1", "length", "stopped"]
    for names, message in ((["exact_mach"], "Did you mean `exact_match`?"), (["stopped"], "needs `ends`")):
        with pytest.raises(ConfigError, match=re.escape(message)):
            build_rewards(names)


@pytest.fixture(scope="module")
def experiment(tiny_gpt2: Path, sample_file: Path) -> dict[str, Any]:
    return {
        "data": {"source": str(sample_file), "limit": 40},
        "model": {"name": str(tiny_gpt2)},
        "grpo": {**SETTINGS, "max_steps": 2},
        "rewards": {"token_f1": 1, "stopped": 0.5},
        "generate": {"max_new_tokens": 8, "base": True},
    }


def test_a_run_trains_answers_and_says_what_was_rewarded(experiment: dict[str, Any], tmp_path: Path) -> None:
    folder = run(experiment, tmp_path / "run", stages=["data", "train", "generate"])
    assert {row.model for row in read_rows(folder.responses, Response)} == {"SFT", "tuned"}
    assert list(read_log(folder.path, "evaluation")[0].rewards) == ["token_f1", "stopped"]
    assert "GRPO on 1 token_f1 + 0.5 stopped" in read_results(folder).method
    with pytest.raises(RunError, match=r"`rewards.length`"):
        run({**experiment, "rewards": {"length": 1}}, folder.path, resume=True, stages=["data"])


@pytest.mark.slow
def test_a_function_of_the_users_is_named_kept_and_asked_for_again(
    experiment: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, recipe = tmp_path / "mine.py", tmp_path / "experiment.yaml"
    file.write_text("def few(completions, **_):\n    return [-len(text) / 10 for text in completions]\n")
    settings = {**experiment["grpo"], "keep_checkpoints": True}
    recipe.write_text(dump_yaml({**experiment, "grpo": settings, "rewards": {}}))
    command = ["train", str(recipe), "--run-dir", str(tmp_path / "run")]
    assert main([*command, "--reward", f"{file}:few"]) == 0
    folder = RunFolder(tmp_path / "run")
    assert read_log(folder.path, "evaluation")[0].rewards.keys() == {"few"}
    assert re.fullmatch(r"mine.py:few sha256:[0-9a-f]{12}", folder.read_provenance().reward)
    shutil.rmtree(folder.model)
    folder.training_summary.unlink()
    assert main([*command, "--resume"]) == 1
    assert "was trained with the reward mine.py:few" in capsys.readouterr().err
    shutil.rmtree(folder.checkpoints)
    # Nothing is trained with the old one: it may be corrected.
    file.write_text(file.read_text().replace("10", "20"))
    assert main([*command, "--resume", "--reward", f"{file}:few"]) == 0
    for place, message in (
        ("gone.py:few", "there is no file `gone.py`"),
        (f"{file}:many", "has no function `many`; it has `few`"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_reward(place)


def test_a_run_goes_on_with_the_rewards_it_began_with(experiment: dict[str, Any], tmp_path: Path) -> None:
    values = {**experiment, "grpo": {**experiment["grpo"], "keep_checkpoints": True}}
    folder = run(values, tmp_path / "run", stages=["data", "train"])
    shutil.rmtree(folder.model)
    folder.training_summary.unlink()
    with pytest.raises(RunError, match="was trained with the reward none, but now it is count_a"):
        run(values, folder.path, resume=True, stages=["train"], reward_funcs=[functools.partial(count_a)])


@pytest.mark.slow
def test_the_best_model_is_that_of_the_highest_reward(tiny_gpt2: Path, tmp_path: Path) -> None:
    args = {"load_best_model_at_end": True, "eval_steps": 2, "max_steps": 6}
    summary, _ = train_tiny(tiny_gpt2, tmp_path, args=args)
    measured = [row.reward for row in read_log(tmp_path, "evaluation")[1:]]
    assert summary.reward == max(measured)


def test_a_file_of_rewards_may_define_classes(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nimport dataclasses\n\n"
        "@dataclasses.dataclass\nclass Weight:\n    value: int = 2\n\n"
        "def two(completions, **_):\n    return [2] * len(completions)\n"
    )
    assert load_reward(f"{file}:two")(completions=["a"]) == [2]


def test_settings_that_would_be_ignored_are_refused() -> None:
    for values, message in (
        ({"rewards": {"length": 1}}, "`rewards` needs a `grpo` section"),
        ({"preferences": {"limit": 3}}, "`preferences` needs a `dpo` section"),
        ({"grpo": {"reward_weights": [1.0]}}, "`grpo.reward_weights` cannot be set"),
        ({"grpo": {"temperature": 0.0}}, "`grpo.temperature` is 0.0"),
        ({"grpo": {"num_generations_eval": 4}}, "`grpo.num_generations_eval` cannot be set"),
        ({"dpo": {"trust_remote_code": True}}, "set `model.trust_remote_code`"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            build_experiment(values, where="here")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rewards": {}}, "has no weight above 0"),
        ({"rewards": {"token_f1": 1, "categories": ["poems"]}}, "`rewards.categories` names `poems`"),
        ({"dpo": {}}, "a run trains once"),
    ],
)
def test_experiments_that_cannot_be_trained_are_refused(
    experiment: dict[str, Any], tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(InstructError, match=re.escape(message)):
        run({**experiment, **changed}, tmp_path / "run", stages=["data", "train"])


@pytest.mark.slow
def test_a_reward_may_be_asynchronous(tiny_gpt2: Path, tmp_path: Path) -> None:
    async def later(completions: list[str], **_: Any) -> list[float]:
        return count_a(completions)

    train_tiny(tiny_gpt2, tmp_path / "one", reward_funcs=[later], args={"max_steps": 1})
    train_tiny(tiny_gpt2, tmp_path / "two", args={"max_steps": 1})
    asked, known = (read_log(tmp_path / name, "train")[0] for name in ("one", "two"))
    assert list(asked.rewards) == ["later"]
    assert asked.reward == known.reward

    async def flawed(**_: Any) -> list[str]:
        return ["good"] * 16

    with pytest.raises(TrainingError, match="The reward `flawed` returned 16 values for 4 answers"):
        train_tiny(tiny_gpt2, tmp_path / "three", reward_funcs=[flawed])


def test_a_judges_score_is_a_reward_and_a_failed_verdict_is_none(
    tiny_gpt2: Path, tmp_path: Path, server: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No verdict on the examples of a category.
    server.reply = lambda body: Answer("?" if "blue" in body["messages"][-1]["content"] else '{"score": 40}')
    monkeypatch.setenv("HF_INSTRUCT_CACHE", str(tmp_path / "cache"))
    (judge,) = build_rewards(["judge"], judge={"backend": "ollama", "base_url": server.url})
    seen: list[dict[str, Any]] = []

    async def watched(**columns: Any) -> list[float | None]:
        seen.append({**columns, "values": await judge(**columns)})
        return seen[-1]["values"]

    watched.close = judge.close
    train_tiny(tiny_gpt2, tmp_path, reward_funcs=[watched], args={"max_steps": 1})
    assert seen
    for call in seen:
        assert call["values"] == [None if text else 0.4 for text in call["input"]]
    assert read_log(tmp_path, "evaluation")[0].reward == pytest.approx(0.4)


@pytest.mark.parametrize(("is_down", "message"), [(False, "so `rewards.judge` would reward"), (True, "--resume")])
@pytest.mark.slow
def test_a_judge_that_fails_its_check_or_stops_ends_the_run_in_a_sentence(
    experiment: dict[str, Any],
    tmp_path: Path,
    server: FakeOllama,
    monkeypatch: pytest.MonkeyPatch,
    is_down: bool,
    message: str,
) -> None:
    values = {**experiment, "rewards": {"judge": 1}}
    values["judge"] = {"backend": "ollama", "base_url": server.url, "check": not is_down, "retries": 0}
    monkeypatch.setenv("HF_INSTRUCT_CACHE", str(tmp_path / "cache"))
    usual = server.reply
    if is_down:
        server.reply = lambda body: Answer("out of memory", status=500)
    with pytest.raises(JudgeError, match=re.escape(message)):
        run(values, tmp_path / "run", stages=["data", "train"])
    # Asked for all the same, or there again.
    server.reply, values["judge"]["check"] = usual, False
    folder = run(values, tmp_path / "run", stages=["data", "train"], resume=True)
    assert read_log(folder.path, "train")[-1].rewards == {"judge": pytest.approx(0.85)}


def test_what_trl_samples_by_is_what_we_sample_by_or_is_refused() -> None:
    source = inspect.getsource(GRPOTrainer.__init__)
    names = set(re.findall(r'"(\w+)": (?:self|args)\.', source[source.rindex("generation_kwargs = {") :]))
    assert {"top_k", "cache_implementation"} <= names
    ours = inspect.getsource(grpo.InstructGRPOTrainer._generate_single_turn)
    given_apart = {"pad_token_id", "bos_token_id", "eos_token_id"}
    assert {name for name in names - given_apart if name not in ours} <= set(REFUSED_TRAINING)


def test_a_verb_of_another_method_is_refused(
    tmp_path: Path, tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(dump_yaml({"model": {"name": str(tiny_gpt2)}, "grpo": {}}))
    assert main(["dpo", str(file), "--run-dir", str(tmp_path / "run")]) == 1
    assert "has no `dpo` section" in capsys.readouterr().err.replace("\n", " ")
