import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from reporting_run import write_run

from hf_instruct.cli import report as cli_report
from hf_instruct.errors import RunError


def _run(*arguments: str) -> None:
    parser = argparse.ArgumentParser(prog="hf-instruct")
    cli_report.add_parser(parser.add_subparsers())
    options = parser.parse_args(["report", *arguments])
    options.handler(options)


def test_report_prints_the_page_and_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "demo")
    _run(str(run.path))
    path, line = capsys.readouterr().out.splitlines()
    assert path == str(run.report)
    assert line.startswith("score 26.3 ± 2.5 -> 68.3 ± 2.5 (n=4 of 4 and n=3 of 4, 1 failure; judge llama3 ")
    assert run.report.is_file()


def test_report_of_no_run_names_the_nearest(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    with pytest.raises(RunError) as caught:
        _run(str(tmp_path / "demi"))
    assert str(caught.value) == (
        f"`{tmp_path / 'demi'}` does not exist. Did you mean `{run.path}`? `hf-instruct run EXPERIMENT.yaml` makes one."
    )
    assert not (tmp_path / "demi").exists()


def test_report_needs_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _run()
    assert caught.value.code == 2
    assert "the following arguments are required: RUN" in capsys.readouterr().err


def test_the_parser_loads_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from hf_instruct.cli import report as verb;"
        "verb.add_parser(argparse.ArgumentParser().add_subparsers());"
        "print([name for name in ('torch', 'pydantic', 'jinja2', 'matplotlib', 'rich') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
