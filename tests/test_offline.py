import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import tiny_models
from huggingface_hub import constants
from judge_servers import find_free_port

from hf_instruct.data.sources import check_source
from hf_instruct.errors import DataError, ModelLoadError
from hf_instruct.models import load_tokenizer
from hf_instruct.offline import fall_back_to_cache, offline
from hf_instruct.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _not_told_to_be_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{find_free_port()}")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that a Hub on loopback was asked for; it knows none of them."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield paths
        server.shutdown()


def test_without_a_network_only_the_cache_is_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "hf_instruct")
    said = "{} cannot be reached; looking for `{}` only in the cache."
    with fall_back_to_cache("some/model"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    caplog.clear()
    # The client warns each time it tries again, for half a minute.
    with pytest.raises(ModelLoadError, match="Without a network, the model must already be in the Hugging Face cache"):
        load_tokenizer("some/model")
    with pytest.raises(DataError, match=r"Couldn't reach 'some/data' on the Hub .* Check the network"):
        check_source("some/data")
    assert caplog.messages == [said.format(constants.ENDPOINT, name) for name in ("some/model", "some/data")]
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_used(asked: list[str], tmp_path: Path) -> None:
    with fall_back_to_cache("some/model"):
        assert not constants.HF_HUB_OFFLINE
    assert asked == ["/"]
    with fall_back_to_cache(str(tmp_path)):
        assert not constants.HF_HUB_OFFLINE
    assert asked == ["/"]
    # The base model of an adapter may be on the Hub.
    (tmp_path / "adapter_config.json").write_text("{}")
    with fall_back_to_cache(str(tmp_path)):
        assert asked == ["/", "/"]
    # Who is told to be offline asks nobody.
    with offline(), fall_back_to_cache("some/model"):
        assert asked == ["/", "/"]


# Found by Python when it starts: connections and names of hosts beyond this machine are noted, and refused.
NO_NETWORK = r"""
import os, socket

def refuse(function, find_host):
    def refused(*args, **options):
        host = find_host(*args)
        if host not in (None, "", "localhost", "127.0.0.1", "::1"):
            with open(os.environ["ATTEMPTS"], "a") as file:
                file.write(f"{function.__name__} {host}\n")
            raise OSError("there is no network")
        return function(*args, **options)
    return refused

def host_of(connection, address, *_):
    return address[0] if isinstance(address, tuple) else None

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, refuse(getattr(socket.socket, name), host_of))
for name in ("getaddrinfo", "gethostbyname"):
    setattr(socket, name, refuse(getattr(socket, name), lambda host, *_: host))
"""


@pytest.mark.slow
def test_a_whole_run_of_local_files_asks_nobody(tiny_gpt2: Path, sample_file: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    attempts, run = tmp_path / "attempts.txt", RunFolder(tmp_path / "run")
    told = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if name not in told}
    folders = {"HF_HOME": str(tmp_path / "hub"), "HF_INSTRUCT_CACHE": str(tmp_path / "cache")}
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment |= {"ATTEMPTS": str(attempts), "PYTHONPATH": path, **folders}

    def call(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    call("import urllib.request; urllib.request.urlopen('https://huggingface.co')")
    assert attempts.read_text() == "getaddrinfo huggingface.co\n"
    attempts.unlink()
    settings = {
        "data": {"source": str(sample_file), "limit": 40},
        "model": {"name": str(tiny_gpt2)},
        "train": {**tiny_models.TINY_SETTINGS, "num_train_epochs": 1},
        "generate": {"max_new_tokens": 5},
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(settings))
    stages = ("data", "train", "generate", "report")
    done = call(f"from hf_instruct import run; run('tiny.yaml', {str(run.path)!r}, stages={stages})")
    assert done.returncode == 0, done.stderr
    assert run.report.is_file()
    assert len(run.read_responses()) == 4
    assert not attempts.exists()
