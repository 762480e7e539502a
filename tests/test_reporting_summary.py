from pathlib import Path

import pytest
from reporting_run import write_run

from hf_instruct.records import write_rows
from hf_instruct.reporting.summary import format_summary, format_summary_line
from hf_instruct.schema import Response

WHOLE = """\
demo: gpt2-small, full fine-tuning

                  before        after
score of 100      26.3 ± 2.5    68.3 ± 2.5    n=4 of 4 / n=3 of 4, 1 failure
  difference      +35.0 points, 95 % interval -70.0 to +100.0 (paired, n=3)
validation loss   1.193         0.722         first, last
ended by itself   25 %          100 %         of the answers
judge             llama3 (ollama, digest 365c0bd3c000), rubric course@7777777
fine-tuning       5 min 14 s

Name the author.  [gain +100]
  before      0   Elizabeth Bennet
  after     100   Jane Austen.
  reference       Jane Austen.

Use a simile. | The car is fast.  [gain +75]
  before     10   The car is fast.
  after      85   As a bullet.
  reference       Fast as lightning.

Name a cloud.  [the worst score]
  before     90   Cumulonimbus!
  after      20   Cumulus.
  reference       Cumulonimbus.

! No difference shown in the scores: tuned - base is +35.0 points, 95 % interval -70.0
  to +100.0, over the 3 examples scored on both sides. The interval includes zero.
! Only 3 answers have a score: the standard error itself is uncertain.
! The judge gave no readable verdict on 1 of 4 tuned answers. The means are over the
  others.

answers           {run}/responses.jsonl"""


def test_summary_of_a_whole_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    assert format_summary(run) == WHOLE.format(run=run.path)


def test_summary_names_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=("data", "train"), generate={"base": False})
    assert format_summary(run) == (
        "demo: gpt2-small, full fine-tuning\n\n"
        "                  before        after\n"
        "validation loss   1.193         0.722         first, last\n"
        "fine-tuning       5 min 14 s\n\n"
        f"! Missing: the tuned model's answers. Make it with `hf-instruct generate {run.path}`."
    )


@pytest.mark.parametrize("width", [80, 100])
def test_long_texts_are_cut_and_cannot_steer_the_terminal(tmp_path: Path, width: int) -> None:
    run = write_run(tmp_path / "demo", stages=("data", "train"), generate={"base": False})
    text = "\x1b[2J\x07evil " + "many words " * 200
    write_rows(run.responses, [Response(id="a", instruction=text, input=text, output=text, response=text)])
    summary = format_summary(run, width=width)
    assert "\x1b" not in summary
    assert "\x07" not in summary
    lines = [line for line in summary.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= width
    assert len(lines) < 20
    assert "evil many words" in summary


def test_summary_line(tmp_path: Path) -> None:
    assert format_summary_line(write_run(tmp_path / "demo")) == (
        "score 26.3 ± 2.5 -> 68.3 ± 2.5 (n=4 of 4 and n=3 of 4, 1 failure; judge llama3 (ollama, digest 365c0bd3c000), "
        "rubric course@7777777); validation loss 1.193 -> 0.722"
    )


def test_summary_line_of_a_run_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=("data", "train"))
    assert format_summary_line(run) == (
        f"validation loss 1.193 -> 0.722; missing: the tuned model's answers (`hf-instruct generate {run.path}`)"
    )
