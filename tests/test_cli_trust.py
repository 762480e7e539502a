"""Code in a run folder runs only where the user says so: the folder, `run.yaml` included, may be somebody else's."""

import json
import shutil
import socket
from pathlib import Path

import publishing_runs
import pytest
from fake_ollama import Answer, FakeOllama
from rows import response
from transformers import dynamic_module_utils

from hf_instruct.cli.main import main
from hf_instruct.config import build_experiment
from hf_instruct.errors import ConfigError, ModelLoadError
from hf_instruct.evaluation.stage import load_judge_settings
from hf_instruct.hub.serving import prepare_served_model
from hf_instruct.pipeline import run as run_experiment
from hf_instruct.records import Example, append_rows, write_json, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Preflight
from hf_instruct.ui.model_pool import ModelPool, find_sources

# Leaves a file behind wherever it is imported.
_CODE = """\
import pathlib
from transformers import GPT2Config, GPT2LMHeadModel

pathlib.Path({mark!r}).touch()

class Config(GPT2Config):
    model_type = "with_code"

class Model(GPT2LMHeadModel):
    config_class = Config
"""


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_INSTRUCT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def folder(small_model: Path, tmp_path: Path) -> RunFolder:
    """A run whose model has code, and whose `run.yaml` says that it may run."""
    run = publishing_runs.write_run(tmp_path / "run", small_model, examples=2)
    shutil.rmtree(run.model)
    shutil.copytree(small_model, run.model)
    config = json.loads((run.model / "config.json").read_text())
    config |= {
        "model_type": "with_code",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (run.model / "config.json").write_text(json.dumps(config))
    (run.model / "code.py").write_text(_CODE.format(mark=str(tmp_path / "it ran")))
    text = run.config.read_text()
    run.config.write_text(text.replace("trust_remote_code: false", "trust_remote_code: true"))
    assert run.config.read_text() != text
    return run


@pytest.mark.parametrize(
    "words",
    [
        "chat RUN --message Hi",
        "explore Hi --model RUN",
        "generate RUN --generate.base=false --generate.max_new_tokens=2",
        "export RUN --format merged",
        # Importing lm-eval takes seconds.
        pytest.param("benchmark RUN --tasks everyday_choice --limit 1", marks=pytest.mark.slow),
    ],
)
def test_no_verb_takes_consent_from_the_run(
    folder: RunFolder, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder.path) if word == "RUN" else word for word in words.split()]) == 1
    assert "comes with its own code, which is not run by default" in capsys.readouterr().err
    assert not (tmp_path / "it ran").exists()


def test_what_needs_the_tokenizer_alone_runs_no_code(folder: RunFolder, tmp_path: Path) -> None:
    assert main(["push", str(folder.path), "--to", "me/mine", "--dry-run"]) == 0
    prepare_served_model(folder)
    assert not (tmp_path / "it ran").exists()


def test_the_page_takes_no_consent_from_the_run(folder: RunFolder, tmp_path: Path) -> None:
    sources = find_sources([str(folder.path)])
    with pytest.raises(ModelLoadError, match="add `--trust-remote-code`"), ModelPool(sources).acquire("run"):
        pass
    assert not (tmp_path / "it ran").exists()
    with ModelPool(sources, trust_remote_code=True).acquire("run") as model:
        assert type(model.model).__name__ == "Model"
    assert (tmp_path / "it ran").exists()


def test_consent_on_the_command_line(folder: RunFolder, tmp_path: Path) -> None:
    assert main(["export", str(folder.path), "--format", "merged", "--trust-remote-code"]) == 0
    assert (tmp_path / "it ran").exists()


def test_consent_in_the_users_own_file_stands_when_the_run_is_resumed(folder: RunFolder, small_model: Path) -> None:
    own = {"model": {"name": str(small_model), "trust_remote_code": True}}
    write_json(folder.preflight, Preflight())
    resumed = run_experiment(build_experiment(own, where="here"), folder.path, resume=True, stages=())
    assert resumed.load_experiment().model.trust_remote_code
    assert not RunFolder(folder.path).load_experiment().model.trust_remote_code


def test_generation_settings_of_a_run_name_no_code(
    folder: RunFolder, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder.model)
    shutil.copytree(small_model, folder.model)
    (folder.model / "custom_generate").mkdir()
    (folder.model / "custom_generate/generate.py").write_text(_CODE.format(mark=str(tmp_path / "it ran")))
    settings = f"  generate:\n    custom_generate: {folder.model}\n    trust_remote_code: true\n"
    folder.config.write_text(folder.config.read_text().replace("  generate:\n", settings))
    assert main(["generate", str(folder.path)]) == 1
    assert "`generate.custom_generate` is unknown." in capsys.readouterr().err
    assert not (tmp_path / "it ran").exists()


