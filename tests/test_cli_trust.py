"""Code in a run folder runs only where the user says so: the folder, `run.yaml` included, may be somebody else's."""

import json
import shutil
from pathlib import Path

import publishing_runs
import pytest
import tiny_models
from transformers import dynamic_module_utils

from hf_instruct.cli.main import main
from hf_instruct.config import build_experiment
from hf_instruct.errors import ModelLoadError
from hf_instruct.pipeline import run as run_experiment
from hf_instruct.publishing.serving import prepare_served_model
from hf_instruct.run_folder import RunFolder
from hf_instruct.ui.shelf import ModelShelf
from hf_instruct.ui.sources import find_sources

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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publishing_runs.save_small(tmp_path_factory.mktemp("models") / "base", tiny_models.gpt2_config())


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> RunFolder:
    """A run whose model has code, and whose `run.yaml` says that it may run."""
    run = publishing_runs.write_run(tmp_path / "run", base, examples=2)
    run.model.unlink()
    shutil.copytree(base, run.model)
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
    assert "comes with its own code, which runs only if you say so" in capsys.readouterr().err
    assert not (tmp_path / "it ran").exists()


def test_what_needs_the_tokenizer_alone_runs_no_code(folder: RunFolder, tmp_path: Path) -> None:
    assert main(["push", str(folder.path), "--to", "me/mine", "--dry-run"]) == 0
    prepare_served_model(folder)
    assert not (tmp_path / "it ran").exists()


def test_the_page_takes_no_consent_from_the_run(folder: RunFolder, tmp_path: Path) -> None:
    shelf = ModelShelf(find_sources([str(folder.path)]))
    with pytest.raises(ModelLoadError, match="add `--trust-remote-code`"), shelf.lend("run"):
        pass
    assert not (tmp_path / "it ran").exists()
    with ModelShelf(find_sources([str(folder.path)], trust_remote_code=True)).lend("run") as model:
        assert type(model.model).__name__ == "Model"
    assert (tmp_path / "it ran").exists()


def test_consent_on_the_command_line(folder: RunFolder, tmp_path: Path) -> None:
    assert main(["export", str(folder.path), "--format", "merged", "--trust-remote-code"]) == 0
    assert (tmp_path / "it ran").exists()


def test_consent_in_the_users_own_file_stands_when_the_run_is_resumed(folder: RunFolder, base: Path) -> None:
    own = {"model": {"name": str(base), "trust_remote_code": True}}
    folder.preflight.touch()
    resumed = run_experiment(build_experiment(own, where="here"), folder.path, resume=True, stages=())
    assert resumed.load_experiment().model.trust_remote_code
    assert not RunFolder(folder.path).load_experiment().model.trust_remote_code


def test_generation_settings_of_a_run_name_no_code(
    folder: RunFolder, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder.model)
    shutil.copytree(base, folder.model)
    (folder.model / "custom_generate").mkdir()
    (folder.model / "custom_generate/generate.py").write_text(_CODE.format(mark=str(tmp_path / "it ran")))
    settings = f"  generate:\n    custom_generate: {folder.model}\n    trust_remote_code: true\n"
    folder.config.write_text(folder.config.read_text().replace("  generate:\n", settings))
    assert main(["generate", str(folder.path)]) == 1
    assert "`generate.custom_generate` is unknown; no such field" in capsys.readouterr().err
    assert not (tmp_path / "it ran").exists()
