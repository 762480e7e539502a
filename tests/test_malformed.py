"""Malformed files of every kind: each ends in one message and exit status 1 or 2, soon, and never in a traceback."""

import bz2
import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from reporting_run import write_run

from hf_instruct.cli.main import main

# Milliseconds each, and there are hundreds.
pytestmark = pytest.mark.slow

ROW = b'{"instruction": "Name a color.", "input": "", "output": "Red."}\n'
DEEP = b"[" * 100_000
NESTED = b"[" * 150 + b"]" * 150
LONG_INTEGER, HUGE = b"1" * 5000, b"1" + b"0" * 400

# Whatever is expected in a file, this is not it.
ANYWHERE = {
    "empty": b"",
    "blank": b" \n\n",
    "nul": b"\0" * 100,
    "not utf-8": b"\xff\xfa\x80 x",
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "binary": bytes(range(256)) * 20,
    "deep": DEEP,
    "deep object": b'{"a":' * 50_000,
    "text": b"hello",
    "torn": ROW[:30],
    "escape sequence": b"\x1b[31mred",
}
DATA = {
    **{f"{name}{suffix}": content for name, content in ANYWHERE.items() for suffix in (".json", ".jsonl")},
    **{f"{name}.csv": content for name, content in ANYWHERE.items() if name not in ("deep", "deep object")},
    "number.jsonl": b"42\n",
    "null.jsonl": b"null\n",
    "lists.jsonl": b"[1]\n[2]\n",
    "no columns.jsonl": b"{}\n",
    "null output.jsonl": b'{"instruction": "a", "output": null}\n',
    "object as text.jsonl": b'{"instruction": {"a": 1}, "output": "b"}\n',
    "nested as text.jsonl": b'{"instruction": ' + NESTED + b', "output": "b"}\n',
    "nan as text.jsonl": b'{"instruction": NaN, "output": Infinity}\n',
    "long integer.jsonl": b'{"instruction": ' + LONG_INTEGER + b', "output": "b"}\n',
    "huge integer.jsonl": b'{"instruction": ' + HUGE + b', "output": "b"}\n',
    "huge float.jsonl": b'{"instruction": 1e999, "output": "b"}\n',
    "surrogate.jsonl": b'{"instruction": "\\ud800", "output": "b"}\n',
    "nul in text.jsonl": b'{"instruction": "a\\u0000", "output": "b"}\n',
    "repeated key.jsonl": b'{"instruction": "a", "instruction": "c", "output": "b"}\n',
    "one long line.jsonl": b'{"instruction": "' + b"x" * 10_000_000,
    "one line bad.jsonl": ROW * 3 + DEEP + b"\n" + ROW,
    "single quotes.jsonl": b"{'instruction': 'a', 'output': 'b'}\n",
    "html.json": b"<!DOCTYPE html><html></html>",
    "object.json": b'{"train": [' + ROW.strip() + b'], "test": []}',
    "turns.jsonl": b'{"messages": [{"role": "user"}]}\n',
    "alternation.json": b'{"conversations": [{"from": "gpt", "value": "a"}]}',
    "numbers.json": b"[1, 2, 3]",
    "bare quote.csv": b'instruction,output\na,"b\n',
    "short row.csv": b"instruction,output\na\n",
    "separator only.csv": b"sep=,\n",
    "other separator.csv": b"sep=|\ninstruction,output\na,b\n",
    "same name.csv": b"output,output\na,b\n",
    "header only.csv": b"instruction,output\n",
    "not parquet.parquet": b"PAR1" + b"\0" * 50 + b"PAR1",
    "empty.parquet": b"",
    "torn.jsonl.gz": gzip.compress(ROW * 1000)[:-20],
    "not gzip.jsonl.gz": ROW,
    "flipped.csv.gz": gzip.compress(ROW)[:14] + b"\xff\xff" + gzip.compress(ROW)[16:],
    "torn.json.bz2": bz2.compress(ROW * 1000)[:-20],
    "not xz.jsonl.xz": ROW,
    "bad line.jsonl.gz": gzip.compress(ROW + b"{bad"),
    "twice.parquet.gz": gzip.compress(b"PAR1"),
    "zst.jsonl.zst": b"\x28\xb5\x2f\xfd",
    "other.txt": ROW,
    "no suffix": ROW,
}
BOMB = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n".encode() for n in range(1, 12)
)
MERGE_BOMB = b"a0: &a0 {x: 1}\n" + b"".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], y{n}: 1}}\n".encode() for n in range(1, 12)
)
EXPERIMENTS = {
    **{name: content for name, content in ANYWHERE.items() if name not in ("empty", "blank")},
    "list": b"- 1\n",
    "number": b"42",
    "block levels": b"- " * 5000 + b"a",
    "deep value": b"data: {source: " + b"[" * 3000 + b"]" * 3000 + b"}",
    "alias bomb": BOMB,
    "alias bomb in a section": b"data:\n  map:\n    " + BOMB.replace(b"\n", b"\n    "),
    "merge bomb": MERGE_BOMB,
    "value in itself": b"data: &a\n  map: *a\n",
    "unknown alias": b"data: *a\n",
    "repeated key": b"data: {seed: 1, seed: 2}\n",
    "tab": b"data:\n\tseed: 1\n",
    "tag": b"data: !!python/object/apply:os.system [ls]\n",
    "empty tag": b"data: {seed: !!int ''}\n",
    "wrong tag": b"data: {strict: !!bool maybe}\n",
    "unhashable key": b"? {a: b}\n: c\n",
    "no such date": b"data: {source: 2024-02-30}\n",
    "two documents": b"--- {}\n--- {}\n",
    "long integer": b"data: {seed: " + LONG_INTEGER + b"}\n",
    "huge integer": b"data: {seed: " + HUGE + b"}\n",
    "long hexadecimal": b"data: {seed: 0x" + b"f" * 5000 + b"}\n",
    "infinity": b"judge: {temperature: .inf}\n",
    "infinite fraction": b"data: {train_fraction: 1e999}\n",
    "not a number": b"data: {train_fraction: .nan}\n",
    "text for a section": b"data: everyday\n",
    "list for a section": b"data: [1]\n",
    "null for a value": b"data: {source: null}\n",
    "object for a text": b"data: {source: {a: 1}}\n",
    "number for a map": b"data: {map: 3}\n",
    "number in a map": b"data: {map: {output: 3}}\n",
    "unknown section": b"trian: {}\n",
    "section that is a number": b"3: 4\n",
    "section that is null": b"null: 4\n",
    "unknown setting": b"data: {sed: 1}\n",
    "wrong type": b"data: {seed: x}\n",
    "too large a list": b"data: {seed: [" + b"1, " * 9000 + b"1]}\n",
    "too many values": b"data: {seed: [" + b"1, " * 20000 + b"1]}\n",
    "too long": b"#" + b"x" * 1_100_000,
    "carriage returns": b"data:\r  seed: x\r",
}
FLAGS = (
    ("data.source", "[" * 3000),
    ("data.map", "{output: [" * 100),
    ("data.map", "{instruction: output, output: output}"),
    ("data.seed", "1" * 5000),
    ("data.seed", "&a [*a]"),
    ("data.seed", BOMB.decode()),
    ("judge.temperature", ".inf"),
    ("judge.temperature", "1e999"),
    ("judge.timeout_seconds", "1" + "0" * 400),
    ("data.train_fraction", "nan"),
    ("data.strict", "!!bool maybe"),
    ("data.limit", "!!int ''"),
    ("data.source", "\0"),
    ("data.source", "\udcff"),
)
# Each stands in a run folder for a file of another kind.
RUN_FILES = (
    "run.yaml",
    "data/test.jsonl",
    "data/train.jsonl",
    "data/preflight.json",
    "training.jsonl",
    "training.json",
    "responses.jsonl",
    "judgments.jsonl",
    "scores.json",
    "metrics.json",
    "self_check.json",
    "benchmarks.json",
    "pairwise/x.json",
)
IN_RUNS = {
    **{name: ANYWHERE[name] for name in ("empty", "nul", "not utf-8", "utf-16", "deep", "deep object", "torn")},
    "nested": b'{"id": "a", "judge": '
    + NESTED.replace(b"[", b'{"a":').replace(b":]", b":1}").replace(b"]", b"}")
    + b"}\n",
    "list": b"[1, 2]\n",
    "number": b"42\n",
    "null": b"null\n",
    "no fields": b"{}\n",
    "huge integers": b'{"id": "a", "score": %s, "seconds": %s, "mean": %s, "loss": %s}\n' % ((HUGE,) * 4),
    "nan": b'{"id": "a", "score": NaN, "mean": Infinity, "n": NaN}\n',
    "surrogate": b'{"id": "\\ud800", "model": "\\udcff"}\n',
}

