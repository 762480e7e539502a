import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_instruct.cli.main import build_parser
from hf_instruct.errors import ConfigError, DataError

Command = Callable[..., list[str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `hf-instruct data ...` and return the lines of its standard output."""

    def run(*words: object) -> list[str]:
        options = build_parser(["data"]).parse_args(["data", *map(str, words)])
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
    assert lines[21:] == [
        "  What to do: keep one, or use the split `grouped`, which keeps them together.",
        f"{course_file}: 1,100 examples (325 with an input), no problems; 20 repeated prompts",
        "",
        "split `sequential`                       train  test  validation  total",
        "examples                                   935   110          55  1,100",
        "  without an input                         657    80          38    775",
        "  without an output                          0     0           0      0",
        "rows that repeat another row exactly                                  0",
        "rows that repeat an instruction + input                              25",
        "instruction + input also in train                  2           4      6",
        "instruction in train with another input           16           8     24",
        "near-duplicate in train (>= 0.9)                   6           3      9",
        "",
        "Near-duplicates: instruction + input of test and validation compared with train, without repeats; TF-IDF of "
        "character 3- to 5-grams within words, case ignored; cosine. The nearest:",
        "  0.980  Convert 3 kilometers to meters. ~ Convert 5 kilometers to meters.",
        "  0.976  Convert 7 kilometers to meters. ~ Convert 5 kilometers to meters.",
        "  0.959  Convert 50 miles per hour to kilometers per… ~ Convert 20 miles per hour to kilometers per…",
        "To see label tokens and rows that `max_length` truncates, name the model, as in `--model gpt2-medium`.",
        "What to do: `--split grouped` keeps training prompts out of test.",
    ]


def test_check_of_another_split(command: Command, course_file: Path) -> None:
    lines = command("check", course_file, "--split", "grouped", "--strict", "--near", "0.95")
    assert lines[24] == "split `grouped`                          train  test  validation  total"
    assert lines[30] == "instruction + input also in train                  0           0      0"
    assert lines[32] == "near-duplicate in train (>= 0.95)                  1           1      2"
    assert lines[-1] == "What to do: check the near-duplicates before you trust a score on them."


def test_strict_names_the_rows_of_the_file(command: Command, repeating_file: Path) -> None:
    with pytest.raises(DataError) as caught:
        command("check", repeating_file, "--strict")
    assert caught.value.summary == (
        f"2 test and 4 validation examples of `{repeating_file}` have the same instruction and input as a training "
        "example, so a score on them would measure memorization, and `--strict` refuses such data. Split with `--split "
        "grouped`, which keeps equal pairs in one split, or delete the repeats:"
    )
    assert caught.value.problems[2:] == [
        'validation, row 202 ("Rewrite the sentence so that it means the opposite."): also row 2 of train',
        'validation, row 203 ("Identify the main verb of the sentence."): also row 3 of train',
        'validation, row 204 ("Use the words in a sentence."): also row 4 of train',
        "and 1 more",
    ]


def test_check_as_json_is_what_a_run_writes(command: Command, small_file: Path) -> None:
    fractions = ("--train-fraction", 0.4, "--test-fraction", 0.34, "--validation-fraction", 0.26)
    preflight = json.loads("\n".join(command("check", small_file, *fractions, "--json")))
    assert preflight["examples"] == {"train": 1, "test": 1, "validation": 1, "total": 3}
    assert [len(preflight["seen_in_train"][name]) for name in ("test", "validation")] == [0, 1]
    assert preflight["tokens"] is None
    assert preflight.keys().isdisjoint({"data_sha256", "prompt_format"})


def test_a_split_that_was_asked_for_has_to_be_possible(command: Command, small_file: Path) -> None:
    with pytest.raises(DataError, match="3 examples would be split into 2 train, 0 test, 1 validation"):
        command("check", small_file, "--split", "shuffled")


def test_the_defaults_are_those_of_a_run() -> None:
    import inspect

    from hf_instruct.config import DataSection
    from hf_instruct.data.splits import split_examples

    section = DataSection()
    parameters = inspect.signature(split_examples).parameters
    for name in ("split", "train_fraction", "test_fraction", "validation_fraction", "seed"):
        assert parameters[name].default == getattr(section, name)


def test_check_names_lines_of_the_file(command: Command, small_file: Path) -> None:
    lines = command("check", small_file)
    assert lines[1] == "  - line 1 has the same instruction and input (but not output) as line 3"
    assert lines[3] == f"{small_file}: 3 examples (1 with an input), no problems; 1 repeated prompt"
    assert lines[5].split() == ["not", "split", "total"]
    assert lines[-2].startswith(
        "A run would stop here: 3 examples would be split into 2 train, 0 test, 1 validation at"
    )


def test_check_says_what_was_recognised_and_takes_several_sources(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text('{"question": "Who?", "answer": "Me."}\n')
    assert (
        command("check", path)[0]
        == f"`{path}` contains questions and answers: `question` as instruction, `answer` as output."
    )
    lines = command("check", f"[{path}, {{path: everyday, limit: 19}}]")
    assert lines[1:3] == [f"`{path}`: 1 of 1 rows", "`everyday`: 19 of 19 rows"]
    assert lines[3].startswith(f"{path} + everyday: 20 examples")


def test_check_shows_warnings_beside_faults(
    command: Command, small_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_file.write_text(small_file.read_text() + "nonsense\n")
    with pytest.raises(DataError) as caught:
        command("check", small_file)
    assert str(caught.value) == (
        f"1 problem in `{small_file}`:\n  - `{small_file}` line 4 is not JSON (expecting value, at column 1); each "
        "line must be one complete object; fix the line"
    )
    assert capsys.readouterr().out.startswith(f"1 warning in `{small_file}`:\n")


def test_check_needs_a_tokenizer_to_count_tokens(command: Command, small_file: Path) -> None:
    with pytest.raises(ConfigError, match="`--max-length` 5 counts tokens, which needs a tokenizer; name the model"):
        command("check", small_file, "--max-length", 5)


def test_check_with_a_map(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "qa.csv"
    path.write_text("question,answer\nWho?,Me.\n")
    lines = command("check", path, "--map", "instruction=question, output = answer")
    assert lines[0] == f"{path}: 1 example (0 with an input), no problems; 0 repeated prompts"


def test_show_counts_from_0(command: Command, sample_file: Path) -> None:
    assert command("show", sample_file, 55) == [
        f"example 55 of 200 in {sample_file}, counted from 0",
        "id:          102411efaf14",
        "category:    antonyms",
        "instruction: Add a prefix to make the opposite of the word.",
        "input:       regular",
        "output:      The opposite is 'irregular'.",
        "",
        "--- prompt (alpaca) ---",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
        "",
        "### Instruction:",
        "Add a prefix to make the opposite of the word.",
        "",
        "### Input:",
        "regular",
        "",
        "### Response:",
        "",
        "--- completion, followed by the model's end-of-text token ---",
        "The opposite is 'irregular'.",
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
    with pytest.raises(DataError, match="has no example 3; it has 3, counted from 0 to 2"):
        command("show", small_file, 3)


def test_the_chat_format_needs_a_tokenizer(command: Command, small_file: Path) -> None:
    with pytest.raises(ConfigError, match="`chat` is the tokenizer's chat template; name the model with `--model`"):
        command("show", small_file, "--format", "chat")


def test_stats(command: Command, small_file: Path, tmp_path: Path) -> None:
    plot = tmp_path / "lengths.png"
    lines = [line.split() for line in command("stats", small_file, "--format", "phi3", "--plot", plot)]
    assert lines[3:7] == [
        ["prompt", "characters", "35.3", "37", "37", "37"],
        ["completion", "characters", "5.0", "4", "10", "10"],
        ["prompt", "words", "5.0", "5", "5", "5"],
        ["completion", "words", "1.0", "1", "1", "1"],
    ]
    assert lines[9:11] == [["facts", "2"], ["sums", "1"]]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_checking_a_file_loads_no_heavy_library(small_file: Path) -> None:
    code = (
        "import sys\n"
        "from hf_instruct.cli.main import build_parser\n"
        "parser = build_parser(['data'])\n"
        "heavy = {'torch', 'transformers', 'trl', 'httpx', 'jinja2', 'rich', 'matplotlib'}\n"
        "assert not (heavy | {'pydantic', 'datasets'}) & set(sys.modules), heavy & set(sys.modules)\n"
        "fractions = ['--train-fraction', '0.4', '--test-fraction', '0.34']\n"
        "options = parser.parse_args(['data', 'check', sys.argv[1], *fractions])\n"
        "options.handler(options)\n"
        "heavy -= {'httpx', 'rich'}\n"
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
    assert [line.split()[-1] for line in lines[7:10]] == ["5", "2", "7"]
    lines = command("check", small_file, "--prompt-format", "phi3", "--tokenizer", folder, "--max-length", 6)
    assert "  - line 2 has 7 tokens, more than `max_length` 6" in lines
    assert [tuple(re.split("  +", line)) for line in lines[-9:-3]] == [
        ("label tokens", "3"),
        ("rows that repeat another row exactly", "0"),
        ("rows that repeat an instruction + input", "1"),
        ("rows truncated at `max_length` 6", "3"),
        ("rows without any label after truncation", "0"),
        ("rows whose text contains a special token", "0"),
    ]
    assert lines[-1] == "What to do: shorten 3 rows or raise `--max-length` (longest: 7)."
    lines = command("show", small_file, 1, "--format", "phi3", "--tokenizer", folder)
    assert lines[-4:] == ["--- completion ---", "<unk> <end>", "", f"5 prompt tokens, 2 completion tokens ({folder})"]
