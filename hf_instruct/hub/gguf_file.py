"""Write a model as a GGUF file for llama.cpp, Ollama and LM Studio, and compare the file with the run's own model.

Names, keys and layouts are those of llama.cpp, whose converter reads the same checkpoints. The file is read back by
Transformers, which shares no code with this writer: it has its own names, its own reversal of the rotary order and its
own transposes. A file that passes has the run's vocabulary, end token, chat template and answers.
Source: https://github.com/ggml-org/llama.cpp, `conversion/{base,gpt2,llama}.py`, and the `gguf` package.
"""

import contextlib
import importlib.util
import io
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, PublishError, needs_package
from hf_instruct.hub.fidelity import Fidelity, check_fidelity
from hf_instruct.hub.merging import RunModel

if TYPE_CHECKING:
    import gguf
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Types of the matrices; vectors, norms and GPT-2's positions stay in float32, as llama.cpp requires.
_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
# The settings of each architecture that llama.cpp supports; GPT-2's `gelu` is one function with several names.
_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
    },
    "llama": {"hidden_act": ("silu", "swish"), "mlp_bias": (False,)},
}
# How Llama 3's tokenizer splits a text before merging. Source: the `tokenizer.json` of meta-llama/Meta-Llama-3-8B.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The pre-tokenizer steps in `tokenizer.json`, by llama.cpp's name for them.
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": _LLAMA3_SPLIT}}, {**_BYTE_LEVEL, "use_regex": False}],
}
_ADVICE = "Use `export --format merged`, and llama.cpp's converter on that folder."
# Compared in addition to the run's prompts.
_TEXTS = ("In 1984, 3.14 * 2 = 6.28!", "  def f(x):\n\treturn x  # it's\n\n", "Grüße, 你好 🙂", "<|endoftext|>Hi")


