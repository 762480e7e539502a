"""Whether the Hub is within reach: its client tries for half a minute, file by file, before it says that it is not."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# A Hub that takes longer to say anything at all will not hand out weights.
_SECONDS = 10.0


@contextmanager
def cache_alone_if_unreachable(location: str) -> Iterator[None]:
    """Load from the cache at once where the Hub cannot be reached, as `HF_HUB_OFFLINE=1` does.

    Args:
        location: Hub id of a model or a data set, or a local folder. A folder asks the Hub for nothing, unless it is
            that of an adapter, whose base model may be there.
    """
    from huggingface_hub import constants

    folder = Path(location)
    is_local = folder.is_dir() and not (folder / "adapter_config.json").is_file()
    if is_local or constants.HF_HUB_OFFLINE or _is_reachable(constants.ENDPOINT):
        yield
        return
    logger.info("%s cannot be reached; looking for `%s` in the cache alone.", constants.ENDPOINT, location)
    with _offline():
        yield


def transport_error() -> type[Exception]:
    """Return what a request to the Hub raises when it fails: each huggingface_hub has the HTTP library of its time."""
    from huggingface_hub import errors

    error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # imported there, not declared
    return error


@contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants

    modules: list[Any] = [constants]
    # Which keeps a flag of its own.
    if "datasets" in sys.modules:
        modules.append(sys.modules["datasets"].config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _is_reachable(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=_SECONDS)
    except (transport_error(), OSError) as error:
        logger.debug("%s: %s", endpoint, error)
        return False
    return True
