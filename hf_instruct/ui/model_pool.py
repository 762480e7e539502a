"""The models of the page: each loaded when it is asked, shared by all who talk to it, kept while the memory lasts."""

import contextlib
import dataclasses
import gc
import itertools
import logging
import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from hf_instruct.memory import free_bytes, give_back_freed_memory, mapped_bytes
from hf_instruct.ui.sources import Source, Speaker, list_speakers
from hf_instruct.ui.weights import estimate_bytes, measure_bytes

if TYPE_CHECKING:
    from hf_instruct.generation.chat_model import ChatModel

logger = logging.getLogger(__name__)

# What a model takes while it is loaded and while it answers, beside its weights, in shares of these.
_LEEWAY = 1.25


@dataclasses.dataclass
class _Kept:
    """A model that was loaded once.

    Attributes:
        model: Without its weights while they are dropped: conversations hold on to it, so that it has to stay.
        label: What it was called by who asked for it first.
        size: Its weights in bytes.
        num_users: How many are using the weights now.
        used: A number that grows with every use.
        is_loaded: Whether the weights are there.
    """

    model: "ChatModel"
    label: str
    size: int
    num_users: int = 0
    used: int = 0
    is_loaded: bool = True


class ModelShelf:
    """The models that can be asked, by what they are called on the page. Safe to use from several threads.

    Args:
        sources: Runs and models, as `find_sources` returns them.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._speakers = {speaker.label: speaker for speaker in list_speakers(sources)}
        self._sources = {source.name: source for source in sources}
        self._kept: dict[Hashable, _Kept] = {}
        # Held while a model is loaded: two at once would need the memory for both weights files besides.
        self._loading = threading.Lock()
        # Held for a moment: who uses what, and whether its weights are there.
        self._lock = threading.Lock()
        self._uses = itertools.count(1)

    @property
    def labels(self) -> list[str]:
        """What the models are called."""
        return list(self._speakers)

    def is_loaded(self, label: str) -> bool:
        """Return whether a model can answer at once."""
        kept = self._kept.get(self._key(self._speakers[label]))
        return kept is not None and kept.is_loaded

    @contextlib.contextmanager
    def lend(self, label: str) -> "Iterator[ChatModel]":
        """Give a model for as long as it is used; where it is not there it is loaded, which takes seconds.

        Where the memory would not do, models that nobody uses are dropped first, the one unused for longest before
        others; they are loaded again when they are asked again.

        Raises:
            InstructError: It cannot be loaded.
        """
        speaker = self._speakers[label]
        kept = self._take(speaker)
        if kept is None:
            with self._loading:
                # Somebody else may have asked for it meanwhile.
                kept = self._take(speaker) or self._load(speaker)
        try:
            yield kept.model
        finally:
            with self._lock:
                kept.num_users -= 1

    def _take(self, speaker: Speaker) -> _Kept | None:
        """Return a model, noted as in use; None where it has to be loaded."""
        with self._lock:
            kept = self._kept.get(self._key(speaker))
            if kept is None or not kept.is_loaded:
                return None
            kept.num_users += 1
            kept.used = next(self._uses)
            return kept

    def _load(self, speaker: Speaker) -> _Kept:
        """Load a model and return it, noted as in use."""
        from hf_instruct.generation.chat_model import ChatModel

        kept = self._kept.get(self._key(speaker))
        self._make_room(speaker.label, self._estimate(speaker) if kept is None else kept.size)
        trusted = self._sources[speaker.name].trust_remote_code
        loaded = ChatModel.load(speaker.name, base=speaker.base, trust_remote_code=trusted)
        if kept is None:
            kept = _Kept(loaded, speaker.label, measure_bytes(loaded.model))
        with self._lock:
            kept.model.model, kept.is_loaded = loaded.model, True
            kept.num_users, kept.used = 1, next(self._uses)
            self._kept[self._key(speaker)] = kept
        return kept

    def _make_room(self, label: str, size: int) -> None:
        """Drop models until there is room for another, or none is left that could go."""
        from hf_instruct.models import best_device

        device = best_device()
        unused = [kept for kept in self._kept.values() if kept.is_loaded and not kept.num_users]
        for kept in sorted(unused, key=lambda kept: kept.used):
            mapped = mapped_bytes() if device == "cpu" else 0
            if free_bytes(device) - mapped >= size * _LEEWAY:
                return
            with self._lock:
                if kept.num_users:
                    continue
                kept.is_loaded = False
            logger.info(
                "Dropped %s (%.1f GB) from memory, to load %s (%.1f GB).",
                kept.label,
                kept.size / 1e9,
                label,
                size / 1e9,
            )
            _drop_weights(kept)

    def _estimate(self, speaker: Speaker) -> int:
        """Return the bytes to expect of a model's weights; where nothing tells, those of the largest there was."""
        source = self._sources[speaker.name]
        name, dtype, revision = speaker.name, "float32", None
        if source.folder is not None and source.experiment is not None:
            dtype = source.experiment.generate.dtype
            name = str(source.folder.model)
            if speaker.base:
                name, revision = source.experiment.model.name, source.experiment.model.revision
        found = estimate_bytes(name, dtype=dtype, revision=revision)
        return max((kept.size for kept in self._kept.values()), default=0) if found is None else found

    def _key(self, speaker: Speaker) -> Hashable:
        """Return what tells a model apart: runs that began with the same one and ask it alike share it."""
        source = self._sources[speaker.name]
        experiment, folder = source.experiment, source.folder
        if not speaker.base or experiment is None or folder is None:
            return speaker.name
        model = experiment.model
        template = folder.prompt.read_text(encoding="utf-8") if folder.prompt.is_file() else None
        return (model.name, model.revision, experiment.generate.dtype, experiment.data.prompt_format, template)


def _drop_weights(kept: _Kept) -> None:
    import torch

    del kept.model.model
    gc.collect()
    give_back_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
