"""Answering under `accelerate launch`: the same rows as one process writes, in the same order."""

import os
import sys
from pathlib import Path

import pytest
import tiny_models
from launching import call, kill_when, launcher, num_lines

from hf_instruct.config import build_experiment
from hf_instruct.records import write_rows
from hf_instruct.run_folder import RunFolder

pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
LAUNCHER = launcher("cpu_2proc.yaml")
EXAMPLES = tiny_models.tiny_examples(45)


def make_run(path: Path, tiny_gpt2: Path, tiny_llama: Path) -> RunFolder:
    run = RunFolder(path)
    write_rows(run.split("test"), EXAMPLES)
    run.model.symlink_to(tiny_gpt2)
    values = {"model": {"name": str(tiny_llama)}, "generate": {"max_new_tokens": 12, "batch_size": 1}}
    run.save_experiment(build_experiment(values, where="here", deep=False))
    return run


def answer(run: RunFolder) -> list[str | Path]:
    return ["recipes/generate.py", run.path]


def test_two_processes_answer_as_one(tiny_gpt2: Path, tiny_llama: Path, tmp_path: Path) -> None:
    one, two, broken = (make_run(tmp_path / name, tiny_gpt2, tiny_llama) for name in ("one", "two", "broken"))
    call([sys.executable, *answer(one)], ENVIRONMENT)
    call([*LAUNCHER, *answer(two)], ENVIRONMENT)
    # Killed on two processes, and finished by one.
    has_rows = lambda: num_lines(*broken.response_parts()) >= 6  # noqa: E731
    kill_when(has_rows, [*LAUNCHER, *answer(broken)], ENVIRONMENT, with_children=True)
    assert broken.response_parts()
    assert not broken.responses.exists()
    call([sys.executable, *answer(broken)], ENVIRONMENT)
    for run in (two, broken):
        assert run.responses.read_bytes() == one.responses.read_bytes()
        assert run.response_parts() == []
    assert [row.id for row in one.read_responses()] == [example.id for example in EXAMPLES]
