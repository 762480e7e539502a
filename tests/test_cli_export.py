import json
import re
from pathlib import Path

import publishing_runs
import pytest

from hf_instruct.cli.main import main
from hf_instruct.run_folder import RunFolder


@pytest.fixture
def run(small_model: Path, tmp_path: Path) -> RunFolder:
    return publishing_runs.write_run(tmp_path / "mine", small_model)


def test_a_gguf_with_its_check(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.path), "--format", "gguf", "--type", "f32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{run.path}/export/mine-F32.gguf  (")
    assert lines[1] == "  loaded again and compared with the run's model on the run's prompts:"
    assert re.fullmatch(r"  10 prompts     logits differ by up to \S+ of their spread; F32 allows 0.001", lines[2])
    assert lines[4] == "                 same greedy answer for 10 of 10"
    file = f"{run.path}/export/mine"
    assert lines[5:] == [
        f"Next: llama-cli -m {file}-F32.gguf --jinja --temp 0",
        f"To make a smaller file with llama.cpp: llama-quantize {file}-F32.gguf {file}-Q4_K_M.gguf Q4_K_M",
    ]
    assert all(len(line) <= 100 for line in lines[1:5])
    assert main(["export", str(run.path), "--format", "gguf", "--type", "F32"]) == 1
    assert "already exists. Replace it with `--force`" in capsys.readouterr().err


def test_ollama_as_json(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.path), "--format", "ollama", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["weights"] == str(run.path / "export/ollama/model-Q8_0.gguf")
    assert printed["merged"] is False
    assert printed["check"]["num_prompts"] == 10


def test_the_next_command_can_be_pasted(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = publishing_runs.write_run(tmp_path / "my run", small_model)
    assert main(["export", str(run.path), "--format", "ollama"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"Next: ollama create my-run -f '{run.path}/export/ollama/Modelfile'"


def test_merged(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.path), "--format", "merged"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{run.path}/export/merged  (")
    assert "same greedy answer for 10 of 10" in printed


def test_a_server_is_looked_for_before_any_work(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", str(run.path), "--format", "ollama"]
    assert main([*command, "--create", "../x"]) == 1
    assert "`--create ../x` is not a valid name for an Ollama model" in capsys.readouterr().err
    (tmp_path / "ollama").write_text('#!/bin/sh\nif [ "$OLLAMA_HOST $1" != "there list" ]; then exit 1; fi\n')
    (tmp_path / "ollama").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert main([*command, "--create", "x", "--base-url", "nowhere"]) == 1
    assert "`ollama list` failed" in capsys.readouterr().err
    assert not (run.path / "export").exists()
    # What comes after the export may fail, and the export stays.
    assert main([*command, "--create", "x", "--base-url", "there"]) == 1
    assert f"`ollama create x -f {run.path}/export/ollama/Modelfile` failed" in capsys.readouterr().err
    assert (run.path / "export/ollama/Modelfile").is_file()
