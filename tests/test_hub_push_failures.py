"""What is left, and what is said, when publishing goes wrong on its way."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub
from pushed_runs import BASE_ID, open_hub, push_to, refuse, save_byte_model, snapshot, write_full_run

from hf_instruct.errors import PublishError
from hf_instruct.hub.push import PushTarget, push
from hf_instruct.run_folder import RunFolder

# huggingface_hub 2.4 sends LFS files by the old name of an argument of httpx2's.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ID = "me/assistant"
AGAIN = "Nothing was published. The same command tries again."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("runs")
    return write_full_run(folder / "zeppelin", save_byte_model(folder / "tiny-bytes"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with open_hub(monkeypatch) as fake:
        yield fake


def _once(hub: FakeHub, route: str, do: Callable[[], object]) -> None:
    """Have something done just before the next answer at a route."""

    def hook() -> None:
        del hub.before[route]
        do()

    hub.before[route] = hook


def _fail(run: RunFolder, hub: FakeHub, **options: object) -> str:
    with pytest.raises(PublishError) as caught:
        push_to(run, hub, **options)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def _deletions(hub: FakeHub) -> int:
    return sum(method == "DELETE" for method, _ in hub.requests)


def _break(hub: FakeHub, how: str) -> None:
    """Let the next push fail, in one of the ways in which it can once the repository is there."""
    hub.objects.clear()
    if how in ("upload", "commit"):
        hub.cut = {how}
    elif how == "full":
        hub.full = True
    elif how == "gateway":
        hub.fail = {"commit": (504, "")}
    else:
        hub.fail = {how: (403, "no right")}


def _mend(hub: FakeHub) -> None:
    hub.cut, hub.fail, hub.before, hub.full = set(), {}, {}, False
    hub.cut_answer, hub.late_answer = set(), set()


# A repository that was made for it


@pytest.mark.parametrize("how", ["preupload", "batch", "full", "upload", "commit", "gateway"])
def test_a_new_repository_goes_again(run: RunFolder, hub: FakeHub, how: str) -> None:
    _break(hub, how)
    assert "Nothing was published." in refuse(run, hub)
    assert hub.deleted == [ID]
    _mend(hub)
    assert push_to(run, hub).changed
    assert "model.safetensors" in hub.repos[ID].files


@pytest.mark.parametrize("how", ["preupload", "batch", "full", "upload", "commit", "gateway"])
def test_a_repository_of_before_is_never_deleted(run: RunFolder, hub: FakeHub, how: str) -> None:
    # It looks just like one that was made a moment ago.
    hub.add_repo(ID, {".gitattributes": b"*.bin filter=lfs\n"})
    _break(hub, how)
    refuse(run, hub, force=how == "batch")
    assert (hub.deleted, _deletions(hub)) == ([], 0)


def test_a_branch_that_fails_takes_its_new_repository_along(run: RunFolder, hub: FakeHub) -> None:
    _break(hub, "upload")
    refuse(run, hub, revision="v2")
    assert hub.deleted == [ID]


def test_what_cannot_be_asked_is_not_deleted(run: RunFolder, hub: FakeHub) -> None:
    def lose_all() -> None:
        hub.cut = {"upload", "info", "refs", "commits", "delete"}

    _once(hub, "upload", lose_all)
    text = _fail(run, hub)
    assert text.startswith(f"The connection to {hub.url} failed (")
    assert f"). {AGAIN} The repository `{ID}`, made for this and without any file of yours, could not be " in text
    assert text.endswith(f") and may still be there: the same command uses it, and `hf repos delete {ID}` deletes it.")
    assert list(hub.repos[ID].files) == [".gitattributes"]
    _mend(hub)
    assert push_to(run, hub).changed


def test_a_deletion_that_is_refused_is_told(run: RunFolder, hub: FakeHub) -> None:
    hub.fail = {"batch": (402, "Pay first"), "delete": (403, "no right")}
    assert _fail(run, hub) == (
        "The Hub wants to be paid for this: Pay first. Nothing was published. The repository `me/assistant`, made for "
        "this and without any file of yours, could not be removed (status 403) and may still be there: the same "
        "command uses it, and `hf repos delete me/assistant` deletes it."
    )


@pytest.mark.parametrize("work", ["main", "theirs", "refs/pr/1", "taken back", "squashed", "renamed"])
def test_what_somebody_else_did_meanwhile_is_left(run: RunFolder, hub: FakeHub, work: str) -> None:
    def interfere() -> None:
        repo = hub.repos[ID]
        start = dict(repo.files)
        if work == "renamed":
            hub.repos["me/new"] = hub.repos.pop(ID)
            hub.renamed[ID] = "me/new"
        elif work == "taken back":
            # The same files as before, and yet somebody's history.
            repo.commit("main", {**start, "a.txt": repo.files[".gitattributes"]}, "theirs")
            repo.commit("main", start, "Revert")
        elif work == "squashed":
            # One commit, but not the first one.
            del repo.branches["main"]
            repo.commit("main", {**start, "a.txt": start[".gitattributes"]}, "theirs")
        else:
            repo.branches.setdefault(work, repo.branches["main"])
            repo.commit(work, {**start, "a.txt": start[".gitattributes"]}, "theirs")

    _once(hub, "upload", interfere)
    hub.fail = {"commit": (403, "no right")}
    text = _fail(run, hub)
    assert text.endswith(
        f"Nothing was published. The repository `{ID}`, made for this, is no longer as it was made, and was left "
        "as it is."
    )
    assert (hub.deleted, _deletions(hub)) == ([], 0)
    assert {"me/new", ID} & set(hub.repos)


def test_a_repository_that_somebody_made_at_the_same_time(run: RunFolder, hub: FakeHub) -> None:
    _once(hub, "create", lambda: hub.add_repo(ID, {".gitattributes": b""}))
    assert _fail(run, hub) == (
        "`me/assistant` exists, and was not to be seen before: it was made just now, or your token may not read it. "
        "Give the same command again, or name another repository with `--to`. Nothing was published."
    )
    assert (_deletions(hub), len(hub.repos[ID].commits)) == (0, 1)


def test_the_answer_to_the_making_is_lost(run: RunFolder, hub: FakeHub) -> None:
    hub.cut_answer = {"create"}
    text = _fail(run, hub)
    assert text.endswith(f"{AGAIN} If the Hub has made `{ID}` all the same, it is empty, and the same command uses it.")
    # It may just as well be somebody else's.
    assert (_deletions(hub), list(hub.repos[ID].files)) == (0, [".gitattributes"])
    _mend(hub)
    assert push_to(run, hub).changed


def test_the_first_look_at_a_new_repository_fails(run: RunFolder, hub: FakeHub) -> None:
    # And so do the looks before it is deleted.
    _once(hub, "create", lambda: hub.fail.update(info=(500, "")))
    assert f"`{ID}`, made for this and without any file of yours, could not be removed (status 500)" in _fail(run, hub)
    assert hub.deleted == []


# A branch that was made for it


def test_a_new_branch_goes_again(run: RunFolder, hub: FakeHub) -> None:
    repo = hub.add_repo(ID, {"a.txt": b"a"})
    _break(hub, "upload")
    refuse(run, hub, revision="v2/try")
    assert list(repo.branches) == ["main"]
    assert hub.deleted == []
    _mend(hub)
    assert push_to(run, hub, revision="v2/try").changed
    _break(hub, "upload")
    # Now it is one of before.
    refuse(run, hub, revision="v2/try", license="mit")


def test_a_new_branch_with_work_of_others_is_left(run: RunFolder, hub: FakeHub) -> None:
    repo = hub.add_repo(ID, {"a.txt": b"a"})
    _once(hub, "upload", lambda: repo.commit("v2", repo.files, "theirs"))
    assert _fail(run, hub, revision="v2") == (
        "The repository was changed while this was being uploaded. Give the same command again. Nothing was published. "
        "The branch `v2`, made for this, is no longer as it was made, and was left as it is."
    )
    assert repo.messages[-1] == "theirs"
    assert "v2" in repo.branches


def test_a_new_branch_that_cannot_be_removed_is_told(run: RunFolder, hub: FakeHub) -> None:
    hub.add_repo(ID, {"a.txt": b"a"})
    hub.fail = {"commit": (403, "no right"), "delete_branch": (500, "")}
    assert _fail(run, hub, revision="v2").endswith(
        "The branch `v2`, made for this and without any file of yours, could not be removed (status 500) and may still "
        "be there: the same command uses it, and `hf repos branch delete me/assistant v2` deletes it."
    )


# The commit, and its answer


def test_somebody_else_commits_meanwhile(run: RunFolder, hub: FakeHub) -> None:
    repo = hub.add_repo(ID, {"a.txt": b"a"})
    # Once while this uploads, and once while this was still making its files ready.
    for route in ("commit", "validate"):
        _once(hub, route, lambda: repo.commit("main", repo.files, "theirs"))
        assert _fail(run, hub) == (
            "The repository was changed while this was being uploaded. Give the same command again. "
            "Nothing was published."
        )
    assert repo.messages == ["initial commit", "theirs", "theirs"]
    assert push_to(run, hub).changed


@pytest.mark.parametrize("lost", ["cut_answer", "late_answer"])
@pytest.mark.parametrize("is_new", [True, False])
def test_only_the_answer_is_lost(
    run: RunFolder, hub: FakeHub, caplog: pytest.LogCaptureFixture, lost: str, is_new: bool
) -> None:
    if not is_new:
        hub.add_repo(ID, {"vocab.json": b"{}"})
    setattr(hub, lost, {"commit"})
    with caplog.at_level(logging.INFO, "hf_instruct"):
        published = push_to(run, hub)
    repo = hub.repos[ID]
    assert published.commit == repo.branches["main"]
    assert published.changed
    assert published.url == f"{hub.url}/{ID}"
    assert published.removed == ([] if is_new else ["vocab.json"])
    assert len(repo.messages) == 2
    assert (hub.deleted, _deletions(hub)) == ([], 0)
    assert caplog.messages == [
        "The Hub has not confirmed the commit; asking it whether it was made ...",
        "It was made: only the answer got lost.",
    ]
    _mend(hub)
    assert not push_to(run, hub).changed


def test_the_answer_is_lost_and_somebody_commits_on_top(run: RunFolder, hub: FakeHub) -> None:
    repo = hub.add_repo(ID, {"a.txt": b"a"})

    def build_on_it() -> None:
        hub.theirs = repo.commit("main", {"b.txt": repo.files["a.txt"]}, "theirs")

    hub.cut_answer = {"commit"}
    _once(hub, "commit", lambda: _once(hub, "info", build_on_it))
    published = push_to(run, hub)
    assert published.commit == repo.parents[hub.theirs]
    assert published.changed


def test_the_commit_lands_late(run: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    # A gateway gives up, and the Hub is done with the commit only when it was asked about it once.
    repo = hub.add_repo(ID, {"a.txt": b"a"})
    made = push_to(run, hub, revision="other")
    files = repo.commits[made.commit]
    hub.fail = {"commit": (504, "")}

    def land() -> None:
        hub.before.clear()
        repo.commit("main", files, "Publish the model with hf_instruct")

    # Not at the first question, but at the second.
    asked = [lambda: None, land]
    _once(hub, "commit", lambda: hub.before.update(info=lambda: asked.pop(0)()))
    assert push_to(run, hub).commit == repo.branches["main"]


def test_another_commit_is_not_taken_for_ours(run: RunFolder, hub: FakeHub) -> None:
    repo = hub.add_repo(ID, {"a.txt": b"a"})
    push_to(run, hub)
    hub.fail = {"commit": (504, "")}
    # It bears the same message, and even most of the same files.
    near = {**repo.files, "README.md": repo.files["a.txt"]}
    _once(hub, "commit", lambda: repo.commit("main", near, "Update the model with hf_instruct"))
    assert _fail(run, hub, license="mit") == f"The Hub at {hub.url} fails (status 504). {AGAIN}"
    assert (hub.deleted, _deletions(hub)) == ([], 0)


@pytest.mark.parametrize("is_made", [True, False])
def test_nobody_knows(run: RunFolder, hub: FakeHub, is_made: bool) -> None:
    hub.cut_answer = {"commit"}
    if not is_made:
        hub.cut = {"commit"}
    hub.before["verify"] = lambda: hub.cut.update({"info", "refs", "delete"})
    text = _fail(run, hub)
    assert text.startswith(f"The commit was sent to {hub.url}, no answer came, and the Hub could not be asked either (")
    assert text.endswith(
        f"): it is not known whether `{ID}` was published. Look at {hub.url}/{ID}, or give the same command again, "
        "which publishes what is not there yet."
    )
    assert "Nothing was published" not in text
    # What may hold a publication is not deleted.
    assert _deletions(hub) == 0
    _mend(hub)
    assert push_to(run, hub).changed is not is_made
    assert "model.safetensors" in hub.repos[ID].files


# Ctrl-C


_SEEN = threading.Event()


@pytest.fixture
def _seeing() -> Iterator[None]:
    """Let the server's threads know when the main thread has seen Ctrl-C."""

    def see(*_: object) -> None:
        _SEEN.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, see)
    yield
    signal.signal(signal.SIGINT, before)


