"""The plan of a publication, with names that are valid on other machines."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

from hf_instruct.config import Experiment
from hf_instruct.data.readers import SUFFIXES, find_suffix
from hf_instruct.errors import PublishError, quote_names
from hf_instruct.hub.gguf_file import check_gguf_package
from hf_instruct.hub.merging import check_links, check_run
from hf_instruct.models import ALIASES, WHEEL_MODEL, is_local_model
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import read_file
from hf_instruct.reporting.results import RunResults, read_results
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Provenance
from hf_instruct.wheel_model import ON_HUB

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
_BASE_LICENSES = {
    "openai-community/gpt2": "mit",
    "openai-community/gpt2-medium": "mit",
    "openai-community/gpt2-large": "mit",
    "openai-community/gpt2-xl": "mit",
    "microsoft/Phi-3-mini-4k-instruct": "mit",
    "Qwen/Qwen3-0.6B": "apache-2.0",
    ON_HUB: "apache-2.0",
}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclasses.dataclass(frozen=True)
class PushOptions:
    """Options of a publication.

    Attributes:
        merge: Publish the adapter and its base model as one model.
        gguf: Also publish GGUF files, with the files that make Ollama use the training prompt.
        license: License of the published weights, by its name on the Hub: `apache-2.0`, `mit`, `cc-by-4.0`.
        data_license: License of the data, instead of the one that is known for it.
        base_model: Id of the base model on the Hub, if the run names a local folder.
        private: Create a new repository that only its owners can see.
        revision: Branch, created if it is missing; None for `main`.
        message: Message of the commit.
        force: Replace a model that was made from another base model.
    """

    merge: bool = False
    gguf: bool = False
    license: str | None = None
    data_license: str | None = None
    base_model: str | None = None
    private: bool = False
    revision: str | None = None
    message: str | None = None
    force: bool = False


@dataclasses.dataclass(frozen=True)
class BaseModelInfo:
    """The model that was tuned.

    Attributes:
        hub_id: Its id on the Hub; None if it is a local folder, whose name is private.
        revision: The commit, tag or branch that was tuned.
        is_rounded: Whether the tuned weights are a 4-bit copy of those on the Hub.
    """

    hub_id: str | None
    revision: str | None = None
    is_rounded: bool = False

    @property
    def license(self) -> str:
        """Its license on the Hub, or `unknown`."""
        return _BASE_LICENSES.get(self.hub_id or "", UNKNOWN)


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """The examples of the training.

    Attributes:
        name: A plain name.
        description: A short description in Markdown.
        hub_ids: Their ids on the Hub, if they are from there.
        license: Their license, or `unknown`.
        language: Their language; None if unknown.
    """

    name: str
    description: str
    hub_ids: tuple[str, ...] = ()
    license: str = UNKNOWN
    language: str | None = None


_COURSE = DataInfo(
    "instruction-data",
    "the course's 1,100 instructions ([instruction-data.json]"
    "(https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/ch07/01_main-chapter-code/instruction-data.json), "
    "from Sebastian Raschka, *Build a Large Language Model (From Scratch)*)",
    license="apache-2.0",
    language="en",
)
_EVERYDAY = DataInfo(
    "everyday", "`everyday`, the instructions packaged with hf_instruct", license="apache-2.0", language="en"
)
_ALPACA = DataInfo(
    "tatsu-lab/alpaca",
    "Stanford Alpaca ([tatsu-lab/alpaca](https://huggingface.co/datasets/tatsu-lab/alpaca))",
    hub_ids=("tatsu-lab/alpaca",),
    license="cc-by-nc-4.0",
    language="en",
)
_NAMED = {"instruction-data": _COURSE, "everyday": _EVERYDAY, "alpaca": _ALPACA, "tatsu-lab/alpaca": _ALPACA}
# Hash of the course's data in the course's split, which identifies a local copy of its file.
_COURSE_SHA256 = "59c3aedd8fcaae45c8eaa8f1d409c62fcae63316371bf10903b69c2153b1f695"


@dataclasses.dataclass(frozen=True)
class Publication:
    """The plan of a publication, before anything is loaded or written.

    Attributes:
        results: The results of the run.
        repo_id: The repository.
        options: The user's options.
        base: The model that was tuned.
        data: The examples of the training.
        preferences: The pairs of answers for DPO; None without DPO, or if they were made from the data.
        prompt_format: The format of the prompts it was trained on.
        adapter: Settings of the adapter; empty for full fine-tuning.
    """

    results: RunResults
    repo_id: str
    options: PushOptions
    base: BaseModelInfo
    data: DataInfo
    preferences: DataInfo | None
    prompt_format: PromptFormat
    adapter: dict[str, Any]

    @property
    def name(self) -> str:
        """The repository's name, without its namespace."""
        return self.repo_id.rpartition("/")[2]

    @property
    def license(self) -> str:
        """The license of the published weights, or `unknown`."""
        return self.options.license or UNKNOWN

    @property
    def is_adapter(self) -> bool:
        """Whether only the adapter is published, which needs its base model."""
        return bool(self.adapter) and not self.options.merge


