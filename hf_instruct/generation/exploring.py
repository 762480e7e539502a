"""How a model picks its words: the next token's probabilities, and a text under each strategy.

Everything is what Transformers computes: its own warpers say which tokens stay, its own `generate()` writes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError
from hf_instruct.generation.beam_tree import log_probabilities
from hf_instruct.generation.decoding import generate_completions, generating
from hf_instruct.generation.strategies import find_strategy
from hf_instruct.generation.token_text import decode_tokens, encode_text, show_token

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Of these the effect is shown beside the one that is asked for.
TEMPERATURES = (0.3, 0.7, 1.0, 1.5)
# Length of the runs of tokens whose repetition is measured.
_GRAM = 4


@dataclasses.dataclass(frozen=True)
class NextToken:
    """A token that may come next.

    Attributes:
        rank: 1 for the likeliest.
        token_id: Its id.
        text: Readable, on one line.
        probability: What the model gives it: softmax of the logits.
        tempered: Its probability at the temperature asked for.
        at: Its probability at each of `TEMPERATURES`.
        cumulative: At the temperature asked for: the probability of this token and all likelier ones.
        in_top_k: Whether top-k alone keeps it, at that temperature; true where top-k is off.
        in_top_p: The same of top-p.
        drawn: With what probability sampling takes it: temperature, then top-k, then top-p, as `generate()` does.
    """

    rank: int
    token_id: int
    text: str
    probability: float
    tempered: float
    at: tuple[float, ...]
    cumulative: float
    in_top_k: bool
    in_top_p: bool
    drawn: float


@dataclasses.dataclass(frozen=True)
class Temperature:
    """What a temperature does to all tokens' probabilities.

    Attributes:
        temperature: By which the logits are divided.
        entropy: In bits: 0 where one token is certain, log2 of the vocabulary where all are alike.
        top: Probability of the likeliest token.
        num_half: How many of the likeliest tokens have half of the probability.
    """

    temperature: float
    entropy: float
    top: float
    num_half: int


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """The distribution of the next token after a prompt.

    Attributes:
        prompt_tokens: The prompt's tokens, readable.
        vocabulary: How many tokens there are.
        temperature: As asked for.
        top_k: As asked for; 0 is off.
        top_p: As asked for; 1 is off.
        num_top_k: How many tokens top-k alone keeps, `share_top_k` their probability together at that temperature.
        share_top_k: See `num_top_k`.
        num_top_p: The same of top-p.
        share_top_p: See `num_top_p`.
        num_drawn: How many tokens sampling can take.
        tokens: The likeliest, in their order.
        temperatures: Of `TEMPERATURES`.
    """

    prompt_tokens: list[str]
    vocabulary: int
    temperature: float
    top_k: int
    top_p: float
    num_top_k: int
    share_top_k: float
    num_top_p: int
    share_top_p: float
    num_drawn: int
    tokens: list[NextToken]
    temperatures: list[Temperature]


@dataclasses.dataclass(frozen=True)
class StrategyAnswer:
    """A prompt continued by one strategy.

    Attributes:
        name: The strategy's.
        description: One line.
        settings: Fields of `GenerationConfig` it set.
        text: The continuation, without the prompt and special tokens.
        token_ids: Its tokens, the one that ends it included.
        stopped: Whether the model ended it itself.
        repeated: Share of its runs of four tokens that stood in it before, from 0 to 1; None where it has no such run.
        perplexity: How surprising the model finds it, 1 for not at all; None where that is not a finite number.
    """

    name: str
    description: str
    settings: Mapping[str, Any]
    text: str
    token_ids: tuple[int, ...]
    stopped: bool
    repeated: float | None
    perplexity: float | None

    @property
    def num_tokens(self) -> int:
        """Generated tokens, the one that ends the text included."""
        return len(self.token_ids)


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
        top: How many tokens to list.
        temperature: Above 0; below 1 sharpens, above flattens.
        top_k: Keep the so many likeliest; 0 for all.
        top_p: Keep the likeliest that together have this probability, above 0; 1 for all.

    Raises:
        DataError: The prompt cannot be used.
        ConfigError: Numbers are out of range; all are listed.
    """
    import torch

    check_numbers(top=top, temperature=temperature, top_k=top_k, top_p=top_p)
    ids = encode_text(model, tokenizer, text, room=0)
    with generating(model), torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].double().cpu()  # [vocabulary]
        tempered = (logits / temperature).softmax(-1)
        in_k = _warp(logits, temperature, top_k=top_k).isfinite()
        in_p = _warp(logits, temperature, top_p=top_p).isfinite()
        drawn = _warp(logits, temperature, top_k=top_k, top_p=top_p).softmax(-1)
        order = logits.argsort(descending=True, stable=True)
        cumulative = tempered[order].cumsum(0)
        plain = logits.softmax(-1)
        at = torch.stack([(logits / value).softmax(-1) for value in TEMPERATURES])  # [temperatures, vocabulary]
    tokens = [
        NextToken(
            rank=place + 1,
            token_id=token,
            text=show_token(tokenizer, token),
            probability=float(plain[token]),
            tempered=float(tempered[token]),
            at=tuple(at[:, token].tolist()),
            cumulative=min(1.0, float(cumulative[place])),
            in_top_k=bool(in_k[token]),
            in_top_p=bool(in_p[token]),
            drawn=float(drawn[token]),
        )
        for place, token in enumerate(order[:top].tolist())
    ]
    return NextTokens(
        prompt_tokens=[show_token(tokenizer, token) for token in ids],
        vocabulary=len(logits),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_top_k=int(in_k.sum()),
        share_top_k=min(1.0, float(tempered[in_k].sum())),
        num_top_p=int(in_p.sum()),
        share_top_p=min(1.0, float(tempered[in_p].sum())),
        num_drawn=int((drawn > 0).sum()),
        tokens=tokens,
        temperatures=[_measure(value, row) for value, row in zip(TEMPERATURES, at, strict=True)],
    )


