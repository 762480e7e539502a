"""What the page is about: the runs and models that the user named, and what can be asked of each."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from hf_instruct.config import Experiment
from hf_instruct.errors import RunError
from hf_instruct.models import ALIASES, WHEEL_MODEL
from hf_instruct.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Source:
    """A run, or a model that is of no run.

    Attributes:
        name: As the user typed it.
        label: What it is called on the page; no two are called the same.
        folder: The run's folder; None for a model.
        experiment: What the run is of; None for a model.
        trust_remote_code: Whether code that comes with the model may run.
    """

    name: str
    label: str
    folder: RunFolder | None = None
    experiment: Experiment | None = None
    trust_remote_code: bool = False

    @property
    def is_trained(self) -> bool:
        """Whether there are weights to answer with."""
        return self.folder is None or self.folder.model.is_dir()


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A model that can be asked: a source's own, or the untuned one that a run started from.

    Attributes:
        label: What it is called on the page.
        name: The run folder or model, as `ChatModel.load` takes it.
        base: Whether it is the untuned model of that run.
    """

    label: str
    name: str
    base: bool = False


def find_sources(names: Sequence[str], *, trust_remote_code: bool = False) -> list[Source]:
    """Return the runs and models that the user named, each once, in their order.

    Args:
        names: Run folders; or models: an alias, a Hub id or a local folder.
        trust_remote_code: Run code that comes with their models.

    Raises:
        RunError: One is neither a run nor a model.
        ConfigError: A run's `run.yaml` cannot be read.
    """
    unique = list({str(Path(name).resolve()) if Path(name).exists() else name: name for name in names}.values())
    short = [Path(name).resolve().name if Path(name).exists() else name for name in unique]
    labels = [label if short.count(label) == 1 else name for label, name in zip(short, unique, strict=True)]
    found = [_find_source(name, label) for name, label in zip(unique, labels, strict=True)]
    return [dataclasses.replace(source, trust_remote_code=trust_remote_code) for source in found]


def _find_source(name: str, label: str) -> Source:
    from hf_instruct.generation.chat_model import find_run

    try:
        folder = find_run(name)
        if folder is None:
            if name.count("/") == 1 or name in ALIASES or name == WHEEL_MODEL or Path(name).exists():
                return Source(name, label)
            # One word may be an old model on the Hub, but is likelier a run misspelt; better told now than when asked.
            folder = RunFolder(Path(name))
        return Source(name, label, folder, folder.load_experiment())
    except RunError as error:
        raise RunError(f"{error} A model is named by its alias, its Hub id or its folder.") from error


def list_speakers(sources: Sequence[Source]) -> list[Speaker]:
    """Return the models that can be asked: of each run the tuned and the untuned one, where there are weights."""
    speakers = []
    for source in sources:
        if source.is_trained:
            speakers.append(Speaker(source.label, source.name))
        if source.experiment is not None:
            speakers.append(Speaker(f"{source.label}, untuned", source.name, base=True))
    return speakers
