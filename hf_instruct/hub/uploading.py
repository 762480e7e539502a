"""Put a folder on the Hub as one commit; what was made there for it goes again if the commit does not come about."""

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import PublishError
from hf_instruct.hub.folder import PublishedFolder, is_ours
from hf_instruct.hub.hub_errors import AGAIN, NOTHING, brief, translated_errors, was_refused

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

REPOSITORY, BRANCH = "repository", "branch"
# Seconds before each time that the Hub is asked whether a commit was made: it may still be busy with it.
PAUSES = (0.0, 2.0, 5.0)
_PATIENCE_SECONDS = 20.0
# What the Hub puts into a repository that it makes.
_INITIAL_FILES = {".gitattributes"}


@dataclasses.dataclass
class Place:
    """Where a commit goes.

    Attributes:
        repo_id: With its namespace.
        revision: The branch; None for `main`.
        head: The state of the branch that the commit is made upon; None while it is not known.
        made: `REPOSITORY` or `BRANCH`, whichever was made for this commit and is of no use without; None where it was
            there before, and once the commit was made, or may have been.
    """

    repo_id: str
    revision: str | None
    head: "ModelInfo | None" = None
    made: str | None = None

    def url(self, api: "HfApi") -> str:
        """Return the address of its page."""
        return f"{api.endpoint}/{self.repo_id}{f'/tree/{self.revision}' if self.revision else ''}"


@contextlib.contextmanager
def removed_on_failure(api: "HfApi", place: Place) -> Iterator[None]:
    """Remove what was made for a commit if the block fails, and say so where that fails too.

    It sees every way out, Ctrl-C among them. Only what this very call made is ever removed, and only while nobody has
    put anything there.
    """
    try:
        yield
    except BaseException as error:
        left = _remove(api, place) if place.made else ""
        if left and isinstance(error, PublishError):
            raise PublishError(f"{error} {left}") from error.__cause__
        if left and isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{error if error.args else NOTHING} {left}") from error
        if left:
            logger.warning(left)
        raise


def find_state(api: "HfApi", repo_id: str, revision: str | None = None) -> "ModelInfo | None":
    """Return what is at a repository's branch, tag or commit; None where there is none, or none for the user to see."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return api.model_info(repo_id, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None


def make_place(api: "HfApi", place: Place, *, there: "ModelInfo | None", private: bool) -> None:
    """Make the repository or the branch where they are missing, and note in `place` which, and what they hold then.

    Args:
        api: The Hub.
        place: Where the commit is to go.
        there: The repository as it was found; None where there was none.
        private: Make it a private one.

    Raises:
        PublishError: Somebody made it meanwhile, or the Hub refuses or cannot be reached.
    """
    if place.head is not None:
        return
    with translated_errors(api):
        if there is None:
            _make_repository(api, place, private=private)
            there = api.model_info(place.repo_id)
        place.head = find_state(api, place.repo_id, place.revision) if place.revision else there
        if place.head is None:
            # No later commit of anybody's: what was looked at is what is built upon.
            api.create_branch(place.repo_id, branch=place.revision or "main", revision=there.sha)
            # A new repository takes its branches along when it is removed.
            place.made = place.made or BRANCH
            place.head = there


def commit_folder(api: "HfApi", place: Place, folder: PublishedFolder, *, message: str | None) -> tuple[str, list[str]]:
    """Make one commit of a folder, upon the state that `place` holds.

    Returns:
        The commit's hash, and the files of an earlier publication that it removed. Where nothing had changed, the hash
        is the one of before.

    Raises:
        PublishError: It was not made; or, as its text says then, nobody knows.
        KeyboardInterrupt: Ctrl-C; its text says what became of the commit, where it was on its way.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = _names(place.head)
    removed = sorted(name for name in there if name not in folder.sizes and is_ours(name))
    additions = [CommitOperationAdd(name, folder.path / name) for name in folder.sizes]
    kind = "adapter" if folder.is_adapter else "model"
    verb = "Update" if any(is_ours(name) for name in there) else "Publish"
    # Apart from the commit, so that it is known of a connection that breaks meanwhile that there was none.
    _upload(api, place, additions)
    try:
        with translated_errors(api):
            commit = api.create_commit(
                place.repo_id,
                [*additions, *(CommitOperationDelete(name) for name in removed)],
                commit_message=message or f"{verb} the {kind} with hf_instruct",
                revision=place.revision,
                # Somebody else's commit meanwhile is not to be overwritten unseen.
                parent_commit=place.head.sha if place.head else None,
            )
        place.made = None
        return commit.oid, removed
    except (PublishError, KeyboardInterrupt) as error:
        if was_refused(error):
            raise
        return _settle(api, place, folder, removed=removed, error=error), removed


