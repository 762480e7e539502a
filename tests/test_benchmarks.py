"""What the benchmark makes of its measurements, and that every contestant runs; nothing here depends on the clock."""

import dataclasses
import doctest
import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import bench, contestants, generation, gpu, inputs, others, results, services, training
from benchmarks.bench import Bench, Outcome
from benchmarks.inputs import block_weights, choose_training_examples, head_weights, join_answers, load_splits
from benchmarks.memory import MEMORY_CASES, check_room
from benchmarks.others import compare_answers
from benchmarks.processes import BenchmarkError, Deadline, SkipError, run_command, run_job
from benchmarks.results import SUMMARY_KEYS, build_document, describe_machine, format_table, write_plot
from benchmarks.training import TRAINING_CASES, check_losses, compute_fraction, merge_turns
from hf_instruct.models import load_tokenizer

PEAKS = {"device": "cpu", "gpu": None, "threads": 2, "bfloat16": 8e11, "float32": 2e11}
PROMISED_KEYS = [
    *(
        f"train.{model}.b{size}.{key}"
        for model in ("gpt2", "gpt2-medium")
        for size in (8, 32)
        for key in (
            "speedup_vs_trl_default",
            "speedup_vs_trl_tuned",
            "speedup_vs_course",
            "fraction_of_matmul_peak",
        )
    ),
    "train.long_answers.speedup_vs_trl_tuned",
    *(f"generate.speedup_vs_{peer}" for peer in ("one_by_one", "batched", "course")),
    *(f"memory.{model}_gb" for model in ("gpt2-medium_full", "gpt2-medium_lora", "gpt2-xl_lora")),
    "judge.efficiency_c1",
    "judge.efficiency_c8",
    "data.rows_per_second",
    "cli.help_seconds",
]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from benchmarks.inputs import save_model

    folder = tmp_path_factory.mktemp("benchmarks") / "tiny"
    return str(save_model("tiny", str(folder))["folder"])


def look_up(document: dict, key: str) -> object:
    for part in key.split("."):
        document = document[part]
    return document


def training_entry(seconds: float) -> dict[str, object]:
    return {
        "seconds_per_step": seconds,
        "example_tokens_per_second": 500 / seconds,
        "peak_memory_gb": 2.5,
        "seconds": [seconds],
        "losses": [9.0],
    }


def some_outcomes() -> dict[str, Outcome]:
    entries = {"ours": training_entry(0.5) | {"fraction_of_matmul_peak": 0.61}, "trl-default": training_entry(3.5)}
    values = {"train.gpt2.b8.speedup_vs_trl_default": 7.00001, "train.gpt2.b8.fraction_of_matmul_peak": 0.61}
    skipped = {"train.gpt2.b8.speedup_vs_course": "the quick run leaves it out"}
    data = Outcome({"data.rows_per_second": 9000.0}, {"ours": {"value": 9000.0, "unit": "rows/s"}})
    return {"train.gpt2.b8": Outcome(values, entries, skipped), "data.rows_per_second": data}


def some_document() -> dict[str, object]:
    skipped, failed = {"memory.gpt2-xl_lora_gb": "too little disk"}, {"generate": "answers differ"}
    return build_document(some_outcomes(), skipped=skipped, failed=failed, mode="quick")


def test_the_document_holds_every_key_with_a_number_or_a_reason() -> None:
    document = some_document()
    assert set(PROMISED_KEYS) <= set(SUMMARY_KEYS)
    for key in SUMMARY_KEYS:
        assert (look_up(document, key) is None) == (key in document["skipped"]), key
    assert look_up(document, "train.gpt2.b8.speedup_vs_trl_default") == 7.0
    assert document["skipped"]["train.gpt2.b8.speedup_vs_course"] == "the quick run leaves it out"
    assert document["skipped"]["memory.gpt2-xl_lora_gb"] == "too little disk"
    assert document["skipped"]["generate.speedup_vs_course"] == "failed: answers differ"
    assert document["skipped"]["cli.help_seconds"] == "not run"
    assert document["quick"] is True
    assert json.loads(json.dumps(document)) == document


def test_every_summary_key_belongs_to_a_case() -> None:
    assert all(any(key == case or key.startswith(f"{case}.") for case in command.CASES) for key in SUMMARY_KEYS)
    assert sorted(command._ORDER) == sorted(command.CASES)


