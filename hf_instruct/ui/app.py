"""The page of `hf-instruct ui`: one tab for each thing to do."""

import contextlib
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from hf_instruct.ui.model_pool import ModelPool, Source
from hf_instruct.ui.pages import serve_page
from hf_instruct.ui.runs_tab import RunsTab, list_reports
from hf_instruct.ui.vote_tab import VoteTab


def serve_ui(
    sources: Sequence[Source], server: socket.socket, *, hosts: Iterable[str], trust_remote_code: bool = False
) -> None:
    """Serve the page on a bound socket until interrupted.

    Args:
        sources: From `find_sources`.
        server: From `hf_instruct.addresses.open_socket`.
        hosts: From `hf_instruct.addresses.list_hosts`.
        trust_remote_code: Run code that comes with the models.

    Raises:
        KeyboardInterrupt: Somebody ended it.
    """
    runs = [source for source in sources if source.run]
    with contextlib.ExitStack() as stack:
        pool, votes = ModelPool(sources, trust_remote_code=trust_remote_code), VoteTab(sources, stack)

        def build(gradio: Any, blocks: Any) -> None:
            from hf_instruct.ui.chat_tab import ChatTab
            from hf_instruct.ui.explore_tab import build_explore_tab

            with gradio.Tabs():
                with gradio.Tab("Chat", id="chat"):
                    ChatTab(gradio, pool)
                with gradio.Tab("Explore", id="explore"):
                    build_explore_tab(gradio, pool)
                if runs:
                    with gradio.Tab("Runs", id="runs") as tab:
                        RunsTab(gradio, runs, tab)
                if len(votes.sides) > 1:
                    with gradio.Tab("Vote", id="vote"):
                        votes.build(gradio, blocks)

        title = f"hf-instruct: {', '.join(source.label for source in sources)}"
        serve_page(title, build, server, hosts=hosts, reports=list_reports(runs))
