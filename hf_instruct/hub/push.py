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
# On the cards that we write.
_TAG = "hf-instruct"
_NOTHING = "Nothing was published."


@dataclasses.dataclass(frozen=True)
class Published:
    """What is on the Hub now.

    Attributes:
        repo_id: With its namespace.
        url: Its page.
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
    """Write what `push` would publish into a folder, without any network; an earlier such folder is replaced.

    Returns:
        Bytes of each file, by its path in the folder.

    Raises:
        InstructError: As `push`, if it has to do with the run; or `out` holds something else.
    """
    plan = plan_publication(run, repo_id, **options)
    if out.exists() and not _is_publication(out):
        raise PublishError(
            f"`{out}` exists and was not created by `hf-instruct push`, so it is not replaced. Use another folder "
            "with `--out`."
        )
    with offline(), building(out) as part:
        write_folder(plan, part)
    return list_sizes(out)


def push(run: RunFolder | str | Path, repo_id: str, *, api: "HfApi | None" = None, **options: Any) -> Published:
    """Publish a run's model on the Hub, or update what was published.

    All files go in one commit, so that readers see the old state or the new one. What fails on the way can be run
    again: a repository that is there already is used, and files that are there already are not uploaded again. The
    token is the one that huggingface_hub finds.

    Args:
        run: A run with a tuned model, or its folder.
        repo_id: `namespace/name`; a name alone goes to the user's own namespace.
        api: The Hub to talk to; the one of `HF_ENDPOINT` by default.
        options: Fields of `PushOptions`, such as `private`, `license` or `merge`.

    Raises:
        RunError: The run does not exist, or its model is missing or damaged.
        PublishError: The run cannot be published as it is; the repository holds something else, or is public against
            `private`; or the Hub cannot be reached or refuses.
        ModelLoadError: The tokenizer, or with `merge` the base model, cannot be loaded.
    """
    from huggingface_hub import HfApi

    run = RunFolder.of(run)
    plan = plan_publication(run, repo_id, **options)
    api = api or HfApi()
    # Before merging weights, which takes its time.
    with translated_hub_errors(api.endpoint):
        _check_base(api, plan.base)
        repository, head = _open_repository(api, plan)
    _check_head(repository, head, plan)
    with staging(run.path / "publish") as folder:
        write_folder(dataclasses.replace(plan, repo_id=repository.id), folder, link=True)
        with translated_hub_errors(api.endpoint):
            return _commit(api, plan, folder, head)


def _check_base(api: "HfApi", base: BaseModelInfo) -> None:
    """Refuse a base model that others cannot load: without it an adapter is of no use."""
    if base.hub_id is not None and not api.revision_exists(base.hub_id, base.revision or "main"):
        at = f" at `{base.revision}`" if base.revision else ""
        raise PublishError(
            f"The base model `{base.hub_id}`{at} is not on the Hub, or you do not have access to it. Set its id with "
            f"`--base-model`, and log in with `hf auth login` if it is private. {_NOTHING}"
        )


def _open_repository(api: "HfApi", plan: Publication) -> tuple["ModelInfo", "ModelInfo"]:
    """Return what `main` and the branch of the commit hold; what is missing of both is created."""
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
    # What a branch without commits of its own holds is in `main`, too.
    is_new_branch = options.revision not in (None, "main") and head.sha == repository.sha
    has_weights = any(sibling.rfilename.endswith(_WEIGHTS) for sibling in head.siblings or [])
    if options.force or is_new_branch or not has_weights:
        return
    card = head.card_data
    known = card.base_model if card else None
    bases = [known] if isinstance(known, str) else list(known or [])
    # A base model that is only on the user's disk has no name on our card, as on the cards of others.
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
    there = [sibling.rfilename for sibling in head.siblings or []]
    removed = sorted(name for name in there if name not in sizes and is_ours(name))
    verb = "Update" if any(is_ours(name) for name in there) else "Publish"
    commit = api.create_commit(
        head.id,
        [
            *(CommitOperationAdd(name, folder / name) for name in sizes),
            *(CommitOperationDelete(name) for name in removed),
        ],
        commit_message=options.message or f"{verb} the {'adapter' if plan.is_adapter else 'model'} with hf_instruct",
        revision=options.revision,
        # Somebody else's commit meanwhile is not to be overwritten unseen.
        parent_commit=head.sha,
    )
    url = f"{api.endpoint}/{head.id}{f'/tree/{options.revision}' if options.revision else ''}"
    return Published(head.id, url, commit.oid, commit.oid != head.sha, removed, sizes)


@contextlib.contextmanager
def translated_hub_errors(endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence that says what to do and never holds a token.

    Raises:
        PublishError: In its place.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise PublishError(
            "`HF_HUB_OFFLINE` is set. Unset it to publish, or preview the files with `--dry-run`."
        ) from error
    # A connection that fails, a file that cannot be read, metadata that is refused, and what uploads in threads wrap.
    except (transport_error(), OSError, ValueError, RuntimeError) as error:
        refusal: BaseException | None = error
        while refusal is not None and not isinstance(refusal, errors.HfHubHTTPError):
            refusal = refusal.__cause__
        said = _tidy(str(getattr(refusal, "server_message", None) or refusal or error))
        status = refusal.response.status_code if isinstance(refusal, errors.HfHubHTTPError) else 0
        if 400 <= status < 500 and status != 408:
            raise PublishError(f"{_explain_refusal(status, said)} {_NOTHING}") from error
        raise PublishError(
            f"The push to {endpoint} failed ({said or type(error).__name__}). Run the same command again to upload "
            "what is missing."
        ) from error


def _explain_refusal(status: int, said: str) -> str:
    log_in = (
        "`HF_TOKEN` overrides your login. Set it to a token with write access, or unset it and run `hf auth login`."
        if os.environ.get("HF_TOKEN")
        else "Log in with `hf auth login` and a token with write access, or set `HF_TOKEN`."
    )
    match status:
        case 401:
            return f"You are not logged in to the Hub, or your token is not valid. {log_in}"
        case 403:
            return f"Your token does not have permission for this ({said}). {log_in}"
        case 409 | 412:
            return f"The repository was changed during the upload ({said}). Run the same command again."
        case 429:
            return f"The Hub's rate limit was reached ({said}). Wait a few minutes, then run the same command again."
    return f"The Hub refuses (status {status}: {said})."


def _tidy(text: str) -> str:
    """Return a message of huggingface_hub in one line, without tokens and without signatures in addresses."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "[token removed]") if token else text
    return " ".join(str(redact(re.sub(r"\?\S+", "", text))).split()).rstrip(".")


def _is_publication(folder: Path) -> bool:
    card = folder / CARD
    return folder.is_dir() and (
        not any(folder.iterdir()) or (card.is_file() and f"- {_TAG}\n" in card.read_text(encoding="utf-8"))
    )
