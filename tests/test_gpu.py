"""What only a CUDA GPU can show: `python -m pytest -m gpu`, on request."""

from pathlib import Path

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model

from hf_instruct.generation import decoding_loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_replayed_steps_choose_the_same_tokens(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str, adapter: bool
) -> None:
    folder: Path = request.getfixturevalue(name)
    model, _ = tiny_models.load_copy(folder)
    if adapter:
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out="gpt2" in name)
        model = get_peft_model(model, config)
    model.to("cuda").eval()
    prompts = [[3, 5, 7, *range(20 * n, 20 * n + n)] for n in range(1, 9)]
    settings = {"ends": set(range(0, tiny_models.END, 25)), "max_new_tokens": 40, "pad_id": tiny_models.END}
    replays: list[bool] = []
    advance = decoding_loop._Batch.advance
    monkeypatch.setattr(
        decoding_loop._Batch, "advance", lambda self, latest: (advance(self, latest), replays.append(self.replays))[0]
    )
    replayed = decoding_loop.decode(model, prompts, **settings)
    assert all(replays), "the captured step was refused"
    assert len({len(row) for row in replayed}) > 1, "rows have to leave the batch at different steps"
    monkeypatch.setattr(decoding_loop, "_can_capture", lambda model: False)
    assert decoding_loop.decode(model, prompts, **settings) == replayed
