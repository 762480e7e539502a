import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_instruct.cli import data
from hf_instruct.errors import ConfigError, DataError

Command = Callable[..., list[str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `hf-instruct data ...` and return the lines of its standard output."""

    def run(*words: object) -> list[str]:
        parser = argparse.ArgumentParser(prog="hf-instruct")
        data.add_parser(parser.add_subparsers())
        options = parser.parse_args(["data", *map(str, words)])
        options.handler(options)
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.jsonl"
    rows = [
        {"instruction": "Name a color.", "input": "", "output": "Red.", "category": "facts"},
        {"instruction": "Add.", "input": "1 2", "output": "3", "category": "sums"},
        {"instruction": "Name a color.", "output": "Blue.\x1b[31m", "category": "facts"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_check_of_the_courses_data(command: Command, course_file: Path) -> None:
    lines = command("check", course_file)
    assert lines[0] == f"20 warnings in `{course_file}`:"
    assert lines[1] == "  - row 29 has the same instruction and input (but not output) as row 1068"
    assert lines[-2] == ("  What to do: keep one, or split with `--data.split grouped` so that they stay together.")
    assert lines[-1] == f"{course_file}: 1,100 examples (325 with an input), no faults; 20 repeated prompts"
    assert len(lines) == 23


def test_check_names_lines_of_the_file(command: Command, small_file: Path) -> None:
    assert command("check", small_file) == [
        f"1 warning in `{small_file}`:",
        "  - line 1 has the same instruction and input (but not output) as line 3",
        "  What to do: keep one, or split with `--data.split grouped` so that they stay together.",
        f"{small_file}: 3 examples (1 with an input), no faults; 1 repeated prompt",
    ]


def test_check_shows_warnings_beside_faults(
    command: Command, small_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_file.write_text(small_file.read_text() + "nonsense\n")
    with pytest.raises(DataError) as caught:
        command("check", small_file)
    assert str(caught.value) == (
        f"1 fault in `{small_file}`:\n  - `{small_file}` line 4 is not JSON (expecting value, at column 1); each line "
        "is "
        "one whole object; mend the line"
    )
    assert capsys.readouterr().out.startswith(f"1 warning in `{small_file}`:\n")


def test_check_needs_a_tokenizer_to_count_tokens(command: Command, small_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        command("check", small_file, "--max-length", 5)
    assert str(caught.value) == (
        "`--max-length` 5 counts tokens, which needs a tokenizer; name the model you mean to tune with `--tokenizer`, "
        "as "
        "in `--tokenizer gpt2-medium`."
    )


def test_check_with_a_map(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "qa.csv"
    path.write_text("question,answer\nWho?,Me.\n")
    assert command("check", path, "--map", "instruction=question, output = answer") == [
        f"{path}: 1 example (0 with an input), no faults; 0 repeated prompts"
    ]


def test_show_counts_from_0(command: Command, course_file: Path) -> None:
    assert command("show", course_file, 50) == [
        f"example 50 of 1,100 in {course_file}, counted from 0",
        "id:          f058792a5cb2",
        "instruction: Identify the correct spelling of the following word.",
        "input:       Ocassion",
        "output:      The correct spelling is 'Occasion.'",
        "",
        "--- prompt (alpaca) ---",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
        "",
        "### Instruction:",
        "Identify the correct spelling of the following word.",
        "",
        "### Input:",
        "Ocassion",
        "",
        "### Response:",
        "",
        "--- completion, which the model's end-of-text token ends ---",
        "The correct spelling is 'Occasion.'",
    ]


def test_show_makes_control_characters_harmless(command: Command, small_file: Path) -> None:
    lines = command("show", small_file, 2, "--format", "phi3")
    assert lines[2:6] == [
        "category:    facts",
        "instruction: Name a color.",
        "input:       (empty)",
        "output:      Blue.\\x1b[31m",
    ]
    assert lines[7] == "--- prompt (phi3) ---"
    assert lines[-1] == "Blue.\\x1b[31m"


def test_show_of_an_example_that_is_not_there(command: Command, small_file: Path) -> None:
    assert command("show", small_file)[0] == f"example 0 of 3 in {small_file}, counted from 0"
    with pytest.raises(DataError) as caught:
        command("show", small_file, 3)
    assert str(caught.value) == f"`{small_file}` has no example 3; it has 3, counted from 0 to 2."


def test_the_chat_format_needs_a_tokenizer(command: Command, small_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        command("show", small_file, "--format", "chat")
    assert str(caught.value) == (
        "The prompt format `chat` is a tokenizer's own; name the model with `--tokenizer`, as in `--tokenizer "
        "smollm2-135m`."
    )


def test_stats(command: Command, small_file: Path, tmp_path: Path) -> None:
    plot = tmp_path / "lengths.png"
    assert command("stats", small_file, "--format", "phi3", "--plot", plot) == [
        f"{small_file}: 3 examples, 1 with an input, 1 repeated prompt",
        "",
        "length of    in               mean   median     95 %  longest",
        "prompt       characters       35.3       37       37       37",
        "completion   characters        5.0        4       10       10",
        "prompt       words             5.0        5        5        5",
        "completion   words             1.0        1        1        1",
        "",
        "category                           examples",
        "facts                                     2",
        "sums                                      1",
        "",
        "Lengths in tokens need a tokenizer: add `--tokenizer MODEL`, as in `--tokenizer gpt2-medium`.",
        "",
        f"Histogram: {plot}",
    ]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "f.json", "--map", "output"], "argument --map: `output` is not OURS=THEIRS, as in `output=answer`"),
        (["check", "f.json", "--map", "output=a,output=b"], "argument --map: `output` is given twice"),
        (["check", "f.json", "--limit", "0"], "argument --limit: `0` is not a whole number of at least 1"),
        (["show", "f.json", "-1"], "argument N: `-1` is not a whole number; examples are counted from 0"),
        (["show", "f.json", "x"], "argument N: `x` is not a whole number; examples are counted from 0"),
        ([], "the following arguments are required: ACTION"),
        (["check"], "the following arguments are required: SOURCE"),
    ],
)
def test_usage_errors(command: Command, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command(*words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {message}")


def test_checking_a_file_loads_no_heavy_library(small_file: Path) -> None:
    code = (
        "import argparse, sys\n"
        "from hf_instruct.cli import data\n"
        "parser = argparse.ArgumentParser()\n"
        "data.add_parser(parser.add_subparsers())\n"
        "heavy = {'torch', 'transformers', 'datasets', 'trl', 'pydantic', 'httpx', 'jinja2', 'rich', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "options = parser.parse_args(['data', 'check', sys.argv[1]])\n"
        "options.handler(options)\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(small_file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_tokens_are_counted_with_a_models_tokenizer(command: Command, small_file: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({"<unk>": 0, "<end>": 1, "Red.": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    lines = command("stats", small_file, "--format", "phi3", "--tokenizer", folder)
    assert lines[7:10] == [
        "prompt       tokens            5.0        5        5        5",
        "completion   tokens            2.0        2        2        2",
        "whole row    tokens            7.0        7        7        7",
    ]
    lines = command("check", small_file, "--prompt-format", "phi3", "--tokenizer", folder, "--max-length", 6)
    assert "  - line 2 has 7 tokens, more than `max_length` 6" in lines
    assert lines[-1] == "3 examples longer than 6 tokens"
    lines = command("show", small_file, 1, "--format", "phi3", "--tokenizer", folder)
    assert lines[-4:] == ["--- completion ---", "3<end>", "", f"5 prompt tokens, 2 completion tokens ({folder})"]
