import argparse
import errno
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hf_instruct.cli.flags import parse_overrides, split_settings
from hf_instruct.cli.main import VERBS, build_parser, main
from hf_instruct.config import describe_fields
from hf_instruct.errors import InstructError
from hf_instruct.processes import Terminated

RECIPE = "data: {limit: 20}\nmodel: {name: ./nowhere}\n"


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Put one verb, `try`, in the place of all others; return what its handler was called with and does."""
    state = argparse.Namespace(calls=[], error=None)

    def handle(options: argparse.Namespace) -> None:
        state.calls.append(options)
        if state.error is not None:
            raise state.error

    def build(arguments: list[str]) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog="hf-instruct", allow_abbrev=False)
        parser.set_defaults(overrides={})
        subparsers = parser.add_subparsers(required=True)
        trying = subparsers.add_parser("try", allow_abbrev=False)
        trying.add_argument("run", nargs="?")
        trying.add_argument("--force", action="store_true")
        trying.add_argument("--map")
        trying.set_defaults(handler=handle, sections=("train", "generate"), resume_hint="Go on with: it.")
        subparsers.add_parser("plain", allow_abbrev=False).set_defaults(handler=handle)
        return parser

    # The package's `main` is the function, which hides the module of that name.
    monkeypatch.setattr(sys.modules["hf_instruct.cli.main"], "build_parser", build)
    return state


def test_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out == alone


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS)], ids=" ".join)
def test_every_verb_says_more(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    if not words:
        assert all(re.search(rf"^    {verb}\b", text, re.MULTILINE) for verb in VERBS)
        return
    assert re.search("examples:\n(  # .*\n)?  hf-instruct ", text)
    # The commands of the examples stand on a line each, to be copied.
    assert max(len(line) for line in text.splitlines() if not line.startswith("  ")) <= 70
    # Comments that would not fit beside them stand above.
    assert [line for line in text.splitlines() if re.match(r"  hf-instruct \S.* {2,}\S", line) and len(line) > 70] == []


@pytest.mark.parametrize(
    ("command", "message"),
    {
        "trian": "`trian` is unknown. Did you mean `train`?",
        "judge scor runs/demo": "judge: error: `scor` is neither an action nor a file. Did you mean `score`?",
        "--nope": "hf-instruct: error: unrecognized arguments: --nope",
        "generate": "hf-instruct generate: error: the following arguments are required: run",
        "report a --nope": "hf-instruct: error: unrecognized arguments: --nope",
        "report a --train.seed=1": "hf-instruct: error: unrecognized argument: --train.seed",
        "run a.yaml --trian.seed 1": "unknown section in --trian.seed; allowed are data, model, train",
        "run a.yaml --train.seed": "hf-instruct: error: --train.seed needs a value",
        "report a --learning_rate 1": "hf-instruct: error: unrecognized argument: --learning_rate",
        "run demo --learning_rate --resume": "hf-instruct: error: --learning_rate needs a value",
        "run demo --lr 1": "unrecognized arguments: --lr 1. Did you mean `--train.learning_rate`?",
        "run demo --resum": "unrecognized arguments: --resum. Did you mean `--resume`?",
        "run demo --model gpt2": "unrecognized argument: --model. Did you mean `--model.name`?",
        "run demo --judge local": "unrecognized argument: --judge. Did you mean `--judge.backend`?",
        "run demo --limit 1": "error: --limit is ambiguous: --data.limit or --generate.limit; name one of them",
        "run dpo --limit=1": "--limit is ambiguous: --data.limit or --preferences.limit or --generate.limit; name one",
        # Of `generate`, but not what others mean by it.
        "run demo --batch-size 4": "ambiguous: --train.per_device_train_batch_size or --generate.batch_size; name one",
        "run dpo --lr 1": "unrecognized arguments: --lr 1. Did you mean `--dpo.learning_rate`?",
        "report": "hf-instruct report: error: the following arguments are required: RUN",
        "push a": "hf-instruct push: error: the following arguments are required: --to",
        "generate a --strategy beam --preset code": "argument --preset: not allowed with argument --strategy",
        "judge": "the following arguments are required: RUN_OR_FILE",
        "judge pairwise a": "the following arguments are required: --baseline",
        "judge pairwise a --baseline x --rubric course": "unrecognized arguments: --rubric course",
        "judge metrics a --force": "unrecognized arguments: --force",
        "export a": "hf-instruct export: error: the following arguments are required: --format",
        "export a --format onnx": "`onnx` is unknown. Choose from `merged`, `gguf`, `ollama`.",
        "export a --format merged --create x": "error: `--create` needs `--format ollama`, not `merged`",
        "export a --format ollama --base-url x": "error: `--base-url` needs `--create NAME`",
        "export a --format merged --type F16": "error: `--type` needs `--format gguf` or `ollama`",
        "data": "hf-instruct data: error: the following arguments are required: {check,show,stats}",
        "data check": "hf-instruct data check: error: the following arguments are required: SOURCE",
        "data check a --map output": "argument --map: `output` is not OURS=THEIRS, as in `output=answer`",
        "data check a --map output=a,output=b": "argument --map: `output` is given twice",
        "data check a --near 1.5": "argument --near: `1.5` is not a number above 0 and at most 1, as in `0.9`",
        "data show a -1": "argument N: `-1` is not a whole number of at least 0",
        "data show a x": "argument N: `x` is not a whole number of at least 0",
        "explore a --plot next.gif": "argument --plot: `next.gif` should end in .png or .svg",
        "compare a b --plot ab": "argument --plot: `ab` should end in .png or .svg",
        "data stats everyday --plot a.pdf": "argument --plot: `a.pdf` should end in .png or .svg",
        "run a.yaml --train.bf16 --resume": "hf-instruct: error: --train.bf16 needs a value",
    }.items(),
)
def test_usage_errors(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    captured = capsys.readouterr()
    assert (caught.value.code, captured.out) == (2, "")
    assert message in captured.err.splitlines()[-1]


def test_settings_may_stand_anywhere(verb) -> None:
    for command in (
        "run --train.seed 1 --generate.top_p=0.5 --force",
        "run --train.seed=1 --force --generate.top_p 0.5",
        "--train.seed 1 run --force --generate.top_p=0.5",
        "--force --generate.top_p 0.5 --train.seed=1 run",
    ):
        assert main(["try", *command.split()]) == 0
        assert (verb.calls[-1].run, verb.calls[-1].force) == ("run", True)
        assert verb.calls[-1].overrides == {"train.seed": 1, "generate.top_p": 0.5}


@pytest.mark.parametrize(
    ("command", "overrides"),
    {
        "run demo --learning_rate 1e-5": {"train.learning_rate": 1e-5},
        "run --learning-rate=1e-5 demo --r 4": {"train.learning_rate": 1e-5, "lora.r": 4},
        "run dpo --beta 0.2 --learning_rate 1e-6": {"dpo.beta": 0.2, "dpo.learning_rate": 1e-6},
        "train demo --split shuffled --max_length 64": {"data.split": "shuffled", "train.max_length": 64},
        "generate runs/a --top_p 0.9 --max_new_tokens 8": {"generate.top_p": 0.9, "generate.max_new_tokens": 8},
        "run grpo --max_completion_length 40": {"grpo.max_completion_length": 40},
        "judge runs/a --num_ctx 8192": {"judge.num_ctx": 8192},
    }.items(),
)
def test_a_setting_of_one_section_needs_no_section(command: str, overrides: dict[str, object]) -> None:
    parser = build_parser(command.split())
    words, settings = split_settings(command.split(), parser)
    assert parse_overrides(settings, parser.parse_args(words), parser) == overrides


def test_values_of_settings_are_yaml_and_other_flags_none(verb) -> None:
    for word, value in {"5e-5": 5e-5, "-1": -1, "[a, b]": ["a", "b"], "null": None, "a=b": "a=b", "a.b": "a.b"}.items():
        verb.calls.clear()
        assert main(["try", "--train.x", word]) == main(["try", f"--train.x={word}"]) == 0
        assert [options.overrides for options in verb.calls] == [{"train.x": value}] * 2
    assert main(["try", "--map=a.b=c.d", "x.y"]) == 0
    assert (verb.calls[-1].map, verb.calls[-1].run) == ("a.b=c.d", "x.y")
    assert verb.calls[-1].overrides == {}


def test_flags_of_fields_are_settings(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["judge", "score", "run", "--judge", "local", "--model", "1e5", "--concurrency", "3", "--pull"]
    options = build_parser(words).parse_args(words)
    expected = {"judge.backend": "local", "judge.model": "1e5", "judge.concurrency": 3, "judge.pull": True}
    assert options.overrides == expected
    with pytest.raises(SystemExit):
        main(["judge", "score", "--help"])
    described = {name: text for name, _, text in describe_fields()}
    assert described["judge.concurrency"] in " ".join(capsys.readouterr().out.split())


def test_a_users_mistake_is_one_message(verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb.error = InstructError("`x` is wrong. Do this.")
    assert main(["try"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hf-instruct: `x` is wrong. Do this.\n")


@pytest.mark.parametrize("words", [["report"], ["data", "show"]])
def test_debug_shows_the_traceback_of_any_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "nowhere.json"]) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert main([words[0], "--debug", *words[1:], "nowhere.json"]) == 1
    assert main([*words, "nowhere.json", "--debug"]) == 1
    said = capsys.readouterr().err
    assert said.count("Traceback") == 2
    assert said.endswith(message)


@pytest.mark.parametrize(("closed", "verb"), [(">&-", "run --fields"), ("2>&-", "run --fields"), ("<&-", "report .")])
def test_streams_may_be_closed(closed: str, verb: str, tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m hf_instruct {verb} {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == (1 if verb == "report ." else 0)
    assert "Traceback" not in done.stderr


def test_a_disk_that_refuses_is_no_bug(verb, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb.error = PermissionError(errno.EACCES, "Permission denied", "runs/a/.lock")
    assert main(["try"]) == 1
    text = "`runs/a/.lock` cannot be read or written: Permission denied. Check its permissions, or choose another path."
    assert capsys.readouterr().err == f"hf-instruct: {text}\n"
    verb.error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        main(["try"])


def test_an_interruption_says_how_to_continue(verb, capsys: pytest.CaptureFixture[str]) -> None:
    # As `push` does, which has more to say.
    stop = KeyboardInterrupt("Nothing was published.")
    stop.__cause__ = Terminated()
    for error, status in ((KeyboardInterrupt(), 130), (Terminated(), 143), (stop, 143)):
        verb.error = error
        for name, hint in (("try", " Go on with: it."), ("plain", "")):
            assert main([name]) == status
            assert capsys.readouterr().err == f"\nhf-instruct: interrupted.{hint}\n"


def test_ctrl_c_in_a_run_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.setattr("hf_instruct.pipeline.run", interrupted)
    path = tmp_path / "mine.yaml"
    settings = ["--train.seed", "1", "--data.source=a b.json", "--lora.target_modules", "[c_attn]"]
    settings += ["--train.run_name='12'", "--data.revision=12"]
    assert main(["train", str(path), "--run-dir", "d", *settings]) == 130
    command = capsys.readouterr().err.removeprefix("\nhf-instruct: interrupted. Continue with: ")
    assert command == (
        f"hf-instruct train {path} --run-dir d --resume --train.seed=1 '--data.source=a b.json' "
        "'--lora.target_modules=[\"c_attn\"]' '--train.run_name=\"12\"' --data.revision=12\n"
    )
    # What it says does the same again.
    assert main(shlex.split(command)[1:]) == 130
    assert capsys.readouterr().err.endswith(command)


@pytest.mark.parametrize(
    ("command", "message"),
    {
        "run": "Name a YAML file, or a recipe: `hf-instruct recipes` lists them.",
        "run mine.yml": "`mine.yml` is neither a file nor the name of a recipe. Did you mean `mine.yaml`?",
        "train mine.yaml --train.learning_rat 1": "1 problem in `mine.yaml` and the flags:",
        "run mine.yaml --data.prompt_format nope": "Unknown prompt format `nope`.",
        "generate runs/none": "`runs/none` does not exist.",
        "generate runs/none --train.seed 1": "`runs/none` does not exist.",
        "prefer runs/none --train.seed 1": "1 problem in the flags:",
        "report mine.yaml": "`mine.yaml` does not exist.",
    }.items(),
)
def test_mistakes_end_in_one_message_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    assert main(command.split()) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"hf-instruct: {message}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.yaml"]


def test_fields_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--fields"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("--data.source ") and "(default: instruction-data)" in line for line in lines)
    assert any(line.startswith("--dpo.NAME, of TRL's DPOConfig: learning_rate 5e-06, ") for line in lines)


@pytest.mark.parametrize(("reader", "read"), [("head -n 1", "--data.source"), ("true", "")])
def test_a_reader_that_leaves_early_is_no_error(reader: str, read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kept back by Python, a few lines are written at its end only.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    command = f"{sys.executable} -m hf_instruct run --fields | {reader}"
    finished = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith(read)
