"""Fixtures that more than one test module uses, and the rule that no test reaches the network."""

import gc
import json
import logging
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_ollama import FakeOllama

import hf_instruct
from hf_instruct.run_folder import RunFolder

# Before torch or any Hugging Face library is imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from threads, and lose much on a busy machine
# A developer's own judge servers are not asked.
for name in ("OLLAMA_HOST", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
    os.environ.pop(name, None)
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")

# A shell starts background jobs with Ctrl-C ignored, which some tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What is imported stays: looking through it for garbage took two fifths of the time in which tests are collected.
gc.disable()

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def course_file() -> Path:
    """The course's 1,100 examples."""
    return _shared("instruction-data.json")


@pytest.fixture(scope="session")
def course_responses_file() -> Path:
    """The course's 110 test examples with the answers of its own model."""
    return _shared("instruction-data-with-response.json")


@pytest.fixture(scope="session")
def sample_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred of the packaged examples, for tests that need some that read like a person's."""
    return _write_sample(tmp_path_factory.mktemp("sample") / "examples.json", 200)


@pytest.fixture(scope="session")
def sample_responses_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty of them with answers, as the course writes them: each has the reference of the next."""
    return _write_sample(tmp_path_factory.mktemp("sample") / "responses.json", 60, model_response=True)


@pytest.fixture(scope="session")
def repeating_file(sample_file: Path) -> Path:
    """These examples with six training prompts again: two in the test split, four in the validation split."""
    rows = json.loads(sample_file.read_text())
    again = [row | {"output": "Something else."} for row in rows[:6]]
    path = sample_file.with_name("repeating.json")
    path.write_text(json.dumps([*rows[:180], *again[:2], *rows[180:], *again[2:]]))
    return path


def _write_sample(path: Path, count: int, *, model_response: bool = False) -> Path:
    text = (Path(hf_instruct.__file__).parent / "data" / "everyday.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()[: count + 1]]
    answers = [{"model_response": row["output"]} if model_response else {} for row in rows[1:]]
    path.write_text(json.dumps([row | answer for row, answer in zip(rows, answers, strict=False)]))
    return path


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


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, for verdicts and checks of judges."""
    monkeypatch.setenv("HF_INSTRUCT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


@pytest.fixture(scope="module", params=["tiny_gpt2", "tiny_llama"])
def tiny(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Each of these two models with its tokenizer, loaded."""
    import tiny_models

    return tiny_models.load_copy(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def gpt2(tiny_gpt2: Path) -> tuple[Any, Any]:
    """The first of them."""
    import tiny_models

    return tiny_models.load_copy(tiny_gpt2)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with an even smaller tokenizer."""
    import publishing_runs
    import tiny_models

    return publishing_runs.save_small(tmp_path_factory.mktemp("models") / "tiny-base", tiny_models.gpt2_config())


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> RunFolder:
    """A run, with scores, that tuned all weights of that model."""
    import publishing_runs

    return publishing_runs.write_full_run(tmp_path_factory.mktemp("runs") / "zeppelin", small_model)


@pytest.fixture(scope="session")
def adapter_run(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> RunFolder:
    """A run, with scores, that tuned an adapter of that model."""
    import publishing_runs

    return publishing_runs.write_adapter_run(tmp_path_factory.mktemp("runs") / "zeppelin", small_model)


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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A fake Hub; see `open_hub`."""
    import publishing_runs

    with publishing_runs.open_hub(monkeypatch) as fake:
        yield fake


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
