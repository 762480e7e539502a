"""Collators: padded batches, or batches that share their prompt prefix."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.prompt_tokens import IGNORED

if TYPE_CHECKING:
    import torch

# Widths are rounded up to a multiple of this, so that there are few matrix shapes: a CPU builds a kernel for each.
WIDTH_MULTIPLE = 16
# Keys of a batch that are for the trainer and not for the model.
TRAINER_KEYS = ("labels", "label_weights", "num_tokens")
_PREFIX, _PADDING = 0, -1


def unpack(rows: Sequence[Mapping[str, list[int]]]) -> list[dict[str, list[int]]]:
    """Return the examples of rows: one per row, or as many as `seq_lengths` has in a row that TRL packed."""
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
    """Pads a batch on the right to its longest example; padding is masked and carries no loss."""

    def __init__(self, pad_id: int, multiple_of: int | None = None) -> None:
        """Pad with this id, to a multiple; the id does not matter, because it is masked."""
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

    With a 4-D mask each example attends to the prefix and itself, and its positions continue from the prefix. So every
    token is computed from the same tokens as in a row of its own, and the loss equals that of the padded batch. Half of
    the tokens of a batch of Alpaca prompts are preamble or padding, which this removes. Examples are sorted by their
    tokens first, so that those with the same template or instruction are in one row and share more.

    It works with any causal language model that respects a 4-D mask and `position_ids` under SDPA or eager attention,
    and as the `data_collator` of any trainer whose rows have `input_ids` and `labels` (TRL's do). With dropout,
    examples that share a prefix share its noise.

    Args:
        pad_id: Padding id; its value does not matter, because it is masked.
        row_length: Maximum number of tokens in a row; a longer example gets its own row. Attention is quadratic in it.
        additive_mask: Return the mask as numbers to add to the scores, for eager attention, and not as booleans, for
            SDPA.
        weighted: Also share tokens that carry a label (as when the loss is on the whole text), and return
            `label_weights` and `num_tokens` for a trainer that reads them, as `InstructTrainer` does.
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
            if there is none), and `num_tokens`, the tokens of all examples, a plain number.
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

    As `PrefixSharingCollator` with weights, for a model under `segment_attention`: `segments` and not a mask says which
    tokens attend to which, so a row may be of any length, and prefixes are not repeated.

    Args:
        pad_id: Padding id; its value does not matter, because nothing attends to it.
        weighted: Also share tokens that carry a label. Otherwise each label belongs to one example, and `owners` says
            to which.
    """

    def __init__(self, pad_id: int, *, weighted: bool = True) -> None:
        self.pad_id = pad_id
        self.weighted = weighted

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        """Return a batch of one row.

        Returns:
            `input_ids`, `position_ids`, `labels` and `label_weights` (or `owners`, the index in `rows` of the example
            that each token is of), each [1, width]; `segments`, for attention;
            `attention_mask`, [1, 1, 1, 1], so that models do not build one; `num_tokens`, the tokens of all
            examples, a plain number.
        """
        import torch

        from hf_instruct.training.fast.attention import Segment, build_segments

        examples = _sort(rows)
        whole = _PackedRow([], [], [], [], [], [])
        segments = []
        for row in _fill_rows(examples, sys.maxsize, weighted=self.weighted):
            start = len(whole.ids)
            prefix = range(start, start + row.shared)
            if prefix:
                segments.append(Segment(range(0), prefix.start, prefix.start, prefix.stop))
            end = prefix.stop
            for example in row.members:
                start, end = end, end + len(example.ids) - row.shared
                segments.append(Segment(prefix, start, start, end))
            whole.extend(_pack(row.members, row.shared))
        # At least one token of padding, which attention uses as a placeholder.
        width = (len(whole.ids) // WIDTH_MULTIPLE + 1) * WIDTH_MULTIPLE
        batch = _fill_up([whole], width, self.pad_id)
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
        labels: Its labels; the first token, which nothing predicts, has none.
        index: Which row of the batch it is.
        common: Number of first tokens that it has in common with the example before it, labels included.
        free: Number of first tokens that can always be shared: those before the token that predicts the first label.
    """

    ids: list[int]
    labels: list[int]
    index: int
    common: int
    free: int


@dataclasses.dataclass
class _Row:
    """Which examples a row holds, how many first tokens they have in common, and how many of those it shares."""

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
    members: list[int]  # which example of the row sees a token: 1 for the first; 0 for what all see
    labels: list[int]
    weights: list[int]
    owners: list[int]  # the index in the batch of the example that a token is of

    def extend(self, other: "_PackedRow") -> None:
        for name, values in vars(self).items():
            values += getattr(other, name)


def _sort(rows: Sequence[Mapping[str, list[int]]]) -> list[_Example]:
    """Return examples sorted so that those with most tokens in common are next to each other."""
    examples = enumerate(unpack(rows))
    tokens = sorted((one["input_ids"], [IGNORED, *one["labels"][1:]], index) for index, one in examples)
    pairs = zip(tokens, [tokens[0], *tokens], strict=False)
    return [_Example(*one, _common_length(one[:2], before[:2]), _first_label(one[1]) - 1) for one, before in pairs]


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
            # In a row of its own if that is shorter: with an example of another template, the others share no prefix.
            if joined.length <= min(limit, rows[-1].length + len(example.ids)):
                rows[-1] = joined
                continue
        rows.append(_Row([example], len(example.ids), 0))
    return rows


def _join(row: _Row, example: _Example, weighted: bool) -> _Row:
    members = [*row.members, example]
    common = min(row.common, example.common)
    free = min(member.free for member in members)
    # With weights labels are shared too: all common tokens but the last, which predicts the first own one.
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
        own = example.labels[shared:]
        weights = [int(label != IGNORED) for label in own]
        if own[0] != IGNORED:
            # All examples have this label in common, and the last prefix token predicts it. Only that of the first
            # example directly follows that token, so it counts for all of them.
            weights[0] = len(examples) if member == 1 else 0
            own[0] = own[0] if member == 1 else IGNORED
        row.ids += example.ids[shared:]
        row.positions += range(shared, len(example.ids))
        row.members += [member] * len(own)
        row.owners += [example.index] * len(own)
        row.labels += own
        row.weights += weights
    return row


def _fill_up(rows: Sequence[_PackedRow], width: int, pad_id: int) -> dict[str, Any]:
    """Return the padded tokens of rows and their positions, labels and so on, all [rows, width]."""
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
    """Return which tokens each token sees, [rows, 1, width, width], from the example each belongs to, [rows, width]."""
    import torch

    width = members.shape[1]
    queries, keys = members[:, :, None], members[:, None, :]
    # Padding sees padding: a token that saw nothing would be a division of zero by zero.
    sees = (queries == keys) | ((keys == _PREFIX) & (queries != _PADDING))
    sees = (sees & torch.ones(width, width, dtype=torch.bool).tril())[:, None]
    if not additive:
        return sees
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
