import json
import re
from pathlib import Path

import pytest
import tiny_models

from hf_instruct.cli.main import main
from hf_instruct.run_folder import RunFolder

SMALL = ["--length", "6", "--depth", "3"]


@pytest.fixture
def run(tmp_path: Path, tiny_gpt2: Path) -> RunFolder:
    return tiny_models.write_run_to_answer(tmp_path / "run", tiny_gpt2, [])


def test_everything_at_once(tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "next.png"
    arguments = ["explore", "I want to take", "--model", str(tiny_gpt2), "--top", "4", "--plot", str(plot), *SMALL]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "continues 4 tokens:\n\n  I ␣want ␣to ␣take\n" in text
    assert len(re.findall(r"^ *[1-4]  .*%", text, re.MULTILINE)) == 4
    assert "top-k 10 alone keeps" in text
    tree = text[text.index("Beam search with 3 beams, 3 tokens") :]
    assert re.search(r"^    \S+ +\d+\.\d+% +\d+\.\d+% +best$", tree, re.MULTILINE)
    for name in ("greedy", "beam", "sample", "top-k", "top-p"):
        assert re.search(rf"^{name} +6 ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 110
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_json_holds_all_numbers(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explore", "Name a color.", "--model", str(run.path), "--instruction", "--strategies", "greedy,top-p"]
    assert main([*arguments, "--json", "--seed", "4", *SMALL]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["next"]["prompt_tokens"][:3] == ["B", "el", "ow"]  # the run's prompt format
    assert values["next"]["prompt_tokens"][-1] == "\\n"
    assert len(values["next"]["tokens"]) == 20
    assert [answer["name"] for answer in values["strategies"]] == ["greedy", "top-p"]
    assert len(values["beams"]["texts"]) == 4
    assert main([*arguments, "--json", "--seed", "4", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out) == values
    # The folder of its model is as good a name of the run.
    arguments[3] = str(run.model)
    assert main([*arguments, "--json", "--seed", "4", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out) == {**values, "model": str(run.model)}


def test_parts_can_be_left_out(tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explore", "A dog ", "--model", str(tiny_gpt2), "--beams", "0", "--strategies", "none"]
    assert main([*arguments, "--top-k", "0", "--top-p", "1"]) == 0
    text = capsys.readouterr().out
    assert "sampling draws from 5,257 of 5,257 tokens" in text
    assert "Beam" not in text
    assert "by each strategy" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "The prompt is empty"),
        (["a\x07"], "control character U+0007"),
        (["a", "--strategies", "greedy,beem"], "Unknown strategy `beem`. Did you mean `beam`?"),
        (["a", "--temperature", "0"], "`temperature` is 0.0; it must be"),
        (["a", "--beams", "1"], "`--beams` is 1, which is greedy search"),
        (["a", "--plot", "/dev/null/x.png", "--beams", "0"], "`/dev/null/x.png` cannot be read or written"),
        (["dog " * 300], "the model only has 256 positions"),
    ],
)
def test_mistakes(tiny_gpt2: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["explore", *arguments, "--model", str(tiny_gpt2)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_run_folder_is_no_prompt(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", str(run.path)]) == 1
    assert "is a run folder; pass it as `--model" in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "I enjoy walking with my cute dog", "--strategies", "beam", "--length", "40"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^ +1  ,.* 39\.\d%", text, re.MULTILINE)
    # What the strategy is known for.
    assert re.search(r"^beam +40 +[5-9]\d%", text, re.MULTILINE)
