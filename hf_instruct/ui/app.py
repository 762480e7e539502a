"""The page as a whole: one tab for each thing to do, each made from parts of its own."""

import contextlib
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from hf_instruct.ui.html import STYLE, escape
from hf_instruct.ui.model_pool import ModelShelf
from hf_instruct.ui.pages import build_app, serve_app
from hf_instruct.ui.sources import Source
from hf_instruct.ui.vote_tab import VoteShelf, VoteTab

_TITLE = "hf-instruct"
_FEWEST_SIDES = 2


def serve_ui(sources: Sequence[Source], server: socket.socket, *, hosts: Iterable[str]) -> None:
    """Serve the page on a bound socket until interrupted.

    Args:
        sources: From `find_sources`.
        server: From `hf_instruct.addresses.open_socket`.
        hosts: From `hf_instruct.guard.list_hosts`.

    Raises:
        KeyboardInterrupt: Somebody ended it.
    """
    from hf_instruct.ui import vote_page

    with contextlib.ExitStack() as stack:
        blocks = build_blocks(sources, VoteShelf(sources, stack))
        style = STYLE + vote_page.STYLE
        app = build_app(blocks, hosts=hosts, style=style, keys=vote_page.KEYS, head=vote_page.HEAD)
        serve_app(app, server)


def build_blocks(sources: Sequence[Source], votes: VoteShelf) -> Any:
    """Return the page as a `gradio.Blocks`.

    Args:
        sources: What it is about.
        votes: The ballots between their answers.
    """
    import gradio

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
            if len(votes.sides) >= _FEWEST_SIDES:
                with gradio.Tab("Vote", id="vote"):
                    VoteTab(gradio, blocks, votes)
    return blocks