Attack = Callable[..., str]


@pytest.fixture
def attack(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Attack:
    """Run a command that has to refuse what it is given, in a folder of its own, and return its message."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, statuses: tuple[int, ...] = (1, 2)) -> str:
        start = time.process_time()
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = int(str(stop.code))
        error = capsys.readouterr().err
        assert status in statuses
        assert time.process_time() - start < 4
        assert error.count("hf-instruct: ") == (1 if status else 0)
        assert "Traceback" not in error
        assert len(error) < 10_000
        return error

    return run


@pytest.mark.parametrize("name", DATA)
def test_data_files(name: str, attack: Attack, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(DATA[name])
    assert f"`{name}`" in attack("data", "check", name)


@pytest.mark.parametrize("name", ["folder.jsonl", "link.jsonl", "loop.json", "pipe.jsonl", "absent.jsonl", "x" * 5000])
def test_data_paths_that_are_not_files(name: str, attack: Attack, tmp_path: Path) -> None:
    make_odd_paths(tmp_path)
    assert "`" in attack("data", "check", name)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_files(name: str, attack: Attack, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(EXPERIMENTS[name])
    attack("run", "x.yaml", "--run-dir", "r")
    assert not (tmp_path / "r" / "data").exists()


@pytest.mark.parametrize(("name", "value"), FLAGS)
def test_flags(name: str, value: str, attack: Attack, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("data: {source: everyday}\n")
    attack("run", "x.yaml", "--run-dir", "r", f"--{name}={value}")
    assert not (tmp_path / "r" / "data").exists()


@pytest.mark.parametrize("name", ["folder.yaml", "link.yaml", "loop.yaml", "absent.yaml", "/dev/null/x.yaml"])
def test_experiment_paths_that_are_not_files(name: str, attack: Attack, tmp_path: Path) -> None:
    make_odd_paths(tmp_path)
    assert f"`{name}`" in attack("run", name, "--run-dir", "r")


def make_odd_paths(folder: Path) -> None:
    for suffix in ("json", "jsonl", "yaml"):
        (folder / f"folder.{suffix}").mkdir()
        (folder / f"link.{suffix}").symlink_to(folder / "gone")
        (folder / f"loop.{suffix}").symlink_to(folder / f"loop.{suffix}")
    os.mkfifo(folder / "pipe.jsonl")


@pytest.mark.parametrize("file", RUN_FILES)
def test_files_of_a_run_folder(file: str, attack: Attack, tmp_path: Path, subtests: pytest.Subtests) -> None:
    run, other = (write_run(tmp_path / name).path for name in ("run", "other"))
    (run / file).parent.mkdir(exist_ok=True)
    for name, content in IN_RUNS.items():
        with subtests.test(content=name):
            (run / file).write_bytes(content)
            # A file that a verb does not read, or does without, is no reason to refuse.
            attack("compare", run, other, statuses=(0, 1))
            if name in ("not utf-8", "nested", "huge integers"):
                attack("report", run, statuses=(0, 1))
