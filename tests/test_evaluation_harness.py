import dataclasses
import json
import math
import os
import shutil
import socket
from pathlib import Path

import pytest
import tiny_models

from hf_instruct.cli.main import main
from hf_instruct.config import build_experiment
from hf_instruct.errors import ConfigError, DataError
from hf_instruct.evaluation import harness_tasks
from hf_instruct.evaluation.harness import (
    Benchmark,
    BenchmarkOptions,
    BenchmarkResult,
    benchmark_model,
    compare_benchmarks,
    read_results,
)
from hf_instruct.evaluation.harness_tasks import PACKAGED_TASKS, load_tasks, quiet_harness
from hf_instruct.run_folder import RunFolder

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
def test_results_are_those_of_lm_eval(tiny_gpt2: Path, num_fewshot: int | None) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    options = BenchmarkOptions(limit=12, num_fewshot=num_fewshot, batch_size=4)
    benchmark = benchmark_model(model, tokenizer, ["everyday_choice"], options=options)

    with quiet_harness():
        raw = lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
            tasks=load_tasks(["everyday_choice"]).specs,
            num_fewshot=num_fewshot,
            limit=12,
        )
    expected = raw["results"]["everyday_choice"]
    assert [row.metric for row in benchmark.results] == ["acc", "acc_norm"]
    for row in benchmark.results:
        assert row.value == expected[f"{row.metric},none"]
        assert row.standard_error == expected[f"{row.metric}_stderr,none"]
        # The standard error of a share: of its 0s and 1s.
        assert row.standard_error == pytest.approx(math.sqrt(row.value * (1 - row.value) / 11))
        assert (row.n, row.total, row.num_fewshot, row.version) == (12, 40, num_fewshot or 0, "1.0")
        values = benchmark.values["everyday_choice", row.metric, "none"]
        assert list(values) == list(range(12))
        assert sum(values.values()) / 12 == row.value
    assert benchmark.shown == ["everyday_choice"]


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
    assert tuned.results[0].questions_sha256 == raw.results[0].questions_sha256
    assert tuned.values != raw.values


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
    other = dataclasses.replace(ROW, task="mmlu")
    run.benchmarks.write_text(json.dumps({"results": [dataclasses.asdict(row) for row in (ROW, other)]}))
    words = ["benchmark", str(run.path), "--tasks", "everyday_choice", "--base", "--limit", "10"]
    assert main(words) == 0
    captured = capfd.readouterr()
    # What is logged pytest takes; a bar or a hint of another program would be here.
    assert captured.err == ""
    assert caplog.messages == [
        f"Asking {run.path}",
        "Requests: 40/40, 0 s left",
        f"Asking {run.load_experiment().model.name}",
        "Requests: 40/40, 0 s left",
    ]
    lines = captured.out.splitlines()
    assert lines[0].split() == ["task", "metric", "n", "few-shot", "base", "tuned", "difference,", "95", "%"]
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["everyday_choice", metric, "10", "0"] for metric in ("acc", "acc_norm")
    ]
    assert lines[-1] == (
        "lm-eval 0.4.13, float32, questions as plain text; the first 10 questions of each task; ± is the standard error"
    )
    stored = read_results(run.benchmarks)
    assert [row.task for row in stored] == ["mmlu", "everyday_choice", "everyday_choice"]
    assert stored[0] == other
    assert stored[1].difference is not None
    base = read_results(run.base.benchmarks)
    assert stored[1].difference["mean"] == pytest.approx(stored[1].value - base[0].value)


def test_differences_are_question_by_question() -> None:
    def benchmark(values: list[float]) -> Benchmark:
        key = ("everyday_choice", "acc", "none")
        row = dataclasses.replace(ROW, value=sum(values) / len(values))
        return Benchmark([row], ["everyday_choice"], {key: dict(enumerate(values))})

    same = compare_benchmarks(benchmark([1, 0, 1, 0]), benchmark([1, 0, 1, 0]))
    assert same.results[0].difference == {
        "mean": 0.0,
        "low": pytest.approx(-0.49, abs=0.001),
        "high": pytest.approx(0.49, abs=0.001),
        "n": 4,
    }
    better = compare_benchmarks(benchmark([1, 1, 1, 1]), benchmark([1, 0, 1, 0])).results[0].difference
    assert better is not None
    assert better["mean"] == 0.5
    assert -1 <= better["low"] < 0.5 < better["high"] <= 1
    # Not the same questions.
    assert compare_benchmarks(benchmark([1, 0, 1, 0]), benchmark([1, 0, 1])).results[0].difference is None
    # Not the mean of the questions' values, as a perplexity.
    odd = benchmark([1.0, 0.0])
    odd.results[0] = dataclasses.replace(odd.results[0], value=12.5)
    assert compare_benchmarks(odd, benchmark([1.0, 0.0])).results[0].difference is None


