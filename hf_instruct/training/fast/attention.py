"""Attention within the segments of one long row: each attends to its shared prefix and itself.

On a CPU, PyTorch's `scaled_dot_product_attention` with a mask computes all pairs of tokens in a row, but a row of
examples needs at most a fifth of them. Here, segments of similar length and the keys that they attend to form a block,
which takes a few batched matrix products.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_instruct.models import attending_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "hf_instruct_segments"
# Options of attention that some models use and that are not supported here.
_UNKNOWN = ("cache", "position_bias", "s_aux", "softcap")
# Maximum queries of a segment in one block, because keys that only the last one sees are computed for all.
_MAX_QUERIES = 64
# Maximum scores of a block per head, so that those of all heads fit into a CPU's cache.
_MAX_SCORES = 48_000
# Attention weights on more keys than this are recomputed in the backward pass, because their size is quadratic.
_MAX_KEPT_KEYS = 512
# Queries and keys of a block are padded to a multiple of this, because a CPU builds a kernel for each new shape.
_MULTIPLE = 16


@dataclasses.dataclass(frozen=True)
class Segment:
    """Adjacent tokens of a row.

    Attributes:
        prefix: Indices in the row of the shared prefix.
        start: Index of the first token of their example after the prefix.
        first: Index of their first token.
        end: Index after their last token.
    """

    prefix: range
    start: int
    first: int
    end: int

    @property
    def num_queries(self) -> int:
        """The number of tokens in the segment."""
        return self.end - self.first

    @property
    def num_keys(self) -> int:
        """The number of tokens that the last one attends to."""
        return len(self.prefix) + self.end - self.start


@dataclasses.dataclass(frozen=True)
class _Block:
    """Segments of similar length.

    Attributes:
        queries: Indices of their tokens, [segments, queries].
        keys: Indices of the tokens that they attend to, [segments, keys].
        hidden: Which keys are masked for a query, [segments, queries, keys].
    """

    queries: Tensor
    keys: Tensor
    hidden: Tensor


@dataclasses.dataclass(frozen=True)
class Segments:
    """The segments of a row, prepared for attention.

    Attributes:
        blocks: Each segment is in one of them.
        indices: The index of each token of the row in the concatenated queries of all blocks, [row]; for padding, the
            index after the last.
    """

    blocks: list[_Block]
    indices: Tensor


def build_segments(segments: Sequence[Segment], width: int) -> Segments:
    """Return the segments of a row of `width` tokens; at least the last token is padding."""
    parts = sorted(
        (part for segment in segments for part in _split(segment)), key=lambda part: (part.num_queries, part.num_keys)
    )
    groups: list[list[Segment]] = []
    for part in parts:
        if groups and _count_scores([*groups[-1], part]) <= _MAX_SCORES:
            groups[-1].append(part)
        else:
            groups.append([part])
    indices = torch.full((width,), -1)
    blocks, begin = [], 0
    for group in groups:
        block = _build_block(group, padding=width - 1)
        for segment in group:
            indices[segment.first : segment.end] = torch.arange(begin, begin + segment.num_queries)
            begin += block.queries.shape[1]
        blocks.append(block)
    return Segments(blocks, indices.where(indices >= 0, begin))


def _split(segment: Segment) -> Iterator[Segment]:
    """Split a long segment into parts of similar length; each also attends to the parts before it."""
    count = -(-segment.num_queries // _MAX_QUERIES)
    ends = [segment.first + segment.num_queries * part // count for part in range(count + 1)]
    for first, end in itertools.pairwise(ends):
        yield Segment(segment.prefix, segment.start, first, end)


def _round_up(number: int) -> int:
    return -(-number // _MULTIPLE) * _MULTIPLE


def _size(group: Sequence[Segment]) -> tuple[int, int]:
    return _round_up(max(part.num_queries for part in group)), _round_up(max(part.num_keys for part in group))


def _count_scores(group: Sequence[Segment]) -> int:
    queries, keys = _size(group)
    return len(group) * queries * keys


def _build_block(group: Sequence[Segment], *, padding: int) -> _Block:
    num_queries, num_keys = _size(group)
    queries = torch.full((len(group), num_queries), padding)
    keys = torch.full((len(group), num_keys), padding)
    for row, segment in enumerate(group):
        queries[row, : segment.num_queries] = torch.arange(segment.first, segment.end)
        keys[row, : segment.num_keys] = torch.tensor([*segment.prefix, *range(segment.start, segment.end)])
    offsets = torch.tensor([segment.num_keys - segment.num_queries for segment in group])
    last_seen = offsets[:, None] + torch.arange(num_queries)  # [segments, queries]
    return _Block(queries, keys, torch.arange(num_keys) > last_seen[:, :, None])


class _SegmentAttention(torch.autograd.Function):
    """Softmax attention in blocks.

    Products use the training precision; scores, their softmax and its gradient are in fp32, as in fused kernels.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, dropout: float
    ) -> Tensor:
        """Return [heads, row, size] for query [heads, row, size] and key and value, [key heads, row, size]."""
        outputs: list[Tensor] = []
        saved: list[Tensor | None] = []
        for block in segments.blocks:
            queries, keys, values = _gather(query, key, value, block)
            weights = _weigh(queries, keys, block, scale)
            noise = torch.empty_like(weights).bernoulli_(1 - dropout).div_(1 - dropout) if dropout else None
            products = torch.bmm(weights if noise is None else weights * noise, values)
            outputs.append(_by_head(products, query, block))
            saved += [weights if keys.shape[1] <= _MAX_KEPT_KEYS else None, noise]
        ctx.save_for_backward(query, key, value, *saved)
        ctx.segments, ctx.scale = segments, scale
        return _collect(outputs, segments)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, *saved = ctx.saved_tensors
        for_queries: list[Tensor] = []
        # In fp32, because they are summed over many segments for the keys of a prefix.
        for_key, for_value = torch.zeros(key.shape), torch.zeros(value.shape)
        for block, saved_weights, noise in zip(ctx.segments.blocks, saved[::2], saved[1::2], strict=True):
            queries, keys, values = _gather(query, key, value, block)
            weights = _weigh(queries, keys, block, ctx.scale) if saved_weights is None else saved_weights
            for_products = _by_segment(gradients[0], len(key), block.queries)
            for_values = torch.bmm((weights if noise is None else weights * noise).transpose(1, 2), for_products)
            for_weights = _multiply_in_fp32(for_products, values.transpose(1, 2))
            if noise is not None:
                for_weights *= noise
            for_scores = torch._softmax_backward_data(for_weights, weights.float(), -1, torch.float32)
            for_scores = for_scores.mul_(ctx.scale).to(query.dtype)
            for_queries.append(_by_head(torch.bmm(for_scores, keys), query, block))
            for_keys = torch.bmm(for_scores.transpose(1, 2), queries)
            indices = block.keys.flatten()
            for_key.index_add_(1, indices, for_keys.float().view(len(key), len(indices), -1))
            for_value.index_add_(1, indices, for_values.float().view(len(value), len(indices), -1))
        return _collect(for_queries, ctx.segments), for_key.to(key.dtype), for_value.to(value.dtype), None, None, None


