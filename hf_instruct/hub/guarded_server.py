"""`transformers serve` behind the guard: the program that `hf_instruct.hub.serving` starts.

It offers the model that is served and nothing else, and answers a request that cannot be used with status 400 and JSON.
"""

import argparse
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_instruct.guard import Guard, refusal

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

_ROUTES = r"(GET|HEAD) /(health|v1/models)|POST /v1/(chat/completions|completions)"


def main() -> None:
    """Serve the model that the command line names, until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--device")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--names", nargs="*", default=[])
    options = parser.parse_args()
    # Not by Transformers' command, which first asks the network whether there is a newer version.
    from transformers.cli import serve
    from transformers.cli.serving import server, utils

    for name in ("generate_streaming", "generate_non_streaming"):
        setattr(utils.GenerateManager, name, _fitting(getattr(utils.GenerateManager, name)))
    build = server.build_server

    def build_guarded(manager: Any, chat_handler: Any, *, completion_handler: Any, **others: Any) -> Any:
        _require(chat_handler, "messages", list)
        _require(completion_handler, "prompt", str)
        app = build(manager, chat_handler, completion_handler=completion_handler, **others)
        _translate_errors(app)
        app.add_middleware(Guard, hosts=options.names, routes=_ROUTES)
        return app

    server.build_server = build_guarded  # type: ignore[assignment]  # the same arguments, by other names
    serve.Serve(
        options.model,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        host=options.host,
        port=options.port,
        log_level="error",
    )


def _fitting(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of Transformers' `GenerateManager` that first sees to the length of prompt and answer."""

    @functools.wraps(generate)
    def checked(self: Any, model: Any, processor: Any, inputs: Any, settings: Any, **others: Any) -> Any:
        fit_answer(model, inputs["input_ids"].shape[-1], settings)
        return generate(self, model, processor, inputs, settings, **others)

    return checked


def fit_answer(model: "PreTrainedModel", num_tokens: int, settings: "GenerationConfig") -> None:
    """Limit the answer to what the model can attend to after its prompt.

    Args:
        model: What answers.
        num_tokens: Of the prompt.
        settings: Its `max_new_tokens` is lowered in place.

    Raises:
        ValueError: Prompt and one token more are too long.
    """
    from hf_instruct.models import context_length

    limit = context_length(model)
    if limit is None:
        return
    if num_tokens >= limit:
        raise ValueError(f"the prompt has {num_tokens} tokens, and the model attends to {limit}, the answer included")
    settings.max_new_tokens = min(settings.max_new_tokens or limit, limit - num_tokens)


def _require(handler: Any, field: str, kind: type) -> None:
    """Let a handler of Transformers refuse a request without a field, or with an empty one."""
    handle = handler.handle_request

    async def checked(body: dict[str, Any], request_id: str) -> Any:
        if not isinstance(body.get(field), kind) or not body[field]:
            raise ValueError(f"`{field}` is missing, empty or of the wrong type")
        return await handle(body, request_id)

    handler.handle_request = checked


def _translate_errors(app: Any) -> None:
    """Answer what Transformers raises over a request with JSON instead of a traceback."""
    from fastapi import HTTPException, Request
    from fastapi.responses import JSONResponse
    from jinja2 import TemplateError

    def answer(request: Request, error: Exception) -> JSONResponse:
        text = getattr(error, "detail", None) or f"This request cannot be used: {error}."
        return JSONResponse(refusal(str(text)), status_code=getattr(error, "status_code", 400))

    for kind in (HTTPException, ValueError, TypeError, LookupError, AttributeError, TemplateError):
        app.add_exception_handler(kind, answer)
