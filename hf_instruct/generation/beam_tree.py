"""Beam search, seen: which beginnings it followed, with what probability, and which it dropped.

Nothing is searched here: a `LogitsProcessor` that changes nothing looks on while `generate()` does.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError
from hf_instruct.generation.decoding import find_ends, generating
from hf_instruct.generation.token_text import decode_tokens, encode_text, show_token

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prefix = tuple[int, ...]


@dataclasses.dataclass
class BeamNode:
    """A token that a beam went through.

    Attributes:
        token_id: Its id.
        text: Readable, on one line.
        probability: Of this token after those above it.
        path_probability: Of all tokens from the prompt to this one.
        rank: 1 for the best of the texts found, where one ends here; None where none does.
        kept: Whether one of the texts found goes through it; what does not was dropped on the way.
        children: Tokens that beams took next, the likeliest first.
    """

    token_id: int
    text: str
    probability: float
    path_probability: float
    rank: int | None = None
    kept: bool = False
    children: list["BeamNode"] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class BeamText:
    """A continuation of the prompt.

    Attributes:
        token_ids: Its tokens, the one that ends it included.
        text: As the tokenizer writes them.
        log_probability: Of the whole, in nats.
        score: What beam search ranks by: nats a token; None for a text it did not find.
        stopped: Whether the model ended it itself.
    """

    token_ids: tuple[int, ...]
    text: str
    log_probability: float
    score: float | None
    stopped: bool


@dataclasses.dataclass(frozen=True)
class BeamTree:
    """What beam search went through.

    Attributes:
        prompt_tokens: The prompt's tokens, readable.
        num_beams: Beginnings followed at once.
        length: Most tokens of a continuation.
        roots: First tokens, the likeliest first.
        texts: What was found, the best first; as many as beams.
        greedy: What always taking the likeliest token gives, for comparison.
    """

    prompt_tokens: list[str]
    num_beams: int
    length: int
    roots: list[BeamNode]
    texts: list[BeamText]
    greedy: BeamText


def explore_beams(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str | Sequence[int],
    *,
    num_beams: int = 3,
    length: int = 5,
) -> BeamTree:
    """Return what beam search goes through when it continues a text: its best is that of `generate(num_beams=…)`.

    Args:
        text: The prompt as it is, or its token ids.
        num_beams: Beginnings followed at once, at least 2.
        length: Most tokens to write.

    Raises:
        DataError: The prompt cannot be used.
        ConfigError: A number is out of range.
    """
    import torch
    from transformers import LogitsProcessorList

    vocabulary = int(model.config.get_text_config().vocab_size)
    if not 2 <= num_beams <= vocabulary:
        raise ConfigError(f"`num_beams` is {num_beams}; a beam tree takes 2 to {vocabulary:,} (1 is greedy search).")
    if length < 1:
        raise ConfigError(f"`length` is {length}; it should be at least 1.")
    ids = encode_text(model, tokenizer, text, room=length)
    # A model made smaller may still name the end of the one it was made from, which it cannot write.
    ends = sorted(end for end in find_ends(model, tokenizer) if end < vocabulary)
    watcher = _Watcher(len(ids), ends)
    shared: dict[str, Any] = {"do_sample": False, "max_new_tokens": length, "pad_token_id": _pad_id(tokenizer)}
    shared |= {"eos_token_id": ends or None}
    with generating(model), torch.inference_mode():
        input_ids = torch.tensor([ids], device=model.device)
        mask = torch.ones_like(input_ids)
        found: Any = model.generate(  # type: ignore[operator]  # seen as a buffer
            input_ids,
            attention_mask=mask,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            return_dict_in_generate=True,
            output_scores=True,
            logits_processor=LogitsProcessorList([watcher]),
            **shared,
        )
        plain = model.generate(input_ids, attention_mask=mask, num_beams=1, **shared)  # type: ignore[operator]
        greedy = _until_end(plain[0, len(ids) :].tolist(), ends)
        greedy_log_probability = math.fsum(log_probabilities(model, ids, greedy))
    rows = [_until_end(row, ends) for row in found.sequences[:, len(ids) :].tolist()]
    watcher.add_last(rows)
    texts = [
        BeamText(row, decode_tokens(tokenizer, row), watcher.path(row), float(score), bool(row) and row[-1] in ends)
        for row, score in zip(rows, found.sequences_scores, strict=True)
    ]
    return BeamTree(
        prompt_tokens=[show_token(tokenizer, token) for token in ids],
        num_beams=num_beams,
        length=length,
        roots=_build_nodes(tokenizer, watcher, rows),
        texts=texts,
        greedy=BeamText(greedy, decode_tokens(tokenizer, greedy), greedy_log_probability, None, greedy[-1] in ends),
    )


class _Watcher:
    """A logits processor that notes the log-probability of every token that a beam takes.

    Attributes:
        steps: Log-probability in nats of each prefix's last token after those before it.
    """

    def __init__(self, prompt_length: int, ends: Sequence[int]) -> None:
        self.steps: dict[Prefix, float] = {}
        self._prompt_length, self._ends = prompt_length, list(ends)
        self._latest: dict[Prefix, Tensor] = {}
        # Of each prefix that a beam had, the log-probability of ending there.
        self._endings: dict[Prefix, float] = {}

    def __call__(self, input_ids: "Tensor", scores: "Tensor") -> "Tensor":
        prefixes = [tuple(row) for row in input_ids[:, self._prompt_length :].tolist()]
        for prefix in prefixes:
            self._note(prefix)
        # Of the steps before, what was taken is noted, and what ends: the rest of the vocabulary can go.
        self._latest = dict(zip(prefixes, scores, strict=True))
        for prefix, row in self._latest.items():
            for end in self._ends:
                self._endings[(*prefix, end)] = float(row[end])
        return scores

    def add_last(self, rows: Sequence[Prefix]) -> None:
        """Note the last tokens of the texts found, after which there was no further step."""
        for row in rows:
            if row and row not in self.steps:
                if row in self._endings:
                    self.steps[row] = self._endings[row]
                else:
                    self._note(row)

    def path(self, prefix: Prefix) -> float:
        """Return the log-probability of a prefix after the prompt, in nats."""
        return math.fsum(self.steps[prefix[: end + 1]] for end in range(len(prefix)))

    def _note(self, prefix: Prefix) -> None:
        if prefix and prefix not in self.steps:
            self.steps[prefix] = float(self._latest[prefix[:-1]][prefix[-1]])


def _build_nodes(tokenizer: "PreTrainedTokenizerBase", watcher: _Watcher, rows: Sequence[Prefix]) -> list[BeamNode]:
    kept = {row[:end] for row in rows for end in range(1, len(row) + 1)}
    ranks = {row: rank for rank, row in reversed(list(enumerate(rows, start=1)))}
    nodes: dict[Prefix, BeamNode] = {}
    roots: list[BeamNode] = []
    # The likeliest first, and those before their children.
    for prefix in sorted(watcher.steps, key=lambda prefix: (len(prefix), -watcher.steps[prefix])):
        node = BeamNode(
            token_id=prefix[-1],
            text=show_token(tokenizer, prefix[-1]),
            probability=math.exp(watcher.steps[prefix]),
            path_probability=math.exp(watcher.path(prefix)),
            rank=ranks.get(prefix),
            kept=prefix in kept,
        )
        nodes[prefix] = node
        (nodes[prefix[:-1]].children if len(prefix) > 1 else roots).append(node)
    return roots


def log_probabilities(model: "PreTrainedModel", prompt: Sequence[int], new: Sequence[int]) -> list[float]:
    """Return the log-probability in nats of each of some tokens after a prompt and those before it."""
    import torch

    with generating(model), torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *new]], device=model.device)).logits[0].float()
        steps = logits[len(prompt) - 1 : -1].log_softmax(-1)  # [new, vocabulary]
        chosen: list[float] = steps.gather(1, torch.tensor(new, device=model.device)[:, None])[:, 0].tolist()
    return chosen


def _pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(pad) if isinstance(pad, int) else 0


def _until_end(row: Sequence[int], ends: Sequence[int]) -> Prefix:
    return tuple(row[: next((place for place, token in enumerate(row) if token in ends), len(row)) + 1])
