"""Publish a run's model on the Hugging Face Hub: all files in one commit."""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.console import redact
from hf_instruct.errors import PublishError
from hf_instruct.hub.export import building, staging
from hf_instruct.hub.folder import CARD, is_ours, list_sizes, write_folder
from hf_instruct.hub.publication import BaseModelInfo, Publication, plan_publication
from hf_instruct.offline import offline, transport_error
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".h5", ".msgpack", ".onnx")
# Tag of the cards that we write.
_TAG = "hf-instruct"
_NOTHING = "Nothing was published."


@dataclasses.dataclass(frozen=True)
class Published:
    """A published model on the Hub.

    Attributes:
        repo_id: The repository, with its namespace.
        url: The page of the repository.
        commit: The commit's hash.
        changed: Whether there was anything new to commit.
        removed: Files of an earlier publication that are no longer there.
        sizes: Bytes of each file published, by its path.
    """

    repo_id: str
    url: str
    commit: str
    changed: bool
    removed: list[str]
    sizes: dict[str, int]


def write_publication(run: RunFolder, out: Path, repo_id: str, **options: Any) -> dict[str, int]:
    """Write the files that `push` would publish into a folder, offline; an earlier such folder is replaced.

    Returns:
        Bytes of each file, by its path in the folder.

    Raises:
        InstructError: See `push`, for errors about the run; or `out` contains something else.
    """
    plan = plan_publication(run, repo_id, **options)
    if out.exists() and not is_publication(out):
        raise PublishError(
            f"`{out}` exists and was not created by `hf-instruct push`, so it is not replaced. Use another folder "
            "with `--out`."
        )
    with offline(), building(out) as part:
        write_folder(plan, part)
    return list_sizes(out)


def push(run: RunFolder | str | Path, repo_id: str, *, api: "HfApi | None" = None, **options: Any) -> Published:
    """Publish a run's model on the Hub, or update what was published.

    All files are in one commit, so that readers see either the old or the new state. After a failure, push again: an
    existing repository is used, and files that were already uploaded are not uploaded again. The token is the one that
    huggingface_hub finds.

    Args:
        run: A run with a tuned model, or its folder.
        repo_id: `namespace/name`; a name alone goes to the user's own namespace.
        api: Client of the Hub; by default one for `HF_ENDPOINT`.
        options: Fields of `PushOptions`, such as `private`, `license` or `merge`.

    Raises:
        RunError: The run does not exist, or its model is missing or damaged.
        PublishError: The run cannot be published; the repository contains another model, or is public despite
            `private`; or the Hub cannot be reached or refuses.
        ModelLoadError: The tokenizer, or with `merge` the base model, cannot be loaded.
    """
    from huggingface_hub import HfApi

    run = RunFolder.of(run)
    plan = plan_publication(run, repo_id, **options)
    api = api or HfApi()
    # Before merging weights, which takes time.
    with translated_hub_errors(api.endpoint):
        _check_base(api, plan.base)
        repository, head = _open_repository(api, plan)
    _check_head(repository, head, plan)
    with staging(run.path / "publish") as folder:
        write_folder(dataclasses.replace(plan, repo_id=repository.id), folder, link=True)
        with translated_hub_errors(api.endpoint):
            return _commit(api, plan, folder, head)


def _check_base(api: "HfApi", base: BaseModelInfo) -> None:
    """Refuse a base model that others cannot load, because an adapter is useless without it."""
    if base.hub_id is not None and not api.revision_exists(base.hub_id, base.revision or "main"):
        at = f" at `{base.revision}`" if base.revision else ""
        raise PublishError(
            f"The base model `{base.hub_id}`{at} is not on the Hub, or you do not have access to it. Set its id with "
            f"`--base-model`, and log in with `hf auth login` if it is private. {_NOTHING}"
        )


def _open_repository(api: "HfApi", plan: Publication) -> tuple["ModelInfo", "ModelInfo"]:
    """Return the state of `main` and of the branch for the commit; a missing repository or branch is created."""
    options = plan.options
    repository = api.model_info(api.create_repo(plan.repo_id, private=options.private or None, exist_ok=True).repo_id)
    if options.private and not repository.private:
        raise PublishError(
            f"`{repository.id}` exists and is public; `--private` is for new repositories. Make it private in its "
            f"settings first, or leave out `--private`. {_NOTHING}"
        )
    if options.revision is None:
        return repository, repository
    api.create_branch(repository.id, branch=options.revision, revision=repository.sha, exist_ok=True)
    return repository, api.model_info(repository.id, revision=options.revision)


