"""The common parts of all local pages: serving, style, and a policy that blocks requests to other servers.

Gradio draws the pages. Left to its defaults it would load fonts, ask for its latest version and report its use; here
the page carries a rule that the browser enforces: nothing but the page's own server is asked for anything.

What a model, a data set or a user wrote reaches a page in components that show plain text, or through `html.escape`.
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

# Nothing but the page itself, should any part of Gradio ever ask for more.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
# What Gradio's own script asks for on pages like ours; not its uploads, files, proxy, media streams and monitoring.
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
# A text box that grows with its text at any width: Gradio measures only when the text changes. In the head, because
# Gradio drops such rules from its `css`.
_HEAD = """
<style>
@supports (field-sizing: content) {
  .vote-text textarea {field-sizing: content; height: auto !important; max-height: 70vh; overflow-y: auto !important;}
}
</style>
"""
# Votes by key: the buttons do the work; keys only press them.
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
# Of events that take milliseconds: not queued, and not in the API that Gradio offers to programs.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def check_gradio(what: str) -> None:
    """Turn off Gradio's telemetry, and check that it is installed.

    Args:
        what: What needs it, as the start of a sentence.

    Raises:
        ConfigError: It is not installed.
    """
    # Read when Gradio is imported, which is why it must not be before.
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
        title: In the browser's title bar.
        build: Adds the parts, given the module `gradio` and the page as a `gradio.Blocks`.
        server: From `hf_instruct.local_server.open_socket`.
        hosts: From `hf_instruct.local_server.list_hosts`.
        reports: Each returns a page of HTML, to be shown in a frame: `/report/0` and so on.

    Raises:
        KeyboardInterrupt: Somebody ended it.
    """
    import gradio
    import uvicorn

    with gradio.Blocks(title=title, analytics_enabled=False) as blocks:
        build(gradio, blocks)
    # The page keeps a connection open for as long as it is in a browser; there is nothing to wait for.
    config = uvicorn.Config(build_app(blocks, hosts, reports), log_level="critical", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[server])


def build_app(blocks: Any, hosts: Iterable[str], reports: Sequence[Callable[[], str]] = ()) -> Any:
    """Return a `gradio.Blocks` as an ASGI app, without what Gradio adds to one by itself; see `serve_page`."""
    import fastapi
    import gradio

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(add_headers)
    app.add_middleware(Guard, hosts=hosts, routes=_ROUTES)

    @app.get("/report/{number}")
    def show_report(number: int) -> fastapi.Response:
        if number >= len(reports):
            raise fastapi.HTTPException(404)
        # Also outside of its frame the report's script reaches nothing of this server's pages.
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
    """Return an ASGI app whose replies all forbid the page to fetch anything from elsewhere."""
    added = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await app(scope, receive, send_more)

    return answer


def format_notice(text: str) -> str:
    """Return a line for people as the HTML of `gradio.HTML`; it keeps its height when there is nothing to say."""
    return f'<div class="notice" role="status">{html.escape(text)}</div>'


def format_plot(figure: "Figure", name: str) -> str:
    """Return a figure as the HTML of `gradio.HTML`, in the colours of the page; a narrow one scrolls."""
    return f'<div class="plot">{format_inline_svg(figure, name)}</div>'


def open_browser(url: str) -> None:
    """Open a page in the user's browser, where there is a desktop."""
    # Without one Python would start a text browser in this terminal.
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        import webbrowser

        webbrowser.open(url)