@pytest.fixture
def judged_elsewhere(server: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose `run.yaml` uses a judge on another machine, in whose place the fake server stands."""
    look_up = socket.getaddrinfo
    # Once as text, once as the bytes that go to a name server.
    replaced = dict.fromkeys(("judge.example", b"judge.example"), "127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **kw: look_up(replaced.get(host, host), *a, **kw))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OLLAMA_API_KEY", "secret")
    for name in ("OLLAMA_HOST", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    run = RunFolder(tmp_path / "run")
    url = server.url.replace("127.0.0.1", "judge.example")
    judge = {"backend": "ollama", "model": "llama3", "base_url": url, "retries": 0}
    run.save_experiment(build_experiment({"judge": judge}, where="here", deep=False))
    for model in ("untuned", "tuned"):
        append_rows(run.responses, [response(f"id{n}", f"{n} {model}", f"Done {n}.", model=model) for n in range(2)])
    write_rows(run.split("test"), [Example(f"id{n}", f"Task {n}.", "", f"Done {n}.") for n in range(2)])
    server.reply = lambda body: Answer(
        json.dumps({"better": "A"} if "### Answer A" in str(body["messages"][-1]) else {"score": 50})
    )
    return run


def _judge(run: RunFolder, *words: str) -> int:
    action = words[:1] if words and not words[0].startswith("-") else ()
    rest = (str(run.path / "untuned") if word == "base" else word for word in words[len(action) :])
    return main(["judge", *action, str(run.path), *rest])


@pytest.mark.parametrize(
    ("words", "backend", "path", "variable"),
    [
        ([], "openai", "/v1", "OPENAI_BASE_URL"),
        (["pairwise", "--baseline", "base"], "ollama", "", "OLLAMA_HOST"),
        (["check"], "auto", "", "OLLAMA_HOST"),
    ],
)
def test_only_the_user_names_a_judge_elsewhere(
    judged_elsewhere: RunFolder,
    server: FakeOllama,
    words: list[str],
    backend: str,
    path: str,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = judged_elsewhere
    judge = run.load_experiment().judge
    url = f"{judge.base_url}{path}"
    changed = judge.model_copy(update={"backend": backend, "base_url": url})
    run.save_experiment(run.load_experiment().model_copy(update={"judge": changed}))
    assert _judge(run, *words) == 1
    assert server.requests == []
    assert capsys.readouterr().err == (
        f"hf-instruct: `{run.config}` uses a judge on another machine, which would receive your API key, and the run "
        f"folder may come from somebody else. If you trust that server, add `--judge.base_url {url}`, or set "
        f"{variable} to it.\n"
    )
    # Another server in the environment is no consent to this one; nor is the other kind's address.
    monkeypatch.setenv("OLLAMA_HOST", "http://other.example")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://other.example/v1")
    with pytest.raises(ConfigError):
        load_judge_settings(run, {})
    assert _judge(run, *words, "--base-url", url) == 0
    assert server.requests
    server.requests.clear()
    monkeypatch.setenv(variable, f"{url}/")
    assert _judge(run, *words, "--force", "--no-cache") == 0
    assert server.requests


def test_a_judge_without_a_server_needs_no_word_about_one(judged_elsewhere: RunFolder) -> None:
    assert load_judge_settings(judged_elsewhere, {"backend": "local"})["backend"] == "local"
    assert load_judge_settings(judged_elsewhere, {"base_url": None})["base_url"] is None


@pytest.mark.parametrize("url", ["127.0.0.1:11434", "localhost", "http://[::1]:8000/v1", "0.0.0.0:11434"])
def test_a_judge_on_this_machine_is_asked(judged_elsewhere: RunFolder, url: str) -> None:
    run = judged_elsewhere
    run.save_experiment(build_experiment({"judge": {"base_url": url}}, where="here", deep=False))
    assert load_judge_settings(run, {})["base_url"] == url


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example?@127.0.0.1:8000/v1",
        "http://evil.example/://127.0.0.1",
        "http://127.0.0.1@evil.example/v1",
        "127.0.0.1.evil.example",
        "evil.example#@localhost",
        "http://[127.0.0.1",
        "'http://evil.example'",
    ],
)
def test_an_address_that_looks_like_this_machine_is_not(judged_elsewhere: RunFolder, url: str) -> None:
    run = judged_elsewhere
    # Not by `save_experiment`, which would redact it.
    run.config.write_text(json.dumps({"experiment": {"judge": {"base_url": url}}}))
    for backend in ("auto", "openai"):
        with pytest.raises(ConfigError, match="uses a judge on another machine"):
            load_judge_settings(run, {"backend": backend})


def test_only_the_user_lets_a_model_be_pulled(server: FakeOllama, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    judge = {"backend": "ollama", "model": "evil.example/m", "base_url": server.url, "pull": True}
    run.save_experiment(build_experiment({"judge": judge}, where="here", deep=False))
    write_rows(run.responses, [response("a")])
    server.pull_lines = [{"status": "success"}]
    assert _judge(run) == 1
    assert "/api/pull" not in [path for path, _ in server.requests]
    _judge(run, "--pull")
    assert "/api/pull" in [path for path, _ in server.requests]
