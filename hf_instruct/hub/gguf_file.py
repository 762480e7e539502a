"""Write a model as a GGUF file for llama.cpp, Ollama and LM Studio.

Names, keys and layouts are llama.cpp's, whose own converter reads the same checkpoints.
Source: https://github.com/ggml-org/llama.cpp, `conversion/{base,gpt2,llama}.py`, and the `gguf` package.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, PublishError
from hf_instruct.hub.merging import RunModel

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# How the matrices are stored; vectors, norms and GPT-2's positions stay in float32, as llama.cpp wants them.
_BYTES_A_WEIGHT = {"F32": 4.0, "F16": 2.0, "Q8_0": 34 / 32}
# Q8_0 stores this many numbers of a row with one scale.
_BLOCK = 32
# How Llama 3's tokenizer cuts a text before merging.
# Source: the `tokenizer.json` of meta-llama/Meta-Llama-3-8B.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def check_gguf_package() -> None:
    """See that the package that writes GGUF is there.

    Raises:
        ConfigError: It is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("GGUF files need the gguf package; install it with `pip install 'hf-instruct[gguf]'`.")


def check_architecture(config: "PretrainedConfig") -> None:
    """Refuse a model that this module cannot write, or that llama.cpp would compute otherwise than Transformers.

    Raises:
        PublishError: It is of another family, or has a setting that llama.cpp's family does not know.
    """
    kind = config.model_type
    known = "GPT-2 (`gpt2`) and Llama with its relatives, such as SmolLM2 (`llama`)"
    if kind not in _FIXED_SETTINGS:
        raise PublishError(
            f"A model of architecture `{kind}` cannot be written as GGUF here; supported are {known}. "
            "Use `--format merged`, and llama.cpp's own converter on that folder."
        )
    for name, allowed in _FIXED_SETTINGS[kind].items():
        value = getattr(config, name, None)
        if value is not None and value not in allowed:
            raise PublishError(
                f"The model's `{name}` is `{value}`, which llama.cpp's `{kind}` does not compute; it must be "
                f"{' or '.join(f'`{choice}`' for choice in allowed)}."
            )
    if kind == "llama" and (rope := _rope_type(config)) not in ("default", "llama3"):
        raise PublishError(f"The model's rotary embedding is `{rope}`; supported are `default` and `llama3`.")


_FIXED_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        # All the same function, computed in other ways.
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
    },
    "llama": {"hidden_act": ("silu", "swish"), "mlp_bias": (False,)},
}


def estimate_gguf_bytes(num_parameters: int, tensor_type: str) -> int:
    """Return about how large the file will be, with the vocabulary's few MB."""
    return int(num_parameters * _BYTES_A_WEIGHT[tensor_type] * 1.02) + 4_000_000


