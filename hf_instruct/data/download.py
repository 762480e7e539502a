"""The course's data: downloaded once, checked, kept in the user's cache."""

import contextlib
import hashlib
import logging

from hf_instruct.errors import DataError
from hf_instruct.models import cache_folder
from hf_instruct.records import write_bytes

logger = logging.getLogger(__name__)

# Source: https://github.com/rasbt/LLMs-from-scratch/tree/28c65cdfbc3338e2e040016eea4b7fdf556e4d57/ch07 (Apache-2.0)
COURSE_URL = (
    "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/28c65cdfbc3338e2e040016eea4b7fdf556e4d57/"
    "ch07/01_main-chapter-code/instruction-data.json"
)
COURSE_SHA256 = "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944"

# Longest silence of the server.
_SECONDS = 30.0


def load_course_data(*, url: str = COURSE_URL, sha256: str = COURSE_SHA256) -> bytes:
    """Return the bytes of `instruction-data.json`, from the cache or from its public address.

    Args:
        url: Where it is.
        sha256: What it is; bytes with another hash are never used.

    Raises:
        DataError: It is not in the cache and cannot be downloaded, or what came is something else.
    """
    cached = cache_folder() / "instruction-data.json"
    with contextlib.suppress(OSError):
        content = cached.read_bytes()
        if hashlib.sha256(content).hexdigest() == sha256:
            return content
        logger.warning("`%s` is damaged; downloading it again.", cached)
    content = _download(url)
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(
            f"What came from {url} is not the course's data (SHA-256 {found}, not {sha256}): a proxy's page, or a "
            f"download cut off. Try again, or download it elsewhere and name the file as the source."
        )
    try:
        write_bytes(cached, content)
    except OSError as error:
        # The cache only saves a download; without one the data is as good.
        logger.warning("`%s` cannot be written (%s); the data is not cached.", cached, error.strerror or error)
    return content


def _download(url: str) -> bytes:
    import httpx
    from huggingface_hub import constants

    try:
        if constants.HF_HUB_OFFLINE:
            raise httpx.ConnectError("`HF_HUB_OFFLINE` forbids it")
        logger.info("Downloading %s", url)
        return httpx.get(url, timeout=_SECONDS).raise_for_status().content
    except httpx.HTTPError as error:
        raise DataError(
            f"`instruction-data` is not in the cache and cannot be downloaded ({error}). Check the network, use the "
            f"packaged source `everyday`, or download {url} elsewhere and name the file as the source."
        ) from error
