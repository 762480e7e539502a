"""Merge the adapter of a run into its base model, and save the model for other programs."""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import Experiment
from hf_instruct.errors import ModelLoadError, PublishError
from hf_instruct.hub.fidelity import Fidelity, Reference, check_fidelity, compare_models, take_reference
from hf_instruct.hub.templates import build_chat_template, shape_prompt
from hf_instruct.manifests import find_quantization, verify_model
from hf_instruct.models import configure_stop, list_ends, load_model, load_tokenizer, no_shard_bars, resolve_model
from hf_instruct.prompt_checks import resolve_format
from hf_instruct.prompts import CHAT, PromptFormat
from hf_instruct.records import read_file, write_json
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Of what a run's `model` folder holds, these are the model; `training_args.bin`, which holds paths, is not among them.
_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "*.py")
# Training switches it off; without it every other program would compute each answer in quadratic time.
_USABLE = {"use_cache": True}


@dataclasses.dataclass(frozen=True)
class RunModel:
    """What a run has trained, ready to leave it.

    Attributes:
        model: The tuned model in float32, in evaluation mode; an adapter is merged into its base model.
        tokenizer: Its tokenizer, whose chat template writes the prompts the model was trained on.
        prompt_format: The format of these prompts.
        reference: What it computes with the adapter and its base model side by side; what is written is compared with
            this.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    prompt_format: PromptFormat
    reference: Reference


def check_run(run: RunFolder) -> None:
    """Refuse a run that has no model yet, or one whose weights, or whose base model's, have changed.

    Raises:
        RunError: The folder does not exist or holds no run, or its model is missing or damaged.
    """
    run.load_experiment()
    run.check_trained()
    verify_model(run.model, full=True)


def check_links(run: RunFolder) -> None:
    """Refuse links out of a run folder: in somebody else's, they may lead to private files of this machine.

    Args:
        run: What of it is published or exported is looked at; weights and data of training may lie on another disk.

    Raises:
        PublishError: There is one; or below the model a link to a folder, which may hold some.
    """
    home = os.path.realpath(run.path)
    for path in (run.config, run.prompt, run.loss_plot, run.model, *run.model.rglob("*")):
        target = Path(os.path.realpath(path))
        if path.is_symlink() and (not target.is_relative_to(home) or (target.is_dir() and path != run.model)):
            raise PublishError(
                f"`{path}` is a link to `{path.readlink()}`, which may contain private files from outside the run "
                "folder. To publish it, replace the link with a copy."
            )


def name_run(run: RunFolder) -> str:
    """Return what servers may call a run's model: its folder's name, in letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", run.path.resolve().name).strip("-.") or "model"


def load_run_model(run: RunFolder) -> RunModel:
    """Return a run's tuned model, with its adapter merged if it has one.

    The caller has checked the run by `check_run`, which reads all weights.

    Raises:
        PublishError: The weights are not finite numbers, or the merged model computes something else than adapter and
            base model side by side.
        ModelLoadError: The model, or the base model of the adapter, cannot be loaded.
    """
    experiment = run.load_experiment()
    prompt_format = run.load_prompt_format(experiment.data.prompt_format)
    trained_on = find_quantization(run.model) or experiment.model.quantization
    if trained_on:
        logger.info(
            "The adapter was trained on a base model in %s and is merged into the full-precision weights, so the "
            "merged model's answers may differ slightly from the run's.",
            trained_on,
        )
    trusted = experiment.model.trust_remote_code
    model, tokenizer = load_model(str(run.model), quantization="none", trust_remote_code=trusted)
    reference = take_reference(run, model, tokenizer, prompt_format)
    if run.has_adapter:
        model = merge_adapter(model, reference)
    configure_stop(model, tokenizer, prompt_format.end_token_id(tokenizer))
    model.config.update(_USABLE)
    use_training_prompt(tokenizer, prompt_format)
    return RunModel(model, tokenizer, prompt_format, reference)


def merge_adapter(model: Any, reference: Reference) -> "PreTrainedModel":
    """Return the base model of a PEFT model with the adapter added to its weights; GPT-2's transposed ones as well.

    Input and output embedding are untied first: PEFT would add what an adapter learned for either to both.

    Args:
        model: A PEFT model; of no use afterwards.
        reference: What it computes.

    Raises:
        PublishError: The adapter changes nothing or holds numbers that are not finite, or the merged model computes
            something else.
    """
    with model.disable_adapter():
        if compare_models(model, reference).logit_error == 0:
            raise PublishError(
                "The adapter changes nothing: the merged model would be its base model. Train it for at least one step."
            )
    _untie(model.get_base_model())
    try:
        with warnings.catch_warnings():
            # That an adapter of a tied layer may be merged wrongly, and that the layers are no longer tied.
            warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings|Input and output embeddings are")
            whole: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise PublishError(f"The adapter cannot be merged into its base model: {error}") from error
    whole.eval()
    _tie_again(whole)
    check_fidelity(whole, reference, "The merged model")
    return whole


