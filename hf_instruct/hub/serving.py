"""Serve a run's model over OpenAI's API, by `transformers serve`, asked in the words it was trained on."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import hf_instruct
from hf_instruct.addresses import format_url
from hf_instruct.errors import ConfigError, PublishError
from hf_instruct.guard import list_hosts
from hf_instruct.hub.merging import check_run, name_run, use_training_prompt, write_whole_model
from hf_instruct.hub.outputs import building
from hf_instruct.models import cache_folder, load_tokenizer
from hf_instruct.prompts import PromptFormat
from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)

# Bump when what is written below changes, so that nobody is served from an older folder.
_LAYOUT = 2
_START_SECONDS = 600.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.2
# Not `-m`: a checkout that is not installed is found in its own folder only. Last on the path, it hides nothing.
_PROGRAM = (
    f"import sys; sys.path.append({str(Path(hf_instruct.__file__).parents[1])!r}); "
    "from hf_instruct.hub.guarded_server import main; main()"
)
_NEEDED = ("fastapi", "uvicorn", "openai", "pydantic")


def check_serving() -> None:
    """See that the packages of `transformers[serving]` are there.

    Raises:
        ConfigError: One is not installed.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"`hf-instruct serve` needs {', '.join(missing)}, which is not installed; install it with "
            "`pip install 'hf-instruct[serve]'`."
        )


def prepare_served_model(run: RunFolder) -> Path:
    """Return a folder with a run's model as a server needs it, in the cache; made again when the run has changed.

    Its name is what clients call the model. An adapter is merged; the weights of a full model are linked to, not
    copied. The chat template is the training prompt's.

    Raises:
        InstructError: The run or its model is missing or cannot be loaded, or the disk is full.
    """
    check_run(run)
    name = name_run(run)
    place = hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:8]
    home = cache_folder() / "serve" / f"{name}-{place}"
    experiment = run.load_experiment()
    prompt_format = run.load_prompt_format(experiment.data.prompt_format)
    folder = home / _fingerprint(run, prompt_format) / name
    if folder.is_dir():
        return folder
    # Before minutes of merging: a server writes all prompts by the chat template.
    tokenizer = load_tokenizer(str(run.model), trust_remote_code=experiment.model.trust_remote_code)
    use_training_prompt(tokenizer, prompt_format, required=True)
    for older in home.glob("*"):
        shutil.rmtree(older, ignore_errors=True)
    if run.has_adapter:
        logger.info("Merging the adapter once into %s", folder)
    with building(folder) as part:
        write_whole_model(run, part, link=True)
    return folder


def _fingerprint(run: RunFolder, prompt_format: PromptFormat) -> str:
    """Return what changes when the model or its prompt format does."""
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(run.model.iterdir())
        if path.is_file()
    ]
    parts = [_LAYOUT, prompt_format.name, prompt_format.template, files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """How a model is served.

    Attributes:
        host: Address to bind.
        port: A free port.
        device: As `transformers serve` takes it.
        allowed_hosts: Names by which it may be asked, besides those that follow from `host`.
        trust_remote_code: Run code that comes with the model.
    """

    host: str
    port: int
    device: str = "auto"
    allowed_hosts: tuple[str, ...] = ()
    trust_remote_code: bool = False


def build_command(folder: Path, options: ServeOptions) -> list[str]:
    """Return the command that serves a model, to be run in the folder above it, so that its name is all of its path."""
    # `-P`: a folder beside the model must not be taken for a Python module.
    return [
        *(sys.executable, "-P", "-c", _PROGRAM, folder.name),
        *("--host", options.host, "--port", str(options.port), "--device", options.device),
        *(["--trust-remote-code"] if options.trust_remote_code else []),
        *("--names", *list_hosts(options.host, options.allowed_hosts)),
    ]


@contextlib.contextmanager
def serving(folder: Path, options: ServeOptions) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the server, enter the block once it answers, and end it with the block.

    Args:
        folder: From `prepare_served_model`.
        options: How to serve it.

    Raises:
        PublishError: The server ends before it answers.
    """
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    # The model is on this disk: nothing is to be looked for elsewhere.
    environment["HF_HUB_OFFLINE"] = "1"
    environment["HF_HUB_CACHE"] = str(_build_listing(folder))
    process = subprocess.Popen(
        build_command(folder, options),
        cwd=folder.parent,
        env=environment,
        # What the server says is no result of ours.
        stdout=sys.stderr.fileno(),
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for this process, which then ends that one.
        start_new_session=True,
    )
    try:
        _wait_until_it_answers(process, options.host, options.port)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _build_listing(folder: Path) -> Path:
    """Return a Hub cache that names this model alone.

    `/v1/models` lists the models of the cache, and not the one that is served; without a cache it is a server error.
    """
    cache = folder.parent / ".hub"
    place = cache / f"models--{folder.name}"
    (place / "snapshots" / "main").mkdir(parents=True, exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text("main", encoding="utf-8")
    shutil.copyfile(folder / "config.json", place / "snapshots" / "main" / "config.json")
    return cache


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    # A server for every address is asked on this machine's own.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = format_url(host, port)
    # Without a proxy that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        with (
            contextlib.suppress(OSError),
            opener.open(f"{address}health", timeout=5),
        ):
            return
        if process.poll() is not None:
            raise PublishError(
                f"The server ended with status {process.returncode} before it answered; what it said stands above."
            )
        time.sleep(_POLL_SECONDS)
    raise PublishError(f"The server did not answer at {address} within {_START_SECONDS:.0f} s.")


def build_snippet(name: str, base_url: str) -> str:
    """Return how to ask the model, with curl and in Python.

    Args:
        name: The model's name.
        base_url: Ends in `/v1`.
    """
    question = "Name the capital of France."
    body = {
        "model": name,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 256,
    }
    return f"""\
curl {base_url}/chat/completions -H 'Content-Type: application/json' \\
    -d '{json.dumps(body)}'

from openai import OpenAI

client = OpenAI(base_url="{base_url}", api_key="none")
answer = client.chat.completions.create(
    model="{name}",
    messages=[{{"role": "user", "content": "{question}"}}],
    temperature=0,
    max_tokens=256,
)
print(answer.choices[0].message.content)"""