def _gather(query: Tensor, key: Tensor, value: Tensor, block: _Block) -> tuple[Tensor, Tensor, Tensor]:
    """Return a block's queries, keys and values, each [key heads x segments, tokens, size]."""
    queries = _by_segment(query, len(key), block.queries)
    return queries, _by_segment(key, len(key), block.keys), _by_segment(value, len(key), block.keys)


def _weigh(queries: Tensor, keys: Tensor, block: _Block, scale: float) -> Tensor:
    """Return the attention weights, [key heads x segments, heads of a key x queries, keys]."""
    scores = _multiply_in_fp32(queries, keys.transpose(1, 2)).mul_(scale)
    num_segments, num_queries, num_keys = block.hidden.shape
    by_head = scores.view(len(scores) // num_segments, num_segments, -1, num_queries, num_keys)
    by_head.masked_fill_(block.hidden[:, None], float("-inf"))
    return scores.softmax(-1).to(queries.dtype)


def _by_segment(states: Tensor, num_key_heads: int, indices: Tensor) -> Tensor:
    """Return [key heads x segments, tokens, size] from [heads, row, size]; heads of the same key head are adjacent."""
    heads, _, size = states.shape
    chosen = states.index_select(1, indices.flatten())  # [heads, segments x tokens, size]
    by_key_head = chosen.view(num_key_heads, heads // num_key_heads, *indices.shape, size).transpose(1, 2)
    return by_key_head.reshape(num_key_heads * len(indices), -1, size)


def _by_head(products: Tensor, query: Tensor, block: _Block) -> Tensor:
    """Return [heads, segments x queries, size] from [key heads x segments, heads of a key x queries, size]."""
    num_segments, num_queries = block.queries.shape
    by_key_head = products.view(len(products) // num_segments, num_segments, -1, num_queries, products.shape[2])
    return by_key_head.transpose(1, 2).reshape(len(query), num_segments * num_queries, -1)


def _collect(parts: Sequence[Tensor], segments: Segments) -> Tensor:
    """Return [heads, row, size] from the outputs of all blocks, each [heads, queries, size]."""
    padding = parts[0].new_zeros(parts[0].shape[0], 1, parts[0].shape[2])
    return torch.cat([*parts, padding], dim=1).index_select(1, segments.indices)


def _multiply_in_fp32(left: Tensor, right: Tensor) -> Tensor:
    """Return the batched matrix product of two tensors in fp32, without rounding either."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009  (its types do not name it)
    previous = settings.fp32_precision
    if left.dtype == torch.bfloat16:
        # The values are still bf16 numbers, so multiplying them as bf16 gives the same result several times faster.
        settings.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", enabled=False):
            return torch.bmm(left.float(), right.float())
    finally:
        settings.fp32_precision = previous


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Compute attention like Transformers' `sdpa`, or within segments if they are given.

    Args:
        module: The attention layer.
        query: [1, heads, row, size].
        key: [1, key heads, row, size]; each is used by `heads / key heads` heads.
        value: Same shape as `key`.
        attention_mask: Ignored if segments are given.
        segments: Which tokens attend to which.
        scaling: Factor for the scores; default: `size ** -0.5`.
        dropout: Rate at which attention weights are dropped.

    Returns:
        [1, row, heads, size], and None for the weights.
    """
    if segments is None:
        settings |= {"scaling": scaling, "dropout": dropout}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    if unsupported := [name for name in _UNKNOWN if settings.get(name) is not None]:
        raise NotImplementedError(f"Attention within segments does not support `{unsupported[0]}`.")
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (states.to(torch.get_autocast_dtype("cpu")) for states in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    apply: Any = _SegmentAttention.apply
    output: Tensor = apply(query[0], key[0], value[0], segments, scale, dropout)  # [heads, row, size]
    return output.transpose(0, 1)[None], None


def segment_attention(model: "PreTrainedModel") -> contextlib.AbstractContextManager[None]:
    """Make a model with SDPA on a CPU accept the keyword `segments` and compute attention within them."""
    return attending_by(model, _NAME, _attend)
