"""Choose the faster of float32 and bf16 by measurement, because a CPU may support bf16 and still be slow at it.

Imports torch, so it is only imported where it is used.
"""

import contextlib
import hashlib
import json
import logging
import platform
import time
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_instruct.models import cache_folder
from hf_instruct.quantization import is_quantized
from hf_instruct.records import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Speedup that bf16 must have to make up for the casts of autocast.
_WORTHWHILE = 1.2
# Tokens of the timed product, and its maximum number of weights: 2 GFLOP, about 20 ms on two cores.
_TOKENS, _MAX_WEIGHTS = 256, 4_000_000
_TURNS = 5


def prefers_bf16(model: "PreTrainedModel", device: str) -> bool:
    """Return whether a model is clearly faster in bf16 than in float32 on a device.

    On a CPU, a matrix product with the model's shapes is timed in both precisions, and the result is logged. It is
    cached by machine, number of threads and version of PyTorch, so that the decision is always the same.

    Args:
        device: `cuda`, `mps` or `cpu`.
    """
    if model.dtype == torch.bfloat16 and not is_quantized(model):
        # The weights are multiplied in bf16 in any case.
        return True
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    shape = _find_shape(model)
    if device != "cpu" or shape is None:
        return False
    full, half = _find_rates(shape)
    is_faster = half >= _WORTHWHILE * full
    logger.info(
        "A matrix product with this model's shapes runs at %.0f GFLOP/s in float32 and %.0f in bf16: using %s.",
        full,
        half,
        "bf16" if is_faster else "float32",
    )
    return is_faster


def _find_shape(model: "PreTrainedModel") -> tuple[int, int] | None:
    """Return inputs and outputs of the linear layers that take most of the time, or None if there are none."""
    weights: Counter[tuple[int, int]] = Counter()
    # The head is by far the largest layer, but is only computed at few positions.
    head = model.get_output_embeddings()
    for layer in model.modules():
        # Not read from the weight, whose shape differs if it is quantized.
        if isinstance(layer, nn.Linear) and layer is not head:
            weights[layer.in_features, layer.out_features] += layer.in_features * layer.out_features
        elif isinstance(layer, Conv1D):
            weights[layer.nx, layer.nf] += layer.nx * layer.nf
    if not weights:
        return None
    (inputs, outputs), _ = weights.most_common(1)[0]
    return inputs, max(1, min(outputs, _MAX_WEIGHTS // inputs))


def _find_rates(shape: tuple[int, int]) -> tuple[float, float]:
    """Return the result of `_measure_rates`, cached for this machine."""
    # Several machines may share a cache folder, so the key contains their name.
    key = repr((platform.node(), platform.machine(), torch.get_num_threads(), torch.__version__, shape))
    path = cache_folder() / "precision" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        full, half = json.loads(path.read_text())
        return float(full), float(half)
    full, half = _measure_rates(*shape)
    # If the folder is not writable, the rates are measured again next time.
    with contextlib.suppress(OSError):
        write_json(path, [round(full, 2), round(half, 2)])
    return full, half


def _measure_rates(inputs: int, outputs: int) -> tuple[float, float]:
    """Return the GFLOP/s of a product in float32 and in bf16: the best of a few alternating rounds."""
    # A small product first: emulated bf16 is a hundred times slower, and the full product would take seconds.
    trial = _time_products(16, min(inputs, 256), min(outputs, 256))
    return trial if trial[1] < trial[0] / 4 else _time_products(_TOKENS, inputs, outputs)


def _time_products(tokens: int, inputs: int, outputs: int) -> tuple[float, float]:
    left, right = torch.ones(tokens, inputs), torch.ones(inputs, outputs)
    best = {torch.float32: 0.0, torch.bfloat16: 0.0}
    with torch.inference_mode():
        for turn in range(_TURNS + 1):
            for dtype in best:
                start = time.perf_counter()
                # Includes the cast, because weights are stored in float32 and cast on use.
                torch.mm(left.to(dtype), right.to(dtype))
                seconds = time.perf_counter() - start
                # The first round builds kernels.
                if turn:
                    best[dtype] = max(best[dtype], 2e-9 * tokens * inputs * outputs / max(seconds, 1e-9))
    return best[torch.float32], best[torch.bfloat16]
