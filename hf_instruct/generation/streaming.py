"""Generate one answer and hand on its text while it grows."""

import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, InstructError
from hf_instruct.generation.chat_settings import ChatSettings
from hf_instruct.generation.decoding import Completion, find_ends, generate_completions
from hf_instruct.generation.token_text import decode_tokens
from hf_instruct.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import FloatTensor, LongTensor, Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What an unfinished character decodes to.
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def stream_completion(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[int],
    *,
    end_id: int,
    settings: ChatSettings,
    on_text: Callable[[str], None],
    is_stopped: Callable[[], bool],
) -> Completion:
    """Return a model's completion of a prompt, after every piece of its text was handed on.

    Joined, the pieces are the completion's text; a character is handed on whole, and white space once something follows
    it. At temperature 0 the completion is that of `generate_completions`.

    Args:
        prompt: Token ids, not empty.
        end_id: As `generate_completions`.
        on_text: Called with each piece as soon as it is known.
        is_stopped: Asked after each token; true ends the completion there.

    Raises:
        ConfigError: Transformers refuses the settings.
        InstructError: There is not enough memory.
    """
    listener = _Listener(tokenizer, find_ends(model, tokenizer, end_id), start=len(prompt), on_text=on_text)

    def after_token(ids: "LongTensor", scores: "FloatTensor", **kwargs: Any) -> "Tensor":
        listener.read(ids[0].tolist())
        return ids.new_full((1,), is_stopped()).bool()

    # Drawn with a generator of its own, since other threads draw from PyTorch's: a seed would repeat nothing.
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    sampling: dict[str, Any] = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    try:
        completion = generate_completions(
            model,
            tokenizer,
            [prompt],
            end_id=end_id,
            max_new_tokens=settings.max_new_tokens,
            repetition_penalty=settings.repetition_penalty,
            stopping_criteria=[after_token],
            **({"do_sample": True, "seeds": [seed], **sampling} if settings.temperature else {}),
        )[0]
    except ValueError as error:
        raise ConfigError(f"Transformers refuses these settings: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        raise InstructError(
            f"Memory ran out while answering a prompt of {len(prompt):,} tokens; shorten it, lower `max_new_tokens`, "
            "or take a smaller model."
        ) from error
    listener.finish(completion.text)
    return completion


class _Listener:
    """Turns the ids generated so far into the pieces of text that are sure not to change."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", ends: set[int], *, start: int, on_text: Callable[[str], None]
    ) -> None:
        self._tokenizer, self._ends, self._start, self._on_text = tokenizer, ends, start, on_text
        self._shown = ""

    def read(self, ids: list[int]) -> None:
        """Take note of the ids of prompt and answer after one more token."""
        if ids[-1] in self._ends:
            return
        text = decode_tokens(self._tokenizer, ids[self._start :])
        # The bytes of a character may come in several tokens; the answer as a whole has no white space around it.
        self.finish(text.rstrip(_UNKNOWN).strip())

    def finish(self, text: str) -> None:
        """Hand on what is new in the whole text."""
        if len(text) > len(self._shown) and text.startswith(self._shown):
            piece, self._shown = text[len(self._shown) :], text
            self._on_text(piece)