def _untie(model: "PreTrainedModel") -> None:
    """Give every layer weights of its own."""
    from torch import nn

    known = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in known:
                setattr(module, name, nn.Parameter(parameter.detach().clone()))
            known.add(parameter)


def _tie_again(model: "PreTrainedModel") -> None:
    """Tie the output embedding to the input embedding if both are equal, as they are if neither was adapted."""
    import torch

    # Typed as if a layer's weight could be a layer.
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if head is not None and torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        model.config.tie_word_embeddings = True


def use_training_prompt(tokenizer: "PreTrainedTokenizerBase", prompt_format: PromptFormat) -> None:
    """Give a tokenizer the chat template that writes a model's training prompt; it is changed in place.

    Where no chat template can write it, the tokenizer has none afterwards: the base model's would write another prompt
    than the one trained on.
    """
    if prompt_format.name == CHAT:
        tokenizer.chat_template = resolve_format(prompt_format, tokenizer, for_training=False).template
        return
    try:
        tokenizer.chat_template = build_chat_template(shape_prompt(prompt_format, tokenizer))
    except PublishError:
        logger.warning(
            "The prompt format `%s` cannot be written as a chat template, so the tokenizer has none; programs that "
            "use the model have to build the prompt themselves.",
            prompt_format.name,
        )
        tokenizer.chat_template = None


def save_run_model(source: RunModel, folder: Path) -> Fidelity:
    """Write weights, configs and tokenizer into a folder that `from_pretrained` takes, and read the model back.

    Returns:
        How near what was written is to the run's own model.

    Raises:
        PublishError: It computes something else.
        OSError: The disk is full, or the folder cannot be written.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    with no_shard_bars():
        source.model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        # Weights are written for their owner alone, and a server may run as somebody else.
        path.chmod(0o644)
    with no_shard_bars():
        # Its weights stay in the file until they are needed: there are not two models in memory.
        written = type(source.model).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return check_fidelity(written.eval(), source.reference, "The model that was written")


def write_model(
    run: RunFolder, folder: Path, *, merge: bool = True, link: bool = False, source: RunModel | None = None
) -> "PreTrainedTokenizerBase":
    """Write a run's model, tokenizer and configs for any other program, loading no weights if none are merged.

    The tokenizer writes the training prompt, and the generation config names the tokens that end an answer, so that
    `generate()` stops in any program; ends that it names already stay.

    Args:
        run: A run with a tuned model, which `check_run` has accepted.
        folder: Created if it is missing.
        merge: Merge an adapter into its base model.
        link: Link to weights instead of copying them, if possible.
        source: The run's model, where it is loaded already.

    Returns:
        The tokenizer, as it was written.

    Raises:
        InstructError: As `load_run_model`.
        OSError: The folder cannot be written.
    """
    from transformers import GenerationConfig

    if run.has_adapter and merge:
        source = source or load_run_model(run)
        save_run_model(source, folder)
        return source.tokenizer
    _copy_files(run.model, folder, link=link)
    if not run.has_adapter:
        change_json(folder / "config.json", **_USABLE)
    experiment = run.load_experiment()
    prompt_format = run.load_prompt_format(experiment.data.prompt_format)
    tokenizer = load_tokenizer(str(run.model), trust_remote_code=experiment.model.trust_remote_code)
    use_training_prompt(tokenizer, prompt_format)
    tokenizer.save_pretrained(folder)
    try:
        settings = _find_generation_config(run, experiment)
    except (OSError, ModelLoadError):
        settings = GenerationConfig()
    ends = list_ends(settings, tokenizer, prompt_format.end_token_id(tokenizer))
    settings.eos_token_id = ends if len(ends) > 1 else ends[0]
    settings.pad_token_id = tokenizer.pad_token_id
    settings.save_pretrained(folder)
    return tokenizer


def _find_generation_config(run: RunFolder, experiment: Experiment) -> "GenerationConfig":
    """Return the model's generation config; an adapter has none, but its base model may be on this disk."""
    from transformers import GenerationConfig

    if not run.has_adapter:
        return GenerationConfig.from_pretrained(run.model)
    section = experiment.model
    location, revision = resolve_model(run.find_base(section.name)), section.revision or "main"
    return GenerationConfig.from_pretrained(location, revision=revision, local_files_only=True)


def _copy_files(source: Path, folder: Path, *, link: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(path for pattern in _MODEL_FILES for path in source.glob(pattern) if path.is_file()):
        if link and path.suffix == ".safetensors":
            # Windows allows links to some users only.
            with contextlib.suppress(OSError):
                (folder / path.name).symlink_to(path.resolve())
                continue
        shutil.copyfile(path, folder / path.name)


def change_json(path: Path, **changes: Any) -> None:
    """Set values of a JSON object in a file."""
    write_json(path, {**(read_file(path, dict[str, Any]) or {}), **changes})