def _make_repository(api: "HfApi", place: Place, *, private: bool) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    left = f"If the Hub has made `{place.repo_id}` all the same, it is empty, and the same command uses it."
    try:
        with translated_errors(api):
            # It has to be new: what is there already has to be looked at first, and is never removed.
            api.create_repo(place.repo_id, private=private or None, exist_ok=False)
    except PublishError as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code == 409:
            raise PublishError(
                f"`{place.repo_id}` exists, and was not to be seen before: it was made just now, or your token may not "
                f"read it. Give the same command again, or name another repository with `--to`. {NOTHING}"
            ) from error
        if was_refused(error):
            raise
        raise PublishError(f"{error} {left}") from error
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{NOTHING} {left}") from stop
    place.made = REPOSITORY


def _upload(api: "HfApi", place: Place, additions: list[Any]) -> None:
    try:
        with translated_errors(api):
            # The commit itself takes no files but small ones; the content stays, since the commit is sent from it.
            api.preupload_lfs_files(place.repo_id, additions, revision=place.revision, free_memory=False)
    except (RuntimeError, OSError) as error:
        # One thread's trouble with a file, or a refusal of the other protocol that it has no type for.
        raise PublishError(f"The upload failed ({brief(error)}). {NOTHING} {AGAIN}") from error


# When the answer to the commit does not come


def _settle(
    api: "HfApi", place: Place, folder: PublishedFolder, *, removed: list[str], error: PublishError | KeyboardInterrupt
) -> str:
    """Ask the Hub whether a commit was made of which no answer came; return it, or raise what holds then."""
    url = place.url(api)
    logger.info("The Hub has not confirmed the commit; asking it whether it was made ...")
    try:
        oid = _ask(api, place, folder, removed)
    except (PublishError, KeyboardInterrupt) as failure:
        place.made = None
        stopped = isinstance(failure, KeyboardInterrupt)
        unknown = (
            f"The commit was sent to {api.endpoint}, no answer came, and the Hub could not be asked either "
            f"({'interrupted' if stopped else brief(failure)}): it is not known whether `{place.repo_id}` was "
            f"published. Look at {url}, or give the same command again, which publishes what is not there yet."
        )
        if stopped or isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(unknown) from error
        raise PublishError(unknown) from error
    if oid is None:
        raise error
    place.made = None
    if isinstance(error, KeyboardInterrupt):
        raise KeyboardInterrupt(f"It was published all the same: {url}, commit {oid[:7]}.") from error
    logger.info("It was made: only the answer got lost.")
    return oid


def _ask(api: "HfApi", place: Place, folder: PublishedFolder, removed: list[str]) -> str | None:
    """Return the commit that holds these files; None where there is none, though the Hub was given some time."""
    failure: PublishError | None = None
    for pause in PAUSES:
        time.sleep(pause)
        try:
            with translated_errors(api):
                state = _find_next_state(api, place)
        except PublishError as error:
            failure = error
            continue
        failure = None
        if _holds(state, folder, removed):
            return state.sha
    if failure is not None:
        raise failure
    return None