def _interrupt() -> None:
    """Press Ctrl-C, and wait until the main thread has seen it."""
    _SEEN.clear()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    assert _SEEN.wait(30)


def _stop(run: RunFolder, hub: FakeHub) -> str:
    with pytest.raises(KeyboardInterrupt) as caught:
        push_to(run, hub)
    assert not list(run.path.glob(".publish-*"))
    return str(caught.value)


@pytest.mark.usefixtures("_seeing")
@pytest.mark.parametrize("route", ["whoami", "preupload", "upload"])
def test_ctrl_c_leaves_nothing(run: RunFolder, hub: FakeHub, route: str) -> None:
    before = snapshot(hub)
    _once(hub, route, _interrupt)
    assert _stop(run, hub) == ""
    assert snapshot(hub) == before
    assert hub.deleted == ([] if route == "whoami" else [ID])


@pytest.mark.usefixtures("_seeing")
def test_ctrl_c_before_the_commit_is_made(run: RunFolder, hub: FakeHub) -> None:
    hub.fail = {"commit": (403, "")}
    _once(hub, "commit", _interrupt)
    assert _stop(run, hub) == ""
    assert hub.deleted == [ID]


@pytest.mark.usefixtures("_seeing")
def test_ctrl_c_once_the_commit_is_made(run: RunFolder, hub: FakeHub) -> None:
    hub.after["commit"] = _interrupt
    text = _stop(run, hub)
    commit = hub.repos[ID].branches["main"]
    assert text == f"It was published all the same: {hub.url}/{ID}, commit {commit[:7]}."
    assert _deletions(hub) == 0
    assert "model.safetensors" in hub.repos[ID].files


