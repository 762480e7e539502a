"""How a model picks its words: the probabilities of the next token with their plot, and what beam search follows.

Everything is what Transformers computes: its own warpers say which tokens stay, its own `generate()` searches and
writes. The tables are those of the command line and of the page.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError
from hf_instruct.generation.decoding import find_ends, generate_completions, generating
from hf_instruct.generation.strategies import (
    Continuation,
    Prefix,
    build_generation_settings,
    log_probabilities,
    measure_continuation,
)
from hf_instruct.generation.token_text import encode_text, show_token
from hf_instruct.plots import COLORS, build_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Table = tuple[list[str], list[list[str]]]

# Of these the effect is shown beside the one that is asked for.
TEMPERATURES = (0.3, 0.7, 1.0, 1.5)
# Of the plot.
_WIDTH_INCHES = 8.2
_ROW_INCHES = 0.23
_LONGEST_LABEL = 18
# By whether top-k and whether top-p keep a token; of the Okabe-Ito set, as `plots.COLORS`.
_KEPT = {
    (True, True): ("kept by top-k and top-p", "tuned"),
    (True, False): ("kept by top-k only", "train"),
    (False, True): ("kept by top-p only", "batch"),
    (False, False): ("kept by neither", "base"),
}


@dataclasses.dataclass(frozen=True)
class NextToken:
    """A token that may come next.

    Attributes:
        token_id: Its id.
        text: Readable, on one line.
        probability: What the model gives it: softmax of the logits.
        tempered: Its probability at the temperature asked for.
        at: Its probability at each of `TEMPERATURES`.
        in_top_k: Whether top-k alone keeps it, at that temperature; true where top-k is off.
        in_top_p: The same of top-p.
        drawn: With what probability sampling takes it: temperature, then top-k, then top-p, as `generate()` does.
    """

    token_id: int
    text: str
    probability: float
    tempered: float
    at: tuple[float, ...]
    in_top_k: bool
    in_top_p: bool
    drawn: float


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """The distribution of the next token after a prompt.

    Attributes:
        prompt_tokens: The prompt's tokens, readable.
        vocabulary: How many tokens there are.
        settings: `temperature`, `top_k` (0 is off) and `top_p` (1 is off) as asked for.
        share_top_k: Probability of what top-k alone keeps, at the temperature asked for.
        num_top_p: How many tokens top-p alone keeps.
        share_top_p: Their probability together.
        num_drawn: How many tokens sampling can take.
        tokens: The likeliest first.
        entropies: In bits, at each of `TEMPERATURES`: 0 where one token is certain, log2 of the vocabulary at most.
    """

    prompt_tokens: list[str]
    vocabulary: int
    settings: dict[str, Any]
    share_top_k: float
    num_top_p: int
    share_top_p: float
    num_drawn: int
    tokens: list[NextToken]
    entropies: tuple[float, ...]

    def list_rows(self) -> Table:
        """Return heads and rows of a table: a token a row, and the entropies below."""
        heads = ["", "token", "probability", *(f"T={value:g}" for value in TEMPERATURES), "top-k", "top-p", "drawn"]
        rows = [
            [
                *(str(rank), token.text, f"{token.probability:.2%}", *(f"{share:.1%}" for share in token.at)),
                *("yes" if kept else "-" for kept in (token.in_top_k, token.in_top_p)),
                f"{token.drawn:.1%}" if token.drawn else "-",
            ]
            for rank, token in enumerate(self.tokens, start=1)
        ]
        return heads, [*rows, ["", "(entropy, bits)", "", *(f"{bits:.2f}" for bits in self.entropies), "", "", ""]]

    def __str__(self) -> str:
        """Say what top-k and top-p keep."""
        top_k, top_p, temperature = (self.settings[name] for name in ("top_k", "top_p", "temperature"))
        said = []
        if top_k:
            said.append(f"top-k {top_k:,} keeps {self.share_top_k:.1%} of the probability")
        if top_p < 1:
            said.append(f"top-p {top_p:g} keeps {self.num_top_p:,} tokens with {self.share_top_p:.1%}")
        said.append(
            f"at temperature {temperature:g} sampling draws from {self.num_drawn:,} of {self.vocabulary:,} tokens"
        )
        return "; ".join(said)


@dataclasses.dataclass(frozen=True)
class BeamNode:
    """A token that a beam went through.

    Attributes:
        depth: How many tokens stand between the prompt and it.
        token_id: Its id.
        text: Readable, on one line.
        probability: Of this token after those above it.
        path_probability: Of all tokens from the prompt to this one.
        outcome: `best`, `number 2` and so on where a text that was found ends here; `dropped` where a path ends that
            was not followed to its end; else empty.
    """

    depth: int
    token_id: int
    text: str
    probability: float
    path_probability: float
    outcome: str


@dataclasses.dataclass(frozen=True)
class BeamTree:
    """What beam search went through.

    Attributes:
        nodes: From the top down, children below their parent, likelier ones first.
        texts: What was found, the best first, as many as beams; then what greedy search writes.
    """

    nodes: list[BeamNode]
    texts: list[Continuation]

    def list_rows(self) -> Table:
        """Return heads and rows of a table: a token a row, indented below the one before it."""
        rows = [
            [
                "\u00a0\u00a0" * node.depth + node.text,
                f"{node.probability:.2%}",
                f"{node.path_probability:.3%}",
                node.outcome,
            ]
            for node in self.nodes
        ]
        return ["token", "probability", "of the path", ""], rows


def explore_next(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str | Sequence[int],
    *,
    top: int = 20,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> NextTokens:
    """Return the distribution of the next token after a text, and what sampling settings make of it.

    Args:
        text: The prompt as it is, or its token ids.
        top: How many tokens to list, at least 1.
        temperature: Above 0; below 1 sharpens, above flattens.
        top_k: Keep this many likeliest tokens; 0 for all.
        top_p: Keep the likeliest that together have this probability; 1 for all.

    Raises:
        DataError: The prompt cannot be used.
        ConfigError: Numbers are out of range; all are listed.
    """
    import torch

    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    build_generation_settings("sample", **settings)
    ids = encode_text(model, tokenizer, text, room=0)
    with generating(model), torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].double().cpu()  # [vocabulary]
        plain, tempered = logits.softmax(-1), (logits / temperature).softmax(-1)
        at = torch.stack([(logits / value).softmax(-1) for value in TEMPERATURES])  # [temperatures, vocabulary]
        in_k = _warp(logits, temperature, top_k=top_k).isfinite()
        in_p = _warp(logits, temperature, top_p=top_p).isfinite()
        drawn = _warp(logits, temperature, top_k=top_k, top_p=top_p).softmax(-1)
        order = logits.argsort(descending=True, stable=True)[:top].tolist()
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
            for token in order
        ],
        entropies=tuple(float(-row.xlogy(row).sum()) / math.log(2) for row in at),
    )


def _warp(logits: "Tensor", temperature: float, *, top_k: int = 0, top_p: float = 1.0) -> "Tensor":
    """Return logits as `generate()` would draw from them, `[vocabulary]`: minus infinity where a token is left out."""
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    nothing = torch.zeros(1, 1, dtype=torch.long)
    # Typed for tensors of one kind of number.
    warped: Tensor = warpers(nothing, logits[None])[0]  # type: ignore[arg-type]
    return warped


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
        num_beams: Beginnings followed side by side, at least 2.
        length: Most tokens to write.

    Raises:
        DataError: The prompt cannot be used.
        ConfigError: A number is out of range.
    """
    import torch
    from transformers import LogitsProcessorList

    vocabulary = int(model.config.get_text_config().vocab_size)
    if not 2 <= num_beams <= vocabulary or length < 1:
        raise ConfigError(
            f"A beam tree takes 2 to {vocabulary:,} beams (1 is greedy search) and 1 token or more; `num_beams` is "
            f"{num_beams}, `length` is {length}."
        )
    ids = encode_text(model, tokenizer, text, room=length)
    # A model made smaller may still name the end of the one it was made from, which it cannot write.
    ends = {end for end in find_ends(model, tokenizer) if end < vocabulary}
    seen: set[Prefix] = set()

    def watch(rows: "Tensor", scores: "Tensor") -> "Tensor":
        """Note what the beams hold; a logits processor that changes nothing."""
        seen.update(tuple(row) for row in rows[:, len(ids) :].tolist())
        return scores

    with generating(model), torch.inference_mode():
        found: Any = model.generate(  # type: ignore[operator]  # seen as a buffer
            torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            num_beams=num_beams,
            num_return_sequences=num_beams,
            return_dict_in_generate=True,
            output_scores=True,
            logits_processor=LogitsProcessorList([watch]),
            do_sample=False,
            max_new_tokens=length,
            pad_token_id=tokenizer.pad_token_id or 0,
            eos_token_id=sorted(ends) or None,
        )
    rows = [_until_end(row, ends) for row in found.sequences[:, len(ids) :].tolist()]
    end_id = min(ends, default=-1)
    (greedy,) = generate_completions(model, tokenizer, [ids], end_id=end_id, max_new_tokens=length)
    names = ["best", *(f"number {rank}" for rank in range(2, num_beams + 1))]
    nodes = _build_nodes(model, tokenizer, ids, seen - {()}, dict(zip(rows, names, strict=True)))
    texts = [(*pair, pair[1][-1] in ends) for pair in zip(names, rows, strict=True)]
    texts.append(("greedy search", greedy.token_ids, greedy.stopped))
    return BeamTree(nodes, [measure_continuation(model, tokenizer, ids, *text) for text in texts])


