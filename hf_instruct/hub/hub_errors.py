"""What huggingface_hub raises, in one sentence that says what to do and never holds a token."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hf_instruct.errors import PublishError
from hf_instruct.offline import transport_error
from hf_instruct.redaction import redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

NOTHING = "Nothing was published."
AGAIN = "The same command tries again."
OFFLINE = (
    "`HF_HUB_OFFLINE` forbids to reach the Hub. Unset it to publish, or see what would be published with `--dry-run`."
)
# A server, or one in between, that gives up waiting says so with these and may yet have done what was asked.
_TIMED_OUT = 408
_FAILING = 500


@contextmanager
def translated_errors(api: "HfApi") -> Iterator[None]:
    """Turn what huggingface_hub raises into a `PublishError`; what is no fault of the Hub or the way to it, goes on."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise PublishError(OFFLINE) from error
    except errors.LocalTokenNotFoundError as error:
        raise PublishError(f"You are not logged in to {api.endpoint}. {advise_log_in()} {NOTHING}") from error
    # Uploads in threads wrap what went wrong in a RuntimeError.
    except (transport_error(), OSError, RuntimeError, ValueError) as error:
        cause = _find_cause(error)
        if cause is None:
            raise
        raise PublishError(_explain(api, cause)) from error


def was_refused(error: BaseException) -> bool:
    """Return whether the Hub itself answered with a no, so that nothing changed; without an answer nobody knows."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            status = _status(cause)
            return status < _FAILING and status != _TIMED_OUT
        cause = cause.__cause__
    return False


def advise_log_in() -> str:
    """Return how to come by a token that may write."""
    if os.environ.get("HF_TOKEN"):
        # A login would change nothing: the variable goes first.
        return "`HF_TOKEN` goes before any login: set it to a token that may write, or unset it and `hf auth login`."
    return "Log in with `hf auth login` (a token that may write), or set `HF_TOKEN`."


def brief(error: BaseException) -> str:
    """Return the reason of a failure in some words, for brackets."""
    from huggingface_hub.errors import HfHubHTTPError

    cause = _find_cause(error) or error
    if isinstance(cause, HfHubHTTPError):
        return f"status {_status(cause)}"
    return _tidy(str(cause)) or type(cause).__name__


def hide_tokens(text: str) -> str:
    """Return a text without any token, and without what follows the `?` of an address."""
    from huggingface_hub import get_token

    token = get_token()
    hidden = text.replace(token, "[token removed]") if token else text
    # Addresses of uploads carry signatures that let anybody write for a while.
    return str(redact(re.sub(r"\?\S+", "", hidden)))


def _find_cause(error: BaseException | None) -> BaseException | None:
    """Return the error of the connection or of the Hub that another error was raised for; None where there is none."""
    answers = (json.JSONDecodeError, UnicodeEncodeError)
    texts = ("Invalid metadata in README.md", "LFS batch API returned errors")
    while error is not None:
        is_xet = type(error).__module__.startswith("hf_xet")
        is_known = isinstance(error, ValueError) and str(error).startswith(texts)
        if isinstance(error, (transport_error(), ConnectionError, TimeoutError, *answers)) or is_xet or is_known:
            return error
        error = error.__cause__
    return None


def _explain(api: "HfApi", error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    text = _tidy(str(error))
    if isinstance(error, HfHubHTTPError):
        return _explain_status(api, error)
    if isinstance(error, json.JSONDecodeError):
        return (
            f"What answers at {api.endpoint} does not speak as the Hub does. Look whether `HF_ENDPOINT` is right, and "
            f"whether the network wants you to log in first. {NOTHING}"
        )
    if type(error).__name__ == "UnsupportedProtocol":
        return (
            f"`HF_ENDPOINT` is `{api.endpoint}`, which is no address of a server: it begins with `https://` or "
            f"`http://`. Mend it, or unset it for the Hub itself. {NOTHING}"
        )
    if isinstance(error, UnicodeEncodeError):
        return f"Your token holds letters that no token has. {advise_log_in()} {NOTHING}"
    if isinstance(error, ValueError):
        said = text.partition(" ")[2] if text.startswith("LFS") else text
        return f"The Hub refuses the files: {_sentence(said)} {NOTHING}"
    if isinstance(error, PermissionError):
        return f"The Hub's store of large files does not let your token write: {_sentence(text)} {NOTHING}"
    return f"The connection to {api.endpoint} failed ({text or type(error).__name__}). {NOTHING} {AGAIN}"


def _explain_status(api: "HfApi", error: BaseException) -> str:
    status = _status(error)
    said = _sentence(_tidy(getattr(error, "server_message", None) or str(error)))
    advice = {
        401: f"The Hub does not know your token. {advise_log_in()}",
        402: f"The Hub wants to be paid for this: {said}",
        403: f"The Hub does not let your token do this: {said} {advise_log_in()}",
        404: f"The Hub does not find what it was asked for: {said} It may be gone by now, or not be for your token to "
        "see.",
        409: f"The repository is being changed by somebody else: {said} Give the same command again.",
        412: "The repository was changed while this was being uploaded. Give the same command again.",
        429: f"The Hub asks for fewer requests. Wait {_wait(error)}, then give the same command again.",
    }
    if status >= _FAILING or status == _TIMED_OUT:
        return f"The Hub at {api.endpoint} fails (status {status}). {NOTHING} {AGAIN}"
    return f"{advice.get(status, f'The Hub refuses (status {status}): {said}')} {NOTHING}"


def _status(error: BaseException) -> int:
    response = getattr(error, "response", None)
    return response.status_code if response is not None else 0


def _wait(error: BaseException) -> str:
    """Return how long the Hub asks to wait: as `Retry-After`, or as the `t` of its own `RateLimit` header."""
    response = getattr(error, "response", None)
    headers = response.headers if response is not None else {}
    found = re.fullmatch(r"(\d+)", headers.get("retry-after", "")) or re.search(
        r"\br=0;\s*t=(\d+)", headers.get("ratelimit", "")
    )
    return f"{found[1]} s" if found else "some minutes"


def _tidy(text: str) -> str:
    return " ".join(hide_tokens(text).split())


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
