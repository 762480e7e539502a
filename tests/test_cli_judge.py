"""`hf-instruct judge` as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_ollama import Answer, FakeOllama

from hf_instruct.cli.main import main
from hf_instruct.config import load_experiment
from hf_instruct.records import Judgment, Response, build_example_id, read_rows, write_rows
from hf_instruct.run_folder import RunFolder

ROWS = [
    {"instruction": f"Task {number}.", "input": "", "output": "Done.", "model_response": f"Answer {number}."}
    for number in range(3)
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_INSTRUCT_CACHE", str(tmp_path / "cache"))
    for name in ("OLLAMA_HOST", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


def judge(*arguments: object) -> int:
    return main(["judge", *(str(argument) for argument in arguments)])


def test_file(server: FakeOllama, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(file, "--judge", "ollama", "--base-url", server.url) == 0
    folder = file.parent
    score, metrics, *paths = capsys.readouterr().out.splitlines()
    assert score == (
        "85.0 ± 0.0 (standard error; 95 % interval none: all equal; n 3 of 3, 0 failed; judge llama3@365c0bd, rubric "
        "course)"
    )
    assert metrics.startswith("metrics  exact match 0 %, ")
    assert paths == [f"{folder}/{name}" for name in ("judgments.jsonl", "scores.json", "metrics.json")]
    assert [row.score for row in read_rows(folder / "judgments.jsonl", Judgment)] == [85, 85, 85]


def test_judge_without_any_verdict_fails_and_leaves_its_files(
    server: FakeOllama, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda body: Answer("no idea")
    assert judge(file, "--judge", "ollama", "--base-url", server.url) == 1
    streams = capsys.readouterr()
    assert streams.out.splitlines()[0].startswith("no score (no verdict could be read; n 0 of 3, 3 failed; ")
    assert streams.err.endswith(
        f"hf-instruct: The judge gave no verdict: all 3 failed. `{file.parent}/judgments.jsonl` has its replies and "
        "the reasons. Choose another with `--judge` and `--model`.\n"
    )
    assert len(read_rows(file.parent / "judgments.jsonl", Judgment)) == 3
    assert json.loads((file.parent / "scores.json").read_text())["failures"] == 3
    # One side of a run is enough.
    run = RunFolder(tmp_path / "run")
    run.save_experiment(load_experiment(None, {"judge.base_url": server.url, "judge.backend": "ollama"}, deep=False))
    write_rows(run.responses, [Response("a", "Do.", "", "Done.", "Bad.")])
    write_rows(run.base.responses, [Response("a", "Do.", "", "Done.", "Good.")])
    server.reply = lambda body: Answer("no idea" if "Bad." in str(body) else "90")
    assert judge(run.path) == 1
    streams = capsys.readouterr()
    assert len(streams.out.splitlines()) == 10
    assert f"all 1 failed. `{run.judgments}` has its replies" in streams.err


def test_run_without_any_verdict_fails_after_its_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from reporting_run import write_run

    run = write_run(tmp_path / "demo")
    scores = json.loads(run.scores.read_text())
    monkeypatch.setattr("hf_instruct.cli.run.run_stages", lambda options, stages: None)
    assert main(["run", "demo.yaml", "--run-dir", str(run.path)]) == 0
    summary = capsys.readouterr().out
    none = {"mean": None, "standard_error": None, "interval": None, "n": 0, "failures": scores["total"]}
    run.scores.write_text(json.dumps({**scores, **none}))
    assert main(["run", "demo.yaml", "--run-dir", str(run.path)]) == 1
    streams = capsys.readouterr()
    assert streams.out.splitlines()[0] == summary.splitlines()[0]
    assert f"The judge gave no verdict: all {scores['total']} failed. `{run.judgments}` has" in streams.err


def test_flags_reach_the_judge(server: FakeOllama, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    server.reply = lambda body: Answer('{"score": 3}')
    flags = ["--model", "llama3", "--rubric", "five-point", "--concurrency", "1", "--out", tmp_path / "out"]
    assert judge(file, *flags, "--judge.num_ctx", "2048", "--judge.seed=7") == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (scores["mean"], scores["rubric"]["name"]) == (50.0, "five-point")
    assert (scores["judge"]["options"]["num_ctx"], scores["judge"]["options"]["seed"]) == (2048, 7)
    assert not (file.parent / "scores.json").exists()


def test_run_folder(server: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run")
    run.save_experiment(load_experiment(None, {"judge.base_url": server.url, "judge.backend": "ollama"}, deep=False))
    rows = [Response(str(i), f"Task {i}.", "", "Done.", f"Answer {i}.") for i in range(3)]
    write_rows(run.responses, rows)
    write_rows(run.base.responses, rows[:2])
    assert judge(run.path, "--no-cache") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("base   85.0 ± 0.0 (standard error; 95 % interval none: all equal; n 2 of 2, ")
    assert lines[5].startswith("tuned  85.0 ± 0.0 (standard error; 95 % interval none: all equal; n 3 of 3, ")
    for side, start in ((run.base, 1), (run, 6)):
        assert lines[start].startswith("       metrics  exact match 0 %, ")
        shown = [line.strip() for line in lines[start + 1 : start + 4]]
        assert shown == [str(side.judgments), str(side.scores), str(side.metrics)]
    assert judge(run.path, "--judge.base", "false", "--rubric", "critique") == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_dying_server_says_how_to_go_on(
    server: FakeOllama, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["judge", str(file), "--judge", "ollama", "--base-url", server.url, "--concurrency", "1", "--force"]
    monkeypatch.setattr(sys, "argv", ["hf-instruct", *command])
    server.dies_after = 2
    assert main(command) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"hf-instruct: The Ollama server at {server.url} no longer answers (All connection attempts failed). "
        "Start it again with `ollama serve`. 2 of 3 are judged, kept in "
        f"`{file.parent}/judgments.jsonl`. Go on with the same command: `hf-instruct judge {file} --judge ollama "
        f"--base-url {server.url} --concurrency 1`."
    )
    assert len(read_rows(file.parent / "judgments.jsonl", Judgment)) == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.json"], "hf-instruct: `none.json` does not exist; name a run folder or a file of responses.\n"),
        (["{folder}"], "is not a run folder (no `run.yaml` in it)."),
        (["{file}", "--rubric", "curse"], "Unknown rubric `curse`. Did you mean `course`?"),
        (["{file}", "--concurrency", "0"], "`judge.concurrency` is 0; input should be greater than or equal to 1"),
        (["{file}", "--judge.num_ctxt", "1"], "`judge.num_ctxt` is unknown. Did you mean `num_ctx`?"),
        (["{file}", "--data.source", "x"], "`--data.source` is not a setting of judging; only `--judge.FIELD` is"),
        (["{file}", "--out", "{file}/x"], "Name another folder with `--out DIR`."),
        (["{file}", "--judge", "openai"], "OPENAI_API_KEY is not set."),
        (
            ["{file}", "--judge", "ollama", "--base-url", "127.0.0.1:9"],
            "No Ollama server answers at http://127.0.0.1:9",
        ),
        (["{file}", "--base-url", "127.0.0.1:9"], "No Ollama server answers at http://127.0.0.1:9 (`base_url`; All"),
        (
            ["{file}", "--judge", "openai", "--base-url", "http://127.0.0.1:9/v1"],
            "No server answers at http://127.0.0.1:9",
        ),
    ],
)
def test_bad_input(arguments: list[str], text: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled = [argument.format(file=file, folder=file.parent) for argument in arguments]
    assert judge(*filled) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert text in streams.err
    assert sorted(path.name for path in file.parent.iterdir() if path.name != "cache") == ["rows.json"]


def test_rubric_that_fails_on_one_row_asks_nobody(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rubric = file.parent / "mine.yaml"
    fields = "{{ instruction }}{{ input }}{{ output }}{{ response }}"
    rubric.write_text(f"prompt: \"{fields}{{{{ 9 // (instruction != 'Task 2.')|int }}}}\"\n")
    # Nobody listens there.
    assert judge(file, "--rubric", rubric, "--judge", "ollama", "--base-url", "127.0.0.1:9") == 1
    row = build_example_id("Task 2.", "", "Done.")
    assert capsys.readouterr().err == (
        f"hf-instruct: `prompt` of the rubric `mine` is not a usable Jinja template for the example `{row}`: integer "
        "division or modulo by zero.\n"
    )


def test_unusable_address_in_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "localhost:x")
    assert judge(file) == 1
    assert capsys.readouterr().err == (
        "hf-instruct: OLLAMA_HOST `localhost:x` is not usable. It looks like http://127.0.0.1:11434.\n"
    )


def test_usage_fault_exits_2(file: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        judge(file, "--judge", "gpt")
    assert caught.value.code == 2


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['hf-instruct', 'judge', '--help']\n"
        "from hf_instruct.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'transformers', 'httpx', 'pydantic', 'jinja2', 'ollama') if n in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"
    assert "--rubric R" in answer.stdout