def check_gguf_package() -> None:
    """Raise `ConfigError` if the package that writes GGUF is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(needs_package("GGUF", "gguf"))


def check_model(source: RunModel) -> None:
    """Refuse a model that this module cannot write, or that llama.cpp would compute differently from Transformers.

    Raises:
        PublishError: It is of another family, or has a setting or a tokenizer that is not supported.
    """
    config = source.model.config
    kind, rope = config.model_type, _rope_type(config)
    problem = "" if kind in _SETTINGS else f"architecture `{kind}`"
    for name, allowed in _SETTINGS.get(kind, {}).items():
        if getattr(config, name, allowed[0]) not in (*allowed, None):
            problem = f"`{name}: {getattr(config, name)}`"
    if kind == "llama" and rope not in ("default", "llama3"):
        problem = f"rotary embedding `{rope}`"
    if problem:
        raise PublishError(
            f"A model with {problem} cannot be exported as GGUF here; supported are GPT-2 (`gpt2`) and Llama with its "
            f"relatives, such as SmolLM2 (`llama`). {_ADVICE}"
        )
    name_pre_tokenizer(source.tokenizer)


def write_gguf(source: RunModel, path: Path, *, tensor_type: str) -> None:
    """Write a model and its tokenizer as one GGUF file.

    Args:
        source: The model, its tokenizer and its chat template; `check_model` has accepted it.
        path: The file, whose name becomes the model's; overwritten if it exists.
        tensor_type: `F32`, `F16` or `Q8_0`.

    Raises:
        PublishError: The tokenizer has more tokens than the model, or llama.cpp has no name for a tensor.
        OSError: The disk is full, or the file cannot be written.
    """
    import gguf

    writer = gguf.GGUFWriter(None, source.model.config.model_type)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(path.stem.removesuffix(f"-{tensor_type}"))
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[tensor_type]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in _list_settings(source).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    _add_vocabulary(writer, source)
    _add_tensors(writer, source.model, tensor_type)
    try:
        writer.write_header_to_file(path=path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _list_settings(source: RunModel) -> dict[str, int | float]:
    """Return the keys that llama.cpp needs to build the model and to end an answer."""
    config, tokenizer = source.model.config, source.tokenizer
    sizes: dict[str, int | float] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
    }
    if config.model_type == "gpt2":
        sizes["feed_forward_length"] = config.n_inner or 4 * config.n_embd
        sizes["attention.layer_norm_epsilon"] = float(config.layer_norm_epsilon)
    else:
        sizes["feed_forward_length"] = config.intermediate_size
        sizes["attention.head_count_kv"] = config.num_key_value_heads
        sizes["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
        sizes["rope.freq_base"] = float(config.rope_parameters["rope_theta"])
        sizes["rope.dimension_count"] = _head_size(config)
        if _head_size(config) * config.num_attention_heads != config.hidden_size:
            sizes |= {"attention.key_length": _head_size(config), "attention.value_length": _head_size(config)}
    end = source.prompt_format.end_token_id(tokenizer)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id}
    # llama.cpp ends an answer at either.
    ids["eot"] = None if end == tokenizer.eos_token_id else end
    special = {f"tokenizer.ggml.{name}_token_id": token for name, token in ids.items() if token is not None}
    return {f"{config.model_type}.{name}": value for name, value in sizes.items()} | special


def _head_size(config: "PretrainedConfig") -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope_type(config: "PretrainedConfig") -> str:
    return str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))


def _add_vocabulary(writer: "gguf.GGUFWriter", source: RunModel) -> None:
    """Add tokens, their kinds, merges and the chat template."""
    tokenizer = source.tokenizer
    tokens, kinds = _list_tokens(tokenizer, source.model.config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name_pre_tokenizer(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    first = tokenizer("x")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    # A prompt that ends with the end token gets no response, so it is never added, whatever the tokenizer does.
    writer.add_add_eos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def name_pre_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return llama.cpp's name for a tokenizer's pre-tokenizer, which splits a text before merging.

    It depends on the tokenizer's steps, not on the model's name: SmolLM2 read from a GGUF file splits like GPT-2.

    Raises:
        PublishError: The tokenizer is not byte-level BPE, or has another pre-tokenizer than those supported here.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    specification = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    kind, pre = specification["model"].get("type"), specification.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    if kind == "BPE" and not specification.get("normalizer"):
        for name, expected in _PRE_TOKENIZERS.items():
            if len(steps) == len(expected) and all(
                {**step, **fields} == step for step, fields in zip(steps, expected, strict=True)
            ):
                return name
    raise PublishError(
        f"The model's tokenizer is a `{kind}` that cuts texts by {[step.get('type') for step in steps]}. GGUF is "
        f"written here for byte-level BPE as GPT-2, SmolLM2 and Llama 3 have it. {_ADVICE}"
    )


def _list_tokens(tokenizer: "PreTrainedTokenizerBase", size: int) -> tuple[list[str], list[int]]:
    """Return the token and the kind of each id, for all rows of the model's embedding."""
    from gguf import TokenType

    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise PublishError(
            f"The tokenizer has {max(by_id) + 1} tokens but the model only {size}. "
            "Resize the model's embedding and train it, or use the tokenizer that it was trained with."
        )
    kinds = [TokenType.NORMAL if index in by_id else TokenType.UNUSED for index in range(size)]
    for index, token in tokenizer.added_tokens_decoder.items():
        kinds[index] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    # Rows without a token pad the matrix to a round size.
    return [by_id.get(index, f"[PAD{index}]") for index in range(size)], kinds


