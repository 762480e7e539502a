import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants
from judge_servers import find_free_port

from hf_instruct.data.sources import check_source
from hf_instruct.errors import DataError, ModelLoadError
from hf_instruct.models import load_tokenizer
from hf_instruct.offline import cache_alone_if_unreachable, offline


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


def test_without_a_network_the_cache_alone_is_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "hf_instruct")
    said = "{} cannot be reached; looking for `{}` only in the cache."
    with cache_alone_if_unreachable("some/model"):
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
    with cache_alone_if_unreachable("some/model"):
        assert not constants.HF_HUB_OFFLINE
    assert asked == ["/"]
    with cache_alone_if_unreachable(str(tmp_path)):
        assert not constants.HF_HUB_OFFLINE
    assert asked == ["/"]
    # The base model of an adapter may be on the Hub.
    (tmp_path / "adapter_config.json").write_text("{}")
    with cache_alone_if_unreachable(str(tmp_path)):
        assert asked == ["/", "/"]
    # Who is told to be offline asks nobody.
    with offline(), cache_alone_if_unreachable("some/model"):
        assert asked == ["/", "/"]
