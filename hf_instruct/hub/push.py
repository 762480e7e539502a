"""Publish a run's model on the Hugging Face Hub: everything in one commit, or nothing."""

import contextlib
import dataclasses
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.errors import PublishError
from hf_instruct.hub.folder import CARD, PublishedFolder, PublishOptions, plan_folder, write_folder
from hf_instruct.hub.hub_errors import NOTHING, OFFLINE, advise_log_in, hide_tokens, translated_errors
from hf_instruct.hub.outputs import building
from hf_instruct.hub.provenance import BaseModel, is_hub_id
from hf_instruct.hub.uploading import Place, commit_folder, find_state, make_place, removed_on_failure
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".h5", ".msgpack", ".onnx")
# On the cards that we write.
_TAG = "hf-instruct"


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

    All files go in one commit, so that whatever breaks off on the way, readers see the old state or the new; and a
    repository or branch that was made for a commit which then fails, is removed again. The token is the one that
    huggingface_hub finds in its own places.

    Args:
        run: A run with a tuned model.
        target: Where it goes.
        options: What to publish, and under which licence.
        api: The Hub to talk to; the one of `HF_ENDPOINT` by default.

    Raises:
        RunError: The run does not exist.
        PublishError: The run cannot be published as it is; nobody is logged in; the namespace is another's; the
            repository holds something else; or the Hub cannot be reached or refuses. The text says whether anything
            was published, or that it is not known.
        KeyboardInterrupt: Ctrl-C; it has a text where something else holds than that nothing was published.
        ModelLoadError: The tokenizer, or with `merge` the base model, cannot be loaded.
    """
    from huggingface_hub import HfApi, is_offline_mode

    check_repo_id(target.repo_id)
    options = options or PublishOptions()
    base = plan_folder(run, options).base
    if is_offline_mode():
        raise PublishError(OFFLINE)
    api = api or HfApi()
    # All that can be asked is asked first, because merging and hashing weights take their time.
    with translated_errors(api):
        there, place = _look(api, target)
        _check_base(api, base)
    check_existing(there, place.head, base=base, target=target)
    with contextlib.ExitStack() as stack:
        folder = _prepare(stack, run, repo_id=place.repo_id, options=options)
        with translated_errors(api):
            _check_card(api, folder)
        with removed_on_failure(api, place):
            make_place(api, place, there=there, private=target.private)
            before = place.head.sha if place.head else None
            commit, removed = commit_folder(api, place, folder, message=target.message)
    return Published(
        repo_id=place.repo_id,
        url=place.url(api),
        commit=commit,
        changed=commit != before,
        removed=removed,
        sizes=folder.sizes,
    )


def check_repo_id(repo_id: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        PublishError: It is one.
    """
    if not is_hub_id(repo_id):
        raise PublishError(
            f"`--to {repo_id}` is not a name for a repository: that is `namespace/name`, as in `me/gpt2-assistant`, of "
            "letters from a to z, digits, `-`, `_` and `.`, at most 96 in all, no `-` or `.` at either end, no `--` "
            "or `..`, and no `.git` at the end."
        )


def check_existing(there: "ModelInfo | None", head: "ModelInfo | None", *, base: BaseModel, target: PushTarget) -> None:
    """Refuse to write over what was made of something else, or into the open where that is not wanted.

    Args:
        there: The repository; None where there is none.
        head: What the branch of the target holds; None where there is none.
        base: The model that was tuned.
        target: Where the user wants to publish, and how.

    Raises:
        PublishError: It was made of something else, or is public against `private`.
    """
    if there is not None and target.private and there.private is False:
        raise PublishError(
            f"`{there.id}` exists and is public; `--private` is for new repositories. Make it private in its settings "
            f"first, or leave out `--private`. {NOTHING}"
        )
    if head is None or target.force:
        return
    has_weights = any(sibling.rfilename.endswith(_WEIGHTS) for sibling in head.siblings or [])
    card = head.card_data
    known = card.base_model if card else None
    bases = [known] if isinstance(known, str) else list(known or [])
    # A base model that is nowhere but on the user's disk has no name on the card either, as the cards of others.
    is_same = bases == [base.hub_id] if base.hub_id else not bases and card is not None and _TAG in (card.tags or [])
    if not has_weights or is_same:
        return
    theirs = f"the base model `{bases[0]}`" if bases else "a base model that its card does not name"
    ours = f"`{base.hub_id}`" if base.hub_id else "one that is not on the Hub"
    where = f"The branch `{target.revision}` of `{head.id}`" if target.revision else f"`{head.id}` exists and"
    raise PublishError(
        f"{where} holds a model made of {theirs}; this one is made of {ours}. Name another repository with `--to`, or "
        f"replace it with `--force`. {NOTHING}"
    )