def check_numbers(*, top: int, temperature: float, top_k: int, top_p: float) -> None:
    """Refuse what `explore_next` cannot show.

    Raises:
        ConfigError: Numbers are out of range; all are listed.
    """
    faults = []
    if top < 1:
        faults.append(f"`top` is {top}; it should be at least 1")
    if not (0 < temperature < math.inf):
        faults.append(f"`temperature` is {temperature:g}; it should be above 0 (greedy search is what 0 would be)")
    if top_k < 0:
        faults.append(f"`top_k` is {top_k}; it should be at least 1, or 0 for all tokens")
    if not 0 < top_p <= 1:
        faults.append(f"`top_p` is {top_p:g}; it should be above 0 and at most 1, which is all tokens")
    if faults:
        raise ConfigError("The distribution cannot be shown so:", faults)


def _warp(logits: "Tensor", temperature: float, *, top_k: int = 0, top_p: float = 1.0) -> "Tensor":
    """Return logits as `generate()` would draw from them, `[vocabulary]`: minus infinity where a token is left out."""
    import torch
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    nothing = torch.zeros(1, 1, dtype=torch.long)
    # Typed for tensors of one kind of number.
    warped: Tensor = warpers(nothing, logits[None])[0]  # type: ignore[arg-type]
    return warped


def _measure(temperature: float, probabilities: "Tensor") -> Temperature:
    cumulative = probabilities.sort(descending=True).values.cumsum(0)
    entropy = -float(probabilities.xlogy(probabilities).sum()) / math.log(2)
    return Temperature(
        temperature=temperature,
        entropy=max(0.0, entropy),
        top=float(probabilities.max()),
        num_half=min(int((cumulative < 0.5).sum()) + 1, len(cumulative)),
    )


def compare_strategies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str | Sequence[int],
    *,
    names: Sequence[str],
    max_new_tokens: int = 40,
    seed: int = 123,
    end_id: int | None = None,
) -> list[StrategyAnswer]:
    """Return a text continued by each of some strategies, in their order.

    Args:
        text: The prompt as it is, or its token ids.
        names: Of `STRATEGIES`.
        max_new_tokens: Longest continuation, in tokens.
        seed: Of the strategies that sample; all begin with the same.
        end_id: A token that ends a text, besides the model's own.

    Raises:
        DataError: The prompt cannot be used.
        ConfigError: There is no such strategy, or Transformers refuses one for this model.
    """
    strategies = [find_strategy(name) for name in dict.fromkeys(names)]
    if max_new_tokens < 1:
        raise ConfigError(f"`max_new_tokens` is {max_new_tokens}; it should be at least 1.")
    ids = encode_text(model, tokenizer, text, room=max_new_tokens)
    answers = []
    for strategy in strategies:
        try:
            (completion,) = generate_completions(
                model,
                tokenizer,
                [ids],
                end_id=tokenizer.eos_token_id if end_id is None else end_id,
                max_new_tokens=max_new_tokens,
                seeds=[seed] if strategy.samples else None,
                **strategy.settings,
            )
        except ValueError as error:
            raise ConfigError(f"Transformers refuses the strategy `{strategy.name}` for this model: {error}") from error
        answers.append(
            StrategyAnswer(
                name=strategy.name,
                description=strategy.description,
                settings=strategy.settings,
                text=decode_tokens(tokenizer, completion.token_ids),
                token_ids=completion.token_ids,
                stopped=completion.stopped,
                repeated=repeated_share(completion.token_ids),
                perplexity=_perplexity(log_probabilities(model, ids, completion.token_ids)),
            )
        )
    return answers


def repeated_share(tokens: Sequence[int]) -> float | None:
    """Return the share of runs of four tokens that stood there before; None where there is no such run.

    Source: seq-rep-4 of Welleck et al., https://arxiv.org/abs/1908.04319

    >>> repeated_share([1, 2, 3, 4, 5, 1, 2, 3, 4]), repeated_share([7] * 8), repeated_share([1, 2, 3])
    (0.16666666666666666, 0.8, None)
    """
    grams = [tuple(tokens[start : start + _GRAM]) for start in range(len(tokens) - _GRAM + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else None


def _perplexity(log_probabilities: Sequence[float]) -> float | None:
    try:
        value = math.exp(-math.fsum(log_probabilities) / len(log_probabilities))
    except (OverflowError, ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None