def plan_publication(run: RunFolder, repo_id: str, **options: Any) -> Publication:
    """Return the plan of a publication, with all checks that do not need to load a model.

    Args:
        run: A run with a tuned model.
        repo_id: The repository.
        options: Fields of `PushOptions`.

    Raises:
        RunError: The run does not exist, or its model is missing or damaged.
        ConfigError: GGUF files are requested, and the package that writes them is not installed.
        PublishError: An adapter's base model has no public name, or an option is unknown or does not fit.
        DataError: A file of the run cannot be read.
    """
    names = [field.name for field in dataclasses.fields(PushOptions)]
    if unknown := set(options) - set(names):
        raise PublishError(
            f"`push` has no options {quote_names(sorted(unknown))}; the options are {quote_names(names)}."
        )
    chosen = PushOptions(**options)
    if not is_hub_id(repo_id):
        raise PublishError(
            f"`--to {repo_id}` is not a valid repository name. It should look like `namespace/name`, as in "
            "`me/gpt2-assistant`, with letters from a to z, digits, `-`, `_` and `.`, at most 96 characters."
        )
    if chosen.gguf:
        check_gguf_package()
    check_links(run)
    check_run(run)
    experiment = run.load_experiment()
    adapter = read_file(run.model / "adapter_config.json", dict[str, Any]) or {}
    _check_options(run, chosen, bool(adapter))
    base = find_base_model(run, experiment, chosen.base_model)
    if adapter and not chosen.merge and base.hub_id is None:
        raise PublishError(
            "The adapter's base model is a local folder, which others do not have. Set the base model's id on the "
            "Hub with `--base-model ID`, or publish the merged model with `--merge`."
        )
    results = read_results(run, experiment)
    data = find_data(experiment, results.provenance)
    return Publication(
        results=results,
        repo_id=repo_id,
        options=chosen,
        base=base,
        data=dataclasses.replace(data, license=chosen.data_license or data.license),
        preferences=find_preferences(experiment, results.provenance),
        prompt_format=run.load_prompt_format(experiment.data.prompt_format),
        adapter=adapter,
    )


def public_name(name: str, instead: str) -> str:
    """Return a name, or `instead` if it is the path of a local file or folder, or empty."""
    is_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    return instead if not name or is_path or ("/" in name and Path(name).exists()) else name


def _check_options(run: RunFolder, options: PushOptions, has_adapter: bool) -> None:
    if options.merge and not has_adapter:
        raise PublishError(f"`{run.path}` trained all weights, so there is nothing to merge; leave out `--merge`.")
    for flag, license in (("--license", options.license), ("--data-license", options.data_license)):
        if license is not None and not _LICENSE.fullmatch(license):
            raise PublishError(
                f"`{flag} {license}` is not a license identifier of the Hub. Use a short lower-case name such as "
                "`apache-2.0`, `mit`, `cc-by-4.0` or `other`."
            )
    if options.base_model is not None and not is_hub_id(options.base_model):
        raise PublishError(
            f"`--base-model {options.base_model}` is not an id on the Hub. It should look like `openai-community/gpt2`."
        )


def find_base_model(run: RunFolder, experiment: Experiment, base_model: str | None = None) -> BaseModelInfo:
    """Return the base model by its public name.

    Args:
        run: The run.
        experiment: The run's experiment.
        base_model: The Hub id to use instead.
    """
    name = experiment.model.name
    if base_model is not None:
        # The revision in the experiment belongs to the model that the experiment names.
        return BaseModelInfo(base_model, experiment.model.revision if base_model == name else None)
    if name == WHEEL_MODEL:
        return BaseModelInfo(ON_HUB, is_rounded=True)
    if name not in ALIASES and (not is_hub_id(name) or _was_local(run, name)):
        return BaseModelInfo(None)
    return BaseModelInfo(ALIASES.get(name, name), experiment.model.revision)


def _was_local(run: RunFolder, name: str) -> bool:
    """Return whether a base model was a folder when the run was trained."""
    recorded = run.read_provenance().base_model_is_local
    if recorded is not None:
        return recorded
    if is_local_model(name):
        return True
    logger.warning(
        "The run does not say whether `%s` was a local folder or a model on the Hub; assuming the Hub. If it was a "
        "folder, set the model's id on the Hub with `--base-model ID`.",
        name,
    )
    return False


def find_data(experiment: Experiment, provenance: Provenance) -> DataInfo:
    """Return the examples of a run's training, without names of local files."""
    if provenance.data_sha256 == _COURSE_SHA256:
        return _COURSE
    parts = list(dict.fromkeys(_find_source(source, provenance) for source in experiment.data.paths))
    if len(parts) == 1:
        return parts[0]
    licenses, languages = {part.license for part in parts}, {part.language for part in parts}
    return DataInfo(
        name=" + ".join(part.name for part in parts),
        description="; ".join(part.description for part in parts),
        hub_ids=tuple(id for part in parts for id in part.hub_ids),
        license=licenses.pop() if len(licenses) == 1 else UNKNOWN,
        language=languages.pop() if len(languages) == 1 else None,
    )


def find_preferences(experiment: Experiment, provenance: Provenance) -> DataInfo | None:
    """Return the pairs of answers for a run's DPO; None without DPO, or if the run made them from its data."""
    source = experiment.preferences.source
    return None if experiment.dpo is None or source == "references" else _find_source(source, provenance)


def _find_source(source: str, provenance: Provenance) -> DataInfo:
    if source in _NAMED:
        return _NAMED[source]
    # A local file may not be found here, if the run is pushed from another folder than the one it was made in.
    is_file = source in provenance.local_sources or Path(source).exists() or find_suffix(Path(source)) in SUFFIXES
    if "/" in source and is_hub_id(source) and not is_file:
        return DataInfo(source, f"[{source}](https://huggingface.co/datasets/{source})", hub_ids=(source,))
    return DataInfo("own-data", "a file of the publisher's own, not published here")


def is_hub_id(name: str) -> bool:
    """Return whether a name could be a repository on the Hub.

    >>> is_hub_id("gpt2"), is_hub_id("me/gpt2"), is_hub_id("a/b/c"), is_hub_id("../gpt2"), is_hub_id("data.jsonl")
    (True, True, False, False, True)
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported lazily

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
