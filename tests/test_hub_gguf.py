import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import gguf
import publishing_runs
import pytest
import tiny_models
import torch
from transformers import MistralConfig, PretrainedConfig

from hf_instruct.errors import PublishError
from hf_instruct.hub import gguf_file
from hf_instruct.hub.fidelity import TOLERANCE
from hf_instruct.hub.gguf_file import (
    check_gguf,
    check_model,
    list_tensors,
    name_pre_tokenizer,
    pair_rotated,
    write_gguf,
)
from hf_instruct.hub.merging import RunModel, load_run_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "gpt2": lambda: tiny_models.gpt2_config(n_inner=96),
    "llama": lambda: tiny_models.llama_config(num_key_value_heads=1, tie_word_embeddings=True),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunModel]:
    folder = tmp_path_factory.mktemp("sources")
    found = {}
    for name, build in CONFIGS.items():
        run = publishing_runs.write_run(folder / f"{name}-run", publishing_runs.save_small(folder / name, build()))
        found[name] = load_run_model(run)
    return found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tensor_type", ["F32", "F16", "Q8_0"])
def test_what_is_read_back(name: str, tensor_type: str, sources: dict, tmp_path: Path) -> None:
    source = sources[name]
    file = tmp_path / "model.gguf"
    write_gguf(source, file, tensor_type=tensor_type)
    check = check_gguf(file, source, tensor_type=tensor_type)
    assert check.num_prompts == 10
    if tensor_type == "F32":
        assert check.logit_error < 1e-5
        assert check.same_answers == 10
        assert check.same_tokens == check.num_tokens > 10
    else:
        assert 0 < check.logit_error < TOLERANCE[tensor_type] / 4


