"""Whether the Hub is within reach: its client tries for half a minute, file by file, before it says that it is not."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

# A Hub that takes longer to say anything at all will not hand out weights.
_SECONDS = 10.0


@contextmanager
def cache_alone_if_unreachable(location: str) -> Iterator[None]:
    """Load from the cache at once where the Hub cannot be reached, as `HF_HUB_OFFLINE=1` does.

    Args:
        location: A Hub id or a local folder. A folder asks the Hub for nothing, unless it is that of an adapter, whose
            base model may be there.
    """
    from huggingface_hub import constants

    folder = Path(location)
    is_local = folder.is_dir() and not (folder / "adapter_config.json").is_file()
    if is_local or constants.HF_HUB_OFFLINE or _is_reachable(constants.ENDPOINT):
        yield
        return
    logger.info("%s cannot be reached; looking for `%s` in the cache alone.", constants.ENDPOINT, location)
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_reachable(endpoint: str) -> bool:
    from huggingface_hub import errors, get_session

    # Of the HTTP library that this version of huggingface_hub has.
    transport = errors.HTTPError  # type: ignore[attr-defined]  # imported there, not declared
    try:
        get_session().head(endpoint, timeout=_SECONDS)
    except (transport, OSError) as error:
        logger.debug("%s: %s", endpoint, error)
        return False
    return True
