"""Serve a run's model with an OpenAI-compatible API: `transformers serve`, guarded, with the training prompt."""

import contextlib
import functools
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, PublishError, needs_package
from hf_instruct.hub.export import building
from hf_instruct.hub.merging import check_run, name_run, write_model
from hf_instruct.hub.templates import shape_prompt
from hf_instruct.local_server import Guard, list_hosts, refusal
from hf_instruct.models import cache_folder, context_length, load_tokenizer
from hf_instruct.offline import offline
from hf_instruct.prompts import CHAT
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

logger = logging.getLogger(__name__)

# Increase this when the files written below change, so that no model is served from an older folder.
_LAYOUT = 2
# The routes that are served: only those for the model.
_ROUTES = r"(GET|HEAD) /(health|v1/models)|POST /v1/(chat/completions|completions)"


def check_serving() -> None:
    """Raise `ConfigError` if the packages of `transformers[serving]` are not installed."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ConfigError(needs_package("`serve`", "transformers[serving]"))


def prepare_served_model(run: RunFolder) -> Path:
    """Return a folder in the cache with a run's model for a server; it is written again if the run has changed.

    Its name is the name of the model for clients. An adapter is merged; the weights of a full model are linked to, not
    copied. The chat template renders the training prompt.

    Raises:
        InstructError: The run or its model is missing or cannot be loaded, or the disk is full.
    """
    check_run(run)
    experiment, name = run.load_experiment(), name_run(run)
    prompt_format = run.load_prompt_format(experiment.data.prompt_format)
    home = cache_folder() / "serve" / f"{name}-{_hash(str(run.path.resolve()))[:8]}"
    # These change when the model or its prompt format does.
    files = [(path.name, path.stat()) for path in sorted(run.model.iterdir()) if path.is_file()]
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    stamp = _hash(json.dumps([_LAYOUT, prompt_format.name, prompt_format.template, stamps]))
    folder = home / stamp[:12] / name
    if folder.is_dir():
        return folder
    # A server renders all prompts with the chat template, so check it before minutes of merging.
    tokenizer = load_tokenizer(str(run.model), trust_remote_code=experiment.model.trust_remote_code)
    if prompt_format.name != CHAT:
        shape_prompt(prompt_format, tokenizer)
    shutil.rmtree(home, ignore_errors=True)
    if run.has_adapter:
        logger.info("Merging the adapter into %s", folder)
    with building(folder) as part:
        write_model(run, part, link=True)
    return folder


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def serve_model(
    folder: Path, *, on_ready: Callable[[], None], allowed_hosts: Iterable[str] = (), **settings: Any
) -> None:
    """Serve a model until Ctrl-C.

    Args:
        folder: From `prepare_served_model`.
        on_ready: Called when the server is ready.
        allowed_hosts: Host names that requests may use, in addition to those that follow from `host`.
        settings: `host`, a free `port`, `device` and `trust_remote_code`, as for `transformers serve`.

    Raises:
        PublishError: The server stops by itself.
        KeyboardInterrupt: On Ctrl-C, after the server has stopped.
    """
    # Not with Transformers' command, which first checks online for a newer version.
    from transformers.cli import serve
    from transformers.cli.serving import server

    hosts = list_hosts(settings["host"], allowed_hosts)
    server.build_server = functools.partial(_build_guarded, server.build_server, folder.name, hosts)
    # From the parent folder, because the path is the model's name for clients; offline, because the model is local.
    with contextlib.chdir(folder.parent), offline():
        # The server's output is not the command's result.
        with contextlib.redirect_stdout(sys.stderr):
            running = serve.Serve(folder.name, log_level="error", non_blocking=True, **settings)
        try:
            while running._thread.is_alive() and not running.server.started:
                time.sleep(0.1)
            if running.server.started:
                on_ready()
            while running._thread.is_alive():
                time.sleep(0.2)
            raise PublishError("The server stopped; see its output above.")
        finally:
            running.kill_server()
            running.server.force_exit = True


def _build_guarded(build: Callable[..., Any], name: str, hosts: list[str], *parts: Any, **others: Any) -> Any:
    """Return the app that Transformers builds, extended to refuse requests that it should not or cannot answer."""
    from fastapi import HTTPException, Request
    from fastapi.responses import JSONResponse
    from jinja2 import TemplateError
    from transformers.cli.serving.utils import GenerateManager

    for method in ("generate_streaming", "generate_non_streaming"):
        setattr(GenerateManager, method, _fitting(getattr(GenerateManager, method)))
    app = build(*parts, **others)

    def answer_error(request: Request, error: Exception) -> JSONResponse:
        text = getattr(error, "detail", None) or f"This request is not supported: {error}."
        return JSONResponse(refusal(str(text)), status_code=getattr(error, "status_code", 400))

    for kind in (HTTPException, ValueError, TypeError, LookupError, AttributeError, TemplateError):
        app.add_exception_handler(kind, answer_error)

    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "", "created": 0}]}

    # Transformers' route lists the models in the Hub's cache, and not the one that is served.
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") != "/v1/models"]
    app.get("/v1/models")(list_models)
    app.add_middleware(Guard, hosts=hosts, routes=_ROUTES)
    return app


def _fitting(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of Transformers' `GenerateManager` that first checks the length of prompt and answer."""

    @functools.wraps(generate)
    def checked(self: Any, model: Any, processor: Any, inputs: Any, settings: Any, **others: Any) -> Any:
        fit_answer(model, inputs["input_ids"].shape[-1], settings)
        return generate(self, model, processor, inputs, settings, **others)

    return checked


def fit_answer(model: "PreTrainedModel", num_tokens: int, settings: "GenerationConfig") -> None:
    """Limit the answer to the context that the prompt leaves.

    Args:
        model: The model.
        num_tokens: Number of tokens in the prompt.
        settings: Its `max_new_tokens` is lowered in place.

    Raises:
        ValueError: The prompt is empty, or leaves no room for an answer.
    """
    if not num_tokens:
        raise ValueError("the prompt is empty")
    if (limit := context_length(model)) is None:
        return
    if num_tokens >= limit:
        raise ValueError(f"the prompt has {num_tokens} tokens, and the model's limit is {limit}, including the answer")
    settings.max_new_tokens = min(settings.max_new_tokens or limit, limit - num_tokens)


def build_snippet(name: str, base_url: str) -> str:
    """Return example requests to the model, with curl and in Python.

    Args:
        name: The model's name.
        base_url: The API's address, which ends in `/v1`.
    """
    messages = [{"role": "user", "content": "Name the capital of France."}]
    body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 256}
    return f"""\
curl {base_url}/chat/completions -H 'Content-Type: application/json' \\
    -d '{json.dumps(body)}'

from openai import OpenAI

client = OpenAI(base_url="{base_url}", api_key="none")
answer = client.chat.completions.create(
    model="{name}",
    messages={json.dumps(messages)},
    temperature=0,
    max_tokens=256,
)
print(answer.choices[0].message.content)"""
