import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub
from publishing_runs import BASE_ID, build_environment, write_adapter_run

from hf_instruct.cli.main import main
from hf_instruct.run_folder import RunFolder


@pytest.fixture
def run(full_run: RunFolder) -> RunFolder:
    return full_run


def test_a_dry_run_writes_the_folder_and_needs_no_network(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))
    out = tmp_path / "out"
    assert main(["push", str(run.path), "--to", "me/a", "--dry-run", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:-3]] == sorted(path.name for path in out.iterdir())
    assert lines[-3:-1] == [str(out), f"Nothing was published; the model card is {out / 'README.md'}."]
    assert lines[-1].startswith("Next: ")
    assert main(["push", str(run.path), "--to", "me/a", "--dry-run", "--out", str(out), "--gguf"]) == 0
    last = capsys.readouterr().out.splitlines()[-2]
    assert last == f"To make a smaller file with llama.cpp: llama-quantize {out}/a-F16.gguf {out}/a-Q4_K_M.gguf Q4_K_M"
    # The base model of an adapter may be on the Hub, and is not asked for.
    adapter = write_adapter_run(tmp_path / "adapter", run.model)
    options = ["--dry-run", "--base-model", BASE_ID, "--license", "mit"]
    assert main(["push", str(adapter.path), "--to", "me/a", *options]) == 0
    assert "\nlicense: mit\n" in (adapter.path / "publish" / "README.md").read_text()


def test_an_interrupted_dry_run_says_that_nothing_was_published(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_instruct.hub.push.write_publication", interrupt)
    assert main(["push", str(run.path), "--to", "me/a", "--dry-run"]) == 130
    assert "interrupted. Nothing was published; run the same command again." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "me/a", "--out", "x"], "`--out` needs `--dry-run`; add it, or leave `--out` out."),
        (["--to", "me/a b", "--dry-run"], "`--to me/a b` is not a valid repository name. "),
        (["--to", "me/a", "--dry-run", "--merge"], "trained all weights, so there is nothing to merge"),
        (["--to", "me/a"], "`HF_HUB_OFFLINE` is set. "),
    ],
)
def test_mistakes_are_one_line(
    run: RunFolder, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["push", str(run.path), *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.startswith("hf-instruct: ")
    assert said.err.count("\n") == 1


def _push(run: RunFolder, hub: FakeHub, home: Path, *arguments: str, token: str = TOKEN) -> tuple[int, str, str]:
    """Push as a user does, in a process of its own."""
    environment = build_environment(hub, home, **({"HF_TOKEN": token} if token else {}))
    command = [sys.executable, "-m", "hf_instruct", "push", str(run.path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert TOKEN not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_push_as_a_user_does(run: RunFolder, hub: FakeHub, tmp_path: Path) -> None:
    code, out, error = _push(run, hub, tmp_path, "--to", "me/a")
    assert code == 0, error
    commit = hub.repos["me/a"].branches["main"][:7]
    lines = out.splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == sorted(set(hub.repos["me/a"].files) - {".gitattributes"})
    assert lines[-1].startswith(f"{hub.url}/me/a   commit {commit}, 9 files, ")
    # No bars where nobody watches: one notice alone.
    assert error.count("\n") == 1
    assert "the license of the weights is unknown" in error
    code, out, _ = _push(run, hub, tmp_path, "--to", "me/a")
    assert (code, out) == (0, f"{hub.url}/me/a   is up to date: commit {commit}, 9 files\n")
    code, out, _ = _push(run, hub, tmp_path, "--to", "me/a", "--gguf")
    assert out.splitlines()[-3:] == [
        "Next: ollama run hf.co/me/a:Q8_0",
        "To make a smaller file with llama.cpp: hf download me/a a-F16.gguf --local-dir .",
        "  && llama-quantize a-F16.gguf a-Q4_K_M.gguf Q4_K_M && hf upload me/a a-Q4_K_M.gguf",
    ]
    code, out, error = _push(run, hub, tmp_path, "--to", "me/a", token="")
    assert (code, out) == (1, "")
    assert error.startswith("hf-instruct: You are not logged in")
    assert error.count("\n") == 1
