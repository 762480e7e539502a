"""Load datasets with `datasets` from disk and the Hub, and download the course's data."""

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.data.readers import find_suffix
from hf_instruct.errors import DataError, quote_names
from hf_instruct.models import cache_folder
from hf_instruct.offline import fall_back_to_cache, transport_error
from hf_instruct.records import write_bytes

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

COURSE = "instruction-data"
EVERYDAY = "everyday"
HUB_ALIASES = {"alpaca": "tatsu-lab/alpaca"}
NAMED_SOURCES = (COURSE, EVERYDAY, *HUB_ALIASES)
# Source: https://github.com/rasbt/LLMs-from-scratch/tree/28c65cdfbc3338e2e040016eea4b7fdf556e4d57/ch07 (Apache-2.0)
COURSE_URL = (
    "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/28c65cdfbc3338e2e040016eea4b7fdf556e4d57/"
    "ch07/01_main-chapter-code/instruction-data.json"
)
COURSE_SHA256 = "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944"
# Timeout for the server with the course's data.
_SECONDS = 30.0


def load_course_data(*, url: str = COURSE_URL, sha256: str = COURSE_SHA256) -> bytes:
    """Return the bytes of `instruction-data.json`: from the cache, or downloaded, checked and cached.

    Bytes with another hash are never used.

    Raises:
        DataError: It is not in the cache and cannot be downloaded, or the downloaded file is something else.
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
            f"The file from {url} is not the course's data (SHA-256 {found}, not {sha256}): it may be a proxy's page "
            "or an incomplete download. Try again, or download it elsewhere and use the file as the source."
        )
    try:
        write_bytes(cached, content)
    except OSError as error:
        # The cache only saves a download; the data is usable without it.
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
            f"packaged source `everyday`, or download {url} elsewhere and use the file as the source."
        ) from error


def load_arrow(path: Path, *, file: str, split: str, stack: contextlib.ExitStack) -> "Dataset":
    """Return the dataset in a Parquet or Arrow file or in a folder of `save_to_disk`; `stack` deletes temporary copies.

    Raises:
        DataError: The file or folder is damaged, or has no such split.
    """
    import datasets

    is_folder = path.is_dir()
    try:
        with quiet_datasets():
            if find_suffix(path) == ".parquet" and not is_folder:
                # `datasets` reads a copy in its cache; the copy of a user's file is deleted afterwards.
                cache = stack.enter_context(tempfile.TemporaryDirectory())
                return datasets.Dataset.from_parquet(str(path), cache_dir=cache)
            saved = datasets.load_from_disk(path) if is_folder else datasets.Dataset.from_file(str(path))
    except (
        *(OSError, ValueError, RecursionError, datasets.exceptions.DatasetsError),
        # `datasets` does not validate the JSON in such a folder.
        *(AttributeError, LookupError, TypeError),
    ) as error:
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        what = "saved dataset" if is_folder else f"{find_suffix(path)[1:].capitalize()} file"
        raise DataError(
            f"`{file}` cannot be read as a {what} ({reason}); save it again, or use another one."
        ) from error
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise DataError(
            f"`{file}` has no split `{split}`; it has {quote_names(saved)}. Set `hub_split` to one of them."
        )
    return saved[split]


def load_from_hub(location: str, *, file: str, name: str | None, split: str, revision: str | None) -> "Dataset":
    """Return a split of a dataset on the Hub, or from the cache if the Hub cannot be reached.

    Raises:
        DataError: It cannot be loaded.
    """
    import datasets

    try:
        with fall_back_to_cache(location):
            return datasets.load_dataset(location, name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, transport_error()) as error:
        raise DataError(advise_on_hub(error, file, split)) from error


def advise_on_hub(error: Exception, file: str, split: str) -> str:
    """Return a message with the reason for an error of `datasets` and what to do."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    # `datasets` wraps errors during reading in an error without the reason.
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
    reason = (str(cause).splitlines() or [""])[0].strip().rstrip(".") or type(cause).__name__
    if isinstance(error, DatasetNotFoundError):
        advice = (
            "Check its spelling and `revision`; for a gated or private one run `hf auth login`. Or use a local "
            f"file or one of {quote_names(NAMED_SOURCES)}"
        )
    elif isinstance(error, ConnectionError):
        advice = "Check the network and `HF_HUB_OFFLINE`, or use a local file or the packaged source `everyday`"
    elif "split" in reason.lower():
        advice = f"`hub_split` is `{split}`; use one of the existing splits"
    elif "config" in reason.lower():
        advice = "Set `hub_config` to one of its configurations"
    else:
        advice = "Check its page on the Hub, or save it as a local .parquet or .jsonl file and use that"
    what = "cannot be loaded" if file in HUB_ALIASES else "is not a local file, and cannot be loaded"
    return f"`{file}` {what} from the Hub ({reason}). {advice}."


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep `datasets` from logging an error that we raise, and from showing a bar for a local file."""
    import datasets

    verbosity, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
