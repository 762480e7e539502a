from pathlib import Path

import pytest

from hf_instruct.data.sources import build_dataset
from hf_instruct.data.statistics import TextLengths, compute_statistics, plot_lengths
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example

PHI3 = PromptFormat.from_name("phi3")
EXAMPLES = build_dataset(
    [
        Example("1", "Say one.", "", "One it is.", "say"),
        Example("2", "Say one.", "", "1", "say"),
        Example("3", "Add.", "1 2", "3", "sums"),
    ],
    Example,
)


@pytest.mark.parametrize(("values", "summary"), [(range(100, 0, -1), (50.5, 50.5, 95, 100)), ([7], (7, 7, 7, 7))])
def test_lengths_are_summarised(values, summary: tuple[float, ...]) -> None:
    assert tuple(TextLengths("prompt", "tokens", list(values)).summarize().values()) == summary


def test_counts_and_lengths_without_a_tokenizer() -> None:
    result = compute_statistics(EXAMPLES, prompt_format=PHI3)
    assert (result.num_examples, result.num_with_input, result.num_repeated_prompts) == (3, 1, 1)
    assert result.categories == {"say": 2, "sums": 1}
    assert [(lengths.text, lengths.unit, lengths.values) for lengths in result.lengths] == [
        ("prompt", "characters", [32, 32, 32]),
        ("completion", "characters", [10, 1, 1]),
        ("prompt", "words", [4, 4, 5]),
        ("completion", "words", [3, 1, 1]),
    ]


def test_tokens_where_they_can_be_counted() -> None:
    result = compute_statistics(EXAMPLES, prompt_format=PHI3, encode=lambda e: ([0] * 5, [0] * len(e["output"])))
    assert [(lengths.text, lengths.values) for lengths in result.lengths if lengths.unit == "tokens"] == [
        ("prompt", [5, 5, 5]),
        ("completion", [10, 1, 1]),
        ("both", [15, 6, 6]),
    ]


def test_the_chat_format_has_no_characters_of_its_own() -> None:
    result = compute_statistics(EXAMPLES, prompt_format=PromptFormat.from_name("chat"))
    assert [lengths.text for lengths in result.lengths] == ["completion", "completion"]


def test_the_histogram_is_a_png(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "new" / "lengths.png"
    for encode in (None, lambda e: ([0] * 5, [0] * len(e["output"]))):
        plot_lengths(compute_statistics(EXAMPLES, prompt_format=PHI3, encode=encode), path, title="costs $5_ and $6")
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.size == (pytest.approx(2024, abs=2), 792)
    assert [file.name for file in path.parent.iterdir()] == ["lengths.png"]
