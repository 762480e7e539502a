"""The decoding strategies by name, presets by task, and a text continued by each.

A strategy is what Transformers does with the probabilities of the next token: fields of `GenerationConfig`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, did_you_mean, quote_names
from hf_instruct.generation.decoding import generate_completions, generating
from hf_instruct.generation.token_text import SPACE, decode_tokens, encode_text, show_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prefix = tuple[int, ...]

TEXT_HEADS = ["", "tokens", "repeats", "perplexity", "probability", "text"]
# Length of the runs of tokens whose repetition is measured.
_GRAM = 4
_PRESETS_FILE = Path(__file__).with_name("presets.yaml")
# Fields of `GenerationConfig` that belong to some strategies only: set with another, they would do nothing.
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS = ("num_beams", "length_penalty", "early_stopping")
# All that a strategy decides; with a new strategy, what an older one has set of these no longer holds.
STRATEGY_FIELDS = ("do_sample", *_OF_SAMPLING, *_OF_BEAMS)
# Transformers takes some values beyond these for "off".
_RANGES = {
    **dict.fromkeys(("top_p", "min_p", "typical_p"), (0, 1)),
    **{"temperature": (0.01, 100), "top_k": (0, 10**6), "num_beams": (1, 1000)},
}
# Explicit, because a model's own `generation_config` may say otherwise.
_NO_SAMPLING = {"do_sample": False, "num_beams": 1}
_ALL_TOKENS = {"do_sample": True, "num_beams": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to choose the next token.

    Attributes:
        name: As the user types it.
        description: One line.
        source: Where it, and the numbers of `settings`, come from.
        settings: Fields of `GenerationConfig`.
    """

    name: str
    description: str
    source: str
    settings: Mapping[str, Any]

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return bool(self.settings["do_sample"])

    @property
    def tunable(self) -> tuple[str, ...]:
        """Fields that have an effect with it, besides those that have one with every strategy."""
        return (*_OF_SAMPLING * self.samples, *_OF_BEAMS * (self.settings["num_beams"] > 1))


_BLOG = "https://huggingface.co/blog/how-to-generate"
_DRAWN = "a token by its probability"
STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("greedy", "always the likeliest token", _BLOG, _NO_SAMPLING),
        Strategy("beam", "the likeliest text that five beams find", _BLOG, {**_NO_SAMPLING, "num_beams": 5}),
        Strategy("sample", f"{_DRAWN}, any of them", _BLOG, _ALL_TOKENS),
        Strategy(
            "top-k",
            f"{_DRAWN}, of the 50 likeliest",
            f"https://arxiv.org/abs/1805.04833; 50 as in {_BLOG}",
            {**_ALL_TOKENS, "top_k": 50},
        ),
        Strategy(
            "top-p",
            f"{_DRAWN}, of the likeliest that together have 92 %",
            f"https://arxiv.org/abs/1904.09751; 0.92 as in {_BLOG}",
            {**_ALL_TOKENS, "top_p": 0.92},
        ),
        Strategy(
            "min-p",
            f"{_DRAWN}, of those at least a tenth as likely as the likeliest",
            "https://arxiv.org/abs/2407.01082",
            {**_ALL_TOKENS, "min_p": 0.1},
        ),
        Strategy(
            "typical",
            f"{_DRAWN}, of those about as surprising as is to be expected",
            "https://arxiv.org/abs/2202.00666",
            {**_ALL_TOKENS, "typical_p": 0.95},
        ),
        Strategy("beam-sample", "five beams, whose continuations are drawn", _BLOG, {**_ALL_TOKENS, "num_beams": 5}),
    )
}


@functools.cache
def load_presets() -> dict[str, Strategy]:
    """Return the presets of `presets.yaml` by name: strategies whose settings fit a kind of task."""
    from hf_instruct.yaml_text import read_yaml

    return {
        name: Strategy(
            name, row["description"], row["source"], {**STRATEGIES[row["strategy"]].settings, **row.get("settings", {})}
        )
        for name, row in read_yaml(_PRESETS_FILE).items()
    }


def find_strategy(name: str, *, preset: bool = False) -> Strategy:
    """Return a strategy, or a preset, by its name; underscores are taken for hyphens.

    Raises:
        ConfigError: There is none of this name; the nearest is named.
    """
    known = name.strip().lower().replace("_", "-")
    allowed = load_presets() if preset else STRATEGIES
    if known not in allowed:
        near = did_you_mean(known, allowed, cutoff=0.5)
        raise ConfigError(
            f"Unknown {'preset' if preset else 'strategy'} `{name}`.{near} Allowed are {quote_names(allowed)}."
        )
    return allowed[known]


