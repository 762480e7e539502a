"""The explore tab as HTML: the next token's probabilities, the beam tree, strategies side by side."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_instruct.ui.html import escape, format_card, format_cards, format_notice, format_table

if TYPE_CHECKING:
    from hf_instruct.generation.beam_tree import BeamNode, BeamText, BeamTree
    from hf_instruct.generation.exploring import NextToken, NextTokens, StrategyAnswer


def format_next_tokens(found: "NextTokens") -> str:
    """Return the likeliest next tokens with what temperature, top-k and top-p make of them."""
    heads = ["", "next token", "probability", "", *(f"at {row.temperature:g}" for row in found.temperatures), "drawn"]
    largest = max((max(token.probability, token.drawn) for token in found.tokens), default=1.0) or 1.0
    rows = [_format_row(token, largest) for token in found.tokens]
    faded = [token.drawn == 0 for token in found.tokens]
    entropies = [f"{row.entropy:.1f} bits" for row in found.temperatures]
    rows.append(["", "<small>uncertainty</small>", "", "", *(f"<small>{text}</small>" for text in entropies), ""])
    table = format_table(heads, rows, faded=[*faded, False], texts=True)
    return _format_prompt(found.prompt_tokens) + format_notice(_describe_cut(found)) + table


def format_beams(tree: "BeamTree") -> str:
    """Return what beam search went through, and what it found."""
    rows = [_format_text(text, f"{rank}" if rank > 1 else "1, best") for rank, text in enumerate(tree.texts, start=1)]
    rows.append(_format_text(tree.greedy, "greedy search"))
    found = format_table(["", "text", "probability", "nats a token"], rows, texts=True)
    return (
        f'{_format_prompt(tree.prompt_tokens)}<div class="hi-wide hi-tree">{_format_nodes(tree.roots)}</div>'
        f"{format_notice('Faded: followed for a while, then dropped. What was found:')}{found}"
    )


def format_strategies(answers: "Sequence[StrategyAnswer]") -> str:
    """Return a text continued by each strategy, side by side."""
    return format_cards(
        [format_card(answer.name, answer.text, aside=_measure(answer), foot=answer.description) for answer in answers]
    )


def _format_prompt(tokens: Sequence[str]) -> str:
    """Return the prompt cut into its tokens."""
    chips = "".join(f"<span>{escape(token)}</span>" for token in tokens)
    count = f"{len(tokens)} {'token' if len(tokens) == 1 else 'tokens'}"
    return f'<details class="hi-tokens"><summary>The prompt in {count}</summary>{chips}</details>'


def _format_row(token: "NextToken", largest: float) -> list[str]:
    bars = "".join(
        f'<i class="hi-{kind}" style="width:{100 * value / largest:.1f}%"></i>'
        for kind, value in (("plain", token.probability), ("drawn", token.drawn))
    )
    # Top-p is applied to what top-k leaves, so it may cut a token that it would keep alone.
    cut = "cut by top-p" if token.in_top_k else "cut by top-k"
    drawn = f"{token.drawn:.1%}" if token.drawn else f"<small>{cut}</small>"
    return [
        f"<small>{token.rank}</small>",
        f'<span class="hi-token">{escape(token.text)}</span>',
        f"{token.probability:.1%}",
        f'<div class="hi-bars">{bars}</div>',
        *(f"<small>{share:.1%}</small>" for share in token.at),
        drawn,
    ]


def _describe_cut(found: "NextTokens") -> str:
    said = []
    if found.top_k:
        said.append(f"Top-k {found.top_k} keeps {found.share_top_k:.1%} of the probability.")
    if found.top_p < 1:
        tokens = "token" if found.num_top_p == 1 else "tokens"
        said.append(f"Top-p {found.top_p:g} keeps {found.num_top_p:,} {tokens}.")
    count = f"{found.num_drawn:,} of {found.vocabulary:,} tokens"
    said.append(f"At temperature {found.temperature:g}, sampling can take {count} ('drawn').")
    return " ".join(said)


def _format_nodes(nodes: "Sequence[BeamNode]") -> str:
    items = "".join(
        f'<li class="{"" if node.kept else "hi-dropped"}"><span class="hi-token">{escape(node.text)}</span> '
        f"<small>{node.probability:.1%}</small>{_format_rank(node)}{_format_nodes(node.children)}</li>"
        for node in nodes
    )
    return f"<ul>{items}</ul>" if items else ""


def _format_rank(node: "BeamNode") -> str:
    if node.rank is None:
        return ""
    return f' <b class="hi-rank{" hi-best" if node.rank == 1 else ""}">{node.rank}</b>'


def _format_text(text: "BeamText", name: str) -> list[str]:
    score = "" if text.score is None else f"{text.score:.3f}"
    shown = f'<span class="hi-token">{escape(text.text)}</span>'
    return [escape(name), shown, f"{math.exp(text.log_probability):.3%}", score]


def _measure(answer: "StrategyAnswer") -> str:
    parts = [f"{answer.num_tokens} tokens{'' if answer.stopped else ', cut off'}"]
    if answer.repeated is not None:
        parts.append(f"repeats {answer.repeated:.0%}")
    if answer.perplexity is not None:
        parts.append(f"perplexity {answer.perplexity:.1f}")
    return " · ".join(parts)
