import dataclasses
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from hf_instruct.cli.main import main
from hf_instruct.config import build_experiment
from hf_instruct.errors import ConfigError, DataError
from hf_instruct.evaluation import harness
from hf_instruct.evaluation.harness import (
    PACKAGED_TASKS,
    BenchmarkOptions,
    benchmark_model,
    benchmark_run,
    compare_benchmarks,
    load_tasks,
)
from hf_instruct.records import read_file
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import BenchmarkResult

ROW = BenchmarkResult(
    task="everyday_choice",
    metric="acc",
    filter="none",
    value=0.5,
    standard_error=0.1,
    n=4,
    total=40,
    num_fewshot=0,
    higher_is_better=True,
    version="1.0",
    questions_sha256="0" * 64,
    limit=4,
    chat_template=False,
    dtype="float32",
    model="m",
    lm_eval_version="0.4.13",
    seconds=1.0,
    measured_at="2026-01-01T00:00:00+00:00",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `datasets` reads it once, when it is imported.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def run(tmp_path: Path, tiny_gpt2: Path) -> RunFolder:
    """A run whose model differs from the one it started from."""
    folder = RunFolder(tmp_path / "run")
    folder.save_experiment(build_experiment({"model": {"name": str(tiny_gpt2)}}, where="here", deep=False))
    tiny_models.build_model(tiny_models.gpt2_config(), seed=1, scale=8).save_pretrained(folder.model)
    for path in tiny_gpt2.glob("*token*"):
        shutil.copy(path, folder.model)
    return folder


def write_task(folder: Path, *, name: str = "colours", **changes: str) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [{"question": f"Colour {n}?", "choices": ["red", "green"], "answer": n % 2} for n in range(6)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": f"{{data_files: {{test: {name}.jsonl}}}}",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": "[{metric: acc, aggregation: mean, higher_is_better: true}]",
        **changes,
    }
    (folder / f"{name}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    return folder


def test_the_packaged_questions() -> None:
    rows = [json.loads(line) for line in (PACKAGED_TASKS / "everyday_choice.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    assert len({row["question"] for row in rows}) == 40
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert row["answer"] in range(4)
    # Whoever always says the same letter gets a quarter right.
    assert all(9 <= sum(row["answer"] == place for row in rows) <= 11 for place in range(4))
    shots = [json.loads(line) for line in (PACKAGED_TASKS / "everyday_choice_fewshot.jsonl").read_text().splitlines()]
    assert not {row["question"] for row in shots} & {row["question"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("num_fewshot", [None, 2])
def test_results_are_those_of_lm_eval(
    tiny_gpt2: Path, num_fewshot: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    options = BenchmarkOptions(limit=12, num_fewshot=num_fewshot, batch_size=4)
    results = benchmark_model(model, tokenizer, ["everyday_choice"], options=options)

    # lm-eval takes the data's relative paths from here.
    monkeypatch.chdir(PACKAGED_TASKS)
    raw = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=["everyday_choice.yaml"],
        num_fewshot=num_fewshot,
        limit=12,
    )
    expected = raw["results"]["everyday_choice"]
    assert [row.metric for row in results] == ["acc", "acc_norm"]
    for row in results:
        assert row.value == expected[f"{row.metric},none"]
        assert row.standard_error == expected[f"{row.metric}_stderr,none"]
        assert (row.n, row.total, row.num_fewshot, row.version) == (12, 40, num_fewshot or 0, "1.0")
        assert row.questions_sha256 == hash_samples(raw["samples"]["everyday_choice"])
        assert row.values is not None
        assert sum(row.values) / 12 == row.value
        assert row.shown


def hash_samples(samples: list[dict[str, str]]) -> str:
    from lm_eval.utils import hash_string

    return hash_string("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))


@pytest.mark.slow
def test_a_lora_adapter_counts(tiny_gpt2: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from hf_instruct.models import load_model

    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    options = BenchmarkOptions(limit=8)
    raw = benchmark_model(model, tokenizer, ["everyday_choice"], options=options)
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=256, init_lora_weights=False, fan_in_fan_out=True, task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    tuned = benchmark_model(*load_model(str(tmp_path / "adapter")), ["everyday_choice"], options=options)
    assert tuned[0].questions_sha256 == raw[0].questions_sha256
    assert tuned[0].value != raw[0].value or tuned[0].values != raw[0].values


@pytest.mark.slow
def test_a_run_and_its_base_side_by_side(
    run: RunFolder,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    # Outside of any repository, of which `git` would complain.
    monkeypatch.chdir(run.path)
    other = ROW.model_copy(update={"task": "mmlu"})
    run.benchmarks.write_text(json.dumps({"tuned": [row.to_dict() for row in (ROW, other)]}))
    words = ["benchmark", str(run.path), "--tasks", "everyday_choice", "--base", "--limit", "10"]
    assert main(words) == 0
    captured = capfd.readouterr()
    # What is logged pytest takes; a bar or a hint of another program would be here.
    assert captured.err == ""
    base_name = run.load_experiment().model.name
    assert caplog.messages == [f"Evaluating {name}: everyday_choice" for name in (run.path, base_name)]
    lines = captured.out.splitlines()
    assert lines[0].split() == ["task", "metric", "n", "few-shot", "untuned", "tuned", "difference,", "95", "%"]
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["everyday_choice", metric, "10", "0"] for metric in ("acc", "acc_norm")
    ]
    assert "the first 10 questions" in lines[-1]
    stored = read_file(run.benchmarks, dict[str, list[BenchmarkResult]])
    assert [row.task for row in stored["tuned"]] == ["mmlu", "everyday_choice", "everyday_choice"]
    assert stored["tuned"][0] == other
    tuned, base = stored["tuned"][1], stored["untuned"][0]
    assert tuned.value is not None
    assert base.value is not None
    assert tuned.difference is not None
    assert tuned.difference.mean == pytest.approx(tuned.value - base.value)


@pytest.mark.slow
def test_a_killed_benchmark_continues(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_task(tmp_path / "tasks")
    write_task(folder, name="shades")
    asked = []
    evaluate = harness._evaluate

    def die_at_second(*arguments: Any) -> Any:
        asked.append(arguments[2])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(harness, "_evaluate", die_at_second)
    options = BenchmarkOptions(include=(folder,))
    with pytest.raises(KeyboardInterrupt):
        benchmark_run(str(run.path), ["colours", "shades"], options=options)
    found = benchmark_run(str(run.path), ["colours", "shades"], options=options, base=True)
    assert asked == ["colours", "shades", "shades", "colours", "shades"]
    benchmark_run(f"{run.path.parent}/./{run.path.name}/", ["colours", "shades"], options=options)
    assert len(asked) == 5
    assert [row.task for row in found["tuned"]] == ["colours", "shades"]
    assert all(row.difference for row in read_file(run.benchmarks, dict[str, list[BenchmarkResult]])["tuned"])
    # Asked differently, it is asked again.
    benchmark_run(str(run.path), ["colours"], options=dataclasses.replace(options, limit=3))
    assert asked[5:] == ["colours"]


def test_differences_are_question_by_question() -> None:
    def benchmark(values: list[float], value: float | None = None) -> list[BenchmarkResult]:
        return [ROW.model_copy(update={"value": value or sum(values) / len(values), "values": values})]

    def compare(tuned: list[float], base: list[float]) -> Any:
        return compare_benchmarks(benchmark(tuned), benchmark(base))[0].difference

    end = pytest.approx(0.49, abs=0.001)
    same = compare([1, 0, 1, 0], [1, 0, 1, 0])
    assert (same.mean, -same.low, same.high, same.n) == (0.0, end, end, 4)
    better = compare([1, 1, 1, 1], [1, 0, 1, 0])
    assert better.mean == 0.5
    assert -1 <= better.low < 0.5 < better.high <= 1
    # Not the same questions; not the mean of the questions' values, as a perplexity.
    assert compare([1, 0, 1, 0], [1, 0, 1]) is None
    assert compare_benchmarks(benchmark([1, 0], 12.5), benchmark([1, 0]))[0].difference is None


@pytest.mark.slow
def test_a_task_of_ones_own_and_a_group_without_a_result_of_its_own(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_task(tmp_path / "my tasks", tag="paints")
    write_task(folder, name="shades", tag="paints")
    (folder / "hues.yaml").write_text("group: hues\ntask: [colours, shades]\n")
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    for name in ("hues", "paints"):
        results = benchmark_model(model, tokenizer, [name], options=BenchmarkOptions(include=(folder,)))
        assert [(row.task, row.n, row.total, row.version) for row in results] == [
            ("colours", 6, 6, None),
            ("shades", 6, 6, None),
        ]
    assert main(["benchmark", str(tiny_gpt2), "--tasks", "hues", "--include-path", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["colours", "acc", "6"], ["shades", "acc", "6"]]
    assert "members" not in lines[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_kwargs": "{data_files: {test: gone.jsonl}}"}, "Unable to find"),
        ({"test_split": "nope"}, "nope"),
        ({"doc_to_text": "'{{ question'"}, ""),
        ({"metric_list": "[{metric: no_such_metric}]"}, ""),
        ({"doc_to_text": "!function gone.f"}, "gone"),
        ({"dataset_path": "owner/colours", "dataset_kwargs": "{}"}, r"Couldn't reach 'owner/colours'.*`HF_HOME`"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_one_message(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=rf"The task `colours` cannot be loaded: .*{message}") as caught:
        load_tasks(["colours"], [write_task(tmp_path / "tasks", **changes)])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_unknown_tasks_and_those_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"The task `mmlu` cannot be loaded: .*cais/mmlu"):
        load_tasks(["mmlu"])
    (tmp_path / "a.yaml").write_text("task: [colours\n")
    (tmp_path / "b.yaml").write_text("tusk: colours\n")
    with pytest.raises(ConfigError, match="3 of the `--tasks` are unknown") as caught:
        load_tasks(["helaswag", "everyday_choise", "qqqqqqqq"], [tmp_path])
    assert caught.value.problems[0].startswith("`helaswag`; the closest are `hellaswag`, ")
    assert caught.value.problems[1] == "`everyday_choise`; the closest are `everyday_choice`"
    assert "`lm-eval ls tasks`" in caught.value.problems[2]
    assert [str(tmp_path / f"{name}.yaml") in caught.value.problems[3 + n] for n, name in enumerate("ab")] == [True] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", " , "], "`--tasks` is empty"),
        (["--tasks", "x", "--include-path", "nowhere"], "`--include-path` `nowhere` is not a folder"),
        (["--tasks", "x", "--base"], "`--base` needs a run folder"),
        (["--tasks", "everyday_choice", "--apply-chat-template"], "The tokenizer of `"),
        pytest.param(
            ["--tasks", "everyday_choice", "--num-fewshot", "6"],
            "lm-eval cannot run `everyday_choice` with this model",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mistakes(tiny_gpt2: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(tiny_gpt2), *words]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(f"hf-instruct: {message}")
    assert "Traceback" not in captured.err


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ConfigError, match="pip install lm-eval"):
        load_tasks(["everyday_choice"])


def test_a_damaged_file_is_found_before_the_work(run: RunFolder) -> None:
    run.benchmarks.write_text('{"results": [{"task": "x"}]}')
    assert main(["benchmark", str(run.path), "--tasks", "everyday_choice"]) == 1
    assert run.benchmarks.read_text() == '{"results": [{"task": "x"}]}'
