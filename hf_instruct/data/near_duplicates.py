"""Held-out prompts that are almost a training prompt: cosine similarity of character n-grams, by scikit-learn."""

from collections.abc import Sequence
from typing import NamedTuple

from hf_instruct.records import Example

NEAR_THRESHOLD = 0.9
"""Least cosine similarity of two prompts that count as near-duplicates."""

METHOD = "TF-IDF of character 3- to 5-grams within words, case ignored; cosine"
# The work grows with the square: 50,000 rows take about 20 s on one core, 100,000 a good minute.
MOST_ROWS = 100_000
# Similarities of so many held-out rows with all of train are held at once: 70 MB with 50,000 rows.
_BLOCK = 128
# Equal texts have a cosine of 0.9999999999999998 or so.
_TOLERANCE = 1e-9


class NearDuplicate(NamedTuple):
    """A held-out example and the training example that is most like it.

    Attributes:
        place: Position of the held-out example, from 0.
        train_place: Position of the training example, from 0; the first where several are as like.
        cosine: Between 0 and 1.
    """

    place: int
    train_place: int
    cosine: float


def find_near_duplicates(
    examples: Sequence[Example], train: Sequence[Example], *, threshold: float = NEAR_THRESHOLD
) -> list[NearDuplicate]:
    """Return the examples whose instruction and input are nearly those of a training example.

    Texts are compared as `METHOD` says, with the n-grams weighed over both lists; outputs do not count. Examples whose
    instruction and input stand in train exactly are repeats, not near-duplicates, and are left out.

    Args:
        examples: The held-out examples.
        train: The training examples.
        threshold: Least cosine similarity, above 0 and at most 1.
    """
    in_train = {(example.instruction, example.input) for example in train}
    places = [place for place, example in enumerate(examples) if (example.instruction, example.input) not in in_train]
    texts = [_join(examples[place]) for place in places]
    train_texts = [_join(example) for example in train]
    # Without a single character there is nothing to compare, and scikit-learn would say so by an error.
    if not any(text.strip() for text in texts) or not any(text.strip() for text in train_texts):
        return []
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit_transform([*texts, *train_texts])
    train_vectors = vectors[len(texts) :].T.tocsr()
    found = []
    for start in range(0, len(texts), _BLOCK):
        similar = (vectors[start : min(start + _BLOCK, len(texts))] @ train_vectors).tocoo()
        near = similar.data >= threshold - _TOLERANCE
        rows, columns, cosines = similar.row[near], similar.col[near], similar.data[near].round(9)
        # By row, the most similar first, the earliest of these first; the first of each row is the one.
        order = np.lexsort((columns, -cosines, rows))
        _, firsts = np.unique(rows[order], return_index=True)
        found += [
            NearDuplicate(places[start + int(rows[n])], int(columns[n]), min(float(cosines[n]), 1.0))
            for n in order[firsts]
        ]
    return found


def _join(example: Example) -> str:
    return f"{example.instruction}\n{example.input}"