def _find_next_state(api: "HfApi", place: Place) -> "ModelInfo":
    """Return the state of the branch after one commit upon the one of before; the same one where there is no commit.

    It compares files, not messages: another push of the same user's may bear the same message.
    """
    asked: dict[str, Any] = {"files_metadata": True, "timeout": _PATIENCE_SECONDS}
    state = api.model_info(place.repo_id, revision=place.revision, **asked)
    start = place.head.sha if place.head else None
    if state.sha == start:
        return state
    history = [commit.commit_id for commit in api.list_repo_commits(place.repo_id, revision=place.revision)]
    following = history.index(start) - 1 if start in history else 0
    if history[following] == state.sha:
        return state
    # Somebody has committed since, upon ours or upon another.
    return api.model_info(place.repo_id, revision=history[following], **asked)


def _holds(state: "ModelInfo", folder: PublishedFolder, removed: list[str]) -> bool:
    siblings = {sibling.rfilename: sibling for sibling in state.siblings or []}
    if any(name in siblings for name in removed):
        return False
    return all(name in siblings and _is_same(siblings[name], folder.path / name) for name in folder.sizes)


def _is_same(sibling: Any, path: Path) -> bool:
    """Compare a file with what the Hub tells of one: the SHA-256 of a large file, git's name of a small one."""
    size = path.stat().st_size
    if sibling.size not in (None, size):
        return False
    if sibling.lfs is not None:
        with path.open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == sibling.lfs.sha256)
    # Git names content by SHA-1; nothing is protected by it here.
    blob = hashlib.sha1(b"blob %d\0" % size + path.read_bytes(), usedforsecurity=False)
    return bool(blob.hexdigest() == sibling.blob_id)


# When there is no commit


def _remove(api: "HfApi", place: Place) -> str:
    """Remove what was made for a commit that did not come about; return what there is to say of what is left."""
    is_repository = place.made == REPOSITORY
    what = f"The repository `{place.repo_id}`" if is_repository else f"The branch `{place.revision}`"
    try:
        with translated_errors(api):
            if not (_is_untouched(api, place) if is_repository else _is_where_it_began(api, place)):
                return f"{what}, made for this, is no longer as it was made, and was left as it is."
            if is_repository:
                api.delete_repo(place.repo_id, missing_ok=True)
            else:
                api.delete_branch(place.repo_id, branch=place.revision or "main")
    except (PublishError, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else brief(error)
        undo = f"delete {place.repo_id}" if is_repository else f"branch delete {place.repo_id} {place.revision}"
        return (
            f"{what}, made for this and without any file of yours, could not be removed ({reason}) and may still be "
            f"there: the same command uses it, and `hf repos {undo}` deletes it."
        )
    return ""


def _is_untouched(api: "HfApi", place: Place) -> bool:
    """Return whether a repository holds its initial commit and no more, in any branch, tag or pull request."""
    state = api.model_info(place.repo_id, timeout=_PATIENCE_SECONDS)
    refs = api.list_repo_refs(place.repo_id, include_pull_requests=True)
    groups = (refs.branches, refs.converts, refs.tags, refs.pull_requests or [])
    heads = {ref.target_commit for group in groups for ref in group}
    commits = api.list_repo_commits(place.repo_id)
    return (
        # A renamed repository answers to its old name too.
        state.id == place.repo_id
        and set(_names(state)) <= _INITIAL_FILES
        and heads == {state.sha}
        and [commit.commit_id for commit in commits] == [state.sha]
    )


def _is_where_it_began(api: "HfApi", place: Place) -> bool:
    branches = api.list_repo_refs(place.repo_id).branches
    heads = [branch.target_commit for branch in branches if branch.name == place.revision]
    return place.head is not None and heads == [place.head.sha]


def _names(state: "ModelInfo | None") -> list[str]:
    return [sibling.rfilename for sibling in (state.siblings if state else None) or []]
