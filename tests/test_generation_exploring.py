import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny_models
import torch

from hf_instruct.errors import DataError
from hf_instruct.generation import exploring
from hf_instruct.generation.decoding import generate_completions
from hf_instruct.generation.exploring import (
    TEMPERATURES,
    compare_strategies,
    explore_beams,
    explore_next,
    repeated_share,
)
from hf_instruct.generation.next_token_plot import draw_next_token_plot
from hf_instruct.generation.token_text import encode_raw_prompt, show_token
from hf_instruct.plots import write_figure

TEXT = "I enjoy walking with my cute dog"
END = tiny_models.END


def ids_of(tiny) -> list[int]:
    return encode_raw_prompt(*tiny, TEXT, room=0)


def next_logits(tiny) -> torch.Tensor:
    model, tokenizer = tiny
    with torch.no_grad():
        return model(torch.tensor([tokenizer(TEXT)["input_ids"]])).logits[0, -1].double()


def test_probabilities_are_the_softmax(tiny) -> None:
    logits = next_logits(tiny)
    found = explore_next(*tiny, ids_of(tiny), top=50, temperature=0.5)
    plain, halved = logits.softmax(-1), (logits * 2).softmax(-1)
    ids = [token.token_id for token in found.tokens]
    assert ids == logits.topk(50).indices.tolist()
    assert [token.probability for token in found.tokens] == pytest.approx(plain[ids].tolist(), abs=1e-9)
    assert [token.tempered for token in found.tokens] == pytest.approx(halved[ids].tolist(), abs=1e-9)
    for place, value in enumerate(TEMPERATURES):
        expected = (logits / value).softmax(-1)
        assert [token.at[place] for token in found.tokens] == pytest.approx(expected[ids].tolist(), abs=1e-9)
        entropy = -float((expected * expected.log2()).nansum())
        assert found.entropies[place] == pytest.approx(entropy, abs=1e-6)
    # Nothing is cut where nothing is asked for.
    assert (found.num_top_p, found.num_drawn) == (tiny_models.VOCABULARY,) * 2
    assert all(token.drawn == pytest.approx(token.tempered) for token in found.tokens)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 7, 0.9), (0.3, 40, 0.4), (1.5, 3, 0.99)])