def write_gguf(source: RunModel, path: Path, *, tensor_type: str) -> None:
    """Write a model and its tokenizer as one GGUF file.

    Args:
        source: The model, its tokenizer and its chat template.
        path: The file; overwritten where there is one.
        tensor_type: `F32`, `F16` or `Q8_0`.

    Raises:
        PublishError: The architecture or the tokenizer is none that llama.cpp knows by this module's names.
        OSError: The disk is full, or the file cannot be written.
    """
    import gguf

    check_architecture(source.model.config)
    writer = gguf.GGUFWriter(None, source.model.config.model_type)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(source.name)
    file_type = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}[tensor_type]
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, source.model.config)
    _add_vocabulary(writer, source)
    for name, values, kind in _quantized_tensors(source.model, tensor_type):
        writer.add_tensor(name, values, raw_dtype=kind)
    try:
        writer.write_header_to_file(path=path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_sizes(writer: "gguf.GGUFWriter", config: "PretrainedConfig") -> None:
    """Add the keys of the architecture, by which llama.cpp builds the model."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(_head_size(config))
    if _head_size(config) * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(_head_size(config))
        writer.add_value_length(_head_size(config))


def _head_size(config: "PretrainedConfig") -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope_type(config: "PretrainedConfig") -> str:
    parameters = getattr(config, "rope_parameters", None) or {}
    return str(parameters.get("rope_type", "default"))


def _add_vocabulary(writer: "gguf.GGUFWriter", source: RunModel) -> None:
    """Add tokens, their kinds, merges, special ids and the chat template."""
    tokenizer = source.tokenizer
    specification = read_tokenizer(tokenizer)
    tokens, kinds = _list_tokens(tokenizer, source.model.config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name_pre_tokenizer(specification))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = specification["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    end = source.prompt_format.end_token_id(tokenizer)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    # llama.cpp ends an answer at either.
    ids |= {"eot": end} if end != tokenizer.eos_token_id else {}
    for name, token in ids.items():
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    first = tokenizer("x")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    # A prompt that has ended has no response, whatever the tokenizer does by itself.
    writer.add_add_eos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def read_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Return what `tokenizer.json` says of a tokenizer.

    Raises:
        PublishError: It is none of the `tokenizers` library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown_tokenizer(f"of class `{type(tokenizer).__name__}`, which has no `tokenizer.json`")
    specification: dict[str, Any] = json.loads(backend.to_str())
    return specification


def name_pre_tokenizer(specification: dict[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer cuts a text before it merges.

    Found by what the tokenizer does, not by the model's name: SmolLM2 read from a GGUF cuts as GPT-2.

    Args:
        specification: As `tokenizer.json` holds it.

    Raises:
        PublishError: It is no byte-level BPE, or cuts in a way that has no name here.

    >>> byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    >>> name_pre_tokenizer({"model": {"type": "BPE"}, "pre_tokenizer": byte_level})
    'gpt-2'
    """
    pre = specification.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    shape = [_describe_step(step) for step in steps]
    if specification["model"].get("type") == "BPE" and not specification.get("normalizer"):
        for name, expected in _PRE_TOKENIZERS.items():
            if shape == expected:
                return name
    kind = specification["model"].get("type")
    raise _unknown_tokenizer(f"a `{kind}` that cuts texts by {', '.join(map(str, shape)) or 'nothing'}")


_PRE_TOKENIZERS = {
    "gpt-2": ["bytes by regex"],
    "smollm": ["single digits", "bytes by regex"],
    "llama-bpe": ["Llama 3's regex", "bytes"],
}


def _describe_step(step: dict[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes by regex" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "single digits"
    if kind == "Split" and step.get("pattern", {}).get("Regex") == _LLAMA3_SPLIT:
        return "Llama 3's regex"
    return f"`{kind}`"


def _unknown_tokenizer(what: str) -> PublishError:
    return PublishError(
        f"The model's tokenizer is {what}. GGUF is written here for byte-level BPE as GPT-2, SmolLM2 and Llama 3 "
        "have it. Use `--format merged`, and llama.cpp's own converter on that folder."
    )


def _list_tokens(tokenizer: "PreTrainedTokenizerBase", size: int) -> tuple[list[str], list[int]]:
    """Return each id's token and its kind, as many as the model has rows for."""
    from gguf import TokenType

    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise PublishError(
            f"The tokenizer knows {max(by_id) + 1} tokens and the model only {size}. "
            "Resize the model's embedding and train it, or use the tokenizer that it was trained with."
        )
    tokens, kinds = [], []
    for index in range(size):
        added = tokenizer.added_tokens_decoder.get(index)
        # Rows that no token stands for are there to make the matrix a round size.
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        if index not in by_id:
            kinds.append(TokenType.UNUSED)
        elif added is None:
            kinds.append(TokenType.NORMAL)
        else:
            kinds.append(TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
    return tokens, kinds


def _quantized_tensors(
    model: "PreTrainedModel", tensor_type: str
) -> Iterator[tuple[str, "np.ndarray[Any, Any]", "gguf.GGMLQuantizationType"]]:
    """Yield name, stored values and type of every tensor of the file."""
    import gguf
    import numpy as np

    for name, tensor in list_tensors(model):
        values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        kind = gguf.GGMLQuantizationType[tensor_type]
        if values.ndim < 2 or name.startswith("position_embd"):
            kind = gguf.GGMLQuantizationType.F32
        elif tensor_type == "Q8_0" and values.shape[-1] % _BLOCK:
            kind = gguf.GGMLQuantizationType.F16
        yield name, gguf.quants.quantize(values, kind), kind


def list_tensors(model: "PreTrainedModel") -> Iterator[tuple[str, "Tensor"]]:
    """Yield a model's weights under llama.cpp's names and in its layouts.

    A head that is tied to the embedding is left out: llama.cpp then uses the embedding.
    """
    import gguf

    config = model.config
    arch = gguf.MODEL_ARCH.GPT2 if config.model_type == "gpt2" else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    # Typed as if a layer's weight could be a layer.
    embedding: Any = model.get_input_embeddings().weight
    head: Any = model.get_output_embeddings().weight
    if _rope_type(config) == "llama3":
        yield "rope_freqs.weight", _rope_factors(model)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and head.data_ptr() == embedding.data_ptr():
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise PublishError(f"The model's tensor `{name}` has no place in a GGUF of architecture `{arch.name}`.")
        if config.model_type == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            # GPT-2's `Conv1D` keeps [in, out]; every other linear layer is [out, in].
            tensor = tensor.T
        if ".q_proj." in name:
            tensor = pair_rotated(tensor, config.num_attention_heads)
        elif ".k_proj." in name:
            tensor = pair_rotated(tensor, config.num_key_value_heads)
        yield written, tensor


def pair_rotated(weight: "Tensor", heads: int) -> "Tensor":
    """Return the rows of a query or key projection in the order in which llama.cpp rotates them.

    Transformers rotates row i of a head together with row i + size/2, llama.cpp neighbours.

    Args:
        weight: [heads * size, in], or [heads * size] for a bias.
        heads: How many heads the rows are of.
    """
    size = weight.shape[0] // heads
    return weight.reshape(heads, 2, size // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _rope_factors(model: "PreTrainedModel") -> "Tensor":
    """Return by how much Llama 3 slows each frequency of the rotary embedding: [size / 2]."""
    import torch

    config = model.config
    size = _head_size(config)
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    plain = 1.0 / (float(config.rope_parameters["rope_theta"]) ** exponents)
    slowed = model.get_buffer("model.rotary_emb.inv_freq")
    factors: Tensor = plain / slowed.float().cpu()
    return factors
