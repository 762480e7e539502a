"""A run's model as one whole: the adapter merged into its base model, and saved for any other program."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.errors import PublishError
from hf_instruct.models import configure_stop, load_model, no_shard_bars
from hf_instruct.prompts import CHAT, PromptFormat
from hf_instruct.publishing.templates import build_chat_template, shape_prompt
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class RunModel:
    """What a run has trained, ready to leave it.

    Attributes:
        model: The tuned model in float32, in evaluation mode; an adapter is merged into its base model.
        tokenizer: Its tokenizer, whose chat template writes the prompts the model was trained on.
        prompt_format: The format of these prompts.
        name: What to call it: the run folder's name.
        merged: Whether there was an adapter.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    prompt_format: PromptFormat
    name: str
    merged: bool


def check_run(run: RunFolder) -> None:
    """Refuse a run that has no model yet.

    Raises:
        RunError: The folder does not exist or holds no run.
        PublishError: Nothing has been trained in it.
    """
    run.load_experiment()
    if not any((run.model / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise PublishError(
            f"`{run.path}` has no tuned model yet (no `{run.model.name}/`). Train it first: "
            f"`hf-instruct run {run.config} --run-dir {run.path} --resume`."
        )


def load_run_model(run: RunFolder) -> RunModel:
    """Return a run's tuned model, with its adapter merged where it has one.

    Raises:
        RunError: The folder does not exist or holds no run.
        PublishError: Nothing has been trained in it, or the weights are not finite numbers.
        ModelLoadError: The model, or the base model of the adapter, cannot be loaded.
    """
    check_run(run)
    experiment = run.load_experiment()
    prompt_format = PromptFormat.named(experiment.data.prompt_format)
    model, tokenizer = load_model(str(run.model), trust_remote_code=experiment.model.trust_remote_code)
    merged = (run.model / "adapter_config.json").is_file()
    if merged:
        model = merge_adapter(model)
    configure_stop(model, tokenizer, prompt_format.end_token_id(tokenizer))
    # Training switches it off; without it every other program would compute each answer in quadratic time.
    model.config.use_cache = True
    use_training_prompt(tokenizer, prompt_format)
    name = run.path.resolve().name
    return RunModel(model, tokenizer, prompt_format, name, merged)


def merge_adapter(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return the base model of a PEFT model with the adapter added to its weights; GPT-2's transposed ones as well.

    Raises:
        PublishError: The adapter holds numbers that are not finite.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    try:
        whole: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise PublishError(f"The adapter cannot be merged into its base model: {error}") from error
    whole.eval()
    return whole


def use_training_prompt(tokenizer: "PreTrainedTokenizerBase", prompt_format: PromptFormat) -> None:
    """Give a tokenizer the chat template that writes a model's training prompt.

    A model tuned on `alpaca` is asked in alpaca's words by every program that goes through chat templates, whether its
    base model had none (GPT-2) or one that the tuning did not use. For `chat` the tokenizer's own stays.

    Raises:
        PublishError: The prompt format cannot be written as a chat template.
    """
    if prompt_format.name != CHAT:
        tokenizer.chat_template = build_chat_template(shape_prompt(prompt_format, tokenizer))


def save_run_model(source: RunModel, folder: Path) -> None:
    """Write weights, configs and tokenizer into a folder that `from_pretrained` takes.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with no_shard_bars():
        source.model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        # Weights are written for their owner alone, and a server may run as somebody else.
        path.chmod(0o644)


def count_parameters(model: "PreTrainedModel") -> int:
    """Return how many numbers a model's weights are; tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
