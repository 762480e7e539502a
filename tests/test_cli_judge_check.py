"""`hf-instruct judge --self-check` as a user types it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_ollama import Answer, FakeOllama

from hf_instruct.cli.main import main
from hf_instruct.config import load_experiment
from hf_instruct.records import Example, write_rows
from hf_instruct.run_folder import RunFolder

EXAMPLES = [Example(f"id{i}", f"Spell the number {i}.", "", f"The word is number-{i}-spelt.") for i in range(12)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_INSTRUCT_CACHE", str(tmp_path / "cache"))
    for name in ("OLLAMA_HOST", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"instruction": row.instruction, "input": "", "output": row.output} for row in EXAMPLES]
    path = tmp_path / "rows" / "rows.json"
    path.parent.mkdir()
    path.write_text(json.dumps([{**row, "model_response": "Something."} for row in rows]))
    return path


def honest(body: dict[str, Any]) -> Answer:
    """Read the course's prompt as a careful judge would: score only what the response says."""
    found = re.search(
        r"Instruction:\n(.*?)(?:\n\n### Input:.*?)?`\n\nThe correct output is:\n`(.*?)`\n\nThe model's response is:\n"
        r"`(.*)`\n\nScore the model's response",
        body["messages"][-1]["content"],
        re.DOTALL,
    )
    assert found
    task, output, response = found.groups()
    score = 95 if output in response else 0 if response in ("", task) else 5
    return Answer(json.dumps({"score": score}))


def check(*arguments: object) -> int:
    return main(["judge", "--self-check", *(str(argument) for argument in arguments)])


def test_judge_without_any_verdict_fails(server: FakeOllama, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.reply = lambda body: Answer("no idea")
    assert check(file, "--limit", 2, "--judge", "ollama", "--base-url", server.url) == 1
    streams = capsys.readouterr()
    assert "FAILED: failures" in streams.out
    assert "hf-instruct: The judge gave no verdict: all 26 failed. " in streams.err
    assert (file.parent / "self_check.json").is_file()


def test_run_folder(server: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run")
    run.save_experiment(load_experiment(None, {"judge.base_url": server.url, "judge.backend": "ollama"}, deep=False))
    write_rows(run.split("test"), EXAMPLES)
    server.reply = honest
    assert check(run.path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "judge llama3@365c0bd, rubric course, 12 examples, 156 answers: passed",
        str(run.self_check),
        str(run.path / "self_check" / "judgments.jsonl"),
    ]
    assert json.loads(run.self_check.read_text())["passed"] is True


def test_file_and_strict(server: FakeOllama, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--judge", "ollama", "--base-url", server.url, "--limit", "5"]
    assert check(file, *flags) == 0
    streams = capsys.readouterr()
    # The fake gives 85 to everything.
    assert "The judge gave every answer the same score, 85" in streams.out
    assert "judge llama3@365c0bd, rubric course, 5 examples, 65 answers: FAILED: order, repeated" in streams.out
    assert json.loads((file.parent / "self_check.json").read_text())["failed"] == ["order", "repeated"]
    assert check(file, *flags, "--strict", "--out", file.parent / "out") == 1
    streams = capsys.readouterr()
    assert streams.err.endswith("hf-instruct: The judge failed its self-check: order, repeated.\n")
    assert (file.parent / "out" / "self_check.json").exists()
    # From now on every score by this judge says so.
    assert main(["judge", str(file), *flags[:4]]) == 0
    assert "; judge FAILED its self-check: order, repeated)" in capsys.readouterr().out


def test_packaged_examples(
    server: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    server.reply = honest
    flags = ["--judge", "ollama", "--base-url", server.url, "--concurrency", "32"]
    assert check(*flags) == 0
    assert "20 examples, 260 answers: passed" in capsys.readouterr().out.splitlines()[-1]
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["none.json"],
            "`none.json` does not exist; name a run folder or a file of responses, or leave it out",
        ),
        (["{folder}"], "is not a run folder (no `run.yaml` in it)."),
        (["{file}", "--limit", "1"], "`--limit` is 1; a self-check needs at least 2 examples."),
        (["{file}", "--rubric", "curse"], "Unknown rubric `curse`. Did you mean `course`?"),
        (["{empty}"], "`{empty}`"),
        (
            ["{single}"],
            "as one's answer is the other's wrong answer; there is 1. Name another source, or none",
        ),
        (["{same}"], "none has an output that differs from that of"),
        (["{file}", "--baseline", "x"], "`--baseline` names the other answers of `--pairwise`"),
        (["{file}", "--judge", "openai"], "OPENAI_API_KEY is not set."),
    ],
)
def test_bad_input(
    arguments: list[str], text: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"file": file, "folder": file.parent}
    row = {"instruction": "Task.", "input": "", "output": "Done.", "model_response": "x"}
    for name, content in (("empty", ""), ("single", json.dumps([row])), ("same", json.dumps([row] * 3))):
        names[name] = tmp_path / f"{name}.json"
        names[name].write_text(content)
    before = sorted(tmp_path.rglob("*"))
    assert check(*(argument.format(**names) for argument in arguments)) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert text.format(**names) in streams.err
    assert "Traceback" not in streams.err
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.is_file()] == []


def test_flags_of_the_self_check_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--limit", "3"], ["--strict"]):
        assert main(["judge", str(file), *flags]) == 1
        assert f"`{flags[0]}` belongs to `--self-check`" in capsys.readouterr().err
