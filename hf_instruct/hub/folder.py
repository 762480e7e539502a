"""The folder that is published: weights, tokenizer, configs, prompt format and card, and nothing that is private."""

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import Experiment, read_yaml
from hf_instruct.errors import ModelLoadError, PublishError
from hf_instruct.hub.card import LOSS_PLOT, CardFacts, build_card
from hf_instruct.hub.merging import (
    change_json,
    check_links,
    check_run,
    copy_files,
    write_tokenizer,
    write_whole_model,
)
from hf_instruct.hub.provenance import UNKNOWN, BaseModel, describe_data, find_base_model
from hf_instruct.hub.results import Measured, public_name, read_measured
from hf_instruct.hub.usage import PROMPT_FILE
from hf_instruct.models import cache_folder, resolve_model
from hf_instruct.prompts import CHAT, PromptFormat
from hf_instruct.records import read_json_object, write_json, write_text
from hf_instruct.redaction import redact
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CARD = "README.md"
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
# What any program that loads models may look for; a repository's other files are somebody's own.
_OURS = re.compile(
    r"(.*\.safetensors(\.index\.json)?|(adapter_|generation_|tokenizer_)?config\.json|tokenizer\.(json|model)"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|(additional_chat_templates/)?.*\.jinja"
    rf"|{re.escape(LOSS_PLOT)})"
)
# Where a library keeps the place that it read a file from.
_PLACES = (
    "_name_or_path",
    "_model_name_or_path",
    "name_or_path",
    "is_local",
    "local_files_only",
    "tokenizer_file",
    "vocab_file",
)
_QUESTION = "Name three animals that live in the sea."
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# Homes on any machine: a run may be published from another one than it was made on.
_HOMES = re.compile(r"/(?:home|Users)/[^/\s\"']+/|[A-Za-z]:\\{1,2}Users\\")


@dataclasses.dataclass(frozen=True)
class PublishOptions:
    """What a user may decide about a publication.

    Attributes:
        merge: Publish the adapter and its base model as one whole.
        license: Of the published weights, as the Hub writes it: `apache-2.0`, `mit`, `cc-by-4.0`.
        data_license: Of the data, where it is not known.
        base_model: Id of the base model on the Hub, where the run names a local folder.
    """

    merge: bool = False
    license: str | None = None
    data_license: str | None = None
    base_model: str | None = None


@dataclasses.dataclass(frozen=True)
class PublishedFolder:
    """What was made ready.

    Attributes:
        path: The folder.
        base: The model that was tuned.
        is_adapter: Whether its weights need the base model.
        sizes: Bytes of each file, by its path in the folder.
    """

    path: Path
    base: BaseModel
    is_adapter: bool
    sizes: dict[str, int]