def _add_tensors(writer: "gguf.GGUFWriter", model: "PreTrainedModel", tensor_type: str) -> None:
    import gguf
    import numpy as np

    for name, tensor in list_tensors(model):
        values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        kind = gguf.GGMLQuantizationType[tensor_type]
        if values.ndim < 2 or name.startswith("position_embd"):
            kind = gguf.GGMLQuantizationType.F32
        elif values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            # A row must consist of whole blocks.
            kind = gguf.GGMLQuantizationType.F16
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def list_tensors(model: "PreTrainedModel") -> Iterator[tuple[str, "Tensor"]]:
    """Yield a model's weights with llama.cpp's names and layouts.

    A head that is tied to the embedding is left out: llama.cpp then uses the embedding.
    """
    import gguf

    config = model.config
    arch = gguf.MODEL_ARCH.GPT2 if config.model_type == "gpt2" else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    # `Any`, because PyTorch's types allow a module as a layer's weight.
    embedding: Any = model.get_input_embeddings().weight
    head: Any = model.get_output_embeddings().weight
    if _rope_type(config) == "llama3":
        yield "rope_freqs.weight", _rope_factors(model)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and head.data_ptr() == embedding.data_ptr():
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise PublishError(
                f"The model's tensor `{name}` cannot be stored in a GGUF file of architecture `{arch.name}`."
            )
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

    Transformers rotates row i of a head together with row i + size/2, llama.cpp rotates neighboring rows.

    Args:
        weight: [heads * size, in], or [heads * size] for a bias.
        heads: Number of heads.
    """
    size = weight.shape[0] // heads
    return weight.reshape(heads, 2, size // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _rope_factors(model: "PreTrainedModel") -> "Tensor":
    """Return the factor by which Llama 3 slows each frequency of the rotary embedding, [size / 2]."""
    import torch

    size = _head_size(model.config)
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    plain = 1.0 / (float(model.config.rope_parameters["rope_theta"]) ** exponents)
    factors: Tensor = plain / model.get_buffer("model.rotary_emb.inv_freq").float().cpu()
    return factors


def format_quantize_command(path: Path) -> str:
    """Return llama.cpp's command to create a Q4_K_M file from one in F16 or F32; `gguf` cannot write that type.

    >>> format_quantize_command(Path("my-model-F16.gguf"))
    'llama-quantize my-model-F16.gguf my-model-Q4_K_M.gguf Q4_K_M'
    """
    smaller = path.with_stem(f"{re.sub('-F(16|32)$', '', path.stem)}-Q4_K_M")
    return shlex.join(["llama-quantize", str(path), str(smaller), "Q4_K_M"])


def check_gguf(path: Path, source: RunModel, *, tensor_type: str) -> Fidelity:
    """Return the difference of a file from the run's model.

    Args:
        path: The file.
        source: The model that it was written from.
        tensor_type: Type of its matrices.

    Raises:
        PublishError: It cannot be read back, or differs by more than its type explains.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = source.model.config
    try:
        # Transformers shows a progress bar here that cannot be turned off.
        with contextlib.redirect_stderr(io.StringIO()):
            differences = list(_list_differences(path, source))
            # With the run's config, because Transformers does not read all of the file's.
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, config=config, dtype=torch.float32
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise PublishError(f"The GGUF file cannot be loaded again ({error}). Please report this.") from error
    if differences:
        raise PublishError(f"The GGUF file has {differences[0]}. It was deleted; please report this.")
    return check_fidelity(model.eval(), source.reference, "The GGUF file", tensor_type=tensor_type)


def _list_differences(path: Path, source: RunModel) -> Iterator[str]:
    """Yield the differences of the file from the run, in the tokens of a text, a setting or the chat template."""
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.reader import read_gguf_metadata

    tokenizer, read = source.tokenizer, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # If the tokenizer has several templates, none is written.
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    pairs: list[tuple[str, Any, Any]] = [("chat_template", template, read.chat_template)]
    for text in (*_TEXTS, *map(tokenizer.decode, (ids for ids, _ in source.reference.rows))):
        ids, expected = (each(text, add_special_tokens=False)["input_ids"] for each in (read, tokenizer))
        pairs.append((f"tokens of {text!r}", expected, ids))
    keys, _ = read_gguf_metadata(str(path))
    for name, value in _list_settings(source).items():
        # The file stores fractions in float32.
        got = value if math.isclose(value, keys.get(name, math.nan), rel_tol=1e-6) else keys.get(name)
        pairs.append((name, value, got))
    for name, value, got in pairs:
        if value != got:
            yield f"{got!r} as its {name}, and the run {value!r}"
