"""Serve a run's model over OpenAI's API, by `transformers serve`, asked in the words it was trained on."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from hf_instruct.errors import ConfigError, PublishError
from hf_instruct.models import cache_folder, load_tokenizer
from hf_instruct.prompts import PromptFormat
from hf_instruct.publishing.merging import check_run, load_run_model, save_run_model, use_training_prompt
from hf_instruct.publishing.targets import building
from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)

# Bump when what is written below changes, so that nobody is served from an older folder.
_LAYOUT = 1
_START_SECONDS = 600.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.2
# Not `-m`: Transformers' own entry asks the network whether there is a newer version first.
_PROGRAM = "from transformers.cli.transformers import app; app()"
_NEEDED = ("fastapi", "uvicorn", "openai", "pydantic")


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A folder that `transformers serve` takes.

    Attributes:
        folder: Weights, configs, tokenizer with the training prompt's chat template.
    """

    folder: Path

    @property
    def name(self) -> str:
        """What clients call it: the folder's name."""
        return self.folder.name


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


def prepare_served_model(run: RunFolder) -> ServedModel:
    """Return a folder with a run's model as a server needs it, in the cache; made again when the run has changed.

    An adapter is merged; the weights of a full model are linked to, not copied. The chat template is the training
    prompt's.

    Raises:
        InstructError: The run or its model is missing or cannot be loaded, or the disk is full.
    """
    check_run(run)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.path.resolve().name).strip("-.") or "model"
    place = hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:8]
    home = cache_folder() / "serve" / f"{name}-{place}"
    served = ServedModel(home / _fingerprint(run) / name)
    if served.folder.is_dir():
        return served
    for older in home.glob("*") if home.is_dir() else []:
        shutil.rmtree(older, ignore_errors=True)
    with building(served.folder) as part:
        if (run.model / "adapter_config.json").is_file():
            logger.info("Merging the adapter once into %s", served.folder)
            save_run_model(load_run_model(run), part)
        else:
            _link_model(run, part)
    return served


def _fingerprint(run: RunFolder) -> str:
    """Return what changes when the model or its prompt format does."""
    prompt_format = PromptFormat.named(run.load_experiment().data.prompt_format)
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(run.model.iterdir())
        if path.is_file()
    ]
    parts = [_LAYOUT, prompt_format.name, prompt_format.template, files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _link_model(run: RunFolder, folder: Path) -> None:
    """Fill a folder with a whole model: links to its weights, and its tokenizer with the training prompt."""
    from transformers import GenerationConfig

    experiment = run.load_experiment()
    prompt_format = PromptFormat.named(experiment.data.prompt_format)
    folder.mkdir()
    for path in run.model.iterdir():
        if path.name in ("config.json", "generation_config.json") or path.suffix == ".py":
            shutil.copy(path, folder)
        elif path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
            try:
                (folder / path.name).symlink_to(path.resolve())
            except OSError:
                # Windows allows links to some users only.
                shutil.copy(path, folder)
    tokenizer = load_tokenizer(str(run.model), trust_remote_code=experiment.model.trust_remote_code)
    use_training_prompt(tokenizer, prompt_format)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Training switches it off; without it every answer takes quadratic time.
    (folder / "config.json").write_text(json.dumps({**config, "use_cache": True}, indent=2), encoding="utf-8")
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
        own = generation.eos_token_id
        ends = [prompt_format.end_token_id(tokenizer), *(own if isinstance(own, list) else [own])]
        generation.eos_token_id = [end for end in dict.fromkeys(ends) if end is not None]
        generation.save_pretrained(folder)


def build_command(served: ServedModel, *, host: str, port: int, device: str = "auto") -> list[str]:
    """Return the command that serves a model, to be run in the folder above it, so that its name is all of its path."""
    # `-P`: a folder beside the model must not be taken for a Python module.
    return [
        *(sys.executable, "-P", "-c", _PROGRAM, "serve", served.name),
        *("--host", host, "--port", str(port), "--device", device, "--log-level", "error"),
    ]


@contextlib.contextmanager
def serving(served: ServedModel, *, host: str, port: int, device: str = "auto") -> Iterator["subprocess.Popen[bytes]"]:
    """Run the server, enter the block once it answers, and end it with the block.

    Args:
        served: What to serve.
        host: Address to bind.
        port: A free port.
        device: As `transformers serve` takes it.

    Raises:
        PublishError: The server ends before it answers.
    """
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    # The model is on this disk: nothing is to be looked for elsewhere.
    environment["HF_HUB_OFFLINE"] = "1"
    process = subprocess.Popen(
        build_command(served, host=host, port=port, device=device),
        cwd=served.folder.parent,
        env=environment,
        # What the server says is no result of ours.
        stdout=sys.stderr.fileno(),
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for this process, which then ends that one.
        start_new_session=True,
    )
    try:
        _wait_until_it_answers(process, host, port)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    # A server for every address is asked on this machine's own.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = f"[{host}]" if ":" in host else host
    # Without a proxy that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            opener.open(f"http://{address}:{port}/health", timeout=5),
        ):
            return
        if process.poll() is not None:
            raise PublishError(
                f"The server ended with status {process.returncode} before it answered; what it said stands above."
            )
        time.sleep(_POLL_SECONDS)
    raise PublishError(f"The server did not answer at {address}:{port} within {_START_SECONDS:.0f} s.")


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