def _build_nodes(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    seen: set[Prefix],
    found: dict[Prefix, str],
) -> list[BeamNode]:
    """Return the nodes of all prefixes that beams went through; `found` names the texts."""
    prefixes = seen.union(*(_list_prefixes(row) for row in found))
    leaves = prefixes - {prefix[:-1] for prefix in prefixes}
    steps: dict[Prefix, float] = {}
    for leaf in leaves:
        steps |= zip(_list_prefixes(leaf), log_probabilities(model, ids, leaf), strict=True)
    nodes = []
    # Likelier tokens first, each with all below it.
    for prefix in sorted(prefixes, key=lambda prefix: [(-steps[start], start) for start in _list_prefixes(prefix)]):
        path = math.fsum(steps[start] for start in _list_prefixes(prefix))
        text = show_token(tokenizer, prefix[-1])
        outcome = found.get(prefix, "dropped" if prefix in leaves else "")
        nodes.append(BeamNode(len(prefix) - 1, prefix[-1], text, math.exp(steps[prefix]), math.exp(path), outcome))
    return nodes


def _list_prefixes(row: Prefix) -> list[Prefix]:
    return [row[:end] for end in range(1, len(row) + 1)]


def _until_end(row: Sequence[int], ends: set[int]) -> Prefix:
    return tuple(row[: next((index for index, token in enumerate(row) if token in ends), len(row)) + 1])


