"""Answering under `accelerate launch`: the same rows as one process writes, in the same order."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny_models
from launching import launcher

from hf_instruct.config import build_experiment
from hf_instruct.records import write_rows
from hf_instruct.run_folder import RunFolder

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = launcher("cpu_2proc.yaml")
EXAMPLES = tiny_models.tiny_examples(45)


def make_run(path: Path, tiny_gpt2: Path, tiny_llama: Path) -> RunFolder:
    run = RunFolder(path)
    write_rows(run.split("test"), EXAMPLES)
    run.model.symlink_to(tiny_gpt2)
    values = {"model": {"name": str(tiny_llama)}, "generate": {"max_new_tokens": 12, "batch_size": 1}}
    run.save_experiment(build_experiment(values, where="here", deep=False))
    return run


def start(command: list[str | Path], run: RunFolder) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in (*command, "recipes/generate.py", run.path)]
    return subprocess.Popen(
        words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(command: list[str | Path], run: RunFolder) -> str:
    process = start(command, run)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_when_parts_hold(rows: int, run: RunFolder) -> None:
    process = start(LAUNCHER, run)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if sum(path.read_bytes().count(b"\n") for path in run.response_parts()) >= rows:
                break
            time.sleep(0.005)
    finally:
        # Those it launched first: without their launcher they would run on.
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        process.communicate()


def test_two_processes_answer_as_one(tiny_gpt2: Path, tiny_llama: Path, tmp_path: Path) -> None:
    one, two, broken = (make_run(tmp_path / name, tiny_gpt2, tiny_llama) for name in ("one", "two", "broken"))
    finish([sys.executable], one)
    finish(LAUNCHER, two)
    # Killed on two processes, and finished by one.
    kill_when_parts_hold(6, broken)
    assert broken.response_parts()
    assert not broken.responses.exists()
    finish([sys.executable], broken)
    for run in (two, broken):
        assert run.responses.read_bytes() == one.responses.read_bytes()
        assert run.response_parts() == []
    assert [row.id for row in one.read_responses()] == [example.id for example in EXAMPLES]
