import logging
from pathlib import Path

import pytest
import tiny_models
import torch

from hf_instruct.training.fast import precision
from hf_instruct.training.fast.precision import prefers_bf16


@pytest.fixture(scope="module")
def gpt2():
    return tiny_models.build_model(tiny_models.gpt2_config())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_INSTRUCT_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("rates", "expected"), [((100.0, 130.0), True), ((100.0, 119.0), False), ((118.0, 66.0), False)]
)
def test_bf16_has_to_be_a_fifth_faster(gpt2, caplog, monkeypatch, rates: tuple[float, float], expected: bool) -> None:
    monkeypatch.setattr(precision, "_measure_rates", lambda *shape: rates)
    with caplog.at_level(logging.INFO, logger="hf_instruct"):
        assert prefers_bf16(gpt2, "cpu") is expected
    (message,) = caplog.messages
    assert all(text in message for text in (f"{rates[0]:.0f}", f"{rates[1]:.0f}", "bf16." if expected else "float32."))


def test_a_machine_decides_once_for_a_shape(gpt2, monkeypatch) -> None:
    measured = []

    def measure(*shape: int) -> tuple[float, float]:
        measured.append(shape)
        return 100.0, 200.0

    monkeypatch.setattr(precision, "_measure_rates", measure)
    assert prefers_bf16(gpt2, "cpu")
    assert prefers_bf16(gpt2, "cpu")
    width = gpt2.config.n_embd
    assert measured == [(width, 4 * width)], "the layers that do most of the work, kept after the first time"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert prefers_bf16(gpt2, "cpu")
    assert len(measured) == 2, "another number of threads is another machine"


def test_a_damaged_or_unwritable_cache_only_costs_the_time(gpt2, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(precision, "_measure_rates", lambda *shape: (100.0, 200.0))
    assert prefers_bf16(gpt2, "cpu")
    (kept,) = (tmp_path / "precision").iterdir()
    kept.write_text("[1")
    assert prefers_bf16(gpt2, "cpu")
    blocked = tmp_path / "a file"
    blocked.touch()
    monkeypatch.setenv("HF_INSTRUCT_CACHE", str(blocked))
    assert prefers_bf16(gpt2, "cpu")


def test_a_real_product_is_timed() -> None:
    rates = precision._measure_rates(64, 256)
    assert all(rate > 0 for rate in rates)


def test_emulated_bf16_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def time_products(*sizes: int) -> tuple[float, float]:
        timed.append(sizes)
        return 70.0, 1.0

    monkeypatch.setattr(precision, "_time_products", time_products)
    assert precision._measure_rates(768, 3072) == (70.0, 1.0)
    assert timed == [(16, 256, 256)]


def test_other_devices_are_not_timed(gpt2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_measure_rates", None)
    assert not prefers_bf16(gpt2, "mps")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert prefers_bf16(gpt2, "cuda")
