import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_instruct.cli.main import main
from hf_instruct.config import build_experiment, plain_values
from hf_instruct.console import redact
from hf_instruct.errors import ConfigError, DataError, ModelLoadError, RunError
from hf_instruct.generation.stage import answer
from hf_instruct.pipeline import clear_from
from hf_instruct.records import Example, read_file, read_rows, write_json, write_rows
from hf_instruct.run_folder import RunFolder, _git_commit
from hf_instruct.schema import TrainingRow, TrainingSummary
from hf_instruct.yaml_text import read_yaml


def experiment(**sections: object):
    return build_experiment({"model": {"name": "gpt2-small"}, **sections}, where="here", deep=False)


def test_an_experiment_and_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hf-instruct", "run", "a.yaml", "--judge.model", "m"])
    run = RunFolder(tmp_path)
    for values in ({"lora": {"r": 2}, "train": {"learning_rate": 5e-5}}, {"lora": {}}, {"generate": {"top_p": 0.5}}):
        run.save_experiment(experiment(**values))
        # What was found out about the data stays true when settings of a later stage change.
        run.add_provenance(data_sha256="0f")
        stored = read_yaml(run.config)
        assert run.load_experiment() == experiment(**values)
        assert ("lora" in stored["experiment"]) == ("lora" in values)
    assert list(stored) == ["experiment", "created_at", "command", "git_commit", "python", "versions", "data_sha256"]
    assert (stored["command"], stored["data_sha256"]) == ("hf-instruct run a.yaml --judge.model m", "0f")
    assert {"torch", "transformers", "trl", "peft", "accelerate", "datasets"} <= set(stored["versions"])


def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://user:passw0rd@127.0.0.1:1/v1"
    tokens = ["hf_" + "aB3" * 11, "sk-" + "0123456789ab" * 3]
    monkeypatch.setattr(sys, "argv", ["hf-instruct", "run", f"--judge.base_url={url}", *tokens])
    run = RunFolder(tmp_path)
    run.save_experiment(experiment(judge={"base_url": url}, train={"run_name": tokens[0]}))
    text = run.config.read_text()
    for secret in ("passw0rd", "user:", "aB3aB3", "0123456789ab"):
        assert secret not in text
    assert plain_values(experiment(judge={"base_url": url}))["judge"]["base_url"] == "http://127.0.0.1:1/v1"


def test_secrets_and_what_looks_like_one() -> None:
    for text, shown in {
        "https://user:p@ss@host/": "https://host/",
        "https://u:@p@s@@host:8000/v1 not, me@x.org": "https://host:8000/v1 not, me@x.org",
        "https://git@user:password@host": "https://host",
        f"key sk-proj-a_b-{'0aB' * 8}_c.": "key [token removed].",
    }.items():
        assert redact(text) == shown
    addresses = ("ssh://git@github.com/a/b", "git@github.com:a/b", "http://host:8080/@user")
    for text in (*addresses, "runs/hf_finetuning_experiments_2026", "hf-internal-testing-tiny-models"):
        assert redact(text) == text
    for part in ("://", "://git@", "://a@", "@", "git@", "a"):
        # Quadratic, it would take minutes.
        redact("://" + part * 200_000)


def test_a_base_model_in_a_folder_is_never_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    run.save_experiment(experiment(model={"name": "models/mine"}))
    (tmp_path / "work" / "models" / "mine").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert run.find_base("models/mine") == "models/mine"
    run.add_provenance(base_model_is_local=False)
    assert run.find_base("models/mine") == "models/mine"
    run.add_provenance(base_model_is_local=True)
    # The model of a wheel lies in a folder of the cache.
    assert run.find_base("smollm2-135m") == "smollm2-135m"
    with pytest.raises(ModelLoadError, match=r"local folder `models/mine`, which does not exist in `.*other`"):
        run.find_base("models/mine")
    write_json(run.model / "adapter_config.json", {"base_model_name_or_path": str(tmp_path / "work/models/mine")})
    assert run.find_base("models/mine") == str(tmp_path / "work/models/mine")
    (run.model / "adapter_config.json").unlink()
    monkeypatch.chdir(tmp_path / "work")
    assert run.find_base("models/mine") == "models/mine"


def test_the_commit_is_of_the_toolkit_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "m")
    git("tag", "-a", "v1", "-m", "m")
    for home, commit in (("hf_instruct", git("rev-parse", "HEAD")), (".venv/site-packages/hf_instruct", None)):
        monkeypatch.setattr("hf_instruct.run_folder.__file__", str(tmp_path / home / "run_folder.py"))
        assert _git_commit() == commit


