import re
from pathlib import Path

import pytest
from reporting_run import write_run

from hf_instruct.records import write_rows
from hf_instruct.reporting.summary import format_summary
from hf_instruct.schema import Response

# The product of `hf-instruct run`, as it is read.
WHOLE = """\
demo: gpt2-small, full fine-tuning

                  untuned      tuned        tuned - untuned (95 % interval)
score, 0-100      26.3 ± 21.3  68.3 ± 24.6  +35.0 (-70.0 to +100.0)
validation loss   1.193        0.722
finished          25 %         100 %
judge             llama3@365c0bd (ollama), rubric course@7777777; n=4 of 4 / n=3 of 4, 1
                  failure
fine-tuning       5 min 14 s

The intervals only cover the choice of test examples; training seed, decoding and judge
are fixed. With another seed the numbers may vary more; `hf-instruct sweep
EXPERIMENT.yaml --set train.seed=1,2,3` shows by how much.

Name the author.  [gain +100]
  untuned     0   Elizabeth Bennet
  tuned     100   Jane Austen.
  reference       Jane Austen.

Use a simile. | The car is fast.  [gain +75]
  untuned    10   The car is fast.
  tuned      85   As a bullet.
  reference       Fast as light.

Name a cloud.  [lowest score, 20]
  untuned    90   Cumulonimbus!
  tuned      20   Cumulus.
  reference       Cumulonimbus.

! The scores show no difference: tuned - untuned is +35.0 points, 95 % interval -70.0 to
  +100.0, over the 3 examples scored on both sides. The interval includes zero.
! Only 3 answers have a score: the standard error is uncertain.
! The judge gave no usable reply for 1 of 4 answers of the tuned model; counted as 0 or
  as 100, they would make the mean 51.3 or 76.3.

answers           {run}/responses.jsonl"""


def test_summary_of_a_whole_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    assert format_summary(run) == WHOLE.format(run=run.path)


def test_summary_names_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=("data", "train"), generate={"base": False})
    summary = format_summary(run)
    assert re.search(r"^validation loss +1\.193 +0\.722$", summary, flags=re.MULTILINE)
    assert "score" not in summary
    assert summary.endswith(f"! Missing: the tuned model's answers. Run `hf-instruct generate {run.path}`.")


@pytest.mark.parametrize("width", [80, 100])
def test_long_texts_are_cut_and_cannot_steer_the_terminal(tmp_path: Path, width: int) -> None:
    text = "\x1b[2J\x07evil " + "many words " * 200
    run = write_run(tmp_path / "demo", stages=("data", "train"), generate={"base": False})
    write_rows(run.responses, [Response(id="a", instruction=text, input=text, output=text, response=text)])
    summary = format_summary(run, width=width)
    assert "\x1b" not in summary
    assert "\x07" not in summary
    lines = [line for line in summary.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= width
    assert len(lines) < 20
    assert "evil many words" in summary
