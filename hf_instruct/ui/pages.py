"""What every page of ours shares: served on a socket of its own, styled alike, and fetching nothing from elsewhere.

Gradio draws the pages. Left to its defaults it would load fonts, ask for its latest version and report its use; here
the page carries a rule that the browser enforces: nothing but the page's own server is asked for anything.
"""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

from hf_instruct.errors import ConfigError
from hf_instruct.guard import Guard

# Nothing but the page itself, should any part of Gradio ever ask for more.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
# What Gradio's own script asks for on pages like ours; not its uploads, files, proxy, media streams and monitoring.
_ROUTES = (
    r"(GET|HEAD) /(|config/?|theme\.css|favicon\.ico|manifest\.json|(assets|static|svelte)/.*)"
    r"|(GET|HEAD) /gradio_api/(info/?|app_id/?|queue/data|heartbeat/\w+)"
    r"|POST /gradio_api/(queue/join|run/\w+/?|cancel|reset/?)"
)
_STYLE = """
.gradio-container {max-width: 1100px !important; width: 100% !important; margin: 0 auto !important;}
.gradio-container main, .gradio-container main > div {width: 100%;}
footer {display: none !important;}
"""


def check_gradio(what: str, extra: str) -> None:
    """Keep Gradio from calling home, and see that it is there.

    Args:
        what: What needs it, as the start of a sentence.
        extra: The extra of this package that installs it.

    Raises:
        ConfigError: It is not installed.
    """
    # Read when Gradio is imported, which is why it must not be before.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(
            f"{what} needs Gradio, which is not installed; install it with `pip install 'hf-instruct[{extra}]'`."
        )


def build_app(blocks: Any, *, hosts: Iterable[str], style: str = "", keys: str | None = None, head: str = "") -> Any:
    """Return a page as an ASGI app, without what Gradio adds to one by itself.

    Args:
        blocks: A `gradio.Blocks`.
        hosts: From `hf_instruct.guard.list_hosts`.
        style: CSS beside what all pages share.
        keys: JavaScript that runs when the page is loaded; a function.
        head: HTML for the page's head.
    """
    import fastapi
    import gradio

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Headers)
    app.add_middleware(Guard, hosts=hosts, routes=_ROUTES)
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
        css=_STYLE + style,
        js=keys,
        head=head,
    )


def serve_app(app: Any, server: socket.socket) -> None:
    """Serve an app on a bound socket until interrupted.

    Args:
        app: From `build_app`.
        server: From `open_socket`.

    Raises:
        KeyboardInterrupt: Somebody ended it.
    """
    import uvicorn

    # The page keeps a connection open for as long as it is in a browser; there is nothing to wait for.
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[server])


class Headers:
    """Add to every reply the rule that the page may fetch from nowhere else; an ASGI middleware."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def open_browser(url: str) -> None:
    """Open a page in the user's browser, where there is a desktop."""
    # Without one Python would start a text browser in this terminal.
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        import webbrowser

        webbrowser.open(url)