def test_the_gpu_table_leaves_out_who_did_not_take_part() -> None:
    turn = {name: [8, 8] for name in ("example_tokens", "label_tokens", "computed_tokens")} | {"losses": [2.0, 1.0]}
    turn |= {"seconds": [0.004, 0.004], "precision": "bfloat16", "peak_memory_bytes": 6e9}
    lines = gpu.format_table({"LoRA": {name: merge_turns([turn]) for name in ("ours", "trl-tuned")}}).splitlines()
    assert lines[0] == "| a step (median) | ours | trl-tuned | trl-default | course |"
    assert lines[2] == "| LoRA | 4 ms, 2,000 tokens/s, 6.0 GB | 4 ms, 2,000 tokens/s, 6.0 GB |  |  |"


def test_the_gpu_file_has_answers_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_file: Path) -> None:
    answered = {"new_tokens": 64, "seconds": 0.1, "peak_memory_bytes": 1e9, "equal": 1.0, "responses": {}}
    monkeypatch.setattr(gpu, "run_answers", lambda *_, **__: {"ours": answered})
    monkeypatch.setattr(gpu, "run_case", lambda case, bench: {})
    # Left as it is by what sets it only where it is not set.
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    assert gpu.main(["--data", str(sample_file), "--output", str(tmp_path / "numbers.json")]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["answers"] == {"ours": answered}
    assert list(numbers["steps"]) == [case.title for case in gpu.CASES]


def test_the_machine_is_described() -> None:
    machine = describe_machine(PEAKS)
    assert machine["matmul_peak_gflops"] == {"bfloat16": 800, "float32": 200}
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert "gpu" not in describe_machine(None)


def test_the_table_is_aligned_and_says_what_is_missing() -> None:
    lines = format_table(some_document()).splitlines()
    assert lines[0].split() == [
        "case",
        "contestant",
        "time",
        "tokens/s",
        "ours",
        "is",
        "faster",
        "of",
        "peak",
        "memory",
    ]
    assert lines[2].split() == ["train.gpt2.b8", "ours", "0.500", "s/step", "1,000", "61%", "2.5", "GB"]
    assert lines[3].split() == ["trl-default", "3.500", "s/step", "143", "7.0", "x", "2.5", "GB"]
    assert lines[2].index("ours") == lines[3].index("trl-default")
    assert len(lines[2]) == len(lines[3]) == len(lines[0])
    assert "9,000 rows/s" in lines[4]
    assert "failed: generate: answers differ" in lines
    assert "not measured: memory.gpt2-xl_lora_gb: too little disk" in lines


def test_the_plot_is_written_at_twice_800_dots(tmp_path: Path) -> None:
    from PIL import Image

    write_plot(some_document(), tmp_path / "images" / "performance.png")
    with Image.open(tmp_path / "images" / "performance.png") as image:
        assert image.width == 1600


def test_turns_are_merged_by_medians() -> None:
    def turn(*seconds: float) -> dict[str, object]:
        per_step = {"losses": [9.0, 8.5], "example_tokens": [400, 500], "label_tokens": [90, 110]}
        rest = {"computed_tokens": [300, 350], "precision": "bfloat16", "peak_memory_bytes": 2e9}
        return {"seconds": list(seconds), **per_step, **rest}

    merged = merge_turns([turn(1.0, 2.0), turn(1.2, 9.0)])
    assert merged["seconds_per_step"] == pytest.approx(1.6)
    assert merged["example_tokens_per_second"] == pytest.approx((400 / 1.2 + 500 / 2.0) / 2)
    assert merged["losses"] == [9.0, 8.5, 9.0, 8.5]
    assert merged["peak_memory_gb"] == 2.0


def test_losses_must_agree() -> None:
    check_losses({"ours": {"losses": [9.0, 8.0, 1.0]}, "course": {"losses": [9.04, 8.0, 2.0]}})
    check_losses({"ours": {"losses": [9.0]}, "trl-default": {"losses": [9.2]}})
    for wrong in (9.1, float("nan")):
        with pytest.raises(BenchmarkError, match="measured step 1 differ"):
            check_losses({"ours": {"losses": [9.0]}, "course": {"losses": [wrong]}})


def test_the_fraction_of_the_peak_counts_four_instead_of_six_for_frozen_weights() -> None:
    full, lora = (
        next(case for case in TRAINING_CASES if case.name == f"train.gpt2-medium.{n}") for n in ("b8", "lora.b8")
    )
    ours = {"computed_tokens": [320], "label_tokens": [100], "seconds": [2.0], "precision": "bfloat16"}
    products = block_weights("gpt2-medium") * 320 + head_weights("gpt2-medium") * 100
    assert compute_fraction(full, ours, PEAKS) == pytest.approx(6 * products / 2.0 / 8e11)
    assert compute_fraction(lora, ours, PEAKS) == pytest.approx(4 * products / 2.0 / 8e11)


def test_the_weights_of_a_shape_are_those_of_the_model(tiny_model: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    blocks = sum(p.numel() for name, p in model.transformer.h.named_parameters() if p.dim() > 1)
    assert blocks == block_weights("tiny")
    assert model.lm_head.weight.numel() == head_weights("tiny")
    assert (model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop) == (0, 0, 0)


def test_examples_come_in_one_shuffled_order(tiny_model: str, sample_file: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    short = choose_training_examples(str(sample_file), tokenizer, count=8)
    assert short == choose_training_examples(str(sample_file), tokenizer, count=1000)[:8]
    train = load_splits(str(sample_file))["train"]
    assert len(train) == 170
    assert short != train[:8]
    assert set(short) < set(train)


def test_long_answers_have_150_tokens_on_average(tiny_model: str, sample_file: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    examples = load_splits(str(sample_file))["train"]
    joined = join_answers(examples, tokenizer)
    lengths = [len(tokenizer(example.output)["input_ids"]) for example in joined]
    assert sum(lengths) / len(lengths) == pytest.approx(150, abs=15)
    assert min(lengths) < 80
    assert max(lengths) > 220
    assert [example.instruction for example in joined] == [example.instruction for example in examples]


# TRL warns of its own future defaults, differently in each version.
@pytest.mark.filterwarnings("default")
@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_all_ways_to_train_see_the_same_batches_and_losses(tiny_model: str, sample_file: Path, lora: bool) -> None:
    from transformers import trainer

    names = ["ours", "trl-tuned"] if lora else list(contestants.CONTESTANTS)
    callbacks = list(trainer.DEFAULT_CALLBACKS)
    job = contestants.TrainingJob("", tiny_model, str(sample_file), batch_size=2, warm_up=1, steps=2, lora=lora)
    reports = {name: contestants.run_training(**dataclasses.asdict(job) | {"contestant": name}) for name in names}
    check_losses(reports)
    assert callbacks == trainer.DEFAULT_CALLBACKS
    for name, report in reports.items():
        assert len(report["seconds"]) == len(report["losses"]) == len(report["computed_tokens"]) == 2, name
        assert min(report["seconds"]) > 0
        assert report["example_tokens"] == reports["ours"]["example_tokens"]
        assert report["peak_memory_bytes"] > 1e8
    # Padded batches have at least the tokens of their examples.
    padded = reports["trl-tuned"]
    assert all(c >= e for c, e in zip(padded["computed_tokens"], padded["example_tokens"], strict=True))


@pytest.mark.slow
def test_all_ways_to_answer_give_the_same_answers(tiny_model: str, sample_file: Path) -> None:
    job = generation.GenerationJob("", tiny_model, str(sample_file), prompts=3, new_tokens=4)
    reports = {
        name: generation.run_generation(**dataclasses.asdict(job) | {"contestant": name})
        for name in generation.CONTESTANTS
    }
    for name, report in reports.items():
        assert len(report["responses"]) == 3
        if report["precision"] == "float32":
            assert compare_answers(reports["ours"]["responses"], report["responses"]) == 1, name
    assert reports["ours-bf16"]["precision"] == "bfloat16"


def test_the_judge_is_measured_against_a_server_in_another_process() -> None:
    with services.judge_server(0.01) as url:
        report = services.measure_judge(url, calls=6, concurrency=3)
    assert report["calls"] == 6
    # No client is faster than the server's fixed latency.
    assert report["seconds"] >= 2 * 0.01


def test_rows_are_tokenized_in_chunks(tiny_model: str, sample_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_CHUNK_ROWS", 20)
    report = services.measure_data(tiny_model, str(sample_file), rows=50)
    assert report["rows"] == 50
    assert report["memory_growth_bytes"] >= 0


def test_a_command_reports_its_own_peak_and_its_failure() -> None:
    small = run_command([sys.executable, "-c", "print('out')"])
    large = run_command([sys.executable, "-c", "x = b'1' * 300_000_000"])
    assert small.output == "out\n"
    assert large.peak_bytes > 300_000_000
    with pytest.raises(BenchmarkError, match=r"(?s)status 3:.*what went wrong"):
        run_command([sys.executable, "-c", "import sys; print('what went wrong', file=sys.stderr); sys.exit(3)"])


def test_a_command_ends_with_the_time_given_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SkipError, match="were over"):
        run_command([sys.executable, "-c", ""], deadline=Deadline(1.0))
    monkeypatch.setattr("benchmarks.processes._MIN_SECONDS", 0.1)
    with pytest.raises(SkipError, match="not done within"):
        run_command([sys.executable, "-c", "import time; time.sleep(60)"], deadline=Deadline(0.5))


def test_a_job_without_a_report_is_a_failure() -> None:
    with pytest.raises(BenchmarkError, match="status"):
        run_job("peak", {"no such field": 1})


def test_a_machine_too_small_for_a_case_is_told(tmp_path: Path) -> None:
    case = dataclasses.replace(MEMORY_CASES[-1], least_bytes=1e18)
    with pytest.raises(SkipError, match="GB of memory"):
        check_room(case, folder=tmp_path)


def test_a_failed_case_keeps_the_others_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Bench) -> Outcome:
        raise BenchmarkError("the answers differ")

    monkeypatch.setitem(command.CASES, "generate", fail)
    monkeypatch.setitem(command.CASES, "data.rows_per_second", lambda _: some_outcomes()["data.rows_per_second"])
    output = tmp_path / "results" / "part.json"
    words = ["--dry", "--only", "generate", "data", "--data", str(sample_file), "--output", str(output)]
    assert command.main(words) == 1
    document = json.loads(output.read_text())
    assert document["data"]["rows_per_second"] == 9000
    assert document["failed"] == {"generate": "the answers differ"}
    assert document["skipped"]["cli.help_seconds"] == "not asked for (`--only`)"
    capsys.readouterr()
    assert command.main(["--show", str(output)]) == 0
    assert "failed: generate: the answers differ" in capsys.readouterr().out


def test_the_examples_in_docstrings_hold() -> None:
    tried = [doctest.testmod(module) for module in (bench, inputs, others, results, training)]
    assert all(count.attempted for count in tried)
    assert not any(count.failed for count in tried)


def test_wrong_arguments_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], sample_file: Path) -> None:
    assert command.main(["--data", str(tmp_path / "none.json")]) == 2
    assert "instruction-data.json" in capsys.readouterr().err
    assert command.main(["--only", "nothing", "--data", str(sample_file)]) == 2
    assert "train.gpt2.b8" in capsys.readouterr().err


@pytest.mark.slow
def test_the_commands_of_the_cases_run(tmp_path: Path, sample_file: Path) -> None:
    output = tmp_path / "dry.json"
    cases = ["train.gpt2-medium.lora", "generate", "memory.gpt2-medium_lora", "cli", "judge.efficiency_c8", "data"]
    words = ["--dry", "--only", *cases, "--data", str(sample_file), "--output", str(output)]
    finished = run_command([sys.executable, "-m", "benchmarks", *words, "--plot", str(tmp_path / "plot.png")])
    document = json.loads(output.read_text())
    assert document["failed"] == {}
    assert sorted(document["cases"]) == sorted(name for name in command.CASES if name.startswith(tuple(cases)))
    assert document["machine"]["matmul_peak_gflops"]["bfloat16"] > 0
    assert "drawn:" in finished.output


def test_large_data_is_measured_part_by_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.million import main

    monkeypatch.setattr("sys.argv", ["million", "200"])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("200 rows, 0 MB")
    assert [" GB  " in line for line in lines[1:]] == [True] * 4
    assert lines[-1].endswith("170 training rows tokenized")
