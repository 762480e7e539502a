from pathlib import Path

import pytest

from hf_instruct.errors import PublishError
from hf_instruct.hub.ollama import check_name, run_ollama


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to which a command called `ollama` writes its arguments and address; it fails for the name `bad`."""
    script = tmp_path / "bin" / "ollama"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$@|$OLLAMA_HOST" >> {tmp_path}/calls\n'
        'if [ "$2" = bad ]; then echo "Error: no server" >&2; exit 1; fi\necho created\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    monkeypatch.setenv("OLLAMA_HOST", "here")
    return tmp_path / "calls"


def test_ollama_is_run(calls: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_ollama("list", shown=False)
    assert capfd.readouterr() == ("", "")
    run_ollama("create", "mine", "-f", "a b/Modelfile", base_url="http://there:1")
    assert calls.read_text() == "list|here\ncreate mine -f a b/Modelfile|http://there:1\n"
    # Standard output is for the result, as JSON.
    assert capfd.readouterr() == ("", "created\n")


def test_what_ollama_refuses(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PublishError, match=r"`ollama create bad` failed \(see its output above\)"):
        run_ollama("create", "bad")
    with pytest.raises(
        PublishError, match=r"`ollama list bad` failed \(Error: no server\). Check that the server is running"
    ):
        run_ollama("list", "bad", shown=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PublishError, match=r"`ollama list` cannot run, because `ollama` is not on the PATH"):
        run_ollama("list")


@pytest.mark.parametrize("name", ["mine", "mine:q8_0", "me/mine", "host.example:5000/me/mine:latest", "a" * 80])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "../mine", "my model", "mine:", "-mine", "a" * 81, "mine\n", "ü"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(PublishError, match=r"is not a valid name for an Ollama model. It should look like `my-model`"):
        check_name(name)
