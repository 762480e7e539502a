"""The models of the page: each loaded when it is first asked, then shared by all who talk to it."""

import threading
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from hf_instruct.ui.sources import Source, Speaker, list_speakers

if TYPE_CHECKING:
    from hf_instruct.generation.chatting import ChatModel


class ModelShelf:
    """The models that can be asked, by what they are called on the page. Safe to use from several threads.

    Args:
        sources: Runs and models, as `find_sources` returns them.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._speakers = {speaker.label: speaker for speaker in list_speakers(sources)}
        self._sources = {source.name: source for source in sources}
        self._loaded: dict[Hashable, ChatModel] = {}
        self._lock = threading.Lock()

    @property
    def labels(self) -> list[str]:
        """What the models are called."""
        return list(self._speakers)

    def is_loaded(self, label: str) -> bool:
        """Return whether a model is there already."""
        return self._key(self._speakers[label]) in self._loaded

    def load(self, label: str) -> "ChatModel":
        """Return a model, loaded on its first use: that takes seconds.

        Raises:
            InstructError: It cannot be loaded.
        """
        from hf_instruct.generation.chatting import ChatModel

        speaker = self._speakers[label]
        key = self._key(speaker)
        # One after the other: two at once would need the memory for both weights files besides.
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = ChatModel.load(speaker.name, base=speaker.base)
            return self._loaded[key]

    def _key(self, speaker: Speaker) -> Hashable:
        """Return what tells a model apart: runs that began with the same one share it."""
        experiment = self._sources[speaker.name].experiment
        if not speaker.base or experiment is None:
            return speaker.name
        model = experiment.model
        return (model.name, model.revision, experiment.generate.dtype, experiment.data.prompt_format)
