"""No text of others steers the terminal or shows a secret, whichever way it is printed."""

import ast
import io
import json
import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import hf_instruct
from hf_instruct.cli.main import VERBS, build_parser, main
from hf_instruct.console import format_json, wrap
from hf_instruct.errors import ConfigError

STEERING = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
HARMLESS = "]0;owned[2J31m"
SECRET = "https://me:passw0rd@example.com/x?y hf_" + "aB3" * 11
REDACTED = "https://example.com/x?y [token removed]"


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the handler of `report` does instead: `call`."""
    act: dict[str, object] = {}
    monkeypatch.setattr("hf_instruct.cli.report._report", lambda options: act["call"]())  # type: ignore[operator]
    return act


def test_output_is_clean(handler: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    def call() -> None:
        print(f"a {STEERING} b\n\tc")  # noqa: T201
        sys.stdout.write(STEERING)

    handler["call"] = call
    before = sys.stdout
    assert main(["report", "x"]) == 0
    assert capsys.readouterr().out == f"a {HARMLESS} b\n    c\n{HARMLESS}"
    assert sys.stdout is before


def test_errors_are_clean_and_hold_no_secret(handler: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    remedy = "Check its permissions, or choose another path."
    errors = {
        f"hf-instruct: 1 problem:\n  - {HARMLESS} {REDACTED}\n": ConfigError("1 problem:", [f"{STEERING} {SECRET}"]),
        f"hf-instruct: `{HARMLESS}` cannot be read or written: no. {remedy}\n": PermissionError(13, "no", STEERING),
    }
    for said, error in errors.items():

        def call(error: Exception = error) -> None:
            raise error

        handler["call"] = call
        assert main(["report", "x"]) == 1
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "words", [[f"--x{STEERING}"], [f"--judge.{STEERING}", "1"], ["--seed", f"{STEERING} {SECRET}"]]
)
def test_usage_errors_of_all_verbs_are_clean(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    for verb in VERBS:
        with pytest.raises(SystemExit):
            parser.parse_args([verb, *words, "a", "b", "--run-dir"])
        said = capsys.readouterr().err
        assert said
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(said)
        assert "passw0rd" not in said


def test_the_log_is_clean_and_holds_no_secret() -> None:
    code = f"""
from hf_instruct.processes import configure_process
import logging
configure_process()
logging.getLogger("hf_instruct.x").info("Judging with %s", {STEERING + SECRET!r})
logging.getLogger("other").warning({STEERING!r})
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr.decode()
    assert said == f"Judging with {HARMLESS}{REDACTED}\n{HARMLESS}\n"


def test_json_reads_back_as_it_was() -> None:
    values = {"é 東京": [STEERING, "a\xa0b\tc\n", "\U000e0001", "👩\u200d👧", 1.5, None]}
    text = format_json(values)
    assert json.loads(text) == values
    assert "é 東京" in text
    assert all(char == "\n" or char.isprintable() for char in text)


def test_nothing_is_printed_but_to_standard_output() -> None:
    found = []
    for path in sorted(Path(hf_instruct.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, to_a_file = ast.unparse(node.func), any(keyword.arg == "file" for keyword in node.keywords)
            if name.startswith(("sys.stderr.write", "sys.__std")) or (name == "print" and to_a_file):
                found.append(path.name)
    # Messages go to standard error by these and by the log.
    assert found == ["main.py"]


def test_a_terminal_breaks_no_line_inside_a_word() -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        termios.tcsetwinsize(follower, (24, 40))
        text = "  - " + "words and more " * 5 + "/a/path/that/is/as/long/as/it/is/and/longer\nshort"
        lines = wrap(text, terminal).split("\n")
    os.close(leader)
    assert max(len(line) for line in lines if "/" not in line) <= 40
    assert "\n".join(lines).split() == text.split()
    assert [line[:4] for line in lines[1:-1]] == ["    "] * (len(lines) - 2)
    assert wrap(text, io.StringIO()) == text