def draw_next_token_plot(found: NextTokens, *, title: str | None = None) -> "Figure":
    """Return the plot of the next token.

    On the left a bar a token at the temperature asked for, coloured by what top-k and top-p keep; on the right its
    probability at each of some temperatures.

    Args:
        found: Which tokens may come next.
        title: A line above the plot, taken literally.
    """
    tokens = found.tokens
    size = (_WIDTH_INCHES, 1.5 + _ROW_INCHES * len(tokens))
    figure = build_figure(size, title and _printable(title, longest=90))
    left, right = figure.subplots(1, 2, sharey=True)
    for kept, (label, color) in _KEPT.items():
        bars = [
            (row, 100 * token.tempered) for row, token in enumerate(tokens) if (token.in_top_k, token.in_top_p) == kept
        ]
        if bars:
            left.barh(*zip(*bars, strict=True), 0.72, color=COLORS[color], label=label)
    left.set_yticks(range(len(tokens)), [_printable(token.text) for token in tokens], parse_math=False)
    left.set_ylim(len(tokens) - 0.4, -0.6)
    left.set_xlabel("probability of the next token, %")
    for index, (temperature, marker) in enumerate(zip(TEMPERATURES, "v^os", strict=True)):
        # On a logarithmic axis what is all but impossible would squeeze the rest.
        points = [(100 * token.at[index], row) for row, token in enumerate(tokens) if token.at[index] >= 1e-6]
        shape = {"marker": marker, "markersize": 4.5, "linewidth": 0.8}
        right.plot(*zip(*points, strict=True), **shape, label=f"{temperature:g}")
    right.set_xscale("log")
    right.set_xlabel("probability at each temperature, % (logarithmic)")
    for axes, name, corner in ((left, None, "lower right"), (right, "temperature", "best")):
        style_axes(axes, grid="x")
        axes.tick_params(which="both", labelsize=8, pad=4)
        axes.legend(loc=corner, frameon=False, fontsize=8, title=name, title_fontsize=8, labelcolor=COLORS["text"])
    return figure


def _printable(text: str, *, longest: int = _LONGEST_LABEL) -> str:
    """Return a label cut to length, with characters that the font lacks as their numbers."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    label = "".join(character if ord(character) in known else f"U+{ord(character):04X}" for character in text)
    return label if len(label) <= longest else label[: longest - 1] + "…"