def build_generation_settings(strategy: str | Strategy, /, **overrides: Any) -> dict[str, Any]:
    """Return the fields of `GenerationConfig` that a strategy sets, with others over them.

    Args:
        strategy: It, or its name.
        **overrides: Any field of `GenerationConfig`.

    Raises:
        ConfigError: There is no such strategy, or fields are set that have no effect with it or are out of range; all
            are listed.

    >>> build_generation_settings("top-p", top_p=0.5)
    {'do_sample': True, 'num_beams': 1, 'temperature': 1.0, 'top_k': 0, 'top_p': 0.5}
    """
    chosen = find_strategy(strategy) if isinstance(strategy, str) else strategy
    settings = {**chosen.settings, **overrides}
    problems = []
    for name, value in overrides.items():
        if name in STRATEGY_FIELDS and name not in chosen.tunable and value != chosen.settings.get(name):
            takes = f"it takes {quote_names(chosen.tunable)}" if chosen.tunable else "it has nothing to set"
            problems.append(f"`{name}` is {value!r}, which has no effect with it; {takes}")
        low, high = _RANGES.get(name, (0, 0))
        if name in _RANGES and value is not None and not (isinstance(value, int | float) and low <= value <= high):
            problems.append(f"`{name}` is {value!r}; it should be a number from {low} to {high}")
    wanted = settings.get("num_return_sequences") or 1
    if not problems and not chosen.samples and wanted > settings["num_beams"]:
        problems.append(f"{wanted} answers per prompt need a strategy that samples, or `beam` with as many `num_beams`")
    if problems:
        raise ConfigError(f"The strategy `{chosen.name}` cannot be used like this:", problems)
    return settings


@dataclasses.dataclass(frozen=True)
class Continuation:
    """A prompt continued.

    Attributes:
        name: Of the strategy, or the rank in beam search.
        text: The continuation, without the prompt and special tokens.
        token_ids: Its tokens, the one that ends it included.
        stopped: Whether the model finished it, rather than running into the longest allowed.
        repeated: Share of its runs of four tokens that stood in it before, from 0 to 1; None where it has no such run.
        log_probability: Of the whole, in nats.
        perplexity: How surprising the model finds it, 1 for not at all.
    """

    name: str
    text: str
    token_ids: Prefix
    stopped: bool
    repeated: float | None
    log_probability: float
    perplexity: float

    def list_cells(self) -> list[str]:
        """Return the cells of a row under `TEXT_HEADS`."""
        repeats = "-" if self.repeated is None else f"{self.repeated:.0%}"
        text = show_text(self.text).replace(SPACE, " ") + ("" if self.stopped else " …")
        probability = f"{math.exp(self.log_probability):.1e}"
        return [self.name, str(len(self.token_ids)), repeats, f"{self.perplexity:,.1f}", probability, text]


def compare_strategies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str | Sequence[int],
    *,
    names: Sequence[str],
    max_new_tokens: int = 40,
    seed: int = 123,
    end_id: int | None = None,
) -> list[Continuation]:
    """Return a text continued by each of some strategies, in their order.

    Args:
        text: The prompt as it is, or its token ids.
        names: Of `STRATEGIES`.
        max_new_tokens: Longest continuation, in tokens, at least 1.
        seed: Of the strategies that sample; all begin with the same.
        end_id: A token that ends a text, besides the model's own.

    Raises:
        DataError: The prompt cannot be used.
        ConfigError: There is no such strategy, or Transformers refuses one for this model.
    """
    ids = encode_text(model, tokenizer, text, room=max_new_tokens)
    answers = []
    for strategy in [find_strategy(name) for name in dict.fromkeys(names)]:
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
            measure_continuation(model, tokenizer, ids, strategy.name, completion.token_ids, completion.stopped)
        )
    return answers


def measure_continuation(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    name: str,
    new: Prefix,
    stopped: bool,
) -> Continuation:
    """Return a continuation with what the model makes of it; `ids` is the prompt, `new` what follows."""
    total = math.fsum(log_probabilities(model, ids, new))
    # Beyond this many nats per token a float overflows.
    perplexity = math.exp(min(-total / len(new), 700))
    return Continuation(name, decode_tokens(tokenizer, new), new, stopped, repeated_share(new), total, perplexity)


def repeated_share(tokens: Sequence[int]) -> float | None:
    """Return the share of runs of four tokens that stood there before; None where there is no such run.

    Source: seq-rep-4 of Welleck et al., https://arxiv.org/abs/1908.04319

    >>> repeated_share([1, 2, 3, 4, 5, 1, 2, 3, 4]), repeated_share([7] * 8), repeated_share([1, 2, 3])
    (0.16666666666666666, 0.8, None)
    """
    grams = [tuple(tokens[start : start + _GRAM]) for start in range(len(tokens) - _GRAM + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else None


def log_probabilities(model: "PreTrainedModel", prompt: Sequence[int], new: Sequence[int]) -> list[float]:
    """Return the log-probability in nats of each of some tokens after a prompt and those before it."""
    import torch

    with generating(model), torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *new]], device=model.device)).logits[0].float()
        steps = logits[len(prompt) - 1 : -1].log_softmax(-1)  # [new, vocabulary]
        chosen: list[float] = steps.gather(1, torch.tensor(new, device=model.device)[:, None])[:, 0].tolist()
    return chosen
