"""Attention within segments is the attention of a mask that says the same."""

import random
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from torch.nn import functional

from hf_instruct.training.fast import attention
from hf_instruct.training.fast.attention import Segment, Segments, build_segments, segment_attention

# Tokens of a prefix, and of the examples that share it; one has no prefix, and one is longer than a block's queries.
ROWS = {"short": [(9, [4, 1, 7, 30])], "long": [(20, [150, 3, 70])], "several": [(5, [8, 2]), (0, [6]), (11, [1, 90])]}


def lay_out(rows: list[tuple[int, list[int]]]) -> tuple[list[Segment], torch.Tensor, int]:
    """Return the segments of rows laid end to end, what each token sees, [width, width], and the number of tokens."""
    segments, end = [], 0
    pairs: list[tuple[range, range]] = []
    for length, owns in rows:
        prefix = range(end, end + length)
        end += length
        if prefix:
            segments.append(Segment(range(0), prefix.start, prefix.start, prefix.stop))
            pairs.append((range(0), prefix))
        for own in owns:
            segments.append(Segment(prefix, end, end, end + own))
            pairs.append((prefix, range(end, end + own)))
            end += own
    width = (end // 16 + 1) * 16
    sees = torch.eye(width, dtype=torch.bool)
    for prefix, own in pairs:
        for place in own:
            sees[place, [*prefix, *range(own.start, place + 1)]] = True
    return segments, sees, end


def attend(states: list[torch.Tensor], segments: Segments, **settings: object) -> torch.Tensor:
    """Return [1, row, heads, size] for query, key and value, as a model asks for it."""
    return attention._attend(torch.nn.Module(), *states, None, segments=segments, **settings)[0]


def draw(width: int, heads: tuple[int, int, int], dtype: torch.dtype, size: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, count, width, size, dtype=dtype, requires_grad=True) for count in heads]


@pytest.mark.parametrize(("scores", "kept"), [(500, 0), (48_000, 512)], ids=["small blocks", "large blocks"])
@pytest.mark.parametrize("heads", [(4, 4, 4), (4, 2, 2), (3, 1, 1)], ids=["multi-head", "grouped", "one key head"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_outputs_and_gradients_equal_those_under_a_mask(rows, heads, scores: int, kept: int, monkeypatch) -> None:
    monkeypatch.setattr(attention, "_MAX_SCORES", scores)
    monkeypatch.setattr(attention, "_MAX_KEPT_KEYS", kept)
    segments, sees, count = lay_out(rows)
    states = draw(len(sees), heads, torch.float32)
    output = attend(states, build_segments(segments, len(sees)), scaling=0.3)[:, :count]
    expected = functional.scaled_dot_product_attention(*states, attn_mask=sees, scale=0.3, enable_gqa=True)
    expected = expected.transpose(1, 2)[:, :count]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(output.shape)
    ours, plain = (torch.autograd.grad((one * weights).sum(), states) for one in (output, expected))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_each_token_is_asked_for_once() -> None:
    segments, sees, count = lay_out(ROWS["long"])
    built = build_segments(segments, len(sees))
    queries = torch.cat([block.queries.flatten() for block in built.blocks])
    assert queries[built.indices[:count]].tolist() == list(range(count))
    assert built.indices[count:].tolist() == [len(queries)] * (len(sees) - count)
    assert max(block.queries.shape[1] for block in built.blocks) <= 64


def test_bf16_is_as_exact_as_sdpa() -> None:
    segments, sees, count = lay_out([(30, [random.Random(n).randrange(5, 90) for n in range(12)])])
    exact = draw(len(sees), (4, 4, 4), torch.float32, size=64)
    halved = [state.detach().bfloat16().requires_grad_() for state in exact]
    wanted = functional.scaled_dot_product_attention(*exact, attn_mask=sees).transpose(1, 2)[:, :count]
    plain = functional.scaled_dot_product_attention(*halved, attn_mask=sees).transpose(1, 2)[:, :count]
    ours = attend(halved, build_segments(segments, len(sees)))[:, :count]
    weights = torch.randn(wanted.shape)
    found = {}
    for name, output, states in (("wanted", wanted, exact), ("plain", plain, halved), ("ours", ours, halved)):
        gradients = torch.autograd.grad((output * weights.to(output.dtype)).sum(), states)
        found[name] = [output.detach().float(), *(gradient.float() for gradient in gradients)]
    for want, sdpa, segmented in zip(*found.values(), strict=True):
        assert (segmented - want).norm() <= 1.1 * (sdpa - want).norm()


def test_dropout_falls_on_weights_alike_forth_and_back() -> None:
    """With values of one, an output is the sum of the weights that stayed, and so is the gradient of the values."""
    segments, sees, count = lay_out(ROWS["short"])
    query, key, _ = draw(len(sees), (2, 2, 2), torch.float32)
    value = torch.ones_like(query).requires_grad_()
    output = attend([query, key, value], build_segments(segments, len(sees)), dropout=0.5)[0, :count, :, 0]
    assert output.std() > 0.1
    assert output.mean().item() == pytest.approx(1, abs=0.1)
    (gradient,) = torch.autograd.grad(output.sum(), value)
    torch.testing.assert_close(gradient[0, :, :, 0].sum(), output.sum())
    weights = torch.randn(output.shape)
    torch.manual_seed(1)
    first = attend([query, key, value], build_segments(segments, len(sees)), dropout=0.5)[0, :count, :, 0]
    (slope,) = torch.autograd.grad((first * weights).sum(), query)
    step = 1e-2 * slope / slope.norm()
    changed = []
    for sign in (1, -1):
        torch.manual_seed(1)
        moved = attend([query + sign * step, key, value], build_segments(segments, len(sees)), dropout=0.5)
        changed.append((moved[0, :count, :, 0] * weights).sum().item())
    assert changed[0] - changed[1] == pytest.approx(2e-2 * float(slope.norm()), rel=0.02)


def test_products_of_others_keep_their_precision() -> None:
    segments, sees, _ = lay_out(ROWS["short"])
    states = draw(len(sees), (2, 2, 2), torch.bfloat16)
    before = torch.backends.mkldnn.matmul.fp32_precision
    attend(states, build_segments(segments, len(sees))).sum().backward()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_what_it_does_not_know_is_refused() -> None:
    segments, sees, _ = lay_out(ROWS["short"])
    states = draw(len(sees), (2, 2, 2), torch.float32)
    with pytest.raises(NotImplementedError, match="Attention within segments does not support `softcap`"):
        attend(states, build_segments(segments, len(sees)), softcap=30.0)


def test_without_segments_a_model_attends_as_before() -> None:
    model = tiny_models.build_model(tiny_models.llama_config())
    batch = SimpleNamespace(ids=torch.tensor([[5, 6, 7], [8, 9, 0]]), mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    expected = model(batch.ids, attention_mask=batch.mask).logits
    with segment_attention(model):
        assert model.config._attn_implementation != "sdpa"
        found = model(batch.ids, attention_mask=batch.mask).logits
    assert torch.equal(found, expected)
    assert model.config._attn_implementation == "sdpa"
