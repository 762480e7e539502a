"""The vote tab: which two sets of answers to vote on, and the vote page for these two."""

import contextlib
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import DataError
from hf_instruct.ui.sources import Source

if TYPE_CHECKING:
    from hf_instruct.evaluation.votes import VoteBook


@dataclasses.dataclass(frozen=True)
class Side:
    """A set of answers to vote on.

    Attributes:
        label: What it is called on the page.
        path: The folder that `hf-instruct vote` would be given.
        is_base: Whether the answers are a run's untuned model's.
    """

    label: str
    path: Path
    is_base: bool = False


class VoteShelf:
    """The ballots between any two sets of answers: made when two are chosen first, then kept for all who vote on them.

    Safe to use from several threads. The files of votes stay this process's until the stack is closed.

    Args:
        sources: Runs and models, as `find_sources` returns them.
        stack: Keeps what has to be let go in the end.
    """

    def __init__(self, sources: Sequence[Source], stack: contextlib.ExitStack) -> None:
        self.sides = _find_sides(sources)
        self._paths = {side.label: side.path for side in self.sides}
        self._stack = stack
        self._books: dict[tuple[str, str], VoteBook] = {}
        self._lock = threading.Lock()

    def open(self, first: str, second: str) -> "VoteBook":
        """Return the ballots between two sets of answers, by their labels.

        Raises:
            InstructError: There is nothing to vote on, or the file of the votes cannot be had.
        """
        if first == second:
            raise DataError("Choose two different ones to compare.")
        with self._lock:
            if (first, second) not in self._books:
                self._books[first, second] = self._build(self._paths[first], self._paths[second])
            return self._books[first, second]

    def _build(self, first: Path, second: Path) -> "VoteBook":
        from hf_instruct.evaluation.pairing import join_responses
        from hf_instruct.evaluation.votes import VoteBook, choose_vote_file, locked_votes
        from hf_instruct.records import Response, read_rows

        out = choose_vote_file(first, second)
        if any(book.path.resolve() == out.resolve() for book in self._books.values()):
            # Two books on one file would undo each other's votes.
            raise DataError(
                f"The votes would go to `{out}`, which keeps those on another pair now. Start the page anew for this "
                f"pair, or use `hf-instruct vote {first} {second} --out FILE`."
            )
        names = (str(first), str(second))
        answers = (read_rows(folder / "responses.jsonl", Response) for folder in (first, second))
        pairs = join_responses(*answers, names=names).pairs
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked_votes(out))
            book = VoteBook(pairs, out, names=names)
            self._stack.push(stack.pop_all())
        return book


class VoteTab:
    """The parts of the tab.

    Args:
        gradio: The module.
        blocks: The whole page.
        shelf: The ballots, of two sides at least.
    """

    def __init__(self, gradio: Any, blocks: Any, shelf: VoteShelf) -> None:
        from hf_instruct.ui.vote_page import VotePanel

        labels = [side.label for side in shelf.sides]
        first, second = labels[0], choose_second(shelf.sides)
        with gradio.Row(visible=len(labels) > 2):
            choice = [
                gradio.Dropdown(labels, value=value, label=label, min_width=240, elem_id=f"hi-vote-{name}")
                for value, label, name in ((first, "Vote on the answers of", "first"), (second, "and of", "second"))
            ]
        VotePanel(gradio, blocks, shelf.open, choice=choice)


def choose_second(sides: Sequence[Side]) -> str:
    """Return the label of what the first is compared with until somebody chooses: another run, else its untuned one."""
    return next((side.label for side in sides[1:] if not side.is_base), sides[1].label)


def _find_sides(sources: Sequence[Source]) -> list[Side]:
    """Return the sets of answers that are there: of each run, and of its untuned model."""
    sides = []
    for source in sources:
        if source.folder is None:
            continue
        for label, folder in ((source.label, source.folder), (f"{source.label}, untuned", source.folder.base)):
            if folder.responses.is_file() and folder.responses.stat().st_size:
                sides.append(Side(label, folder.path, is_base=folder is not source.folder))
    return sides