def test_folders_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder("~/run").path == tmp_path / "run"
    assert RunFolder(Path("~nobody-of-that-name/run")).path == Path("~nobody-of-that-name/run")
    with pytest.raises(RunError, match=r"missing` does not exist\. `hf-instruct run EXPERIMENT.yaml` creates one\."):
        RunFolder(tmp_path / "missing").load_experiment()
    with pytest.raises(RunError, match=r"is not a run folder \(no `run.yaml` in it\)"):
        RunFolder(tmp_path).load_experiment()
    RunFolder(tmp_path / "gpt2-full").save_experiment(experiment())
    with pytest.raises(RunError, match=rf"does not exist\. Did you mean `{tmp_path}/gpt2-full`\?"):
        RunFolder(tmp_path / "gpt2-fll").load_experiment()
    run = RunFolder(tmp_path)
    for content in ("experiment: {daat: {}}\n", "experiment: [1]\n", "- 1\n", "experiment: {data: [}\n"):
        run.config.write_text(content)
        with pytest.raises(ConfigError, match=r"run\.yaml"):
            run.load_experiment()


def test_splits_that_have_changed_are_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = [Example(f"e{number}", "Say it.", "", "It.") for number in range(3)]
    for name in ("train", "test", "validation"):
        write_rows(run.split(name), rows)
    # Of a folder that no run has prepared, nothing is known.
    assert run.read_split("train") == rows
    write_json(run.preflight, {"data_sha256": run.hash_splits()})
    assert run.read_split("train") == rows
    whole = run.split("train").read_bytes()
    for damaged in (whole[:-5], whole.replace(b"e1", b"e9"), whole + b"\n", b""):
        run.split("train").write_bytes(damaged)
        with pytest.raises(DataError, match=r"prepared with: their checksum is not the one in `run.yaml`") as caught:
            run.read_split("test")
        assert str(caught.value).count(f"delete `{run.preflight}` and resume the run with `--resume`") == 1
    run.split("train").unlink()
    with pytest.raises(DataError, match=r"prepared with: `train.jsonl` is missing"):
        run.check_data()
    # What `run.yaml` says counts, whatever was prepared since.
    run.split("train").write_bytes(whole)
    run.save_experiment(experiment())
    run.add_provenance(data_sha256="0f")
    with pytest.raises(DataError, match=r"their checksum is not the one"):
        run.check_data()


def test_a_run_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    message = "Another process is using .* Wait for it, stop it, or use another `--run-dir`."
    with RunFolder(tmp_path).locked(), pytest.raises(RunError, match=message), RunFolder(tmp_path).locked():
        pass
    with RunFolder(tmp_path).locked():
        pass


@pytest.fixture
def old_run(tmp_path: Path) -> RunFolder:
    """A run of a tiny model, written by the code of commit 8789c1b."""
    return RunFolder(shutil.copytree(Path(__file__).parent / "fixtures" / "old_run", tmp_path / "old"))


def test_an_older_run_says_which_stage_to_run_again(old_run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert (old_run.load_experiment().model.name, len(old_run.read_split("test"))) == ("tiny", 4)
    assert len(read_rows(old_run.training_log, TrainingRow)) > 2
    assert read_file(old_run.training_summary, TrainingSummary).steps == 2
    path = str(old_run.path)
    for command in (["report", path], ["judge", path], ["judge", "metrics", path], ["compare", path, f"{path}/base"]):
        assert main(command) == 1
    said = capsys.readouterr().err.splitlines()
    remedy = f"Generate the answers again with `hf-instruct generate {path} --force`"
    assert [remedy in line for line in said[:3]] == [True] * 3
    with pytest.raises(RunError, match="is from an older version"):
        answer(old_run, old_run.load_experiment())
    clear_from(old_run, "generate")
    assert (old_run.read_responses(), (old_run.path / "base").exists()) == ([], False)


def test_an_older_run_of_the_tuned_model_alone_is_read_but_for_its_scores(old_run: RunFolder) -> None:
    shutil.rmtree(old_run.path / "base")
    assert [row.model for row in old_run.read_responses()] == ["tuned"] * 4
    for read in (old_run.read_scores, old_run.read_metrics):
        with pytest.raises(DataError, match="Delete it and run the stage that writes it again"):
            read()
    old_run.scores.unlink()
    assert [row.score for row in old_run.read_judgments()] == [50] * 4
