"""Fixtures that more than one test module uses, and the rule that no test reaches the network."""

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_ollama import FakeOllama

# Before torch or any Hugging Face library is imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from threads, and lose much on a busy machine
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def course_file() -> Path:
    """The course's 1,100 examples."""
    return _shared("instruction-data.json")


@pytest.fixture(scope="session")
def course_responses_file() -> Path:
    """The course's 110 test examples with the answers of its own model."""
    return _shared("instruction-data-with-response.json")


def _shared(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"needs the course's data at {path}")
    return path


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer GPT-2 with random weights, in a folder that `load_model` takes."""
    import tiny_models

    return tiny_models.save_tiny(tmp_path_factory.mktemp("models") / "tiny-gpt2", tiny_models.gpt2_config(), scale=8)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and GPT-2's tokenizer."""
    import tiny_models

    return tiny_models.save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama", tiny_models.llama_config(), scale=8)


@pytest.fixture(autouse=True)
def _log_levels_kept() -> Iterator[None]:
    """Undo what the command line sets for its own process, so that the order of tests does not matter."""
    loggers = [logging.getLogger(name) for name in ("hf_instruct", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOllama]:
    """A fake Ollama on loopback, and clients that try again immediately."""
    monkeypatch.setattr("hf_instruct.servers.DELAYS", [0.0] * 4)
    fake = FakeOllama()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium under Playwright."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium: chromium, chromium-browser or google-chrome on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield chromium
        chromium.close()
