"""How many tokens of each example training would use: counted by the prompt object and the cut that training uses."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from hf_instruct.errors import ModelLoadError
from hf_instruct.prompt_checks import settle_format
from hf_instruct.prompts import PromptFormat, build_row, count_labels
from hf_instruct.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenCount(NamedTuple):
    """The tokens of one example.

    Attributes:
        length: Of its whole training row, before anything is cut off.
        labels: Those that carry loss, after the cut.
    """

    length: int
    labels: int


@dataclasses.dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of examples as training with one model and its settings would; each example once.

    Attributes:
        model: The model's name, as the user gave it.
        tokenizer: Its tokenizer.
        prompt_format: What makes an example a prompt.
        max_length: Most tokens in a training row; None for no limit.
        completion_only_loss: Whether prompt tokens carry no loss.
    """

    model: str
    tokenizer: "PreTrainedTokenizerBase"
    prompt_format: PromptFormat
    max_length: int | None
    completion_only_loss: bool = True
    _counted: dict[Example, TokenCount] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def count(self, example: Example) -> TokenCount:
        """Return the tokens of an example."""
        if example not in self._counted:
            prompt_ids, completion_ids = self.prompt_format.encode_example(self.tokenizer, example)
            row = build_row(
                prompt_ids,
                completion_ids,
                max_length=self.max_length,
                completion_only_loss=self.completion_only_loss,
            )
            self._counted[example] = TokenCount(len(prompt_ids) + len(completion_ids), count_labels(row))
        return self._counted[example]

    def find_special_tokens(self, example: Example) -> list[str]:
        """Return the special tokens that the texts of an example contain; they are encoded as plain text."""
        texts = (example.instruction, example.input, example.output)
        return self.prompt_format.find_special_tokens(self.tokenizer, *texts)


def load_counter(
    model: str,
    *,
    prompt_format: PromptFormat,
    max_length: int | None,
    completion_only_loss: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TokenCounter:
    """Return the counter of a model; its `max_length` is no more than the model's context, as in training.

    Args:
        model: An alias, a Hub id or a local folder; of the folder only the tokenizer has to be there.
        prompt_format: What makes an example a prompt.
        max_length: Most tokens in a training row; None for the model's context.
        completion_only_loss: Whether prompt tokens carry no loss.
        revision: Commit, tag or branch on the Hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelLoadError: The tokenizer cannot be loaded.
        ConfigError: The prompt format cannot be trained on.
    """
    from hf_instruct.models import load_context_length, load_tokenizer

    tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
    try:
        context = load_context_length(model, revision=revision, trust_remote_code=trust_remote_code)
    except ModelLoadError:
        # A tokenizer alone, or an adapter, whose config is its base model's.
        context = None
    limits = [limit for limit in (max_length, context) if limit is not None]
    return TokenCounter(
        model,
        tokenizer,
        prompt_format=settle_format(prompt_format, tokenizer),
        max_length=min(limits, default=None),
        completion_only_loss=completion_only_loss,
    )