@pytest.mark.usefixtures("_seeing")
def test_ctrl_c_twice(run: RunFolder, hub: FakeHub) -> None:
    _once(hub, "preupload", _interrupt)
    _once(hub, "delete", _interrupt)
    assert _stop(run, hub) == (
        "Nothing was published. The repository `me/assistant`, made for this and without any file of yours, could not "
        "be removed (interrupted) and may still be there: the same command uses it, and `hf repos delete me/assistant` "
        "deletes it."
    )


@pytest.mark.usefixtures("_seeing")
def test_ctrl_c_while_the_hub_is_asked(run: RunFolder, hub: FakeHub) -> None:
    hub.cut_answer = {"commit"}
    _once(hub, "commit", lambda: _once(hub, "info", _interrupt))
    assert "(interrupted): it is not known whether `me/assistant` was published." in _stop(run, hub)
    assert _deletions(hub) == 0


# What is said


def test_what_the_hub_refuses(run: RunFolder, hub: FakeHub) -> None:
    assert refuse(run, hub, license="apache2") == (
        'The Hub refuses the card (README.md): "license" must be one of the known licences. Nothing was published.'
    )
    # No repository was made for it.
    assert hub.count("POST", "/create") == 0
    for route, status, text in [
        ("info", 500, f"The Hub at {hub.url} fails (status 500). {AGAIN}"),
        ("validate", 502, f"The Hub at {hub.url} fails (status 502). {AGAIN}"),
        ("whoami", 429, "The Hub asks for fewer requests. Wait some minutes, then give the same command again."),
        ("create", 403, "The Hub does not let your token do this: no & "),
        ("commit", 403, "The Hub does not let your token do this: no & "),
        ("commit", 404, "The Hub does not find what it was asked for: no & "),
        ("preupload", 418, "The Hub refuses (status 418): no & "),
        ("batch", 402, "The Hub wants to be paid for this: no & "),
    ]:
        hub.fail = {route: (status, f"no & {TOKEN}")}
        # What is stored already would not be asked for.
        hub.objects.clear()
        assert refuse(run, hub).startswith(text), route
        hub.fail = {}
    hub.full = True
    assert "The Hub refuses the files: " in (text := refuse(run, hub))
    assert "The storage quota is used up" in text


