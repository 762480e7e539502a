import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import READ_TOKEN, TOKEN, FakeHub
from pushed_runs import (
    BASE_ID,
    open_hub,
    push_to,
    read_base,
    refuse,
    save_byte_model,
    write_adapter_run,
    write_full_run,
)

from hf_instruct.errors import RunError
from hf_instruct.hub.folder import PublishOptions, write_folder
from hf_instruct.run_folder import RunFolder

# huggingface_hub 2.4 sends LFS files by the old name of an argument of httpx2's.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("models") / "tiny-bytes")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, byte_model: Path) -> RunFolder:
    return write_full_run(tmp_path_factory.mktemp("runs") / "zeppelin", byte_model)


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory, byte_model: Path) -> RunFolder:
    return write_adapter_run(tmp_path_factory.mktemp("runs") / "zeppelin", byte_model)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with open_hub(monkeypatch) as fake:
        yield fake


def test_a_push_is_one_commit_of_every_file(run: RunFolder, hub: FakeHub) -> None:
    published = push_to(run, hub)
    repo = hub.repos["me/assistant"]
    assert repo.messages == ["initial commit", "Publish the model with hf_instruct"]
    assert sorted(repo.files) == [
        ".gitattributes",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "loss.png",
        "model.safetensors",
        "prompt_format.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert repo.files["model.safetensors"].content == (run.model / "model.safetensors").read_bytes()
    assert repo.files["loss.png"].content == run.loss_plot.read_bytes()
    assert not repo.private
    assert published.url == f"{hub.url}/me/assistant"
    assert published.commit == repo.branches["main"]
    assert published.changed
    assert published.removed == []
    assert set(published.sizes) == set(repo.files) - {".gitattributes"}
    # The token went to the Hub, and not to where it stores large files.
    assert hub.put_headers
    assert all("authorization" not in headers for headers in hub.put_headers)
    for name, file in repo.files.items():
        assert TOKEN.encode() not in file.content, name
    assert not list(run.path.glob(".publish-*"))


def test_pushing_again_changes_what_has_changed(run: RunFolder, hub: FakeHub) -> None:
    first = push_to(run, hub)
    again = push_to(run, hub)
    assert (again.commit, again.changed) == (first.commit, False)
    repo = hub.repos["me/assistant"]
    files = dict(repo.files)
    old = files["config.json"]
    kept = {"mine.md": old, "images/me.png": old}
    stale = {"model-00001-of-00002.safetensors": old, "vocab.json": old, "adapter_config.json": old}
    repo.commit("main", {**files, **kept, **stale}, "by hand")
    uploads = hub.count("PUT", "/lfs/upload/")
    published = push_to(run, hub, license="mit", message="Say the licence")
    assert published.changed
    assert published.removed == ["adapter_config.json", "model-00001-of-00002.safetensors", "vocab.json"]
    assert set(repo.files) == set(files) | set(kept)
    assert b"\nlicense: mit\n" in repo.files["README.md"].content
    assert repo.messages[-1] == "Say the licence"
    # The weights are there already.
    assert hub.count("PUT", "/lfs/upload/") == uploads


def test_private_revision_and_a_name_alone(run: RunFolder, hub: FakeHub) -> None:
    published = push_to(run, hub, "assistant", private=True, revision="v2/try")
    repo = hub.repos["me/assistant"]
    assert published.repo_id == "me/assistant"
    assert repo.private
    assert published.url == f"{hub.url}/me/assistant/tree/v2/try"
    assert list(repo.files) == [".gitattributes"]
    assert "model.safetensors" in repo.commits[repo.branches["v2/try"]]
    assert push_to(run, hub, "My-Org/assistant").repo_id == "My-Org/assistant"


def test_an_adapter_takes_the_place_of_a_model_and_back(run: RunFolder, adapter_run: RunFolder, hub: FakeHub) -> None:
    push_to(adapter_run, hub, base_model=BASE_ID)
    repo = hub.repos["me/assistant"]
    assert repo.messages[-1] == "Publish the adapter with hf_instruct"
    assert "adapter_model.safetensors" in repo.files
    published = push_to(run, hub)
    assert published.removed == ["adapter_config.json", "adapter_model.safetensors"]
    assert "model.safetensors" in repo.files


def test_who_may_not(run: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuse(run, hub, "google/assistant") == (
        "`--to google/assistant`: you are `me`, who may not write to the namespace `google`. Yours: `me`, `my-org`. "
        "Nothing was published."
    )
    hub.orgs = {"my-org": "write", "reading": "read"}
    assert "may not write to the namespace `reading`. Yours: `me`, `my-org`. " in refuse(run, hub, "reading/a")
    log_in = (
        "`HF_TOKEN` goes before any login: set it to a token that may write, or unset it and `hf auth login`. "
        "Nothing was published."
    )
    hub.fail["create"] = (403, "You need a role of contributor")
    assert refuse(run, hub, "my-org/a") == (
        f"The Hub does not let your token do this: You need a role of contributor. {log_in}"
    )
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert refuse(run, hub) == f"The token of `me` may only read. {log_in}"
    monkeypatch.setenv("HF_TOKEN", "hf_" + "gone" * 8)
    assert refuse(run, hub) == f"The Hub does not know your token. {log_in}"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(run.path / "no-token"))
    assert refuse(run, hub) == (
        f"You are not logged in to {hub.url}. Log in with `hf auth login` (a token that may write), or set `HF_TOKEN`. "
        "Nothing was published."
    )
    assert hub.count("POST", "commit") == 0


def test_another_base_model_is_not_written_over(run: RunFolder, hub: FakeHub) -> None:
    card = b"---\nbase_model: google/gemma-3-1b-it\n---\n# Theirs\n"
    hub.add_repo("me/assistant", {"README.md": card, "model.safetensors": b"theirs"})
    ours = f"this one is made of `{BASE_ID}`. Name another repository with `--to`, or replace it with `--force`. "
    assert refuse(run, hub) == (
        "`me/assistant` exists and holds a model made of the base model `google/gemma-3-1b-it`; "
        f"{ours}Nothing was published."
    )
    hub.add_repo("me/other", {"README.md": b"# Mine\n", "pytorch_model.bin": b"theirs"})
    assert refuse(run, hub, "me/other") == (
        "`me/other` exists and holds a model made of a base model that its card does not name; "
        f"{ours}Nothing was published."
    )
    assert push_to(run, hub, force=True).changed
    # Without a model in it there is nothing to lose.
    hub.add_repo("me/empty", {"README.md": card})
    assert push_to(run, hub, "me/empty").changed


def test_the_branch_counts_and_not_the_rest(run: RunFolder, hub: FakeHub) -> None:
    theirs = {"README.md": b"---\nbase_model: google/gemma-3-1b-it\n---\n", "model.safetensors": b"theirs"}
    repo = hub.add_repo("me/assistant", theirs)
    # A new branch takes nothing away.
    assert push_to(run, hub, revision="ours").changed
    assert repo.files["model.safetensors"].content == b"theirs"
    repo.branches["v2"] = repo.branches["main"]
    assert refuse(run, hub, revision="v2").startswith(
        "The branch `v2` of `me/assistant` holds a model made of the base model `google/gemma-3-1b-it`; "
    )


def test_a_model_of_others_without_a_name_for_its_base(run: RunFolder, hub: FakeHub, tmp_path: Path) -> None:
    hub.add_repo("me/assistant", {"README.md": b"# Theirs\n", "model.safetensors": b"theirs"})
    local = write_full_run(tmp_path / "local", run.model, model={"name": str(run.model)})
    assert "; this one is made of one that is not on the Hub. " in refuse(local, hub)
    # Of our own making is what our card says.
    assert push_to(local, hub, "me/mine").changed
    assert push_to(local, hub, "me/mine", license="mit").changed


def test_an_old_name_of_a_repository(run: RunFolder, hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    push_to(run, hub, "me/new")
    hub.renamed["me/old"] = "me/new"
    with caplog.at_level("INFO", "hf_instruct"):
        published = push_to(run, hub, "me/old", license="mit")
    assert (published.repo_id, published.url) == ("me/new", f"{hub.url}/me/new")
    assert "`me/old` is called `me/new` on the Hub; it goes there." in caplog.messages
    assert b"me/old" not in hub.repos["me/new"].files["README.md"].content


def test_private_is_not_ignored_for_a_public_repository(run: RunFolder, hub: FakeHub) -> None:
    hub.add_repo("me/assistant", {})
    assert refuse(run, hub, private=True) == (
        "`me/assistant` exists and is public; `--private` is for new repositories. Make it private in its settings "
        "first, or leave out `--private`. Nothing was published."
    )


def test_a_base_model_that_is_not_there(adapter_run: RunFolder, hub: FakeHub) -> None:
    assert refuse(adapter_run, hub, base_model="models/my-folder") == (
        "The base model `models/my-folder` is not on the Hub, or not for you to see. Name its id there with "
        "`--base-model`. Nothing was published."
    )


def test_a_folder_of_the_users_never_becomes_an_id_on_the_hub(byte_model: Path, hub: FakeHub, tmp_path: Path) -> None:
    # A stranger's, of the name that the user's folder has.
    hub.add_repo("models/my-model", {"config.json": b"{}"})
    adapter = write_adapter_run(tmp_path / "adapter", byte_model, model={"name": "models/my-model"})
    full = write_full_run(tmp_path / "full", byte_model, model={"name": "models/my-model"})
    for run in (adapter, full):
        run.add_provenance(base_model_is_local=True)
    assert "base model in a local folder" in refuse(adapter, hub)
    push_to(full, hub, "me/whole")
    push_to(adapter, hub, "me/adapter", base_model=BASE_ID)
    private = ("my-model", byte_model.name, str(byte_model.parent), str(tmp_path), str(Path.cwd()), "run.yaml")
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
    assert "base model in a local folder" in refuse(adapter_run, hub)
    assert hub.requests == []
    assert list(tmp_path.iterdir()) == []


def test_linked_weights_are_the_same_file(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = run.path / "linked"
    write_folder(run, out, repo_id="me/a", options=PublishOptions(), link=True)
    assert (out / "model.safetensors").samefile(run.model / "model.safetensors")
    assert not (out / "config.json").samefile(run.model / "config.json")


_LOADED_FULL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("me/assistant")
tokenizer = AutoTokenizer.from_pretrained("me/assistant")
"""
_LOADED_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("openai-community/gpt2"), "me/assistant")
tokenizer = AutoTokenizer.from_pretrained("me/assistant")
"""
_LOADED_AUTO = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model = AutoPeftModelForCausalLM.from_pretrained("me/assistant")
tokenizer = AutoTokenizer.from_pretrained("me/assistant")
"""
_ASKED = """
ids = tokenizer("Name a cloud.", return_tensors="pt")
print(" ".join(f"{number:.3f}" for number in model(**ids).logits[0, -1, :5].tolist()))
"""


def _in_fresh_process(code: str, hub: FakeHub, home: Path) -> str:
    """Run code as on another machine that knows of this Hub only."""
    known = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    finished = subprocess.run(command, capture_output=True, text=True, env={**known, **settings}, cwd=home)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def _local_logits(model_path: Path) -> str:
    from hf_instruct.models import load_model

    model, tokenizer = load_model(str(model_path))
    logits = model(**tokenizer("Name a cloud.", return_tensors="pt")).logits
    return " ".join(f"{number:.3f}" for number in logits[0, -1, :5].tolist())


def _code_of_card(hub: FakeHub) -> str:
    card = hub.repos["me/assistant"].files["README.md"].content.decode()
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.slow
def test_a_full_model_is_loaded_back_over_http(run: RunFolder, hub: FakeHub, tmp_path: Path) -> None:
    push_to(run, hub)
    assert _in_fresh_process(_LOADED_FULL + _ASKED, hub, tmp_path).strip() == _local_logits(run.model)
    assert hub.count("GET", "/resolve/.*/model.safetensors|/lfs/[0-9a-f]{64}") > 0
    assert _in_fresh_process(_code_of_card(hub).replace("=256", "=5"), hub, tmp_path).strip()


@pytest.mark.slow
def test_an_adapter_is_loaded_back_over_http(
    adapter_run: RunFolder, byte_model: Path, hub: FakeHub, tmp_path: Path
) -> None:
    hub.add_repo(BASE_ID, read_base(byte_model))
    push_to(adapter_run, hub, base_model=BASE_ID)
    expected = _local_logits(adapter_run.model)
    assert expected != _local_logits(byte_model)
    for code in (_LOADED_ADAPTER, _LOADED_AUTO):
        assert _in_fresh_process(code + _ASKED, hub, tmp_path).strip() == expected
    assert _in_fresh_process(_code_of_card(hub).replace("=256", "=5"), hub, tmp_path).strip()


@pytest.mark.slow
def test_a_merged_adapter_is_loaded_back_over_http(adapter_run: RunFolder, hub: FakeHub, tmp_path: Path) -> None:
    push_to(adapter_run, hub, base_model=BASE_ID, merge=True)
    logits = _in_fresh_process(_LOADED_FULL + _ASKED, hub, tmp_path).split()
    for number, expected in zip(logits, _local_logits(adapter_run.model).split(), strict=True):
        assert float(number) == pytest.approx(float(expected), abs=0.01)
