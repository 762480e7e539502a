"""Detect an unreachable Hub early: its client retries each file for half a minute before it gives up."""

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_instruct.recipes import list_recipes

logger = logging.getLogger(__name__)

# A Hub that does not answer within this time is treated as unreachable.
_SECONDS = 10.0


@contextlib.contextmanager
def fall_back_to_cache(location: str) -> Iterator[None]:
    """Load from the cache immediately if the Hub cannot be reached, like `HF_HUB_OFFLINE=1`.

    Args:
        location: Hub id of a model or dataset, or a local folder. The Hub is not contacted for a folder, unless it
            contains an adapter, whose base model may be on the Hub.
    """
    from huggingface_hub import constants, get_session

    folder = Path(location)
    how: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    is_local = folder.is_dir() and not (folder / "adapter_config.json").is_file()
    if not is_local and not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=_SECONDS)
        except (transport_error(), OSError) as error:
            logger.debug("%s: %s", constants.ENDPOINT, error)
            logger.info("%s cannot be reached; looking for `%s` only in the cache.", constants.ENDPOINT, location)
            how = offline()
    with how:
        yield


@functools.lru_cache
def find_on_hub(repo: str, revision: str | None = None) -> None:
    """Check that a model's config is on the Hub or in the cache.

    Raises:
        OSError: It is not, or access is denied.
        ValueError: It is not a valid name of a model on the Hub.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if repo.count("/") > 1:
        makers = [recipe.path.stem for recipe in list_recipes() if repo == f"runs/{recipe.path.stem}/model"]
        raise OSError(
            f"there is no such folder.{f' Create it first: `hf-instruct run {makers[0]}`.' if makers else ''}"
        )
    with fall_back_to_cache(repo):
        try:
            hf_hub_download(repo, "config.json", revision=revision)
        except LocalEntryNotFoundError as error:
            raise OSError("it is not in the Hugging Face cache, and the Hub cannot be reached.") from error
        except RevisionNotFoundError as error:
            raise OSError(f"it has no revision `{revision}` on the Hub.") from error
        except GatedRepoError as error:
            raise OSError("request access on its page on the Hub, then log in with `hf auth login`.") from error
        except RepositoryNotFoundError as error:
            raise OSError("the Hub has no model of that name, or it is private.") from error


def transport_error() -> type[Exception]:
    """Return the exception class of failed requests to the Hub, which depends on huggingface_hub's HTTP library."""
    from huggingface_hub import errors

    error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # imported there, not declared
    return error


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep huggingface_hub and datasets offline inside the block, like `HF_HUB_OFFLINE=1`."""
    from huggingface_hub import constants

    # `datasets` has its own flag.
    modules: list[Any] = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
