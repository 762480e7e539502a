"""A judge server nobody here wrote: `transformers serve` behind `ollama-proxy-plus`, both on loopback."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START_SECONDS = 180


def find_free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], *, url: str, log: Path, **environment: str) -> Iterator[None]:
    """Run a server until the block ends, and enter the block once `url` answers; its output goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}, start_new_session=True
        )
    try:
        _wait_for(url, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"{process.args!r} did not answer at {url}; its log:\n{log.read_text(errors='replace')[-4000:]}")


@contextlib.contextmanager
def transformers_server(model: Path, folder: Path) -> Iterator[str]:
    """Serve a model over OpenAI's API with `transformers serve`, and yield the URL that ends in /v1."""
    port = find_free_port()
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    health = f"http://127.0.0.1:{port}/health"
    with running(command, url=health, log=folder / "transformers-serve.log"):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def ollama_proxy(upstream: str, folder: Path) -> Iterator[str]:
    """Put `ollama-proxy-plus` in front of an OpenAI-compatible server; models are called `local/NAME` there."""
    port = find_free_port()
    program = str(Path(sys.executable).with_name("ollama-proxy"))
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {"PROVIDERS_LOCAL_BASE_URL": upstream, "PROVIDERS_LOCAL_API_KEY": "EMPTY"}
    url = f"http://127.0.0.1:{port}"
    with running(command, url=f"{url}/api/version", log=folder / "ollama-proxy.log", **environment):
        yield url
