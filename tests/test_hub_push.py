import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_hub import READ_TOKEN, TOKEN, FakeHub
from publishing_runs import (
    BASE_ID,
    build_environment,
    push_to,
    read_base,
    refuse,
    write_adapter_run,
    write_full_run,
)

from hf_instruct.errors import PublishError, RunError
from hf_instruct.hub.folder import write_folder
from hf_instruct.hub.publication import plan_publication
from hf_instruct.hub.push import push
from hf_instruct.models import load_model
from hf_instruct.run_folder import RunFolder

# huggingface_hub 2.4 sends LFS files by the old name of an argument of httpx2's.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ID = "me/assistant"


@pytest.fixture
def run(full_run: RunFolder) -> RunFolder:
    return full_run


def test_a_push_is_one_commit_of_every_file(run: RunFolder, hub: FakeHub) -> None:
    published = push_to(run, hub)
    repo = hub.repos[ID]
    assert repo.messages == ["initial commit", "Publish the model with hf_instruct"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "prompt_format.jinja"} <= set(repo.files)
    assert "training_args.bin" not in repo.files
    assert repo.files["model.safetensors"].content == (run.model / "model.safetensors").read_bytes()
    assert repo.files["loss.png"].content == run.loss_plot.read_bytes()
    assert not repo.private
    assert (published.repo_id, published.url) == (ID, f"{hub.url}/{ID}")
    assert (published.commit, published.changed, published.removed) == (repo.branches["main"], True, [])
    assert set(published.sizes) == set(repo.files) - {".gitattributes"}
    # The token went to the Hub, and not to where it stores large files.
    assert hub.put_headers
    assert all("authorization" not in headers for headers in hub.put_headers)
    for name, file in repo.files.items():
        assert TOKEN.encode() not in file.content, name
    assert not list(run.path.glob(".publish*"))


def test_pushing_again_changes_what_has_changed(run: RunFolder, hub: FakeHub) -> None:
    first = push_to(run, hub)
    again = push_to(run, hub)
    assert (again.commit, again.changed) == (first.commit, False)
    repo = hub.repos[ID]
    files = dict(repo.files)
    old = files["config.json"]
    kept = {"mine.md": old, "images/me.png": old}
    stale = {"model-00001-of-00002.safetensors": old, "vocab.json": old, "adapter_config.json": old}
    kept |= {"assistant-Q4_K_M.gguf": old}
    stale |= {"assistant-Q8_0.gguf": old, "params": old}
    repo.commit("main", {**files, **kept, **stale}, "by hand")
    uploads = hub.count("PUT", "/lfs/upload/")
    published = push_to(run, hub, license="mit", message="Say the license")
    assert published.removed == sorted(stale)
    assert set(repo.files) == set(files) | set(kept)
    assert b"\nlicense: mit\n" in repo.files["README.md"].content
    assert repo.messages[-1] == "Say the license"
    # The weights are there already.
    assert hub.count("PUT", "/lfs/upload/") == uploads


def test_private_revision_and_a_name_alone(run: RunFolder, hub: FakeHub) -> None:
    published = push_to(run, hub, "assistant", private=True, revision="v2/try")
    repo = hub.repos[ID]
    assert (published.repo_id, published.url) == (ID, f"{hub.url}/{ID}/tree/v2/try")
    assert repo.private
    assert list(repo.files) == [".gitattributes"]
    assert "model.safetensors" in repo.commits[repo.branches["v2/try"]]
    # The branch, once it is there, is updated.
    assert not push_to(run, hub, "assistant", private=True, revision="v2/try").changed


def test_an_adapter_takes_the_place_of_a_model_and_back(run: RunFolder, adapter_run: RunFolder, hub: FakeHub) -> None:
    push_to(adapter_run, hub, base_model=BASE_ID)
    repo = hub.repos[ID]
    assert repo.messages[-1] == "Publish the adapter with hf_instruct"
    assert "adapter_model.safetensors" in repo.files
    assert push_to(run, hub).removed == ["adapter_config.json", "adapter_model.safetensors"]
    assert "model.safetensors" in repo.files