def _look(api: "HfApi", target: PushTarget) -> tuple["ModelInfo | None", Place]:
    """Return the repository as it is, None where there is none, and where in it the model goes."""
    repo_id = _find_repo(api, target.repo_id)
    there = find_state(api, repo_id)
    if there is None:
        return None, Place(repo_id, target.revision)
    if there.id != repo_id:
        # The Hub sends old names on to new ones; requests that write would not all follow.
        logger.info("`%s` is called `%s` on the Hub; it goes there.", repo_id, there.id)
    head = find_state(api, there.id, target.revision) if target.revision else there
    return there, Place(there.id, target.revision, head)


def _find_repo(api: "HfApi", repo_id: str) -> str:
    """Return the repository's id with its namespace, once it is clear that the user may write there."""
    who = api.whoami()
    user = str(who["name"])
    access = (who.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise PublishError(f"The token of `{user}` may only read. {advise_log_in()} {NOTHING}")
    namespace, _, name = repo_id.rpartition("/")
    roles = {user: "", **{str(org.get("name")): org.get("roleInOrg") for org in who.get("orgs") or []}}
    allowed = [place for place, role in roles.items() if role != "read"]
    if namespace and namespace.lower() not in {place.lower() for place in allowed}:
        places = ", ".join(f"`{place}`" for place in allowed)
        raise PublishError(
            f"`--to {repo_id}`: you are `{user}`, who may not write to the namespace `{namespace}`. Yours: {places}. "
            f"{NOTHING}"
        )
    return f"{namespace or user}/{name}"


def _check_base(api: "HfApi", base: BaseModel) -> None:
    # Without its base model an adapter is of no use; and a name that is not there was a folder of the user's.
    hub_id = base.hub_id
    if hub_id is not None and find_state(api, hub_id, base.revision) is None:
        at = f" at `{base.revision}`" if base.revision else ""
        raise PublishError(
            f"The base model `{hub_id}`{at} is not on the Hub, or not for you to see. Name its id there with "
            f"`--base-model`. {NOTHING}"
        )


def _check_card(api: "HfApi", folder: PublishedFolder) -> None:
    """Have the Hub check the card before anything is made there; the client asks the same, but later."""
    from huggingface_hub import get_session, hf_raise_for_status

    content = (folder.path / CARD).read_text(encoding="utf-8")
    asked = {"content": content, "repoType": "model"}
    answer = get_session().post(f"{api.endpoint}/api/validate-yaml", json=asked)
    if answer.status_code == 400:
        said = "; ".join(str(fault.get("message")).rstrip(".") for fault in answer.json().get("errors", []))
        raise PublishError(f"The Hub refuses the card ({CARD}): {hide_tokens(said)}. {NOTHING}")
    hf_raise_for_status(answer)


def _prepare(stack: contextlib.ExitStack, run: RunFolder, *, repo_id: str, options: PublishOptions) -> PublishedFolder:
    """Write what is published into a folder inside the run's, where weights can be linked; it goes with the stack."""
    from safetensors import SafetensorError

    try:
        name = stack.enter_context(tempfile.TemporaryDirectory(dir=run.path, prefix=".publish-"))
        return write_folder(run, Path(name) / "model", repo_id=repo_id, options=options, link=True)
    except (OSError, SafetensorError) as error:
        raise PublishError(
            f"What is published is made ready in `{run.path}`, which cannot be written "
            f"({getattr(error, 'strerror', None) or error}). Free some space there, or make it writable. {NOTHING}"
        ) from error


def _is_publication(folder: Path) -> bool:
    card = folder / CARD
    return folder.is_dir() and (
        not any(folder.iterdir()) or (card.is_file() and "- hf-instruct\n" in card.read_text(encoding="utf-8"))
    )
