"""Read a GGUF file back and compare it with the run that it was written from.

The reader is Transformers', which shares no line with our writer: it has its own names, its own reversal of the rotary
order and its own transposes. A file that passes has the run's vocabulary, ends, chat template and answers.
"""

import contextlib
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import PublishError
from hf_instruct.hub.fidelity import Fidelity, check_fidelity
from hf_instruct.hub.merging import RunModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_TEXTS = ("In 1984, 3.14 * 2 = 6.28!", "  def f(x):\n\treturn x  # it's\n\n", "Grüße, 你好 🙂", "<|endoftext|>Hi")
_ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")


def check_gguf(path: Path, source: RunModel, *, tensor_type: str) -> Fidelity:
    """Return how near a file is to the run's own model.

    Args:
        path: The file.
        source: What it was written from.
        tensor_type: How its matrices are stored.

    Raises:
        PublishError: It cannot be read back, or differs by more than its type explains.
    """
    _compare_tokenizers(path, source)
    model = load_gguf(path, source.model.config)
    # The answers to ten short prompts hardly depend on these.
    for name in ("max_position_embeddings", "layer_norm_epsilon", "rms_norm_eps"):
        expected, got = (getattr(config, name, 0.0) for config in (source.model.config, model.config))
        # The file keeps them in float32.
        if not math.isclose(expected, got, rel_tol=1e-6):
            raise PublishError(f"The GGUF file has `{name}` {got}, and the model {expected}. Please report this.")
    return check_fidelity(model, source.reference, "The GGUF file", tensor_type=tensor_type)


def load_gguf(path: Path, config: "PretrainedConfig") -> "PreTrainedModel":
    """Return a GGUF file as a Transformers model in float32.

    Args:
        config: The source model's, for the one thing that Transformers does not read: Llama 3's slowed rotation.

    Raises:
        PublishError: Transformers cannot read it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        # Transformers draws a bar here that cannot be switched off.
        with contextlib.redirect_stderr(io.StringIO()):
            read = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
            if read.model_type == "gpt2":
                keys, _ = read_gguf_metadata(str(path))
                # Transformers reads these two under names that its GPT-2 does not use.
                read.n_positions = int(keys["gpt2.context_length"])
                read.n_inner = int(keys["gpt2.feed_forward_length"])
            elif config.rope_parameters.get("rope_type") == "llama3":
                read.rope_parameters = dict(config.rope_parameters)
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, config=read, dtype=torch.float32
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise PublishError(f"The GGUF cannot be read back ({error}). Please report this.") from error
    model.eval()
    return model


def _compare_tokenizers(path: Path, source: RunModel) -> None:
    """Raise where the file cuts a text otherwise than the run's tokenizer, or has another end or chat template."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer
    from transformers.integrations.gguf.reader import read_gguf_metadata

    tokenizer = source.tokenizer
    architecture, stored, settings = get_gguf_tokenizer(str(path))
    read, _ = convert_gguf_tokenizer(architecture, stored)
    pairs: list[tuple[str, Any, Any]] = [
        (name, getattr(tokenizer, name), settings.get(name)) for name in ("bos_token", "eos_token")
    ]
    # Several templates are not written.
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    pairs.append(("chat_template", template, settings.get("chat_template")))
    keys, _ = read_gguf_metadata(str(path))
    ends = {source.prompt_format.end_token_id(tokenizer), tokenizer.eos_token_id}
    pairs.append(("ends", ends, {keys[key] for key in _ENDS if key in keys}))
    pairs += [
        (
            f"tokens of {text!r}",
            tokenizer(text, add_special_tokens=False)["input_ids"],
            read.encode(text, add_special_tokens=False).ids,
        )
        for text in (*_TEXTS, *map(tokenizer.decode, (ids for ids, _ in source.reference.rows)))
    ]
    for name, expected, got in pairs:
        if expected != got:
            raise PublishError(
                f"The GGUF file has {got!r} as its {name}, and the run {expected!r}. It was not kept; please report "
                "this."
            )