def write_folder(
    run: RunFolder, folder: Path, *, repo_id: str, options: PublishOptions, link: bool = False
) -> PublishedFolder:
    """Write all that is published of a run into an empty or new folder.

    Args:
        run: A run with a tuned model.
        folder: Where to write.
        repo_id: What the card calls it.
        options: What the user decided.
        link: Link to the run's weights instead of copying them, where that can be done.

    Raises:
        RunError: The run does not exist.
        PublishError: It has no model; an adapter's base model has no public name; a file would give away something
            private; or an option does not fit.
        ModelLoadError: The tokenizer, or with `merge` the base model, cannot be loaded.
        OSError: The folder cannot be written.
    """
    plan = plan_folder(run, options)
    tokenizer = _write_model(plan, folder, link=link)
    if plan.prompt_format.name != CHAT:
        write_text(folder / PROMPT_FILE, plan.prompt_format.template)
    if run.loss_plot.is_file():
        shutil.copyfile(run.loss_plot, folder / LOSS_PLOT)
    _clean(folder)
    provenance = read_yaml(run.config)
    provenance.pop("experiment", None)
    facts = CardFacts(
        repo_id=repo_id,
        experiment=plan.experiment,
        provenance=provenance,
        measured=plan.measured,
        base=plan.base,
        data=describe_data(plan.experiment, provenance.get("data_sha256"), options.data_license),
        license=options.license or UNKNOWN,
        template=plan.prompt_format.template,
        prompt=plan.prompt_format.format_prompt(_QUESTION, tokenizer=tokenizer),
        question=_QUESTION,
        adapter=plan.adapter,
        is_adapter=plan.is_adapter,
        has_loss_plot=run.loss_plot.is_file(),
    )
    write_text(folder / CARD, redact(str(build_card(facts))))
    check_private(folder, run, names=_private_names(plan))
    return PublishedFolder(folder, plan.base, plan.is_adapter, dict(sorted(_measure_files(folder))))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is going to be published, known before anything is loaded or written.

    Attributes:
        run: Whose model it is.
        experiment: What the run is of.
        base: The model that was tuned.
        adapter: Settings of the adapter; empty for full fine-tuning.
        is_adapter: Whether the adapter alone is published.
        prompt_format: The format of the prompts it was trained on.
        measured: What the run's files tell of its answers.
    """

    run: RunFolder
    experiment: Experiment
    base: BaseModel
    adapter: dict[str, Any]
    is_adapter: bool
    prompt_format: PromptFormat
    measured: Measured


def plan_folder(run: RunFolder, options: PublishOptions) -> Plan:
    """Return what is going to be published; the faults that can be found without loading a model are found here.

    Raises:
        InstructError: As `write_folder`.
    """
    check_links(run)
    check_run(run)
    experiment = run.load_experiment()
    settings = run.model / "adapter_config.json"
    adapter = read_json_object(settings)
    _check_options(run, options, bool(adapter))
    base = find_base_model(run, experiment, options.base_model)
    is_adapter = bool(adapter) and not options.merge
    if is_adapter and base.hub_id is None:
        raise PublishError(
            "The adapter belongs to a base model in a local folder, which nobody else has. Name that model's id on the "
            "Hub (`--base-model ID`), or publish both as one (`--merge`)."
        )
    prompt_format = run.load_prompt_format(experiment.data.prompt_format)
    return Plan(run, experiment, base, adapter, is_adapter, prompt_format, read_measured(run))


def _write_model(plan: Plan, folder: Path, *, link: bool) -> "PreTrainedTokenizerBase":
    """Write weights, configs and tokenizer, and return the tokenizer."""
    if not plan.is_adapter:
        return write_whole_model(plan.run, folder, link=link)
    copy_files(plan.run.model, folder, _ADAPTER_FILES, link=link)
    changes = {"base_model_name_or_path": plan.base.hub_id, "revision": plan.base.revision}
    change_json(folder / "adapter_config.json", **changes)
    _save_base_generation_config(plan, folder)
    return write_tokenizer(plan.run, folder)


def is_ours(path: str) -> bool:
    """Return whether a file of a repository is one that publishing writes, and may take away when it is out of date.

    >>> is_ours("model-00001-of-00002.safetensors"), is_ours("adapter_config.json"), is_ours("images/me.png")
    (True, True, False)
    """
    return bool(_OURS.fullmatch(path))


def check_private(folder: Path, run: RunFolder, *, names: Sequence[str] = ()) -> None:
    """Refuse a folder whose texts hold a token or password, or a path that tells of the user's machine.

    Args:
        folder: What is going to be published.
        run: Whose model it is.
        names: What the experiment calls files and folders of the user's own.

    Raises:
        PublishError: One does; the file is named, the secret is not.
    """
    from huggingface_hub import get_token

    places = {Path.home(), Path.cwd(), run.path.resolve(), cache_folder().resolve()}
    # From its first character to what comes after the folder's name: for somebody who works in `/datasets`, neither
    # `/datasets` nor the address `https://huggingface.co/datasets/...` is a path on this machine.
    private = [re.compile(rf"(?<![\w.-]){re.escape(f'{place}{os.sep}')}") for place in places if len(str(place)) > 1]
    private += [re.compile(rf"(?<![\w/.-]){re.escape(name)}(?![\w/-])") for name in names]
    private.append(_HOMES)
    token = get_token()
    for path in _list_texts(folder):
        text = path.read_text(encoding="utf-8", errors="replace")
        what = "a token or password" if redact(text) != text or (token and token in text) else ""
        if not what and any(place.search(text) for place in private):
            what = "the path of a folder on this machine"
        if what:
            raise PublishError(
                f"`{path.name}` would publish {what}. Take it out of the file in `{run.model}`, or of the prompt "
                "format that it comes from; nothing was published."
            )


def _private_names(plan: Plan) -> list[str]:
    experiment = plan.experiment
    others = (experiment.data.source, experiment.data.prompt_format, experiment.judge.rubric, experiment.judge.model)
    names = [name for name in others if name and not public_name(name, "")]
    base = experiment.model.name
    return [*names, base] if "/" in base and base != plan.base.hub_id else names


def _check_options(run: RunFolder, options: PublishOptions, has_adapter: bool) -> None:
    if options.merge and not has_adapter:
        raise PublishError(f"`{run.path}` trained all weights, so there is nothing to merge; leave out `--merge`.")
    for flag, license in (("--license", options.license), ("--data-license", options.data_license)):
        if license is not None and not _LICENSE.fullmatch(license):
            raise PublishError(
                f"`{flag} {license}` is not a licence as the Hub writes it. Use a short lower-case name such as "
                "`apache-2.0`, `mit`, `cc-by-4.0` or `other`."
            )


def _save_base_generation_config(plan: Plan, folder: Path) -> None:
    """Save what the base model says of generating, where it is on this disk: an adapter has no such file."""
    from transformers import GenerationConfig

    section = plan.experiment.model
    try:
        location = resolve_model(plan.run.find_base(section.name))
        settings = GenerationConfig.from_pretrained(
            location, revision=section.revision or "main", local_files_only=True
        )
    except (OSError, ModelLoadError):
        # A base model without one, or kept elsewhere; the tokenizer tells what ends an answer.
        settings = GenerationConfig()
    settings.save_pretrained(folder)


def _clean(folder: Path) -> None:
    """Take out of the configs where on this machine things were read from."""
    for path in folder.glob("*config.json"):
        values = read_json_object(path)
        kept = {name: value for name, value in values.items() if name not in _PLACES}
        if kept != values:
            write_json(path, kept)


def _list_texts(folder: Path) -> Iterator[Path]:
    """Yield the files that people or libraries write words into; a vocabulary holds any string there is."""
    for path in sorted(folder.rglob("*")):
        named = path.name.endswith(("config.json", ".md", ".jinja", ".py", ".index.json"))
        if path.is_file() and (named or path.name == "special_tokens_map.json"):
            yield path


def _measure_files(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size