def test_kept_tokens_are_those_that_generate_keeps(tiny, temperature: float, top_k: int, top_p: float) -> None:
    model, tokenizer = tiny
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    found = explore_next(*tiny, ids_of(tiny), top=60, **settings)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    options = {"do_sample": True, "max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True}
    scores = model.generate(ids, pad_token_id=END, **options, **settings).scores[0][0]
    drawn = scores.softmax(-1)
    assert found.num_drawn == int((drawn > 0).sum())
    assert [token.drawn for token in found.tokens] == pytest.approx(
        [float(drawn[token.token_id]) for token in found.tokens], abs=1e-6
    )
    # Each alone, by its definition.
    descending = (next_logits(tiny) / temperature).softmax(-1).sort(descending=True).values
    nucleus = next(count for count in range(1, 50258) if float(descending[:count].sum()) >= top_p)
    assert found.num_top_p == nucleus
    assert found.share_top_k == pytest.approx(float(descending[:top_k].sum()))
    assert found.share_top_p == pytest.approx(float(descending[:nucleus].sum()))
    assert [token.in_top_k for token in found.tokens] == [rank <= top_k for rank in range(1, 61)]
    assert [token.in_top_p for token in found.tokens] == [rank <= nucleus for rank in range(1, 61)]


@pytest.mark.parametrize(("num_beams", "length"), [(2, 6), (4, 5), (5, 1)])
def test_the_tree_is_what_generate_searches(tiny, num_beams: int, length: int) -> None:
    model, tokenizer = tiny
    tree = explore_beams(*tiny, ids_of(tiny), num_beams=num_beams, length=length)
    ids = tokenizer(TEXT)["input_ids"]
    expected = model.generate(
        torch.tensor([ids]), num_beams=num_beams, max_new_tokens=length, do_sample=False, pad_token_id=END
    )
    assert list(tree.texts[0].token_ids) == expected[0, len(ids) :].tolist()
    assert len(tree.texts) == num_beams + 1
    scores = [text.log_probability / len(text.token_ids) for text in tree.texts[:-1]]
    assert scores == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    paths, above = {}, []
    for node in tree.nodes:
        above = [*above[: node.depth], node.token_id]
        paths[tuple(above)] = node
    for rank, text in enumerate(tree.texts[:-1], start=1):
        # The probabilities down a path are those of its tokens, computed without a search.
        with torch.no_grad():
            steps = model(torch.tensor([[*ids, *text.token_ids]])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        logs = [float(step[token]) for step, token in zip(steps, text.token_ids, strict=True)]
        assert text.log_probability == pytest.approx(sum(logs), abs=1e-3)
        for end in range(1, len(logs) + 1):
            node = paths[text.token_ids[:end]]
            assert node.probability == pytest.approx(math.exp(logs[end - 1]), rel=1e-3)
            assert node.path_probability == pytest.approx(math.exp(sum(logs[:end])), rel=1e-2)
        assert node.outcome == (f"number {rank}" if rank > 1 else "best")
    greedy = generate_completions(model, tokenizer, [ids], end_id=END, max_new_tokens=length)[0]
    assert tree.texts[-1].token_ids == greedy.token_ids


def test_rounding_that_differs_by_leaf_leaves_each_token_below_the_one_before_it(
    gpt2, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = exploring._log_probabilities

    def round_as_in_bf16(model, ids, new) -> list[float]:
        return [log + 1e-3 * (new[-1] % 7) for log in exact(model, ids, new)]

    monkeypatch.setattr(exploring, "_log_probabilities", round_as_in_bf16)
    depths = [node.depth for node in explore_beams(*gpt2, ids_of(gpt2), num_beams=5, length=5).nodes]
    assert max(depths) > 1
    assert all(depth <= before + 1 for before, depth in zip([-1, *depths], depths, strict=False))


def test_a_tree_with_an_end_in_it(tiny_gpt2: Path) -> None:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    first = explore_beams(model, tokenizer, ids_of((model, tokenizer)), num_beams=3, length=3)
    second = first.texts[0].token_ids[1]
    model.generation_config.eos_token_id = [END, second]
    tree = explore_beams(model, tokenizer, ids_of((model, tokenizer)), num_beams=3, length=6)
    ended = [text for text in tree.texts[:-1] if text.stopped]
    assert ended
    assert all(text.token_ids[-1] == second and second not in text.token_ids[:-1] for text in ended)
    ids = tokenizer(TEXT)["input_ids"]
    expected = model.generate(torch.tensor([ids]), num_beams=3, max_new_tokens=6, do_sample=False, pad_token_id=END)
    best = expected[0, len(ids) :].tolist()
    assert list(tree.texts[0].token_ids) == best[: len(tree.texts[0].token_ids)]


def test_strategies_side_by_side(tiny) -> None:
    model, tokenizer = tiny
    names = ["greedy", "beam", "top-p", "greedy"]
    answers = compare_strategies(*tiny, ids_of(tiny), names=names, max_new_tokens=12, seed=5, end_id=END)
    assert [answer.name for answer in answers] == ["greedy", "beam", "top-p"]
    ids = tokenizer(TEXT)["input_ids"]
    plain = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=END)[0, len(ids) :]
    assert list(answers[0].token_ids) == plain.tolist()
    assert answers[0].text == tokenizer.decode(plain)
    for answer in answers:
        with torch.no_grad():
            output = model(torch.tensor([[*ids, *answer.token_ids]]), labels=None).logits[0, len(ids) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(output, torch.tensor(answer.token_ids))
        assert answer.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-3)
        assert answer.repeated == repeated_share(answer.token_ids)
    json.dumps([asdict(answer) for answer in answers], allow_nan=False)
    again = compare_strategies(*tiny, ids_of(tiny), names=["top-p"], max_new_tokens=12, seed=5, end_id=END)
    assert again == answers[2:3]
    assert compare_strategies(*tiny, ids_of(tiny), names=["top-p"], max_new_tokens=12, seed=6, end_id=END) != again


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The prompt is empty"),
        ("a\x1b[2J", "control character U+001B (character 2)"),
        ([], "The prompt has no tokens"),
        ([5] * 254, "The prompt has 254 tokens and 3 new tokens are requested, but the model only has 256 positions"),
    ],
)
def test_prompts_that_cannot_be_continued(gpt2, text, message: str) -> None:
    with pytest.raises(DataError) as caught:
        encode_raw_prompt(*gpt2, text, room=3)
    assert message in str(caught.value)


def test_the_plot_shows_the_probabilities_and_what_is_kept(gpt2, tmp_path: Path) -> None:
    found = explore_next(*gpt2, ids_of(gpt2), top=4, temperature=0.5, top_k=3, top_p=0.02)
    odd = ("␣dog", "東京$x$", "a" * 30, "\\n")
    tokens = [replace(token, text=text) for token, text in zip(found.tokens, odd, strict=True)]
    figure = draw_next_token_plot(replace(found, tokens=tokens), title="a $title$")
    left, right = figure.axes
    bars = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in left.patches}
    assert bars == pytest.approx({row: 100 * token.tempered for row, token in enumerate(tokens)})
    kept = {text.get_text() for text in left.get_legend().get_texts()}
    assert {"can be drawn", "cut by top-k"} <= kept
    assert right.lines[0].get_xdata().tolist() == pytest.approx([100 * token.at[0] for token in tokens])
    # What the font lacks would be drawn as empty boxes, with a warning for each.
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["␣dog", "U+6771U+4EAC$x$", "a" * 17 + "…", "\\n"]
    write_figure(figure, tmp_path / "a.svg")


def test_tokens_are_readable(gpt2) -> None:
    _, tokenizer = gpt2
    shown = [show_token(tokenizer, token) for token in tokenizer("A dog\n\t🙂 é")["input_ids"]]
    assert shown[:4] == ["A", "␣dog", "\\n", "\\t"]
    assert show_token(tokenizer, END) == "<|endoftext|>"
    assert show_token(tokenizer, 60000) == "<id 60000>"
    for token in range(tiny_models.VOCABULARY):
        text = show_token(tokenizer, token)
        assert text
        assert text.isprintable()
