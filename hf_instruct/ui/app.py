"""The page as a whole: one tab for each thing to do, each made from parts of its own."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import InstructError
from hf_instruct.pages import build_app, serve_app
from hf_instruct.ui.look import STYLE, escape, format_notice
from hf_instruct.ui.shelf import ModelShelf
from hf_instruct.ui.sources import Source

if TYPE_CHECKING:
    from hf_instruct.comparing.votes import VoteBook

_TITLE = "hf-instruct"


def serve_ui(sources: Sequence[Source], server: socket.socket) -> None:
    """Serve the page on a bound socket until interrupted.

    Args:
        sources: From `find_sources`.
        server: From `hf_instruct.pages.open_socket`.

    Raises:
        KeyboardInterrupt: Somebody ended it.
    """
    from hf_instruct.comparing import vote_page

    with open_votes(sources) as (book, reason):
        blocks = build_blocks(sources, book=book, reason=reason)
        serve_app(build_app(blocks, style=STYLE + vote_page.STYLE, keys=vote_page.KEYS, head=vote_page.HEAD), server)


def build_blocks(sources: Sequence[Source], *, book: "VoteBook | None" = None, reason: str = "") -> Any:
    """Return the page as a `gradio.Blocks`.

    Args:
        sources: What it is about.
        book: The ballots to vote on; None for none.
        reason: Why there are none; empty where nobody would expect any.
    """
    import gradio

    from hf_instruct.comparing.vote_page import VotePanel
    from hf_instruct.ui.chat_tab import ChatTab
    from hf_instruct.ui.explore_tab import ExploreTab
    from hf_instruct.ui.runs_tab import RunsTab

    shelf = ModelShelf(sources)
    names = ", ".join(source.label for source in sources)
    with gradio.Blocks(title=f"{_TITLE}: {names}", analytics_enabled=False) as blocks:
        gradio.HTML(f'<div class="hi-title">{escape(names)}</div>')
        with gradio.Tabs():
            with gradio.Tab("Chat", id="chat"):
                ChatTab(gradio, shelf)
            with gradio.Tab("Explore", id="explore"):
                ExploreTab(gradio, shelf)
            if any(source.folder for source in sources):
                with gradio.Tab("Runs", id="runs") as runs:
                    RunsTab(gradio, sources, runs)
            if book is not None or reason:
                with gradio.Tab("Vote", id="vote"):
                    if book is None:
                        gradio.HTML(format_notice(reason))
                    else:
                        VotePanel(gradio, blocks, book)
    return blocks


@contextlib.contextmanager
def open_votes(sources: Sequence[Source]) -> "Iterator[tuple[VoteBook | None, str]]":
    """Give the ballots between the first two runs, or a lone run's tuned and untuned answers, and keep their file.

    Without such answers, or where another page keeps that file, there are none: the page has its other tabs.

    Returns:
        The ballots, or None and why there are none; both empty where there are no answers of two.
    """
    folders = _find_voted(sources)
    if folders is None:
        yield None, ""
        return
    from hf_instruct.comparing.votes import VoteBook, locked_votes, pair_responses
    from hf_instruct.records import Response, read_rows

    first, second = folders
    out = first / f"votes.{second.resolve().name}.jsonl"
    with contextlib.ExitStack() as stack:
        try:
            pairs = pair_responses(*(read_rows(folder / "responses.jsonl", Response) for folder in folders))
            stack.enter_context(locked_votes(out))
            found: tuple[VoteBook | None, str] = VoteBook(pairs, out, names=(str(first), str(second))), ""
        except InstructError as error:
            found = None, f"There is nothing to vote on: {error}"
        yield found


def _find_voted(sources: Sequence[Source]) -> tuple[Path, Path] | None:
    runs = [source.folder for source in sources if source.folder is not None]
    folders = [runs[0], runs[0].base] if len(runs) == 1 else runs[:2]
    if len(folders) < 2 or not all(
        folder.responses.is_file() and folder.responses.stat().st_size for folder in folders
    ):
        return None
    return folders[0].path, folders[1].path
