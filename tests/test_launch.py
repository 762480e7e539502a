"""What a user launches, in processes of its own: `accelerate launch`, and kills at the worst moments."""

import json
import os
import random
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_models
import torch
from fake_ollama import Answer, FakeOllama
from launching import BIN, ROOT, call, kill_when, launcher, num_lines

from hf_instruct.models import load_model
from hf_instruct.records import read_rows
from hf_instruct.schema import Judgment, Response, TrainingRow

pytestmark = pytest.mark.slow
# Left out of comparisons: these depend on the clock.
CLOCK = {"seconds", "tokens_per_second"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    changes = {"HF_HUB_OFFLINE": "1", "HF_INSTRUCT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **changes}


@pytest.fixture
def experiment(tmp_path: Path, tiny_gpt2: Path) -> Path:
    """An experiment on 60 examples (48 to train on: whole batches of 8) and a tiny GPT-2."""
    source = tiny_models.write_examples(tmp_path / "data.json", 60)
    values = {
        "data": {"source": str(source), "train_fraction": 0.8, "test_fraction": 0.15},
        "model": {"name": str(tiny_gpt2)},
        "train": {"learning_rate": 1e-3, "bf16": False, "logging_steps": 1, "eval_steps": 3, "save_steps": 2},
        "generate": {"max_new_tokens": 12, "batch_size": 2},
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def training_rows(run: Path) -> list[dict[str, object]]:
    rows = [vars(row) for row in read_rows(run / "training.jsonl", TrainingRow)]
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def check_equal_training(one: Path, two: Path) -> None:
    """Two processes have logged the losses that one did, up to the order in which floats were added."""
    expected, found = ([row for row in training_rows(run) if row["kind"] != "samples"] for run in (one, two))
    assert [(row["step"], row["kind"]) for row in found] == [(row["step"], row["kind"]) for row in expected]
    for left, right in zip(expected, found, strict=True):
        assert right["tokens_seen"] == left["tokens_seen"]
        for name in ("loss", "train_loss", "validation_loss"):
            assert (right[name] is None) == (left[name] is None)
            assert right[name] is None or right[name] == pytest.approx(left[name], rel=1e-4)
    assert json.loads((two / "training.json").read_text())["num_processes"] == 2


def test_two_processes_train_like_one_at_the_same_global_batch(experiment: Path, environment, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    common = ["recipes/sft.py", experiment, "--train.num_train_epochs", "1", "--run-dir"]
    call([BIN / "python", *common, one, "--train.per_device_train_batch_size", "8"], environment)
    done = call([*launcher("cpu_2proc.yaml"), *common, two, "--train.per_device_train_batch_size", "4"], environment)
    check_equal_training(one, two)
    assert (two / "model" / "model.safetensors").stat().st_size == (one / "model" / "model.safetensors").stat().st_size
    assert any(row["kind"] == "samples" for row in training_rows(two))
    # PyTorch's warning in each process, had it looked for weights that the loss does not use.
    assert "find_unused_parameters" not in done.stderr
    # Told by one of them.
    assert done.stderr.count("Trained 6 steps") == 1
    assert done.stdout.count(str(two / "model")) == 1


def test_a_run_of_two_processes_resumes_on_two_only(experiment: Path, environment, tmp_path: Path):
    path = tmp_path / "run"
    train = ["recipes/sft.py", experiment, "--train.num_train_epochs", "1", "--train.keep_checkpoints", "true"]
    train += ["--run-dir", path]
    call([*launcher("cpu_2proc.yaml"), *train], environment)
    model = (path / "model" / "model.safetensors").read_bytes()
    (checkpoint,) = (path / "checkpoints").iterdir()
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert {"model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth", "scheduler.pt"} < files.keys()
    shutil.rmtree(path / "model")
    (path / "training.json").unlink()
    alone = [BIN / "python", *train, "--resume"]
    done = call(alone, environment, status=1)
    assert "was trained by 2 processes, and this is 1 process" in done.stderr
    # One of them finds the damage, and both start again.
    (checkpoint / "rng_state_1.pth").unlink()
    done = call([*launcher("cpu_2proc.yaml"), *train, "--resume"], environment)
    assert done.stderr.count("is damaged (`rng_state_1.pth` is missing)") == 1
    assert (path / "model" / "model.safetensors").read_bytes() == model


def test_two_processes_measure_rewards_like_one(experiment: Path, environment, tmp_path: Path):
    values = json.loads(experiment.read_text())
    settings = {**values.pop("train"), "num_train_epochs": 1, "max_steps": 2, "num_generations": 4}
    settings |= {"max_completion_length": 6, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}
    experiment.write_text(json.dumps({**values, "grpo": settings}))
    # The tiny model's answers are blank: the reward depends on the prompt too.
    reward = tmp_path / "mine.py"
    reward.write_text(
        "def measure(completion_ids, id, **_):\n"
        "    return [len(ids) + sum(map(ord, name)) % 7 for ids, name in zip(completion_ids, id)]\n"
    )
    common = ["recipes/grpo.py", experiment, "--reward", f"{reward}:measure", "--run-dir"]
    one, two = tmp_path / "one", tmp_path / "two"
    call([BIN / "python", *common, one], environment)
    call([*launcher("cpu_2proc.yaml"), *common, two], environment)
    first, again = (next(row for row in training_rows(run) if row["kind"] == "evaluation") for run in (one, two))
    assert first["reward"] > 0
    # Three held-out prompts: the second process repeats one, which does not count.
    assert (again["reward"], again["answer_tokens"]) == pytest.approx((first["reward"], first["answer_tokens"]))
    assert [row["step"] for row in training_rows(two) if row["kind"] == "train"] == [1, 2]


def test_two_processes_learn_preferences_like_one(experiment: Path, environment, tmp_path: Path):
    values = json.loads(experiment.read_text())
    settings = {**values.pop("train"), "num_train_epochs": 1}
    values["generate"]["max_new_tokens"] = 16
    experiment.write_text(json.dumps({**values, "dpo": settings}))
    common = ["recipes/dpo.py", experiment, "--run-dir"]
    one, two = tmp_path / "one", tmp_path / "two"
    call([BIN / "python", *common, one, "--dpo.per_device_train_batch_size", "8"], environment)
    call([*launcher("cpu_2proc.yaml"), *common, two, "--dpo.per_device_train_batch_size", "4"], environment)
    losses = [[row["loss"] for row in training_rows(run) if row["kind"] == "train"] for run in (one, two)]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert not (two / "checkpoints").exists()


def call_on_two_machines(commands: list[list[str | Path]], environment: dict[str, str], *, status: int) -> list[str]:
    """Launch a command on each of two machines, which here are this one, and return what each wrote."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    network = ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--num_processes", "2"]
    machines = [
        [BIN / "accelerate", "launch", "--config_file", "accelerate_configs/multi_node.yaml", "--machine_rank", rank]
        for rank in "01"
    ]
    with ThreadPoolExecutor() as threads:
        done = threads.map(
            lambda words: call(words, environment, status=status),
            [[*machine, *network, *command] for machine, command in zip(machines, commands, strict=True)],
        )
        return [finished.stderr for finished in done]


def test_two_machines_train_like_one_process_in_a_folder_that_they_share(experiment: Path, environment, tmp_path: Path):
    common = ["recipes/sft.py", experiment, "--train.num_train_epochs", "1", "--train.per_device_train_batch_size"]
    call([BIN / "python", *common, "8", "--run-dir", tmp_path / "one"], environment)
    together = [*common, "4", "--run-dir", tmp_path / "two"]
    said = call_on_two_machines([together, together], environment, status=0)
    check_equal_training(tmp_path / "one", tmp_path / "two")
    assert [text.count("Trained 6 steps") for text in said] == [1, 0]
    apart = [[*common, "4", "--run-dir", tmp_path / f"apart-{rank}"] for rank in "01"]
    for rank, text in enumerate(call_on_two_machines(apart, environment, status=1)):
        assert f"hf-instruct: `{tmp_path}/apart-{rank}` is not the same folder on all machines" in text
        assert "[rank" not in text


def test_a_mistake_is_told_once_whatever_the_number_of_processes(experiment: Path, environment, tmp_path: Path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("not a run")
    # The second fails in a stage that both work on; the first before it, while one waits for the other.
    for mistake, text in (
        (["--run-dir", tmp_path / "taken"], "is not a run"),
        (["--run-dir", tmp_path / "new", "--model.name", "gpt7"], "`gpt7` cannot be loaded"),
    ):
        command = [*launcher("cpu_2proc.yaml"), "recipes/sft.py", experiment, *mistake]
        done = call(command, environment, status=1)
        assert done.stderr.count("hf-instruct: ") == 1, done.stderr
        assert text in done.stderr
        assert "[rank" not in done.stderr  # a traceback of one of ours


@pytest.mark.parametrize(
    ("config", "saved_by_it", "lora"),
    [
        ("fsdp2.yaml", "pytorch_model_fsdp.bin", []),
        ("fsdp2.yaml", "pytorch_model_fsdp.bin", ["--lora.r", "4"]),
        ("zero2.yaml", "zero_to_fp32.py", []),
        ("zero3.yaml", "zero_to_fp32.py", []),
        ("zero3.yaml", "zero_to_fp32.py", ["--lora.r", "4"]),
    ],
)
def test_a_model_spread_over_two_processes_trains_like_a_whole_one(
    config: str, saved_by_it: str, lora: list[str], experiment: Path, environment, tmp_path: Path
):
    if config.startswith("zero"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    one, two = tmp_path / "one", tmp_path / "two"
    common = [experiment, "--train.num_train_epochs", "1", "--train.keep_checkpoints", "true", *lora, "--run-dir"]
    call([BIN / "python", "recipes/sft.py", *common, one, "--train.per_device_train_batch_size", "8"], environment)
    command = [*launcher(config), "tests/sft_as_on_gpus.py", *common, two, "--train.per_device_train_batch_size", "4"]
    call(command, {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "DS_ACCELERATOR": "cpu"})
    (saved,) = two.glob(f"checkpoints/*/{saved_by_it}")
    manifest = json.loads((saved.parent / "manifest.json").read_text())
    assert manifest["origin"]["sharding"] == ("FSDP" if config.startswith("fsdp") else "DEEPSPEED")
    assert saved_by_it in manifest["files"]
    check_equal_training(one, two)
    # Not weight by weight: attention's key bias has no effect, so Adam moves it by rounding errors.
    ids = torch.arange(64)[None]
    with torch.no_grad():
        left, right = (load_model(str(run))[0](ids).logits for run in (one, two))
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


def test_killed_three_times_in_training_and_answering_ends_like_unbroken(experiment: Path, environment, tmp_path: Path):
    chance = random.Random(7)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    walk = [
        BIN / "python",
        "-c",
        "from hf_instruct.pipeline import run; import sys; "
        "run(sys.argv[1], sys.argv[2], resume=True, stages=('data', 'train', 'generate'))",
        experiment,
    ]
    call([*walk, unbroken], environment)
    log, answers = broken / "training.jsonl", broken / "responses.jsonl"
    for lines in (2, 7, 13):
        ready = lambda lines=lines: num_lines(log) >= lines  # noqa: E731
        kill_when(ready, [*walk, broken], environment, delay=chance.random() * 0.2)
    for lines in (2, 8, 14):
        ready = lambda lines=lines: num_lines(answers) >= lines  # noqa: E731
        kill_when(ready, [*walk, broken], environment, delay=chance.random() * 0.02)
    call([*walk, broken], environment)
    assert training_rows(broken) == training_rows(unbroken)
    assert read_rows(answers, Response) == read_rows(unbroken / "responses.jsonl", Response)
    assert (broken / "model/model.safetensors").read_bytes() == (unbroken / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_dpo_and_grpo_killed_twice_end_like_unbroken(method: str, experiment: Path, environment, tmp_path: Path):
    values = json.loads(experiment.read_text())
    settings = {**values.pop("train"), "learning_rate": 1e-2, "num_train_epochs": 2}
    groups = {"num_generations": 4, "max_completion_length": 6, "gradient_accumulation_steps": 1}
    values |= {"dpo": settings}
    if method == "grpo":
        values |= {"grpo": {**values.pop("dpo"), **groups}, "rewards": {"length": 1}}
    experiment.write_text(json.dumps(values))
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train = [BIN / "hf-instruct", "train", experiment, "--resume", "--run-dir"]
    call([*train, unbroken], environment)
    log, expected = broken / "training.jsonl", training_rows(unbroken)
    for lines in (len(expected) // 4, len(expected) // 2):
        kill_when(lambda lines=lines: num_lines(log) >= lines, [*train, broken], environment)
    call([*train, broken], environment)
    assert training_rows(broken) == expected
    assert (broken / "model/model.safetensors").read_bytes() == (unbroken / "model/model.safetensors").read_bytes()


def test_killed_three_times_while_judging_ends_with_every_judgment_once(
    sample_responses_file: Path, environment, server: FakeOllama, tmp_path
):
    server.latency_seconds = 0.02
    # A verdict of its own for each response, so that a mixed-up row would show.
    server.reply = lambda body: Answer(json.dumps({"score": len(body["messages"][-1]["content"]) % 101}))
    command = [BIN / "hf-instruct", "judge", sample_responses_file, "--judge", "ollama", "--base-url", server.url]
    # So that every call is for one of the sixty.
    command += ["--judge.check", "false"]
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    for lines in (5, 20, 35):
        ready = lambda lines=lines: num_lines(broken / "judgments.jsonl") >= lines  # noqa: E731
        kill_when(ready, [*command, "--no-cache", "--out", broken], environment, delay=0.01)
    calls = len(server.chats)
    call([*command, "--no-cache", "--out", broken], environment)
    # At most the calls under way at each kill were asked again, and the replies that a busy disk had not taken yet.
    assert calls < 60
    assert len(server.chats) <= 60 + 3 * 8
    call([*command, "--no-cache", "--out", unbroken], environment)
    rows = [
        sorted((row.id, row.score, row.replies) for row in read_rows(folder / "judgments.jsonl", Judgment))
        for folder in (broken, unbroken)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 60
    scores = [json.loads((folder / "scores.json").read_text())["tuned"]["mean"] for folder in (broken, unbroken)]
    assert scores[0] == scores[1]
