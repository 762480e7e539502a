import json
import os
from pathlib import Path

import pytest

from hf_instruct.errors import RunError
from hf_instruct.manifests import Origin, read_manifest, stamp_weights, verify_base, verify_model, write_manifest


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model in a local folder, of two files."""
    path = tmp_path / "base"
    path.mkdir()
    for number in (1, 2):
        (path / f"model-0000{number}-of-00002.safetensors").write_bytes(b"w" * 100)
    return path


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """An adapter trained from it."""
    path = tmp_path / "run" / "model"
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "revision": None}))
    (path / "adapter_model.safetensors").write_bytes(b"a" * 100)
    for name in ("tokenizer.json", "training_args.bin"):
        (path / name).write_text("{}")
    origin = Origin(num_processes=1, sharding=None, examples_sha256="", base=stamp_weights(str(base)))
    write_manifest(path, origin)
    return path


def rewrite(path: Path, *, keep_time: bool = False) -> None:
    """Change a file's content, not its size."""
    stat = path.stat()
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (0 if keep_time else 10**9)))


def test_a_manifest_lists_all_files_that_are_read(adapter: Path, base: Path) -> None:
    manifest = read_manifest(adapter)
    assert sorted(manifest.files) == ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]
    assert sorted(manifest.origin.base.files) == sorted(path.name for path in base.iterdir())
    # It may lie beside files that are published.
    assert str(base.parent) not in (adapter / "manifest.json").read_text()


def test_an_unchanged_model_is_accepted_wherever_it_was_copied(adapter: Path, base: Path) -> None:
    verify_model(adapter, full=True)
    for path in (*base.iterdir(), *adapter.iterdir()):
        os.utime(path)
    (adapter / "training_args.bin").unlink()
    (adapter / "tokenizer.json").write_text('{"edited": true}')
    verify_model(adapter)


def test_a_missing_manifest_is_accepted_and_a_partial_one_refused(adapter: Path, base: Path) -> None:
    (adapter / "manifest.json").unlink()
    rewrite(adapter / "adapter_model.safetensors")
    verify_model(adapter, full=True)
    verify_base(adapter, str(base), full=True)
    verify_model(adapter / "missing")
    for content in ("", "{", "[]", '{"files": 3, "origin": null}'):
        (adapter / "manifest.json").write_text(content)
        with pytest.raises(RunError, match=r"manifest.json` is incomplete"):
            verify_model(adapter)


def test_a_model_with_a_lost_or_changed_file_is_refused(adapter: Path) -> None:
    for name in ("adapter_model.safetensors", "tokenizer.json", "adapter_config.json"):
        (adapter / name).rename(adapter.parent / "aside")
        with pytest.raises(
            RunError, match=f"The model in `{adapter}` is damaged: `{name}` is missing. Restore the file"
        ):
            verify_model(adapter)
        (adapter.parent / "aside").rename(adapter / name)
    rewrite(adapter / "adapter_model.safetensors", keep_time=True)
    # Found where all contents are read.
    verify_model(adapter)
    with pytest.raises(RunError, match=r"the content of `adapter_model.safetensors` has changed"):
        verify_model(adapter, full=True)
    os.utime(adapter / "adapter_model.safetensors")
    with pytest.raises(RunError, match=r"the content of `adapter_model.safetensors` has changed"):
        verify_model(adapter)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
def test_a_changed_base_model_of_an_adapter_is_refused(adapter: Path, base: Path, name: str) -> None:
    rewrite(base / name)
    message = f"The base model `{base}` is not the one that `{adapter}` was trained from: the content of `{name}` has"
    with pytest.raises(RunError, match=message):
        verify_model(adapter)
    (base / name).unlink()
    with pytest.raises(RunError, match=f"`{name}` is missing"):
        verify_base(adapter, str(base))


def test_a_snapshot_of_the_hub_is_identified_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the layout of huggingface_hub's cache: snapshots by commit, files as links to blobs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--me--tiny"
    commits = ["a" * 40, "b" * 40, "c" * 40]
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    # The second commit has the first one's weights.
    for commit, blob in zip(commits, ("one", "one", "two"), strict=True):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (repository / "blobs" / blob).write_text(blob)
        (snapshot / "model.safetensors").symlink_to(repository / "blobs" / blob)
    main = repository / "refs" / "main"
    main.write_text(commits[0])
    base = stamp_weights("me/tiny")
    assert (base.commit, list(base.files)) == (commits[0], ["model.safetensors"])
    model = tmp_path / "model"
    model.mkdir()
    write_manifest(model, Origin(num_processes=1, sharding=None, examples_sha256="", base=base))
    for commit in commits[:2]:
        main.write_text(commit)
        verify_base(model, "me/tiny", full=True)
    main.write_text(commits[2])
    with pytest.raises(RunError, match=f"`me/tiny` is not the one at commit {commits[0]} that `.*` was trained from"):
        verify_base(model, "me/tiny")
    verify_base(model, "me/tiny", revision=commits[0])
    # Not in the cache: there is nothing to compare.
    verify_base(model, "me/other")
    assert stamp_weights("me/other") is None
    assert stamp_weights("") is None
