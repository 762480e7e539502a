from pathlib import Path

import pytest
from reporting_run import write_run

from hf_instruct.cli.main import build_parser
from hf_instruct.errors import RunError
from hf_instruct.reporting.summary import format_summary


def _run(*arguments: str) -> None:
    options = build_parser(["report"]).parse_args(["report", *arguments])
    options.handler(options)


def test_report_prints_the_page_and_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "demo")
    _run(str(run.path))
    path, _, summary = capsys.readouterr().out.partition("\n")
    assert path == str(run.report)
    assert summary == format_summary(run) + "\n"
    assert run.report.is_file()


def test_report_of_no_run_names_the_nearest(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    with pytest.raises(RunError) as caught:
        _run(str(tmp_path / "demi"))
    assert str(caught.value) == (
        f"`{tmp_path / 'demi'}` does not exist. Did you mean `{run.path}`? `hf-instruct run EXPERIMENT.yaml` creates "
        "one."
    )
    assert not (tmp_path / "demi").exists()
