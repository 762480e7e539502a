"""Explore how a model continues a text: next-token probabilities, beam search, and the text of each strategy.

Everything is computed with the logits warpers and `generate()` of Transformers. Each result has a `TextTable` for the
terminal and the web page.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.console import pluralize
from hf_instruct.errors import ConfigError, is_bug
from hf_instruct.generation.decoding import decode_tokens, find_ends, generate_completions, generating, until_end
from hf_instruct.generation.strategies import build_generation_settings, find_strategy
from hf_instruct.generation.token_text import SPACE, show_text, show_token

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Shown in addition to the requested temperature.
TEMPERATURES = (0.3, 0.7, 1.0, 1.5)
# Length of the n-grams whose repetition is measured, in tokens.
_GRAM = 4


class TextTable(NamedTuple):
    """A result as a table of text."""

    heads: list[str]
    rows: list[list[str]]
    left: set[int]  # indices of left-aligned columns, which contain words; the others are numbers


@dataclasses.dataclass(frozen=True)
class NextToken:
    """A candidate for the next token."""

    token_id: int
    text: str  # readable, on one line
    probability: float  # softmax of the model's logits
    tempered: float  # its probability at the requested temperature
    at: tuple[float, ...]  # its probability at each of `TEMPERATURES`
    in_top_k: bool  # whether top-k alone keeps it, at that temperature; true if top-k is off
    in_top_p: bool  # the same for top-p
    drawn: float  # its probability under temperature, then top-k, then top-p, as `generate()` samples


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """The distribution of the next token after a prompt."""

    prompt_tokens: list[str]  # readable
    vocabulary: int  # number of tokens
    settings: dict[str, Any]  # the requested `temperature`, `top_k` (0 is off) and `top_p` (1 is off)
    share_top_k: float  # total probability of the tokens that top-k alone keeps, at the requested temperature
    num_top_p: int  # number of tokens that top-p alone keeps
    share_top_p: float  # their total probability
    num_drawn: int  # number of tokens that sampling can draw
    tokens: list[NextToken]  # the most likely first
    entropies: tuple[float, ...]  # in bits, at each of `TEMPERATURES`

    def to_table(self) -> TextTable:
        """Return a row for each token, followed by the entropies."""
        heads = ["", "token", *(f"T={value:g}" for value in TEMPERATURES), "top-k", "top-p", "drawn"]
        rows = [
            [
                *(str(rank), token.text, *(f"{share:.1%}" for share in token.at)),
                *("yes" if kept else "-" for kept in (token.in_top_k, token.in_top_p)),
                f"{token.drawn:.1%}" if token.drawn else "-",
            ]
            for rank, token in enumerate(self.tokens, start=1)
        ]
        entropies = ["", "(entropy, bits)", *(f"{bits:.2f}" for bits in self.entropies), "", "", ""]
        return TextTable(heads, [*rows, entropies], {1})

    def __str__(self) -> str:
        """Return a sentence on what top-k and top-p keep."""
        top_k, top_p, temperature = (self.settings[name] for name in ("top_k", "top_p", "temperature"))
        alone, drawn = "", f"sampling draws from {self.num_drawn:,} of {self.vocabulary:,} tokens"
        if top_k and top_p < 1:
            alone = " alone"
            drawn = f"top-k and then top-p leave {self.num_drawn:,} of {self.vocabulary:,} tokens to sample from"
        parts = [f"top-k {top_k:,}{alone} keeps {self.share_top_k:.1%} of the probability"] if top_k else []
        if top_p < 1:
            tokens = pluralize(self.num_top_p, "token")
            parts.append(f"top-p {top_p:g}{alone} keeps {tokens} with {self.share_top_p:.1%}")
        return f"At temperature {temperature:g}, {'; '.join([*parts, drawn])}."


@dataclasses.dataclass(frozen=True)
class BeamNode:
    """A token in a beam."""

    depth: int  # number of tokens between the prompt and it
    token_id: int
    text: str  # readable, on one line
    probability: float  # of this token, given those above it
    path_probability: float  # of all tokens from the prompt to this one
    outcome: str  # `best`, `number 2` … at the end of a text; `dropped` at the end of a dropped path; otherwise empty


@dataclasses.dataclass(frozen=True)
class Continuation:
    """A continuation of a prompt."""

    name: str  # of the strategy, or the rank in beam search
    text: str  # without the prompt and special tokens
    token_ids: tuple[int, ...]  # including the end token
    stopped: bool  # whether the model ended it, instead of reaching the maximum length
    repeated: float | None  # share of its 4-grams of tokens that occurred before; None if it is shorter
    log_probability: float  # of the whole continuation, in nats
    perplexity: float  # per token under the model, at least 1


@dataclasses.dataclass(frozen=True)
class BeamTree:
    """The tree of beam search."""

    nodes: list[BeamNode]  # from the top down, children after their parent, more likely ones first
    texts: list[Continuation]  # the result of each beam, best first, then that of greedy search

    def to_table(self) -> TextTable:
        """Return a row for each token, indented below the one before it."""
        indent = "\u00a0\u00a0"
        rows = [
            [indent * node.depth + node.text, f"{node.probability:.2%}", f"{node.path_probability:.3%}", node.outcome]
            for node in self.nodes
        ]
        return TextTable(["token", "probability", "of the path", ""], rows, {0, 3})


def tabulate_texts(texts: Sequence[Continuation]) -> TextTable:
    """Return a row for each text, with its measures before it."""
    rows = [
        [
            *(text.name, str(len(text.token_ids)), "-" if text.repeated is None else f"{text.repeated:.0%}"),
            *(f"{text.perplexity:,.1f}", f"{math.exp(text.log_probability):.1e}"),
            show_text(text.text).replace(SPACE, " ") + ("" if text.stopped else " …"),
        ]
        for text in texts
    ]
    return TextTable(["", "tokens", "repeats", "perplexity", "probability", "text"], rows, {0, 5})


def explore_next(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    *,
    top: int = 20,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> NextTokens:
    """Return the distribution of the next token after a text, and the effect of sampling settings on it.

    Args:
        ids: The prompt, from `encode_raw_prompt`.
        top: Number of tokens to list, at least 1.
        temperature: Above 0; values below 1 sharpen the distribution, values above 1 flatten it.
        top_k: Keep this many most likely tokens; 0 for all.
        top_p: Keep the most likely tokens with this total probability; 1 for all.

    Raises:
        ConfigError: Numbers are out of range; all are listed.
    """
    import torch

    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    build_generation_settings("sample", **settings)
    with generating(model), torch.inference_mode():
        logits = (
            model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0, -1].double().cpu()
        )  # [vocabulary]
    plain, tempered = logits.softmax(-1), (logits / temperature).softmax(-1)
    at = torch.stack([(logits / value).softmax(-1) for value in TEMPERATURES])  # [temperatures, vocabulary]
    in_k = _warp(logits, temperature, top_k=top_k).isfinite()
    in_p = _warp(logits, temperature, top_p=top_p).isfinite()
    drawn = _warp(logits, temperature, top_k=top_k, top_p=top_p).softmax(-1)
    return NextTokens(
        prompt_tokens=[show_token(tokenizer, token) for token in ids],
        vocabulary=len(logits),
        settings=settings,
        share_top_k=float(tempered[in_k].sum()),
        num_top_p=int(in_p.sum()),
        share_top_p=float(tempered[in_p].sum()),
        num_drawn=int((drawn > 0).sum()),
        tokens=[
            NextToken(
                token_id=token,
                text=show_token(tokenizer, token),
                probability=float(plain[token]),
                tempered=float(tempered[token]),
                at=tuple(at[:, token].tolist()),
                in_top_k=bool(in_k[token]),
                in_top_p=bool(in_p[token]),
                drawn=float(drawn[token]),
            )
            for token in logits.argsort(descending=True, stable=True)[:top].tolist()
        ],
        entropies=tuple(float(-row.xlogy(row).sum()) / math.log(2) for row in at),
    )


def _warp(logits: "Tensor", temperature: float, *, top_k: int = 0, top_p: float = 1.0) -> "Tensor":
    """Return the logits that `generate()` samples from, `[vocabulary]`; minus infinity for tokens that are left out."""
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    nothing = torch.zeros(1, 1, dtype=torch.long)
    # The annotations only allow certain tensor types.
    warped: Tensor = warpers(nothing, logits[None])[0]  # type: ignore[arg-type]
    return warped


def explore_beams(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    *,
    num_beams: int = 3,
    length: int = 5,
) -> BeamTree:
    """Return the tree of beam search when it continues a text; its best text is that of `generate(num_beams=…)`.

    Args:
        ids: The prompt, from `encode_raw_prompt`.
        num_beams: Number of beams, at least 2.
        length: Maximum number of new tokens.

    Raises:
        ConfigError: A number is out of range.
    """
    import torch

    vocabulary = int(model.config.get_text_config().vocab_size)
    if not 2 <= num_beams <= vocabulary or length < 1:
        raise ConfigError(
            f"A beam tree needs 2 to {vocabulary:,} beams (1 is greedy search) and at least 1 token; `num_beams` is "
            f"{num_beams}, `length` is {length}."
        )
    # A model that was made smaller may still have the end token of the original, beyond its vocabulary.
    ends = {end for end in find_ends(model, tokenizer) if end < vocabulary}
    followed: set[tuple[int, ...]] = set()

    def watch(rows: "Tensor", scores: "Tensor") -> "Tensor":
        """Record the tokens of the beams; a logits processor that changes nothing."""
        followed.update(tuple(row) for row in rows[:, len(ids) :].tolist())
        return scores

    with generating(model), torch.inference_mode():
        sequences: Any = model.generate(  # type: ignore[operator]  # seen as a buffer
            torch.tensor([list(ids)], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            num_beams=num_beams,
            num_return_sequences=num_beams,
            logits_processor=[watch],
            do_sample=False,
            max_new_tokens=length,
            pad_token_id=tokenizer.pad_token_id or 0,
            eos_token_id=sorted(ends) or None,
        )
    rows = [tuple(until_end(row, ends)) for row in sequences[:, len(ids) :].tolist()]
    ranks = ["best", *(f"number {rank}" for rank in range(2, num_beams + 1))]
    nodes = _build_nodes(model, tokenizer, ids, followed, dict(zip(rows, ranks, strict=True)))
    end_id = min(ends, default=-1)
    (greedy,) = generate_completions(model, tokenizer, [ids], end_id=end_id, max_new_tokens=length)
    texts = [(rank, row, row[-1] in ends) for rank, row in zip(ranks, rows, strict=True)]
    texts.append(("greedy search", greedy.token_ids, greedy.stopped))
    return BeamTree(nodes, [_measure(model, tokenizer, ids, *text) for text in texts])


def _build_nodes(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    followed: set[tuple[int, ...]],
    found: dict[tuple[int, ...], str],
) -> list[BeamNode]:
    """Return the nodes of all paths of the beams; `found` contains the names of the resulting texts."""
    paths = {row[:end] for row in (*followed, *found) for end in range(1, len(row) + 1)}
    leaves = paths - {path[:-1] for path in paths}
    logs: dict[tuple[int, ...], list[float]] = {}  # path -> log-probability of each token
    for leaf in leaves:
        steps = _log_probabilities(model, ids, leaf)
        logs |= {leaf[:end]: steps[:end] for end in range(1, len(leaf) + 1)}
    # Likelier tokens first, each followed by those below it. In bf16 a token's number differs slightly between leaves.
    ordered = sorted(
        paths, key=lambda path: [(-logs[path[:end]][-1], path[end - 1]) for end in range(1, len(path) + 1)]
    )
    return [
        BeamNode(
            depth=len(path) - 1,
            token_id=path[-1],
            text=show_token(tokenizer, path[-1]),
            probability=math.exp(logs[path][-1]),
            path_probability=math.exp(math.fsum(logs[path])),
            outcome=found.get(path, "dropped" if path in leaves else ""),
        )
        for path in ordered
    ]


def compare_strategies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    *,
    names: Sequence[str],
    max_new_tokens: int = 40,
    seed: int = 123,
    end_id: int,
) -> list[Continuation]:
    """Return the continuation of a text by each strategy, in the given order.

    Args:
        ids: The prompt, from `encode_raw_prompt`.
        names: Names of strategies.
        max_new_tokens: Maximum length of a continuation, in tokens, at least 1.
        seed: Seed for the strategies that sample, the same for all.
        end_id: A token that ends a text, in addition to the model's end tokens.

    Raises:
        ConfigError: There is no such strategy, or Transformers refuses one for this model.
    """
    texts = []
    for strategy in [find_strategy(name) for name in dict.fromkeys(names)]:
        try:
            (completion,) = generate_completions(
                model,
                tokenizer,
                [ids],
                end_id=end_id,
                max_new_tokens=max_new_tokens,
                seeds=[seed] if strategy.samples else None,
                **strategy.settings,
            )
        except ValueError as error:
            if is_bug(error):
                raise
            raise ConfigError(f"Transformers refuses the strategy `{strategy.name}` for this model: {error}") from error
        texts.append(_measure(model, tokenizer, ids, strategy.name, completion.token_ids, completion.stopped))
    return texts


def _measure(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    name: str,
    new: tuple[int, ...],
    stopped: bool,
) -> Continuation:
    """Return a continuation with its probability under the model; `ids` is the prompt, `new` the continuation."""
    total = math.fsum(_log_probabilities(model, ids, new))
    # Beyond this many nats per token a float overflows.
    perplexity = math.exp(min(-total / len(new), 700))
    return Continuation(name, decode_tokens(tokenizer, new), new, stopped, repeated_share(new), total, perplexity)


def repeated_share(tokens: Sequence[int]) -> float | None:
    """Return the share of sequences of four tokens that occurred before; None if the text is shorter.

    Source: seq-rep-4 of Welleck et al., https://arxiv.org/abs/1908.04319

    >>> repeated_share([1, 2, 3, 4, 5, 1, 2, 3, 4]), repeated_share([7] * 8), repeated_share([1, 2, 3])
    (0.16666666666666666, 0.8, None)
    """
    grams = [tuple(tokens[start : start + _GRAM]) for start in range(len(tokens) - _GRAM + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else None


def _log_probabilities(model: "PreTrainedModel", prompt: Sequence[int], new: Sequence[int]) -> list[float]:
    """Return the log-probability of each new token, in nats, given the prompt and the tokens before it."""
    import torch

    with generating(model), torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *new]], device=model.device)).logits[0].float()
        steps = logits[len(prompt) - 1 : -1].log_softmax(-1)  # [new, vocabulary]
        chosen: list[float] = steps.gather(1, torch.tensor(new, device=model.device)[:, None])[:, 0].tolist()
    return chosen