def _check_head(repository: "ModelInfo", head: "ModelInfo", plan: Publication) -> None:
    """Refuse to publish over a model that was made from another base model."""
    base, options = plan.base, plan.options
    # A branch without its own commits only contains files that are also in `main`.
    is_new_branch = options.revision not in (None, "main") and head.sha == repository.sha
    has_weights = any(sibling.rfilename.endswith(_WEIGHTS) for sibling in head.siblings or [])
    if options.force or is_new_branch or not has_weights:
        return
    card = head.card_data
    named = card.base_model if card else None
    bases = [named] if isinstance(named, str) else list(named or [])
    # Our cards do not name a local base model. Other cards may not name theirs either, so the tag is checked.
    is_same = bases == [base.hub_id] if base.hub_id else not bases and card is not None and _TAG in (card.tags or [])
    if not is_same:
        theirs = f"`{bases[0]}`" if bases else "a base model that its card does not name"
        ours = f"`{base.hub_id}`" if base.hub_id else "one that is not on the Hub"
        raise PublishError(
            f"`{repository.id}` (branch `{options.revision or 'main'}`) contains a model based on {theirs}, but this "
            f"one is based on {ours}. Use another repository with `--to`, or replace it with `--force`. {_NOTHING}"
        )


def _commit(api: "HfApi", plan: Publication, folder: Path, head: "ModelInfo") -> Published:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    options, sizes = plan.options, list_sizes(folder)
    existing = [sibling.rfilename for sibling in head.siblings or []]
    removed = sorted(name for name in existing if name not in sizes and is_ours(name))
    verb = "Update" if any(is_ours(name) for name in existing) else "Publish"
    commit = api.create_commit(
        head.id,
        [
            *(CommitOperationAdd(name, folder / name) for name in sizes),
            *(CommitOperationDelete(name) for name in removed),
        ],
        commit_message=options.message or f"{verb} the {'adapter' if plan.is_adapter else 'model'} with hf_instruct",
        revision=options.revision,
        # So that a commit that somebody else makes in the meantime is not overwritten.
        parent_commit=head.sha,
    )
    url = f"{api.endpoint}/{head.id}{f'/tree/{options.revision}' if options.revision else ''}"
    return Published(head.id, url, commit.oid, commit.oid != head.sha, removed, sizes)


@contextlib.contextmanager
def translated_hub_errors(endpoint: str) -> Iterator[None]:
    """Turn errors of huggingface_hub into one sentence that says what to do and never contains a token.

    Raises:
        PublishError: Instead of the original error.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise PublishError(
            "`HF_HUB_OFFLINE` is set. Unset it to publish, or preview the files with `--dry-run`."
        ) from error
    # A failed connection, an unreadable file, refused metadata, and the errors that wrap those of upload threads.
    except (transport_error(), OSError, ValueError, RuntimeError) as error:
        refusal: BaseException | None = error
        while refusal is not None and not isinstance(refusal, errors.HfHubHTTPError):
            refusal = refusal.__cause__
        reason = _tidy(str(getattr(refusal, "server_message", None) or refusal or error))
        status = refusal.response.status_code if isinstance(refusal, errors.HfHubHTTPError) else 0
        if 400 <= status < 500 and status != 408:
            raise PublishError(f"{_explain_refusal(status, reason)} {_NOTHING}") from error
        raise PublishError(
            f"The push to {endpoint} failed ({reason or type(error).__name__}). Run the same command again to upload "
            "what is missing."
        ) from error


def _explain_refusal(status: int, reason: str) -> str:
    log_in = (
        "`HF_TOKEN` overrides your login. Set it to a token with write access, or unset it and run `hf auth login`."
        if os.environ.get("HF_TOKEN")
        else "Log in with `hf auth login` and a token with write access, or set `HF_TOKEN`."
    )
    match status:
        case 401:
            return f"You are not logged in to the Hub, or your token is not valid. {log_in}"
        case 403:
            return f"Your token does not have permission for this ({reason}). {log_in}"
        case 409 | 412:
            return f"The repository was changed during the upload ({reason}). Run the same command again."
        case 429:
            return f"The Hub's rate limit was reached ({reason}). Wait a few minutes, then run the same command again."
    return f"The Hub refuses (status {status}: {reason})."


def _tidy(text: str) -> str:
    """Return a message of huggingface_hub in one line, without tokens and without signatures in addresses."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "[token removed]") if token else text
    return " ".join(str(redact(re.sub(r"\?\S+", "", text))).split()).rstrip(".")


def is_publication(folder: Path) -> bool:
    """Return whether a folder was created by `hf-instruct push`, or is empty."""
    card = folder / CARD
    return folder.is_dir() and (
        not any(folder.iterdir()) or (card.is_file() and f"- {_TAG}\n" in card.read_text(encoding="utf-8"))
    )