def test_how_long_the_hub_asks_to_wait(run: RunFolder, hub: FakeHub) -> None:
    hub.fail = {"create": (429, "slow down")}
    for headers, wait in [
        ({"Retry-After": "17"}, "17 s"),
        ({"RateLimit": '"api";r=0;t=55'}, "55 s"),
        ({"RateLimit": '"api";r=9;t=55'}, "some minutes"),
    ]:
        hub.fail_headers = headers
        assert refuse(run, hub) == (
            f"The Hub asks for fewer requests. Wait {wait}, then give the same command again. Nothing was published."
        )


def test_what_is_not_the_hub(run: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fake_hub._Handler._whoami", lambda self: self._send(b"<html>Log in to the cafe</html>"))
    assert refuse(run, hub) == (
        f"What answers at {hub.url} does not speak as the Hub does. Look whether `HF_ENDPOINT` is right, and whether "
        "the network wants you to log in first. Nothing was published."
    )


def test_an_address_without_its_beginning(run: RunFolder, hub: FakeHub) -> None:
    from huggingface_hub import HfApi

    with pytest.raises(PublishError, match=r"^`HF_ENDPOINT` is `localhost:9`, which is no address"):
        push(run, PushTarget(ID), api=HfApi(endpoint="localhost:9"))


def test_a_token_that_cannot_be_one(run: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_é")
    text = refuse(run, hub)
    assert text.startswith("Your token holds letters that no token has. ")
    assert "hf_é" not in text


def test_the_other_protocol_is_refused(run: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    text = refuse(run, hub)
    assert "403 Forbidden" in text
    assert "Nothing was published." in text
    assert hub.deleted == [ID]


def test_offline_and_unreachable(run: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refuse(run, hub) == (
        "`HF_HUB_OFFLINE` forbids to reach the Hub. Unset it to publish, or see what would be published with "
        "`--dry-run`."
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert hub.requests == []
    hub.stop()
    assert refuse(run, hub).startswith(f"The connection to {hub.url} failed (")


@pytest.mark.slow
def test_ctrl_c_and_sigterm_as_they_come(run: RunFolder, hub: FakeHub, tmp_path: Path) -> None:
    known = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "hf_instruct", "push", str(run.path), "--to", ID]
    for route, number, status, said in [
        ("preupload", signal.SIGINT, 130, "Nothing was published; give the same command again."),
        ("preupload", signal.SIGTERM, 143, "Nothing was published; give the same command again."),
        ("commit", signal.SIGINT, 130, f"It was published all the same: {hub.url}/{ID}, commit "),
    ]:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**known, **settings}
        )
        # Long enough for it to be seen before the answer comes.
        hub.after[route] = lambda process=process, number=number: (process.send_signal(number), time.sleep(3))
        out, error = process.communicate(timeout=60)
        assert (process.returncode, out) == (status, "")
        assert f"hf-instruct: interrupted. {said}" in error
        assert "Traceback" not in error
        assert (ID in hub.repos) == (route == "commit")
    assert hub.deleted == [ID, ID]
    assert BASE_ID in hub.repos
