"""`hf-instruct judge` as a user types it: score, pairwise, check and metrics."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_ollama import Answer, FakeOllama
from rows import response

from hf_instruct.cli.main import main
from hf_instruct.config import load_experiment
from hf_instruct.records import Example, append_rows, build_example_id, read_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Judgment, Preference

ROWS = [
    {"instruction": f"Task {n}.", "input": "", "output": f"Done {n}.", "model_response": f"Answer {n}."}
    for n in range(3)
]
EXAMPLES = [Example(f"id{i}", f"Spell the number {i}.", "", f"The word is number-{i}-spelt.") for i in range(12)]


@pytest.fixture(autouse=True)
def home(cache_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def ollama(server: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> FakeOllama:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    return server


@pytest.fixture
def file() -> Path:
    Path("rows.json").write_text(json.dumps(ROWS))
    return Path("rows.json")


def judge(*arguments: object) -> int:
    return main(["judge", *(str(argument) for argument in arguments)])


def make_run(name: str = "runs/mine", *, untuned: str = "?") -> RunFolder:
    run = RunFolder(Path(name))
    run.save_experiment(load_experiment(None))
    for model, suffix in (("untuned", untuned), ("tuned", "!")):
        rows = [response(f"id{n}", f"Answer {n}{suffix * (n % 3 + 1)}", model=model) for n in range(3)]
        append_rows(run.responses, rows)
    return run


@pytest.mark.parametrize("words", [[], ["score"]])
def test_scores_of_a_file(ollama: FakeOllama, file: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(*words, file) == 0
    score, metrics, *paths = capsys.readouterr().out.splitlines()
    assert score.startswith("85.0 ± 0.0 (standard error; 95 % interval none: all equal; n 3 of 3, 0 failed; ")
    assert score.endswith("judge llama3@365c0bd (ollama), rubric course@f870155)")
    assert metrics.startswith("metrics  exact match 0 %, ")
    assert paths == ["judgments.jsonl", "scores.json", "metrics.json"]
    assert [row.score for row in read_rows(Path("judgments.jsonl"), Judgment)] == [85, 85, 85]


def test_scores_of_a_run(ollama: FakeOllama, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    assert judge(run.path, "--no-cache") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:20] for line in lines[:4:2]] == ["untuned  85.0 ± 0.0 ", "tuned    85.0 ± 0.0 "]
    assert [line[:30] for line in lines[1:4:2]] == ["         metrics  exact match "] * 2
    assert lines[4:] == [str(run.judgments), str(run.scores), str(run.metrics)]
    assert judge(run.path, "--judge.base", "false", "--rubric", "critique") == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_first_look(ollama: FakeOllama, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(file, "--limit", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "; n 2 of 2, 0 failed; " in lines[0]
    assert lines[1] == "a first look: 2 of 3 answers; judged without a limit, the rest follow"
    assert lines[-2:] == ["judgments.jsonl", "metrics.json"]
    assert not Path("scores.json").exists()
    asked = len(ollama.chats)
    assert judge(file, "--no-cache") == 0
    assert (len(ollama.chats), len(read_rows(Path("judgments.jsonl"), Judgment))) == (asked + 1, 3)
    whole = Path("scores.json").read_text()
    assert json.loads(whole)["tuned"]["n"] == 3
    # A look at what is judged asks nothing, and leaves the scores of the whole.
    assert judge(file, "--limit", 1) == 0
    assert Path("scores.json").read_text() == whole
    run = make_run()
    assert judge(run.path, "--limit", 3) == 0
    assert str(run.scores) in capsys.readouterr().out.splitlines()
    assert run.read_scores().n == 3


def test_flags_reach_the_judge(ollama: FakeOllama, file: Path) -> None:
    ollama.reply = lambda body: Answer('{"score": 3}')
    flags = ["--model", "llama3", "--rubric", "five-point", "--concurrency", "1", "--out", "out"]
    assert judge("score", file, *flags, "--judge.num_ctx", "2048", "--judge.seed=7") == 0
    scores = json.loads(Path("out/scores.json").read_text())["tuned"]
    assert (scores["mean"], scores["rubric"]["name"]) == (50.0, "five-point")
    assert (scores["judge"]["options"]["num_ctx"], scores["judge"]["options"]["seed"]) == (2048, 7)
    assert not Path("scores.json").exists()


def test_judge_without_any_verdict_fails_and_leaves_its_files(
    ollama: FakeOllama, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ollama.reply = lambda body: Answer("no idea")
    assert judge(file) == 1
    streams = capsys.readouterr()
    assert streams.out.startswith("no score (no reply could be parsed; n 0 of 3, 3 failed; ")
    assert "No reply of the judge could be used: all 3 failed. `judgments.jsonl` has the replies" in streams.err
    assert len(read_rows(Path("judgments.jsonl"), Judgment)) == 3
    assert json.loads(Path("scores.json").read_text())["tuned"]["failures"] == 3
    # One side of a run is enough.
    run = make_run()
    ollama.reply = lambda body: Answer("no idea" if "!" in str(body) else "90")
    assert judge(run.path) == 1
    streams = capsys.readouterr()
    assert len(streams.out.splitlines()) == 7
    assert f"all 3 failed. `{run.judgments}` has the replies" in streams.err
    ollama.reply = lambda body: Answer("both")
    assert judge("pairwise", run.path, "--baseline", run.path / "untuned") == 1
    assert (
        "No reply of the judge could be used: all 3 failed. `runs/mine/pairwise/untuned.jsonl` has"
        in capsys.readouterr().err
    )
    assert len(read_rows(run.pairwise / "untuned.jsonl", Preference)) == 3
    assert judge("check", file, "--limit", 2) == 1
    streams = capsys.readouterr()
    assert "answers without a score" in streams.out
    assert "No reply of the judge could be used: all 26 failed. " in streams.err
    assert Path("self_check.json").is_file()


def test_run_without_any_verdict_fails_after_its_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from reporting_run import write_run

    run = write_run(tmp_path / "demo")
    monkeypatch.setattr("hf_instruct.cli.run._run_stages", lambda options, stages: run)
    assert main(["run", "demo.yaml", "--run-dir", str(run.path)]) == 0
    summary = capsys.readouterr().out
    none = {"mean": None, "standard_error": None, "interval": None, "n": 0, "failures": 4}
    run.write_scores("tuned", run.read_scores().model_copy(update=none))
    assert main(["run", "demo.yaml", "--run-dir", str(run.path)]) == 1
    streams = capsys.readouterr()
    assert streams.out.splitlines()[0] == summary.splitlines()[0]
    assert f"No reply of the judge could be used: all 4 failed. `{run.judgments}` has" in streams.err


def test_dying_server_says_how_to_continue(
    server: FakeOllama, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["judge", str(file), "--judge", "ollama", "--base-url", server.url, "--concurrency", "1", "--force"]
    monkeypatch.setattr(sys, "argv", ["hf-instruct", *command])
    server.dies_after = 2
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no longer answers" in error
    assert "2 of 3 are judged, saved to `judgments.jsonl`." in error
    assert f"`hf-instruct judge {file} --judge ollama --base-url {server.url} --concurrency 1`." in error
    assert len(read_rows(Path("judgments.jsonl"), Judgment)) == 2


def prefer_exclamations(body: dict[str, Any]) -> Answer:
    text = str(body["messages"][-1]["content"])
    answer_a = text[text.index("### Answer A") : text.index("### Answer B")]
    return Answer(json.dumps({"better": "A" if "!" in answer_a else "B"}))


def test_pairs_of_a_run_and_its_base(ollama: FakeOllama, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    ollama.reply = prefer_exclamations
    assert judge("pairwise", "runs/mine/", "--baseline", "runs/mine/untuned") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "runs/mine against runs/mine/untuned"
    assert lines[3] == "win rate                     100.0 %  95 % interval 43.9 to 100.0 %; won 3, tied 0, lost 0"
    assert lines[-2:] == ["runs/mine/pairwise/untuned.jsonl", "runs/mine/pairwise/untuned.json"]
    assert len(ollama.chats) == 6
    rows = read_rows(run.pairwise / "untuned.jsonl", Preference)
    assert [(row.first, row.second, row.score) for row in rows] == [("runs/mine", "runs/mine/untuned", 1.0)] * 3
    assert not run.scores.exists()


def test_pairs_of_files_and_equal_answers(ollama: FakeOllama) -> None:
    make_run()
    ollama.reply = prefer_exclamations
    shutil.copy("runs/mine/responses.jsonl", "tuned.jsonl")
    assert judge("pairwise", "tuned.jsonl", "--baseline", "runs/mine/untuned") == 0
    assert Path("pairwise/tuned-against-mine-untuned.jsonl").exists()
    ollama.reply = lambda body: Answer("Equal answers need no judge.")
    assert judge("pairwise", "runs/mine", "--baseline", "tuned.jsonl", "--out", "out") == 0
    assert json.loads(Path("out/mine-against-tuned.json").read_text())["identical"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "`other.jsonl` does not exist; use a run folder or a file of responses."),
        ("", "There are no responses in `other.jsonl`."),
        ("nonsense\n", "1 problem in `other.jsonl`:"),
        ('{"instruction": "x", "input": "", "output": "y", "response": "z"}\n', "have no example in common"),
    ],
)
def test_bad_baseline_writes_nothing(content: str | None, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    if content is not None:
        Path("other.jsonl").write_text(content)
    assert judge("pairwise", "runs/mine", "--baseline", "other.jsonl") == 1
    assert message in capsys.readouterr().err
    assert not Path("runs/mine/pairwise").exists()


def honest(body: dict[str, Any]) -> Answer:
    """Read the course's prompt as a careful judge would: score only what the response says."""
    found = re.search(
        r"Instruction:\n(.*?)(?:\n\n### Input:.*?)?`\n\nThe correct output is:\n`(.*?)`\n\nThe model's response is:\n"
        r"`(.*)`\n\nScore the model's response",
        body["messages"][-1]["content"],
        re.DOTALL,
    )
    assert found
    task, output, text = found.groups()
    score = 95 if output in text else 0 if text in ("", task) else 5
    return Answer(json.dumps({"score": score}))


