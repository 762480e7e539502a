"""Collators: padded batches, or batches that share their prompt prefix."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.prompt_tokens import IGNORED

if TYPE_CHECKING:
    import torch

# Widths are rounded up to a multiple of this for fewer matrix shapes, because a CPU builds a kernel for each.
WIDTH_MULTIPLE = 16
# Keys of a batch for the trainer, which the model does not get.
TRAINER_KEYS = ("labels", "label_weights", "num_tokens")
_PREFIX, _PADDING = 0, -1


def unpack(rows: Sequence[Mapping[str, list[int]]]) -> list[dict[str, list[int]]]:
    """Return the examples in rows: one per row, or one for each of the `seq_lengths` of a row packed by TRL."""
    examples = []
    for row in rows:
        ids, start = list(row["input_ids"]), 0
        labels = list(row["labels"]) if "labels" in row else ids
        for length in row.get("seq_lengths", [len(ids)]):
            part = slice(start, start + length)
            examples.append({"input_ids": ids[part], "labels": labels[part]})
            start += length
    return examples


class PaddingCollator:
    """Pads a batch on the right to its longest example; padding is masked and has no loss."""

    def __init__(self, pad_id: int, multiple_of: int | None = None) -> None:
        """Pad with this id, whose value does not matter, because it is masked, to a multiple of `multiple_of`."""
        self.pad_id = pad_id
        self.multiple_of = multiple_of or 1

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        """Return `input_ids`, `attention_mask` and `labels`, each [batch, longest example]."""
        import torch

        examples = unpack(rows)
        longest = max(len(example["input_ids"]) for example in examples)
        width = -(-longest // self.multiple_of) * self.multiple_of
        batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for example in examples:
            length = len(example["input_ids"])
            padding = width - length
            batch["input_ids"].append(example["input_ids"] + [self.pad_id] * padding)
            batch["attention_mask"].append([1] * length + [0] * padding)
            batch["labels"].append(example["labels"] + [IGNORED] * padding)
        return {name: torch.tensor(values) for name, values in batch.items()}


class PrefixSharingCollator:
    """Concatenates the examples of a batch into few rows, each with its shared prompt prefix only once.

    With a 4-D mask each example attends to the prefix and itself, and its positions continue from the prefix. Each
    token therefore attends to the same tokens as in a separate row, and the loss equals that of the padded batch. Half
    of the tokens in a batch of Alpaca prompts are preamble or padding, which is removed. Examples are first sorted by
    their tokens, so that those with the same template or instruction are in one row and share more.

    It works with any causal language model that respects a 4-D mask and `position_ids` under SDPA or eager attention,
    and as the `data_collator` of any trainer whose rows have `input_ids` and `labels`, such as TRL's. With dropout,
    examples that share a prefix also share its dropout noise.

    Args:
        pad_id: Padding id; its value does not matter, because it is masked.
        row_length: Maximum number of tokens in a row; a longer example gets its own row. Attention is quadratic in it.
        additive_mask: Return the mask as numbers to add to the scores, for eager attention, instead of booleans, for
            SDPA.
        weighted: Also share tokens with a label (for a loss on the whole text), and return `label_weights` and
            `num_tokens` for trainers that use them, such as `InstructTrainer`.
    """

    def __init__(
        self, pad_id: int, *, row_length: int = 256, additive_mask: bool = False, weighted: bool = False
    ) -> None:
        if row_length < 1:
            raise ValueError(f"`row_length` is {row_length}; it must be a number of tokens, at least 1.")
        self.pad_id = pad_id
        self.row_length = row_length
        self.additive_mask = additive_mask
        self.weighted = weighted

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        """Return a batch.

        Returns:
            `input_ids`, `position_ids` and `labels`, each [rows, width]; `attention_mask`, [rows, 1, width, width];
            if `weighted`, also `label_weights`, [rows, width], the number of examples for which a label counts (0
            if there is none), and `num_tokens`, the number of tokens of all examples, an int.
        """

        examples = _sort(rows)
        packed = [_pack(row.members, row.shared) for row in _balance(examples, self.row_length, self.weighted)]
        width = -(-max(len(row.ids) for row in packed) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        batch = _fill_up(packed, width, self.pad_id)
        batch["attention_mask"] = _build_mask(batch.pop("members"), self.additive_mask)
        del batch["owners"]
        if self.weighted:
            batch["num_tokens"] = sum(len(example.ids) for example in examples)
        else:
            del batch["label_weights"]
        return batch


class SegmentCollator:
    """Concatenates the examples of a batch into one row, with each shared prompt prefix only once.

    Like `PrefixSharingCollator` with weights, but for a model under `segment_attention`: `segments` replaces the mask,
    so a row can have any length, and prefixes are not repeated.

    Args:
        pad_id: Padding id; its value does not matter, because no token attends to it.
        weighted: Also share tokens with a label. Otherwise each label belongs to one example, given by `owners`.
    """

    def __init__(self, pad_id: int, *, weighted: bool = True) -> None:
        self.pad_id = pad_id
        self.weighted = weighted

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        """Return a batch of one row.

        Returns:
            `input_ids`, `position_ids`, `labels` and `label_weights` (or `owners`, the index in `rows` of each token's
            example), each [1, width]; `segments`, for attention; `attention_mask`, [1, 1, 1, 1], so that models do not
            build one; `num_tokens`, the number of tokens of all examples, an int.
        """
        import torch

        from hf_instruct.training.fast.attention import Segment, build_segments

        examples = _sort(rows)
        packed = _PackedRow([], [], [], [], [], [])
        segments = []
        for row in _fill_rows(examples, sys.maxsize, weighted=self.weighted):
            start = len(packed.ids)
            prefix = range(start, start + row.shared)
            if prefix:
                segments.append(Segment(range(0), prefix.start, prefix.start, prefix.stop))
            end = prefix.stop
            for example in row.members:
                start, end = end, end + len(example.ids) - row.shared
                segments.append(Segment(prefix, start, start, end))
            packed.extend(_pack(row.members, row.shared))
        # At least one token of padding, which attention uses as a placeholder.
        width = (len(packed.ids) // WIDTH_MULTIPLE + 1) * WIDTH_MULTIPLE
        batch = _fill_up([packed], width, self.pad_id)
        del batch["members"], batch["owners" if self.weighted else "label_weights"]
        batch["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        batch["num_tokens"] = sum(len(example.ids) for example in examples)
        batch["segments"] = build_segments(segments, width)
        return batch


@dataclasses.dataclass
class _Example:
    """One example of a sorted batch.

    Attributes:
        ids: Its tokens.
        labels: Its labels; the first token has none, because no token predicts it.
        index: Its index in the batch.
        common: Length of the prefix that it has in common with the previous example, including labels.
        free: Length of the prefix that can always be shared: the tokens before the one that predicts the first label.
    """

    ids: list[int]
    labels: list[int]
    index: int
    common: int
    free: int


@dataclasses.dataclass
class _Row:
    """The examples in a row, the length of the prefix that they have in common, and how much of it is shared."""

    members: list[_Example]
    common: int
    shared: int

    @property
    def length(self) -> int:
        return self.shared + sum(len(example.ids) - self.shared for example in self.members)


@dataclasses.dataclass
class _PackedRow:
    ids: list[int]
    positions: list[int]
    members: list[int]  # number of the token's example in the row, from 1; 0 for the shared prefix
    labels: list[int]
    weights: list[int]
    owners: list[int]  # index in the batch of the token's example

    def extend(self, other: "_PackedRow") -> None:
        for name, values in vars(self).items():
            values += getattr(other, name)


def _sort(rows: Sequence[Mapping[str, list[int]]]) -> list[_Example]:
    """Return examples sorted so that those with most tokens in common are next to each other."""
    examples = enumerate(unpack(rows))
    tokens = sorted((example["input_ids"], [IGNORED, *example["labels"][1:]], index) for index, example in examples)
    pairs = zip(tokens, [tokens[0], *tokens], strict=False)
    return [
        _Example(*current, _common_length(current[:2], previous[:2]), _first_label(current[1]) - 1)
        for current, previous in pairs
    ]


def _balance(examples: Sequence[_Example], row_length: int, weighted: bool) -> list[_Row]:
    """Return as few rows of sorted examples as `row_length` allows, with lengths as even as possible."""
    best = _fill_rows(examples, row_length, weighted)
    low, high = 1, min(row_length, max(row.length for row in best))
    while low < high:
        middle = (low + high) // 2
        candidate = _fill_rows(examples, middle, weighted)
        if len(candidate) <= len(best):
            best, high = candidate, middle
        else:
            low = middle + 1
    return best


def _fill_rows(examples: Sequence[_Example], limit: int, weighted: bool) -> list[_Row]:
    rows: list[_Row] = []
    for example in examples:
        if rows:
            joined = _join(rows[-1], example, weighted)
            # A separate row if that is shorter: an example of another template would leave the row without a prefix.
            if joined.length <= min(limit, rows[-1].length + len(example.ids)):
                rows[-1] = joined
                continue
        rows.append(_Row([example], len(example.ids), 0))
    return rows


def _join(row: _Row, example: _Example, weighted: bool) -> _Row:
    members = [*row.members, example]
    common = min(row.common, example.common)
    free = min(member.free for member in members)
    # With weights, labels are shared too: all common tokens except the last, which predicts different tokens.
    return _Row(members, common, max(min(common, free), common - 1 if weighted else 0))


def _common_length(one: tuple[list[int], list[int]], other: tuple[list[int], list[int]]) -> int:
    pairs = zip(zip(*one, strict=True), zip(*other, strict=True), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one[0]), len(other[0])))


def _first_label(labels: Sequence[int]) -> int:
    return next((n for n, label in enumerate(labels) if label != IGNORED), len(labels))


def _pack(examples: Sequence[_Example], shared: int) -> _PackedRow:
    """Return a row's tokens: the first `shared` ones once, then the rest of each example."""
    ids, labels = examples[0].ids, examples[0].labels
    row = _PackedRow(
        ids[:shared],
        list(range(shared)),
        [_PREFIX] * shared,
        labels[:shared],
        [len(examples) * (label != IGNORED) for label in labels[:shared]],
        [examples[0].index] * shared,
    )
    for member, example in enumerate(examples, start=1):
        rest = example.labels[shared:]
        weights = [int(label != IGNORED) for label in rest]
        if rest[0] != IGNORED:
            # All examples have this label in common, and the last prefix token predicts it. Only that of the first
            # example directly follows that token, so it counts for all of them.
            weights[0] = len(examples) if member == 1 else 0
            rest[0] = rest[0] if member == 1 else IGNORED
        row.ids += example.ids[shared:]
        row.positions += range(shared, len(example.ids))
        row.members += [member] * len(rest)
        row.owners += [example.index] * len(rest)
        row.labels += rest
        row.weights += weights
    return row


def _fill_up(rows: Sequence[_PackedRow], width: int, pad_id: int) -> dict[str, Any]:
    """Return the padded fields of rows, each [rows, width]."""
    import torch

    def fill(values: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in values])

    return {
        "input_ids": fill([row.ids for row in rows], pad_id),
        "position_ids": fill([row.positions for row in rows], 0),
        "members": fill([row.members for row in rows], _PADDING),
        "owners": fill([row.owners for row in rows], 0),
        "labels": fill([row.labels for row in rows], IGNORED),
        "label_weights": fill([row.weights for row in rows], 0),
    }


def _build_mask(members: "torch.Tensor", additive: bool) -> "torch.Tensor":
    """Return the attention mask, [rows, 1, width, width], given the example of each token, [rows, width]."""
    import torch

    width = members.shape[1]
    queries, keys = members[:, :, None], members[:, None, :]
    # Padding attends to padding, because the softmax over no token would be NaN.
    sees = (queries == keys) | ((keys == _PREFIX) & (queries != _PADDING))
    sees = (sees & torch.ones(width, width, dtype=torch.bool).tril())[:, None]
    if not additive:
        return sees
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