def test_the_keys_that_llama_cpp_reads(sources: dict, tmp_path: Path) -> None:
    source = sources["llama"]
    file = tmp_path / "mine-Q8_0.gguf"
    write_gguf(source, file, tensor_type="Q8_0")
    reader = gguf.GGUFReader(file)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tokens, kinds, merges = (keys.pop(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges"))
    assert keys.pop("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert keys == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "mine",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "llama.vocab_size": publishing_runs.VOCABULARY + 7,
        "llama.context_length": 256,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": publishing_runs.END,
        "tokenizer.ggml.eos_token_id": publishing_runs.END,
        "tokenizer.ggml.padding_token_id": publishing_runs.END,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": source.tokenizer.chat_template,
    }
    assert merges[:2] == ["Ġ t", "Ġ a"]
    assert tokens[-9:] == [
        source.tokenizer.convert_ids_to_tokens(1255),
        "<|endoftext|>",
        *(f"[PAD{1257 + n}]" for n in range(7)),
    ]
    assert kinds[-9:] == [gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, *[gguf.TokenType.UNUSED] * 7]
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    # The head is tied to the embedding.
    assert "output.weight" not in types
    assert {types[f"blk.0.{name}.weight"] for name in ("attn_q", "attn_k", "ffn_down")} == {"Q8_0"}
    assert {types["token_embd.weight"], types["blk.1.attn_norm.weight"], types["output_norm.weight"]} == {"Q8_0", "F32"}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embed")
def test_a_head_that_an_adapter_has_untied(sources: dict, tmp_path: Path) -> None:
    base = tmp_path / "base"
    sources["gpt2"].model.save_pretrained(base)
    sources["gpt2"].tokenizer.save_pretrained(base)
    adapter = publishing_runs.save_adapter(tmp_path / "adapter", base, target_modules=["wte"])
    source = load_run_model(publishing_runs.write_run(tmp_path / "run", adapter))
    assert "output.weight" in dict(list_tensors(source.model))
    write_gguf(source, tmp_path / "model.gguf", tensor_type="F32")
    assert check_gguf(tmp_path / "model.gguf", source, tensor_type="F32").same_answers == 10


def test_rows_in_the_order_of_rotated_pairs() -> None:
    # Two heads of size 4: row i and i + 2 rotate together, and become neighbours.
    rows = torch.arange(8.0)
    assert pair_rotated(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    matrix = torch.stack([rows, rows + 10], dim=1)
    assert pair_rotated(matrix, 2)[:, 1].tolist() == [10, 12, 11, 13, 14, 16, 15, 17]


def test_the_slowed_rotation_of_llama_3(tmp_path: Path) -> None:
    config = tiny_models.llama_config(rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False)
    run = publishing_runs.write_run(tmp_path / "run", publishing_runs.save_small(tmp_path / "model", config))
    source = load_run_model(run)
    tensors = dict(list_tensors(source.model))
    # Slow waves are divided by the factor, fast ones stay.
    assert tensors["rope_freqs.weight"].tolist()[0] == 1.0
    assert tensors["rope_freqs.weight"].tolist()[-1] == pytest.approx(8.0)
    assert "output.weight" in tensors
    write_gguf(source, tmp_path / "model.gguf", tensor_type="F32")
    assert check_gguf(tmp_path / "model.gguf", source, tensor_type="F32").logit_error == 0.0


@pytest.mark.parametrize("tensor_type", ["F32", "Q8_0"])
def test_rows_in_a_wrong_order_are_found(
    tensor_type: str, sources: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "pair_rotated", lambda weight, heads: weight)
    write_gguf(sources["llama"], tmp_path / "model.gguf", tensor_type=tensor_type)
    with pytest.raises(PublishError, match=r"The GGUF file differs from the trained model: its logits differ by"):
        check_gguf(tmp_path / "model.gguf", sources["llama"], tensor_type=tensor_type)


def test_a_wrong_setting_is_found(sources: dict, tmp_path: Path) -> None:
    wrong = dataclasses.replace(sources["gpt2"], model=copy.deepcopy(sources["gpt2"].model))
    wrong.model.config.layer_norm_epsilon = 1e-3
    write_gguf(wrong, tmp_path / "model.gguf", tensor_type="Q8_0")
    with pytest.raises(PublishError, match=r"has 0.001\S* as its gpt2.attention.layer_norm_epsilon, and the run 1e-05"):
        check_gguf(tmp_path / "model.gguf", sources["gpt2"], tensor_type="Q8_0")


def test_another_template_or_end_is_found(sources: dict, tmp_path: Path) -> None:
    write_gguf(sources["gpt2"], tmp_path / "model.gguf", tensor_type="F32")
    for name, value in (("chat_template", "{{ messages }}"), ("eos_token", "Ġt")):
        changed = dataclasses.replace(sources["gpt2"], tokenizer=copy.deepcopy(sources["gpt2"].tokenizer))
        setattr(changed.tokenizer, name, value)
        with pytest.raises(PublishError, match=rf"as its \S*{name}\S*, and the run "):
            check_gguf(tmp_path / "model.gguf", changed, tensor_type="F32")


def test_f16_holds_no_large_numbers(sources: dict, tmp_path: Path) -> None:
    large = dataclasses.replace(sources["gpt2"], model=copy.deepcopy(sources["gpt2"].model))
    large.model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = 1e5
    with pytest.warns(RuntimeWarning, match=r"overflow"):
        write_gguf(large, tmp_path / "model.gguf", tensor_type="F16")
    with pytest.raises(PublishError, match=r"too low for the model, `export --type F32` is exact"):
        check_gguf(tmp_path / "model.gguf", large, tensor_type="F16")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (MistralConfig(), "architecture `mistral` cannot be exported as GGUF here; supported are GPT-2"),
        (tiny_models.gpt2_config(scale_attn_by_inverse_layer_idx=True), "`scale_attn_by_inverse_layer_idx: True`"),
        (tiny_models.gpt2_config(activation_function="relu"), "`activation_function: relu`"),
        (
            tiny_models.llama_config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
            "rotary embedding `linear`",
        ),
    ],
)
def test_models_that_are_refused(config: PretrainedConfig, said: str, sources: dict) -> None:
    model = SimpleNamespace(config=config)
    with pytest.raises(PublishError, match=said):
        check_model(dataclasses.replace(sources["gpt2"], model=model))


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = {"type": "Split", "pattern": {"Regex": gguf_file._LLAMA3_SPLIT}, "behavior": "Isolated"}


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([BYTES], "gpt-2"),
        ([DIGITS, BYTES], "smollm"),
        ([LLAMA3, {**BYTES, "use_regex": False}], "llama-bpe"),
        ([{"type": "Metaspace"}], None),
    ],
)
def test_how_texts_are_cut_has_a_name(steps: list[dict], name: str | None) -> None:
    pre = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    text = json.dumps({"model": {"type": "BPE"}, "pre_tokenizer": pre})
    tokenizer = SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: text))
    if name is not None:
        assert name_pre_tokenizer(tokenizer) == name
    else:
        with pytest.raises(PublishError, match=r"is a `BPE` that cuts texts by .'Metaspace'"):
            name_pre_tokenizer(tokenizer)