def test_check_with_a_run(ollama: FakeOllama, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    write_rows(run.split("test"), EXAMPLES)
    ollama.reply = honest
    assert judge("check", run.path) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "judge llama3@365c0bd (ollama), rubric course@f870155, 156 answers: passed its check on 12 examples",
        str(run.self_check),
        str(run.path / "self_check" / "judgments.jsonl"),
    ]
    assert json.loads(run.self_check.read_text())["passed"] is True


def test_check_with_a_file_and_strict(ollama: FakeOllama, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("check", file) == 0
    # The fake gives 85 to everything.
    assert "The judge gave every answer the same score, 85" in capsys.readouterr().out
    # The file has three rows, which say too little.
    assert json.loads(Path("self_check.json").read_text())["passed"] is None
    assert judge("check", file, "--strict", "--out", "out") == 0
    assert judge("check", "--limit", "12", "--strict") == 1
    failed = "failed its check on 12 examples: the reference got 0.0 points more than the answer of another row"
    assert failed in capsys.readouterr().err
    # Afterwards every score by this judge says so.
    assert judge(file) == 0
    assert f"; the judge {failed}" in capsys.readouterr().out


def test_check_with_packaged_examples(ollama: FakeOllama, capsys: pytest.CaptureFixture[str]) -> None:
    ollama.reply = honest
    assert judge("check", "--limit", "5") == 0
    assert "65 answers: was checked on only 5 examples" in capsys.readouterr().out.splitlines()[-1]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.json"], "`none.json` does not exist; use a run folder or a file of responses."),
        (["check", "none.json"], "`none.json` does not exist; use a run folder or a file of responses."),
        (["metrics", "none.json"], "`none.json` does not exist; use a run folder or a file of responses."),
        (["metrics", "."], "is not a run folder (no `run.yaml` in it)."),
        (["metrics", "runs/mine", "--out", "x"], "`--out` is for files of responses"),
        (["."], "is not a run folder (no `run.yaml` in it)."),
        (["{file}", "--rubric", "curse"], "Unknown rubric `curse`. Did you mean `course`?"),
        (["{file}", "--concurrency", "0"], "`judge.concurrency` is 0; it must be greater than 0"),
        (["{file}", "--judge.num_ctxt", "1"], "`judge.num_ctxt` is unknown. Did you mean `num_ctx`?"),
        (["{file}", "--data.source", "x"], "`--data.source` is not a setting of `judge`"),
        (["{file}", "--out", "{file}/x"], "Use another folder with `--out DIR`."),
        (["{file}", "--judge", "gpt"], "`judge.backend` is 'gpt'; it must be 'auto', 'ollama', 'local' or"),
        (["{file}", "--judge", "openai"], "OPENAI_API_KEY is not set."),
        (
            ["{file}", "--judge", "ollama", "--base-url", "127.0.0.1:9"],
            "No Ollama server answers at http://127.0.0.1:9",
        ),
        (["{file}", "--base-url", "127.0.0.1:9"], "No Ollama server answers at http://127.0.0.1:9 (`base_url`; All"),
        (
            ["{file}", "--judge", "openai", "--base-url", "http://127.0.0.1:9/v1"],
            "No server answers at http://127.0.0.1:9",
        ),
        (["check", "{file}", "--limit", "1"], "`--limit` is 1; the judge check needs at least 2 examples."),
        (["check", "{file}", "--judge", "openai"], "OPENAI_API_KEY is not set."),
        (
            ["check", "single.json"],
            "because another example's answer is the wrong answer; there is 1. Use another source",
        ),
        (["check", "same.json"], "none has an output that differs from that of"),
    ],
)
def test_bad_input(arguments: list[str], text: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("single.json").write_text(json.dumps(ROWS[:1]))
    Path("same.json").write_text(json.dumps(ROWS[:1] * 3))
    make_run()
    before = sorted(Path().rglob("*"))
    assert judge(*(argument.format(file=file) for argument in arguments)) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert text in streams.err
    assert [path for path in Path().rglob("*") if path not in before and path.is_file()] == []


def test_rubric_that_fails_on_one_row_asks_nobody(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = "{{ instruction }}{{ input }}{{ output }}{{ response }}"
    Path("mine.yaml").write_text(f"prompt: \"{fields}{{{{ 9 // (instruction != 'Task 2.')|int }}}}\"\n")
    # Nobody listens there.
    assert judge(file, "--rubric", "mine.yaml", "--judge", "ollama", "--base-url", "127.0.0.1:9") == 1
    row = build_example_id("Task 2.", "", "Done 2.")
    assert f"the rubric `mine` is not a usable Jinja template for the example `{row}`" in capsys.readouterr().err
