import json
import re
from pathlib import Path

import pytest

from hf_instruct.cli.main import main

SHOWN = """\
A  {0}
   6 scores; mean 50.0 where both have one
B  {1}
   6 scores; 1 of them failed; mean 46.0 where both have one
"""


def test_it_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text("[10, 30, 50, 70, 90, 20]")
    b.write_text("[20, 10, 50, 70, 80, null]")
    assert main(["agree", str(a), str(b)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith(SHOWN.format(a, b))
    cells = [re.split(r"  +", line) for line in shown.out.splitlines()[6:12]]
    lines = {name: [value, *(ends[0].split() if ends else [])] for name, value, *ends in cells}
    assert lines["Pearson"][0] == "0.933"
    assert lines["Spearman"][0] == "0.900"
    assert lines["Kendall tau-b"][0] == "0.800"
    assert lines["mean of B - A, points"] == ["-4.0", "-18.0", "to", "+8.0"]
    assert lines["mean distance, points"][0] == "8.0"
    assert lines["within 10 points"][0] == "80 %"
    assert "\n! Only 5 examples: " in shown.out


def test_it_prints_json_that_the_seed_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, scores in (("a.json", range(0, 100, 5)), ("b.json", [5, 0, *range(10, 100, 5)])):
        (tmp_path / name).write_text(json.dumps(list(scores)))
    printed = []
    for seed in ("0", "0", "1"):
        assert main(["agree", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json", "--seed", seed]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1]
    assert printed[0]["estimates"]["kendall"]["value"] == printed[2]["estimates"]["kendall"]["value"]
    assert printed[0]["estimates"]["pearson"]["interval"] != printed[2]["estimates"]["pearson"]["interval"]
    assert (printed[0]["n"], printed[0]["kind"], printed[0]["counts"], printed[0]["notices"]) == (
        20,
        "scores",
        None,
        [],
    )


def test_a_mistake_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    assert main(["agree", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"hf-instruct: `{tmp_path / 'b.json'}` cannot be read")