def test_who_may_not(run: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not have permission for this (You don't have the rights" in refuse(run, hub, "google/assistant")
    for token, said in [(READ_TOKEN, "does not have permission for this"), ("hf_" + "gone" * 8, "not logged in")]:
        monkeypatch.setenv("HF_TOKEN", token)
        text = refuse(run, hub)
        assert said in text
        assert "`HF_TOKEN` overrides your login" in text
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(run.path / "no-token"))
    assert "Log in with `hf auth login`" in refuse(run, hub)
    assert hub.count("POST", "preupload|commit|upload") == 0


def test_another_base_model_is_not_written_over(run: RunFolder, hub: FakeHub) -> None:
    card = b"---\nbase_model: google/gemma-3-1b-it\n---\n# Theirs\n"
    hub.add_repo(ID, {"README.md": card, "model.safetensors": b"theirs"})
    text = refuse(run, hub)
    assert text == refuse(run, hub, revision="main")
    assert f"contains a model based on `google/gemma-3-1b-it`, but this one is based on `{BASE_ID}`." in text
    assert "`--force`. Nothing was published." in text
    hub.add_repo("me/other", {"README.md": b"# Mine\n", "pytorch_model.bin": b"theirs"})
    assert "a base model that its card does not name" in refuse(run, hub, "me/other")
    assert push_to(run, hub, force=True).changed
    # Without a model in it there is nothing to lose.
    hub.add_repo("me/empty", {"README.md": card})
    assert push_to(run, hub, "me/empty").changed


def test_the_branch_counts_and_not_the_rest(run: RunFolder, hub: FakeHub) -> None:
    theirs = {"README.md": b"---\nbase_model: google/gemma-3-1b-it\n---\n", "model.safetensors": b"theirs"}
    repo = hub.add_repo(ID, theirs)
    # A new branch takes nothing away, and neither does the second try.
    hub.cut = {"upload"}
    refuse(run, hub, revision="ours")
    hub.mend()
    assert push_to(run, hub, revision="ours").changed
    assert repo.files["model.safetensors"].content == b"theirs"
    repo.commit("v2", repo.files, "theirs")
    assert "(branch `v2`) contains a model based on `google/gemma-3-1b-it`" in refuse(run, hub, revision="v2")


def test_a_model_of_others_without_a_name_for_its_base(run: RunFolder, hub: FakeHub, tmp_path: Path) -> None:
    hub.add_repo(ID, {"README.md": b"# Theirs\n", "model.safetensors": b"theirs"})
    local = write_full_run(tmp_path / "local", run.model, model={"name": str(run.model)})
    assert "one that is not on the Hub. " in refuse(local, hub)
    # What we made is what our card says.
    assert push_to(local, hub, "me/mine").changed
    assert push_to(local, hub, "me/mine", license="mit").changed


def test_an_old_name_of_a_repository(run: RunFolder, hub: FakeHub) -> None:
    push_to(run, hub, "me/new")
    hub.renamed["me/old"] = "me/new"
    published = push_to(run, hub, "me/old", license="mit")
    assert (published.repo_id, published.url) == ("me/new", f"{hub.url}/me/new")
    assert b"me/old" not in hub.repos["me/new"].files["README.md"].content


def test_private_is_not_ignored_for_a_public_repository(run: RunFolder, hub: FakeHub) -> None:
    repo = hub.add_repo(ID, {})
    for revision in (None, "v2"):
        text = refuse(run, hub, private=True, revision=revision)
        assert "exists and is public; `--private` is for new repositories." in text
    assert (repo.private, list(repo.branches)) == (False, ["main"])
    # Not even for one that is made between the look and the commit.
    del hub.repos[ID]
    hub.before["create"] = lambda: hub.add_repo(ID, {".gitattributes": b""})
    assert "exists and is public" in refuse(run, hub, private=True)


def test_a_base_model_that_is_not_there(adapter_run: RunFolder, hub: FakeHub) -> None:
    text = refuse(adapter_run, hub, base_model="models/my-folder")
    assert "The base model `models/my-folder` is not on the Hub, or you do not have access to it." in text
    assert hub.count("POST", "/create") == 0


def test_a_folder_of_the_users_never_becomes_an_id_on_the_hub(small_model: Path, hub: FakeHub, tmp_path: Path) -> None:
    # A stranger's, of the name that the user's folder has.
    hub.add_repo("models/my-model", {"config.json": b"{}"})
    adapter = write_adapter_run(tmp_path / "adapter", small_model, model={"name": "models/my-model"})
    full = write_full_run(tmp_path / "full", small_model, model={"name": "models/my-model"})
    for run in (adapter, full):
        run.add_provenance(base_model_is_local=True)
    assert "base model is a local folder" in refuse(adapter, hub)
    push_to(full, hub, "me/whole")
    push_to(adapter, hub, "me/adapter", base_model=BASE_ID)
    private = ("my-model", small_model.name, str(small_model.parent), str(tmp_path), str(Path.cwd()), "run.yaml")
    for repo in (hub.repos["me/whole"], hub.repos["me/adapter"]):
        assert len(repo.files) > 8
        for name, file in repo.files.items():
            assert [text for text in private if text.encode() in file.content] == [], name
    assert b"\nbase_model:" not in hub.repos["me/whole"].files["README.md"].content
    settings = json.loads(hub.repos["me/adapter"].files["adapter_config.json"].content)
    assert settings["base_model_name_or_path"] == BASE_ID


def test_nobody_is_asked_about_a_run_that_cannot_be_published(
    adapter_run: RunFolder, hub: FakeHub, tmp_path: Path
) -> None:
    with pytest.raises(RunError):
        push_to(RunFolder(tmp_path / "none"), hub)
    assert "base model is a local folder" in refuse(adapter_run, hub)
    assert hub.requests == []
    assert list(tmp_path.iterdir()) == []


def test_linked_weights_are_the_same_file(run: RunFolder) -> None:
    out = run.path / "linked"
    write_folder(plan_publication(run, "me/a"), out, link=True)
    assert (out / "model.safetensors").samefile(run.model / "model.safetensors")
    assert not (out / "config.json").samefile(run.model / "config.json")


# When it goes wrong on its way


@pytest.mark.parametrize(
    ("route", "how"),
    [
        *(("create", "refused"), ("info", "gateway"), ("preupload", "refused"), ("batch", "gateway")),
        *(("upload", "cut"), ("commit", "refused"), ("commit", "gateway"), ("commit", "cut")),
    ],
)
def test_what_fails_is_published_by_the_same_command(run: RunFolder, hub: FakeHub, route: str, how: str) -> None:
    if how == "cut":
        hub.cut.add(route)
    else:
        hub.fail[route] = (402, f"no & {TOKEN}") if how == "refused" else (504, "")
    text = refuse(run, hub)
    if how == "refused":
        assert "status 402: no & [token removed]" in text
        assert text.endswith("Nothing was published.")
    else:
        assert text.endswith("Run the same command again to upload what is missing.")
    hub.mend()
    assert push_to(run, hub).changed
    assert "model.safetensors" in hub.repos[ID].files


def test_only_the_answer_is_lost(run: RunFolder, hub: FakeHub) -> None:
    hub.cut_answer.add("commit")
    with pytest.raises(PublishError) as caught:
        push_to(run, hub)
    assert "Nothing was published" not in str(caught.value)
    assert "model.safetensors" in hub.repos[ID].files
    hub.mend()
    assert not push_to(run, hub).changed


def test_somebody_else_commits_meanwhile(run: RunFolder, hub: FakeHub) -> None:
    repo = hub.add_repo(ID, {"a.txt": b"a"})
    # Once while this uploads, and once while this is still writing its files.
    for route in ("commit", "validate"):
        hub.before[route] = lambda: repo.commit("main", repo.files, "theirs")
        with pytest.raises(
            PublishError, match=r"The repository was changed during the upload .* Nothing was published"
        ):
            push_to(run, hub)
    assert repo.messages == ["initial commit", "theirs", "theirs"]
    assert push_to(run, hub).changed


def test_what_the_hub_refuses(run: RunFolder, hub: FakeHub) -> None:
    assert '"license" must be one of the known licenses' in refuse(run, hub, license="apache2")
    hub.full = True
    assert "The storage quota is used up" in refuse(run, hub)
    hub.mend()
    hub.fail["create"] = (429, "slow down")
    assert "rate limit was reached (slow down). Wait a few minutes" in refuse(run, hub)


def test_addresses_and_tokens_that_cannot_be(run: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    with pytest.raises(PublishError, match=r"The push to localhost:9 failed \(Request URL"):
        push(run, ID, api=HfApi(endpoint="localhost:9"))
    monkeypatch.setenv("HF_TOKEN", "hf_é")
    assert "hf_é" not in refuse(run, hub)


def test_offline_and_unreachable(run: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "`HF_HUB_OFFLINE` is set." in refuse(run, hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert hub.requests == []
    hub.stop()
    assert refuse(run, hub).startswith(f"The push to {hub.url} failed (")


_ASKED = """
ids = tokenizer("Name a cloud.", return_tensors="pt")
print(*model(**ids).logits[0, -1, :5].tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "adapter", "merged"])
def test_what_was_published_is_loaded_back_over_http(
    kind: str, run: RunFolder, adapter_run: RunFolder, small_model: Path, hub: FakeHub, tmp_path: Path
) -> None:
    hub.add_repo(BASE_ID, read_base(small_model))
    tuned = run if kind == "full" else adapter_run
    push_to(tuned, hub, merge=kind == "merged", base_model=None if kind == "full" else BASE_ID)
    # As the card says, on another machine that knows of this Hub only.
    card = hub.repos[ID].files["README.md"].content.decode()
    code = card.split("```python\n")[1].split("```")[0].replace("=256", "=5") + _ASKED
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = build_environment(hub, tmp_path, HF_HUB_DISABLE_TELEMETRY="1")
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    model, tokenizer = load_model(str(tuned.model))
    expected = model(**tokenizer("Name a cloud.", return_tensors="pt")).logits[0, -1, :5].tolist()
    *answer, numbers = finished.stdout.strip().splitlines()
    assert "".join(answer).strip()
    assert [float(number) for number in numbers.split()] == pytest.approx(
        expected, abs=0.01 if kind == "merged" else 1e-4
    )
    assert hub.count("GET", "/resolve/.*/.*model.safetensors|/lfs/[0-9a-f]{64}") > 0


@pytest.mark.slow
def test_ctrl_c_and_sigterm_as_they_come(run: RunFolder, hub: FakeHub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hf_instruct", "push", str(run.path), "--to", ID]
    for number, status in [(signal.SIGINT, 130), (signal.SIGTERM, 143)]:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=build_environment(hub, tmp_path, HF_TOKEN=TOKEN),
            # A shell lets what it starts in the background ignore Ctrl-C, this suite too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        # Long enough for it to be seen before the answer comes.
        hub.before["preupload"] = lambda process=process, number=number: (process.send_signal(number), time.sleep(3))
        out, error = process.communicate(timeout=60)
        assert (process.returncode, out) == (status, "")
        assert "hf-instruct: interrupted. Run the same command to upload what is missing." in error
        assert "Traceback" not in error
        assert list(hub.repos[ID].files) == [".gitattributes"]
        assert not list(run.path.glob(".publish*"))
