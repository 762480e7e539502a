"""Find near-duplicates of training prompts among held-out prompts, by cosine similarity of character n-grams."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.data.examples import hash_prompts

if TYPE_CHECKING:
    from datasets import Dataset

NEAR_THRESHOLD = 0.9
"""Minimum cosine similarity of near-duplicates."""

METHOD = "TF-IDF of character 3- to 5-grams within words, case ignored; cosine"
# Number of held-out rows that are compared with all of train at a time.
_BLOCK = 128
# Vectors are in float32: equal texts have a cosine of 0.9999999 or so.
_TOLERANCE = 1e-6
# A cosine is computed in full if the rarer n-grams of two texts contribute at least this much to it. With a threshold
# below `_MIN_FOR_RARE`, many pairs would be computed twice.
_MIN_OF_RARE = 0.25
_MIN_FOR_RARE = 0.7


class NearPair(NamedTuple):
    """A held-out example and its most similar training example."""

    number: int  # index of the held-out example
    train_number: int  # index of the training example; the first if several are equally similar
    cosine: float  # between 0 and 1


def find_near_duplicates(examples: "Dataset", train: "Dataset", *, threshold: float = NEAR_THRESHOLD) -> list[NearPair]:
    """Return the examples whose instruction and input are nearly the same as those of a training example.

    Texts are compared with `METHOD`, where n-grams are weighted over both datasets; outputs are ignored. Examples whose
    instruction and input are also in train are repeats, not near-duplicates, and are left out.

    Args:
        threshold: Minimum cosine similarity, above 0 and at most 1.
    """
    import numpy as np

    indices = np.flatnonzero(~np.isin(hash_prompts(examples), hash_prompts(train))).tolist()
    texts, train_texts = _join_prompts(examples.select(indices)), _join_prompts(train)
    # Without any text there is nothing to compare, and scikit-learn would raise an error.
    if not any(text.strip() for text in texts) or not any(text.strip() for text in train_texts):
        return []
    vectors, weights = _vectorize([*texts, *train_texts])
    held_out = vectors[: len(texts)]
    aside = threshold - _MIN_OF_RARE if threshold >= _MIN_FOR_RARE else 0.0
    rare, norms_aside = _keep_rare(held_out, weights, aside=aside)
    used = np.unique(rare.indices)
    # Columns are selected first: they are few, and the training vectors need not be copied.
    rare, train_rare = rare[:, used], vectors[:, used][len(texts) :].T.tocsr()
    found = []
    for start in range(0, len(texts), _BLOCK):
        part = (rare[start : start + _BLOCK] @ train_rare).tocoo()
        # The part set aside adds at most its norm, because the norm of a training vector is 1.
        maybe = part.data + norms_aside[start + part.row] >= threshold - _TOLERANCE
        rows, columns, cosines = part.row[maybe], part.col[maybe], part.data[maybe]
        if aside:
            cosines = held_out[start + rows].multiply(vectors[len(texts) + columns]).sum(axis=1).A1
        cosines = cosines.round(6)
        near = cosines >= threshold - _TOLERANCE
        rows, columns, cosines = rows[near], columns[near], cosines[near]
        # Sorted by row, then by similarity, then by position in train; the first of each row is used.
        order = np.lexsort((columns, -cosines, rows))
        _, firsts = np.unique(rows[order], return_index=True)
        found += [
            NearPair(indices[start + int(rows[n])], int(columns[n]), min(float(cosines[n]), 1.0)) for n in order[firsts]
        ]
    return found


def _vectorize(texts: Sequence[str]) -> tuple[Any, Any]:
    """Return the normalized TF-IDF vectors of texts, as a float32 CSR matrix of shape [text, n-gram], and its weights.

    The weights are inverse document frequencies: the fewer texts have an n-gram, the larger its weight.

    Each distinct word is split into n-grams once: n-grams never cross words, so the counts of a text are the sums of
    those of its words.
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    words = CountVectorizer(analyzer=lambda text: text.lower().split(), dtype=np.float32)
    in_text = words.fit_transform(texts)
    ngrams = CountVectorizer(analyzer="char_wb", ngram_range=(3, 5), dtype=np.float32)
    counts = in_text @ ngrams.fit_transform(words.get_feature_names_out())
    tfidf = TfidfTransformer().fit(counts)
    return tfidf.transform(counts, copy=False), tfidf.idf_


def _keep_rare(vectors: Any, weights: Any, *, aside: float) -> tuple[Any, Any]:
    """Return vectors without their most frequent n-grams, and for each the norm of the part set aside.

    Most of the work of a comparison is in n-grams that occur everywhere, and two texts that are nearly equal also share
    rare ones.

    Args:
        vectors: CSR matrix of shape [text, n-gram].
        weights: The weight of each n-gram; larger for rarer ones.
        aside: Maximum norm of the part to set aside.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    lengths = np.diff(vectors.indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((weights[vectors.indices], rows))
    squares = np.cumsum(vectors.data[order].astype(np.float64) ** 2)
    before = np.concatenate([[0.0], squares])[vectors.indptr[:-1]]
    squares -= np.repeat(before, lengths)
    kept = squares > aside**2
    norms = np.sqrt(np.bincount(rows[~kept], vectors.data[order[~kept]].astype(np.float64) ** 2, len(lengths)))
    where = order[kept]
    return csr_matrix((vectors.data[where], (rows[kept], vectors.indices[where])), shape=vectors.shape), norms


def _join_prompts(examples: "Dataset") -> list[str]:
    """Return each example's prompt as one text; for a conversation, all turns before the answer."""
    talks = examples["messages"][:] if "messages" in examples.column_names else [None] * len(examples)
    rows = zip(examples["instruction"][:], examples["input"][:], talks, strict=True)
    return [
        "\n".join([turn["content"] for turn in talk[:-1]] if talk else [instruction, input])
        for instruction, input, talk in rows
    ]
