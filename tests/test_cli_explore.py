import json
import re
import shutil
from pathlib import Path

import pytest
import tiny_models

from hf_instruct.cli.explore import _format_beam_tree
from hf_instruct.cli.main import main
from hf_instruct.config import build_experiment
from hf_instruct.generation.beam_tree import explore_beams
from hf_instruct.run_folder import RunFolder

SMALL = ["--length", "6", "--depth", "3"]


@pytest.fixture
def run(tmp_path: Path, tiny_gpt2: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    values = {"model": {"name": str(tiny_gpt2)}}
    folder.save_experiment(build_experiment(values, where="here", deep=False))
    folder.model.symlink_to(tiny_gpt2)
    return folder


def test_everything_at_once(tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "next.png"
    arguments = ["explore", "I want to take", "--model", str(tiny_gpt2), "--top", "4", "--plot", str(plot), *SMALL]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "continues 4 tokens:\n\n  I ␣want ␣to ␣take\n" in text
    assert len(re.findall(r"^ +[1-4]  .*%", text, re.MULTILINE)) == 4
    assert "top-k 10    keeps      10 tokens" in text
    assert "Beam search with 3 beams, 3 tokens" in text
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
    assert len(values["beams"]["texts"]) == 3
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
    assert "Neither top-k nor top-p is on: all 5,257 tokens can be drawn." in text
    assert "Beam" not in text
    assert "strategy" not in text


def test_the_tree_as_text(tiny_gpt2: Path) -> None:
    tree = explore_beams(*tiny_models.load_copy(tiny_gpt2), "I enjoy walking", num_beams=2, length=2)
    a, b = tree.roots
    lines = _format_beam_tree(tree).splitlines()
    assert lines[0].split() == ["token", "path"]
    assert [line.split()[0] for line in lines[1:] if line[0] in "├└"] == ["├─", "└─"]
    assert sum(node.kept for node in (a, b)) == len({text.token_ids[0] for text in tree.texts})
    assert a.probability >= b.probability
    assert f"{a.probability:>8.2%}  {a.path_probability:>8.3%}" in lines[1]
    assert sum(line.endswith("  best") for line in lines) == sum(line.endswith("  number 2") for line in lines) == 1
    assert len({len(line.split("%")[0]) for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "The prompt is empty"),
        (["a\x07"], "The prompt holds the control character U+0007 (character 2)"),
        (["a", "--strategies", "greedy,beem"], "Unknown strategy `beem`. Did you mean `beam`?"),
        (["a", "--plot", "next.gif"], "`next.gif` does not end in .png or .svg"),
        (["a", "--temperature", "0"], "`temperature` is 0; it should be above 0"),
        (["a", "--beams", "1"], "`--beams` is 1, which is greedy search"),
        (["a", "--plot", "/dev/null/x.png", "--beams", "0"], "`/dev/null/x.png` cannot be written: File exists."),
        (["dog " * 300], "the model has 256 positions. Shorten the prompt, or ask for fewer tokens"),
    ],
)
def test_mistakes(tiny_gpt2: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["explore", *arguments, "--model", str(tiny_gpt2)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_runs_that_are_missing(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "a", "--model", str(run.path) + "s"]) == 1
    assert f"does not exist. Did you mean `{run.path}`?" in capsys.readouterr().err
    run.model.unlink()
    assert main(["explore", "a", "--model", str(run.path)]) == 1
    assert "has no tuned model yet (no `model/` in it)" in capsys.readouterr().err
    shutil.rmtree(run.path)
    assert main(["explore", "a", "--model", str(run.path)]) == 1
    assert "does not exist." in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "I enjoy walking with my cute dog", "--strategies", "beam", "--length", "40"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  1  , +39\.\d\d%", text, re.MULTILINE)
    # What the strategy is known for.
    assert re.search(r"^beam +40 +[5-9]\d%", text, re.MULTILINE)