@pytest.mark.slow
def test_a_task_of_ones_own(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    include = (write_task(tmp_path / "my tasks"),)
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    benchmark = benchmark_model(model, tokenizer, ["colours"], options=BenchmarkOptions(include=include))
    assert [(row.task, row.n, row.total, row.version) for row in benchmark.results] == [("colours", 6, 6, None)]


@pytest.mark.slow
def test_a_group_without_a_result_of_its_own_shows_its_members(
    tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_task(tmp_path / "tasks")
    write_task(folder, name="shades")
    (folder / "hues.yaml").write_text("group: hues\ntask: [colours, shades]\n")
    assert main(["benchmark", str(tiny_gpt2), "--tasks", "hues", "--include-path", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["colours", "acc", "6"], ["shades", "acc", "6"]]
    assert "members" not in lines[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_kwargs": "{data_files: {test: gone.jsonl}}"}, r"The task `colours` \(.*\) cannot be loaded: Unable"),
        ({"test_split": "nope"}, r"The task `colours` .*cannot be loaded: .*nope"),
        ({"doc_to_text": "'{{ question'"}, r"The task `colours` .*cannot be loaded"),
        ({"metric_list": "[{metric: no_such_metric}]"}, r"The task `colours` .*cannot be loaded"),
        ({"doc_to_text": "!function gone.f"}, r"needs a package that is not installed: .*gone"),
    ],
)
def test_a_faulty_task_is_one_message(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        load_tasks(["colours"], [write_task(tmp_path / "tasks", **changes)])
    assert "\n" not in str(caught.value)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "tasks", dataset_path="owner/colours", dataset_kwargs="{}", dataset_name="hard")
    with pytest.raises(DataError) as caught:
        load_tasks(["colours"], [folder])
    assert str(caught.value) == (
        "The task `colours` needs the data set `owner/colours` (hard), which is neither in the cache of Hugging Face "
        "nor within reach: Couldn't reach 'owner/colours' on the Hub (OfflineModeIsEnabled). Run the same command with "
        "`--limit 1` where there is a network, which downloads it, and copy that machine's cache here (`HF_HOME` says "
        "where it is); or take a task whose data is local: `--tasks everyday_choice`, or one of your own with "
        "`--include-path`."
    )


@pytest.mark.slow
def test_a_group_names_its_first_data_set_and_a_typo_the_nearest_task() -> None:
    with pytest.raises(DataError, match=r"The task `mmlu` needs the data set `cais/mmlu` \(abstract_algebra\), which"):
        load_tasks(["mmlu"])
    with pytest.raises(ConfigError) as caught:
        load_tasks(["helaswag", "everyday_choise", "qqqqqqqq"])
    assert caught.value.summary == "3 of the `--tasks` are unknown to lm-eval:"
    assert caught.value.problems[0].startswith("`helaswag`; nearest are `hellaswag`, ")
    assert caught.value.problems[1] == "`everyday_choise`; nearest are `everyday_choice`"
    assert caught.value.problems[2] == "`qqqqqqqq`; `lm-eval ls tasks` lists all"


def test_yaml_that_lm_eval_passes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "a.yaml").write_text("task: [colours\n")
    (folder / "b.yaml").write_text("tusk: colours\n")
    # Its own tasks take seconds to index.
    whole = harness_tasks._index_tasks
    monkeypatch.setattr(harness_tasks, "_index_tasks", lambda names, include: whole(["everyday_choice"], include))
    with pytest.raises(ConfigError) as caught:
        load_tasks(["colours"], [folder])
    assert caught.value.problems[0].startswith("`colours`; ")
    assert caught.value.problems[1].startswith(f"`{folder / 'a.yaml'}` cannot be read: while parsing")
    assert caught.value.problems[2] == f"`{folder / 'b.yaml'}` has neither `task:` nor `group:`, so it names no task"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", " , "], "`--tasks` names no task; name some, as in `--tasks everyday_choice` or `--tasks mmlu`."),
        (["--tasks", "x", "--include-path", "nowhere"], "`--include-path` `nowhere` is not a folder; name one that"),
        (["--tasks", "x", "--base"], "`--base` needs a run folder, which says what it started from; `"),
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
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"needs the package lm-eval.*: pip install 'hf-instruct\[benchmark\]'"):
        load_tasks(["everyday_choice"])


def test_a_damaged_file_is_found_before_the_work(run: RunFolder) -> None:
    run.benchmarks.write_text('{"results": [{"task": "x"}]}')
    with pytest.raises(DataError, match=r"benchmarks.json` cannot be read as benchmark results"):
        read_results(run.benchmarks)
    assert main(["benchmark", str(run.path), "--tasks", "everyday_choice"]) == 1
    assert run.benchmarks.read_text() == '{"results": [{"task": "x"}]}'


def test_nothing_of_the_silence_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.api.task
    from datasets.utils import are_progress_bars_disabled

    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    before = lm_eval.api.task.tqdm, are_progress_bars_disabled()
    with quiet_harness():
        assert lm_eval.api.task.tqdm is not before[0]
    assert (lm_eval.api.task.tqdm, are_progress_bars_disabled()) == before
    assert "TOKENIZERS_PARALLELISM" not in os.environ
