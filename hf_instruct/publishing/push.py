"""Publish a run's model on the Hugging Face Hub: everything in one commit, or nothing."""

import dataclasses
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import PublishError
from hf_instruct.publishing.folder import (
    CARD,
    PublishedFolder,
    PublishOptions,
    is_ours,
    plan_folder,
    write_folder,
)
from hf_instruct.publishing.origins import BaseModel
from hf_instruct.publishing.targets import building
from hf_instruct.run_folder import RunFolder, redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

_LOG_IN = "Log in with `hf auth login` (a token that may write), or set `HF_TOKEN`."
_NOTHING = "Nothing was published."
_OFFLINE = (
    "`HF_HUB_OFFLINE` forbids to reach the Hub. Unset it to publish, or see what would be published with `--dry-run`."
)
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".h5", ".msgpack", ".onnx")


@dataclasses.dataclass(frozen=True)
class PushTarget:
    """Where a model goes on the Hub, and how.

    Attributes:
        repo_id: `namespace/name`; a name alone goes to the user's own namespace.
        private: Make a new repository that only its owners see.
        revision: Branch, made where it is missing; None for `main`.
        message: Of the commit.
        force: Replace what is there even if it was made of another base model.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    message: str | None = None
    force: bool = False


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


def write_publication(
    run: RunFolder, out: Path, *, repo_id: str, options: PublishOptions | None = None
) -> PublishedFolder:
    """Write what would be published into a folder, without any network; an earlier such folder is replaced.

    Raises:
        InstructError: As `push`, where it has to do with the run; or `out` holds something else.
    """
    check_repo_id(repo_id)
    if out.exists() and not _is_publication(out):
        raise PublishError(
            f"`{out}` exists and was not made by `hf-instruct push`, so it is left alone. Name another folder with "
            "`--out`."
        )
    with building(out) as part:
        folder = write_folder(run, part, repo_id=repo_id, options=options or PublishOptions())
    return dataclasses.replace(folder, path=out)


def push(
    run: RunFolder, target: PushTarget, *, options: PublishOptions | None = None, api: "HfApi | None" = None
) -> Published:
    """Publish a run's model on the Hub, or bring what was published up to date.

    All files go in one commit, so that whatever breaks off on the way, readers see the old state or the new. The token
    is the one that huggingface_hub finds in its own places.

    Args:
        run: A run with a tuned model.
        target: Where it goes.
        options: What to publish, and under which licence.
        api: The Hub to talk to; the one of `HF_ENDPOINT` by default.

    Raises:
        RunError: The run does not exist.
        PublishError: The run cannot be published as it is; nobody is logged in; the namespace is another's; the
            repository holds something else; or the Hub cannot be reached or refuses.
        ModelLoadError: The tokenizer, or with `merge` the base model, cannot be loaded.
    """
    from huggingface_hub import HfApi, is_offline_mode

    check_repo_id(target.repo_id)
    options = options or PublishOptions()
    base = plan_folder(run, options).base
    if is_offline_mode():
        raise PublishError(_OFFLINE)
    api = api or HfApi()
    # All that can be asked is asked first, because merging and hashing weights take their time.
    with _translated_errors(api):
        repo_id = _find_repo(api, target.repo_id)
        there = _look(api, repo_id)
        _check_base(api, base)
        if there is not None:
            check_existing(there, base, target)
    try:
        with tempfile.TemporaryDirectory(dir=run.path, prefix=".publish-") as name:
            folder = write_folder(run, Path(name) / "model", repo_id=repo_id, options=options, link=True)
            with _translated_errors(api):
                return _commit(api, repo_id, folder, target=target, is_new=there is None)
    except OSError as error:
        raise PublishError(
            f"`{run.path}` has no room for what is made ready to be published ({error.strerror or error}). Free some "
            f"space. {_NOTHING}"
        ) from error


def check_repo_id(repo_id: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        PublishError: It is one.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(
            f"`--to {repo_id}` is not a name for a repository: letters, digits, `-`, `_` and `.`, at most 96, as in "
            "`me/gpt2-assistant`."
        ) from error


def check_existing(there: "ModelInfo", base: BaseModel, target: PushTarget) -> None:
    """Refuse to write over a repository that was made of something else, or that is open where it should not be.

    Raises:
        PublishError: It was, or is.
    """
    if target.private and there.private is False:
        raise PublishError(
            f"`{there.id}` exists and is public; `--private` is for new repositories. Make it private in its settings "
            f"first, or leave out `--private`. {_NOTHING}"
        )
    files = [sibling.rfilename for sibling in there.siblings or []]
    has_weights = any(name.endswith(_WEIGHTS) for name in files)
    known = there.card_data.base_model if there.card_data else None
    bases = [known] if isinstance(known, str) else list(known or [])
    is_same = bases == [base.hub_id] if base.hub_id else not bases
    if target.force or not has_weights or is_same:
        return
    theirs = f"the base model `{bases[0]}`" if bases else "a base model that its card does not name"
    ours = f"`{base.hub_id}`" if base.hub_id else "one that is not on the Hub"
    raise PublishError(
        f"`{there.id}` exists and holds a model made of {theirs}; this one is made of {ours}. Name another repository "
        f"with `--to`, or replace it with `--force`. {_NOTHING}"
    )


def _find_repo(api: "HfApi", repo_id: str) -> str:
    """Return the repository's id with its namespace, once it is clear that the user may write there."""
    who = api.whoami()
    user = str(who["name"])
    access = (who.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise PublishError(f"The token of `{user}` may only read. {_LOG_IN} {_NOTHING}")
    namespace, _, name = repo_id.rpartition("/")
    allowed = [user, *(str(org.get("name")) for org in who.get("orgs") or [])]
    if namespace and namespace.lower() not in {place.lower() for place in allowed}:
        places = ", ".join(f"`{place}`" for place in allowed)
        raise PublishError(
            f"`--to {repo_id}`: you are `{user}`, who may not write to the namespace `{namespace}`. Yours: {places}. "
            f"{_NOTHING}"
        )
    return f"{namespace or user}/{name}"


def _look(api: "HfApi", repo_id: str, revision: str | None = None) -> "ModelInfo | None":
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return api.model_info(repo_id, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None


def _check_base(api: "HfApi", base: BaseModel) -> None:
    # Without its base model an adapter is of no use; and a name that is not there was a folder of the user's.
    hub_id = base.hub_id
    if hub_id is not None and _look(api, hub_id, base.revision) is None:
        at = f" at `{base.revision}`" if base.revision else ""
        raise PublishError(
            f"The base model `{hub_id}`{at} is not on the Hub, or not for you to see. Name its id there with "
            f"`--base-model`. {_NOTHING}"
        )


def _commit(api: "HfApi", repo_id: str, folder: PublishedFolder, *, target: PushTarget, is_new: bool) -> Published:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if is_new:
        api.create_repo(repo_id, private=target.private or None, exist_ok=True)
    if target.revision:
        api.create_branch(repo_id, branch=target.revision, exist_ok=True)
    head = api.model_info(repo_id, revision=target.revision)
    there = [sibling.rfilename for sibling in head.siblings or []]
    removed = sorted(name for name in there if name not in folder.sizes and is_ours(name))
    operations: list[Any] = [CommitOperationAdd(name, folder.path / name) for name in folder.sizes]
    operations += [CommitOperationDelete(name) for name in removed]
    kind = "adapter" if folder.is_adapter else "model"
    verb = "Update" if any(is_ours(name) for name in there) else "Publish"
    commit = api.create_commit(
        repo_id,
        operations,
        commit_message=target.message or f"{verb} the {kind} with hf_instruct",
        revision=target.revision,
        # Somebody else's commit meanwhile is not to be overwritten unseen.
        parent_commit=head.sha,
    )
    at = f"/tree/{target.revision}" if target.revision else ""
    return Published(
        repo_id=repo_id,
        url=f"{api.endpoint}/{repo_id}{at}",
        commit=commit.oid,
        changed=commit.oid != head.sha,
        removed=removed,
        sizes=folder.sizes,
    )


@contextmanager
def _translated_errors(api: "HfApi") -> Iterator[None]:
    """Turn what huggingface_hub raises into a `PublishError` that says what to do, and never holds a token."""
    from huggingface_hub import errors

    # Each version has the HTTP library of its time; uploads in threads wrap what went wrong in a RuntimeError.
    transport = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise PublishError(_OFFLINE) from error
    except errors.LocalTokenNotFoundError as error:
        raise PublishError(f"You are not logged in to {api.endpoint}. {_LOG_IN} {_NOTHING}") from error
    except (transport, ConnectionError, RuntimeError, ValueError) as error:
        reason = _find_cause(error)
        if reason is None:
            raise
        raise PublishError(_explain(api, reason)) from error


def _find_cause(error: BaseException | None) -> BaseException | None:
    """Return the error of the connection or of the Hub that another error was raised for; None where there is none."""
    from huggingface_hub import errors

    while error is not None:
        is_xet = type(error).__module__.startswith("hf_xet")
        is_metadata = isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error)
        if isinstance(error, errors.HTTPError | ConnectionError) or is_xet or is_metadata:  # type: ignore[attr-defined]
            return error
        error = error.__cause__
    return None


def _explain(api: "HfApi", error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    text = " ".join(_hide_tokens(str(error)).split())
    if isinstance(error, ValueError):
        return f"The Hub refuses the card ({CARD}): {text} {_NOTHING}"
    if not isinstance(error, HfHubHTTPError):
        return (
            f"The connection to {api.endpoint} failed ({text or type(error).__name__}). {_NOTHING} The same command "
            "tries again."
        )
    status = error.response.status_code if error.response is not None else 0
    said = _hide_tokens(error.server_message or text)
    advice = {
        401: f"The Hub does not know your token. {_LOG_IN}",
        402: f"The Hub wants to be paid for this: {said}",
        403: f"The Hub does not let your token do this: {said} {_LOG_IN}",
        409: f"The repository is being changed by somebody else: {said} Give the same command again.",
        412: "The repository was changed while this was being uploaded. Give the same command again.",
        429: "The Hub asks for fewer requests. Wait some minutes, then give the same command again.",
    }
    if status >= 500:
        return f"The Hub at {api.endpoint} fails (status {status}). {_NOTHING} The same command tries again."
    return f"{advice.get(status, f'The Hub refuses (status {status}): {said}')} {_NOTHING}"


def _hide_tokens(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    hidden = text.replace(token, "[token removed]") if token else text
    # Addresses of uploads carry signatures that let anybody write for a while.
    return str(redact(re.sub(r"\?\S+", "", hidden)))


def _is_publication(folder: Path) -> bool:
    card = folder / CARD
    return folder.is_dir() and (
        not any(folder.iterdir()) or (card.is_file() and "- hf-instruct\n" in card.read_text(encoding="utf-8"))
    )
