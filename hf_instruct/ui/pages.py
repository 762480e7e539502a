"""The common parts of all local pages: serving, style, and a policy that blocks requests to other servers.

Gradio renders the pages. By default it loads fonts, checks for its latest version and reports its use. Here a content
security policy makes the browser refuse every request to a server other than the page's own.

Text from models, datasets and users is only shown in components for plain text, or after `html.escape`.
"""

import html
import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, needs_package
from hf_instruct.local_server import Guard
from hf_instruct.plots import format_inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Only the page's own server, in case any part of Gradio ever requests more.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
# The routes that Gradio's script uses on our pages; not its uploads, files, proxy, media streams and monitoring.
_ROUTES = (
    r"(GET|HEAD) /(|config/?|theme\.css|favicon\.ico|manifest\.json|report/\d+|(assets|static|svelte)/.*)"
    r"|(GET|HEAD) /gradio_api/(info/?|app_id/?|queue/data|heartbeat/\w+)"
    r"|POST /gradio_api/(queue/join|run/\w+/?|cancel|reset/?)"
)
_STYLE = """
.gradio-container {max-width: 1100px !important; width: 100% !important; margin: 0 auto !important;}
.gradio-container main, .gradio-container main > div {width: 100%;}
footer {display: none !important;}
.notice {min-height: 1.4em; line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere;}
.message .md {white-space: pre-wrap !important;}
.icon-button[aria-label="Clear"] {display: none !important;}
td {overflow-wrap: anywhere;}
th * {overflow-wrap: normal !important; word-break: normal !important; white-space: nowrap !important;}
.plot {overflow-x: auto;}
.plot svg {display: block; width: 100%; min-width: 36rem; max-width: 60rem; margin: 0 auto;}
.dark {--plot-text: #a9b0b9; --plot-grid: #2c3138; --plot-batch: #6f5536; --plot-train: #f08a4b;
  --plot-untuned: #7b838d; --plot-SFT: #4080a8; --plot-tuned: #56b4e9;}
iframe.report {width: 100%; height: 85vh; border: 1px solid var(--border-color-primary); border-radius: 8px;}
.vote-text textarea {font-size: 1.05rem; line-height: 1.55; opacity: 1 !important; cursor: text;
  -webkit-text-fill-color: var(--body-text-color) !important; color: var(--body-text-color) !important;}
button.vote-big {min-height: 64px; font-size: 1.1rem;}
"""
# Text boxes that grow with their text at any width; Gradio only measures when the text changes. In the head, because
# Gradio drops such rules from its `css`.
_HEAD = """
<style>
@supports (field-sizing: content) {
  .vote-text textarea {field-sizing: content; height: auto !important; max-height: 70vh; overflow-y: auto !important;}
}
</style>
"""
# Keyboard shortcuts for votes, which click the buttons.
_KEYS = """
() => {
  const names = {arrowleft: "left", arrowright: "right", t: "tie", s: "skip", u: "undo"};
  document.addEventListener("keydown", (event) => {
    const field = event.target;
    const typing = ["INPUT", "TEXTAREA"].includes(field.tagName) && !field.disabled && !field.readOnly &&
      !field.closest("#vote-number");
    if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const button = document.getElementById("vote-" + names[event.key.toLowerCase()]);
    if (button && button.offsetParent && !button.disabled) {
      event.preventDefault();
      button.click();
    }
  });
}
"""
# Options of events that take milliseconds: not queued, and not in Gradio's API for programs.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def check_gradio(what: str) -> None:
    """Turn off Gradio's telemetry, and check that it is installed.

    Args:
        what: The feature that needs it, as the start of a sentence.

    Raises:
        ConfigError: It is not installed.
    """
    # Gradio reads these when it is imported, so it must not be imported before.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(needs_package(what, "gradio"))


def serve_page(
    title: str,
    build: Callable[[Any, Any], None],
    server: socket.socket,
    *,
    hosts: Iterable[str],
    reports: Sequence[Callable[[], str]] = (),
) -> None:
    """Serve a page on a bound socket until interrupted.

    Args:
        title: Title in the browser's title bar.
        build: Adds the components, given the module `gradio` and the page as a `gradio.Blocks`.
        server: From `hf_instruct.local_server.open_socket`.
        hosts: From `hf_instruct.local_server.list_hosts`.
        reports: Functions that each return an HTML page to show in a frame: `/report/0` and so on.

    Raises:
        KeyboardInterrupt: The server was interrupted.
    """
    import gradio
    import uvicorn

    with gradio.Blocks(title=title, analytics_enabled=False) as blocks:
        build(gradio, blocks)
    # An open page keeps its connection until it is closed, so there is nothing to wait for.
    config = uvicorn.Config(build_app(blocks, hosts, reports), log_level="critical", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[server])


def build_app(blocks: Any, hosts: Iterable[str], reports: Sequence[Callable[[], str]] = ()) -> Any:
    """Return a `gradio.Blocks` as an ASGI app, without the features that Gradio adds by default; see `serve_page`."""
    import fastapi
    import gradio

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(add_headers)
    app.add_middleware(Guard, hosts=hosts, routes=_ROUTES)

    @app.get("/report/{number}")
    def show_report(number: int) -> fastapi.Response:
        if number >= len(reports):
            raise fastapi.HTTPException(404)
        # Outside its frame too, the report's script cannot access this server's pages.
        rule = {"content-security-policy": "sandbox allow-scripts"}
        return fastapi.responses.HTMLResponse(reports[number](), headers=rule)

    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    return gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gradio.themes.Default(primary_hue="blue", font=fonts, font_mono=("ui-monospace", "monospace")),
        css=_STYLE,
        js=_KEYS,
        head=_HEAD,
    )


def add_headers(app: Callable[..., Any]) -> Callable[..., Any]:
    """Return an ASGI app whose responses forbid the page to request anything from other servers."""
    added = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await app(scope, receive, send_more)

    return answer


def format_notice(text: str) -> str:
    """Return a line of text as HTML for `gradio.HTML`; it keeps its height if it is empty."""
    return f'<div class="notice" role="status">{html.escape(text)}</div>'


def format_plot(figure: "Figure", name: str) -> str:
    """Return a figure as HTML for `gradio.HTML`, in the colors of the page; it scrolls on a narrow screen."""
    return f'<div class="plot">{format_inline_svg(figure, name)}</div>'


def open_browser(url: str) -> None:
    """Open a page in the user's browser, if there is a desktop."""
    # Without a desktop, Python would start a text browser in this terminal.
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        import webbrowser

        webbrowser.open(url)
