import errno
import json
import resource
import shutil
from pathlib import Path

import publishing_runs
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_instruct.errors import ModelLoadError, PublishError, RunError
from hf_instruct.hub.export import building, check_name, export, run_ollama
from hf_instruct.hub.merging import check_run, load_run_model
from hf_instruct.models import load_model
from hf_instruct.prompts import PromptFormat
from hf_instruct.run_folder import RunFolder


@pytest.fixture(scope="module")
def models(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    llama = publishing_runs.save_small(folder / "llama", tiny_models.llama_config())
    return {
        "gpt2": small_model,
        "llama": llama,
        "gpt2-lora": publishing_runs.save_adapter(folder / "gpt2-lora", small_model),
        "llama-lora": publishing_runs.save_adapter(folder / "llama-lora", llama),
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["gpt2-lora", "llama-lora", "gpt2"])
def test_merged_weights_compute_what_the_adapter_did(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    run = publishing_runs.write_run(tmp_path / "run", models[name])
    exported = export(run, "merged")
    assert (exported.path, exported.merged) == (run.path / "export" / "merged", "lora" in name)
    assert exported.check.same_answers == exported.check.num_prompts == 10
    tuned, tokenizer = load_model(str(models[name]))
    whole = AutoModelForCausalLM.from_pretrained(exported.path)
    base, _ = load_model(str(models[name.removesuffix("-lora")]))
    ids = torch.tensor([tokenizer("Name a color.")["input_ids"]])
    with torch.inference_mode():
        expected, got, untuned = (model(ids).logits for model in (tuned, whole, base))
    assert torch.allclose(got, expected, atol=1e-3)
    assert torch.allclose(untuned, expected, atol=1e-3) == (name == "gpt2")
    end = publishing_runs.END
    assert (whole.generation_config.eos_token_id, whole.config.use_cache) == (end, True)
    written = AutoTokenizer.from_pretrained(exported.path)
    message = {"role": "user", "content": "Name a color."}
    asked = written.apply_chat_template([message], add_generation_prompt=True)["input_ids"]
    assert asked == PromptFormat.from_name("alpaca").encode_prompt(tokenizer, "Name a color.")
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in exported.path.iterdir())


def test_an_ollama_folder_of_an_adapter(models: dict[str, Path], tmp_path: Path) -> None:
    run = publishing_runs.write_run(tmp_path / "run", models["gpt2-lora"])
    exported = export(run, "ollama", tensor_type="F16", out=tmp_path / "out")
    assert names(tmp_path / "out") == ["Modelfile", "model-F16.gguf"]
    assert (exported.merged, exported.weights) == (True, tmp_path / "out/model-F16.gguf")
    assert exported.check.num_prompts == 10
    assert exported.check.same_tokens > 0.95 * exported.check.num_tokens
    text = (tmp_path / "out/Modelfile").read_text()
    assert text.splitlines()[2] == "FROM ./model-F16.gguf"
    assert "PARAMETER num_ctx 256\n" in text


def test_a_prompt_that_no_chat_template_writes(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shout.jinja").write_text("{{ instruction | upper }} {{ input }}:")
    run = publishing_runs.write_run(tmp_path / "run", models["llama"], prompt_format=str(tmp_path / "shout.jinja"))
    # What the refusal advises does work, and is without a template of the base model's.
    with pytest.raises(PublishError, match=r"Export with `--format merged`, and build the prompt in your program"):
        export(run, "ollama")
    exported = export(run, "merged")
    assert AutoTokenizer.from_pretrained(exported.path).chat_template is None
    assert "cannot be written as a chat template, so the tokenizer has none" in caplog.text


def test_what_is_there_is_replaced_only_when_told(models: dict[str, Path], tmp_path: Path) -> None:
    run = publishing_runs.write_run(tmp_path / "run", models["llama"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    with pytest.raises(PublishError, match=r"out` already exists. Replace it with `--force`"):
        export(run, "merged", out=tmp_path / "out")
    with pytest.raises(
        PublishError, match=r"out` is a folder without an export, so it is not replaced, not even with `--force`"
    ):
        export(run, "merged", out=tmp_path / "out", force=True)
    with pytest.raises(PublishError, match=r"run` is a folder without an export"):
        export(run, "merged", out=run.path, force=True)
    (tmp_path / "out/config.json").touch()
    export(run, "merged", out=tmp_path / "out", force=True)
    assert "old" not in names(tmp_path / "out")
    assert "model.safetensors" in names(tmp_path / "out")


@pytest.mark.parametrize("kind", ["merged", "gguf", "ollama"])
def test_a_disk_that_fills_up_leaves_nothing(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    run = publishing_runs.write_run(tmp_path / "run", models["llama"])
    target = tmp_path / "out" / ("model.gguf" if kind == "gguf" else "model")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system refuses to write on as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(PublishError, match=r"could not be written .*; nothing was kept"):
            export(run, kind, out=target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path / "out") == []


def test_what_was_there_survives_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("old")

    def write() -> None:
        with building(tmp_path / "model.gguf") as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PublishError, match=r"could not be written \(No space left on device\)"):
        write()
    assert names(tmp_path) == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_text() == "old"


def test_a_file_that_fails_its_check_is_deleted(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = publishing_runs.write_run(tmp_path / "run", models["llama"])
    monkeypatch.setattr("hf_instruct.hub.gguf_file.pair_rotated", lambda weight, heads: weight)
    with pytest.raises(PublishError, match=r"The GGUF file differs from the trained model"):
        export(run, "gguf")
    assert names(run.path / "export") == []


def test_runs_that_cannot_be_exported(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"does not exist"):
        export(RunFolder(tmp_path / "nowhere"), "merged")
    run = publishing_runs.write_run(tmp_path / "run", models["llama"])
    shutil.rmtree(run.model)
    with pytest.raises(RunError, match=r"has no tuned model yet .*Finish it with `hf-instruct run EXP"):
        check_run(run)
    with pytest.raises(PublishError, match=r"must end in `.gguf`"):
        export(run, "gguf", out=tmp_path / "model.bin")


def test_an_adapter_whose_base_is_gone(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for path in models["llama-lora"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone"}))
    with pytest.raises(ModelLoadError):
        load_run_model(publishing_runs.write_run(tmp_path / "run", folder))


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to which a command called `ollama` writes its arguments and address; it fails for the name `bad`."""
    script = tmp_path / "bin" / "ollama"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$@|$OLLAMA_HOST" >> {tmp_path}/calls\n'
        'if [ "$2" = bad ]; then echo "Error: no server" >&2; exit 1; fi\necho created\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    monkeypatch.setenv("OLLAMA_HOST", "here")
    return tmp_path / "calls"


def test_ollama_is_run(calls: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_ollama("list", shown=False)
    assert capfd.readouterr() == ("", "")
    run_ollama("create", "mine", "-f", "a b/Modelfile", base_url="http://there:1")
    assert calls.read_text() == "list|here\ncreate mine -f a b/Modelfile|http://there:1\n"
    # Standard output is for the result, as JSON.
    assert capfd.readouterr() == ("", "created\n")


def test_what_ollama_refuses(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PublishError, match=r"`ollama create bad` failed \(see its output above\)"):
        run_ollama("create", "bad")
    with pytest.raises(
        PublishError, match=r"`ollama list bad` failed \(Error: no server\). Check that the server is running"
    ):
        run_ollama("list", "bad", shown=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PublishError, match=r"`ollama list` cannot run, because `ollama` is not on the PATH"):
        run_ollama("list")


@pytest.mark.parametrize("name", ["mine", "mine:q8_0", "me/mine", "host.example:5000/me/mine:latest", "a" * 80])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "../mine", "my model", "mine:", "-mine", "a" * 81, "mine\n", "ü"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(PublishError, match=r"is not a valid name for an Ollama model. It should look like `my-model`"):
        check_name(name)
