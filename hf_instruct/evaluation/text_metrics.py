"""Text metrics: exact match, token F1, ROUGE-L, chrF, and repetition."""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Scripts written without spaces: kana and Chinese characters.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# Thresholds of `is_repetitive`.
_GRAM = 4
_REPEATED_SHARE = 0.3
_COPIES = 4
_LONGEST_BLOCK = 64


def normalize_answer(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation, English articles and extra whitespace.

    Source: the evaluation script of SQuAD 1.1, https://rajpurkar.github.io/SQuAD-explorer/

    >>> normalize_answer("The author was  Jane Austen.")
    'author was jane austen'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(response: str, reference: str) -> float:
    """Return 1 if the two texts are equal after the normalization of SQuAD, else 0.

    Texts that only contain punctuation and articles are compared without it, word by word.

    >>> exact_match("Jane Austen", "jane austen."), exact_match("", "."), exact_match("!", "!")
    (1.0, 0.0, 1.0)
    """
    texts = normalize_answer(response), normalize_answer(reference)
    return float(texts[0] == texts[1]) if any(texts) else _equal(response, reference)


def token_f1(response: str, reference: str) -> float:
    """Return the F1 score of the words that two texts share after the normalization of SQuAD, in any order.

    Words are separated by whitespace. In a language written without it, the whole text is one word: use chrF there.

    >>> token_f1("It was Jane Austen", "Jane Austen.")
    0.6666666666666666
    """
    words, expected = normalize_answer(response).split(), normalize_answer(reference).split()
    if not words and not expected:
        return _equal(response, reference)
    shared = sum((Counter(words) & Counter(expected)).values())
    return 2 * shared / (len(words) + len(expected))


def rouge_l(response: str, reference: str) -> float:
    """Return ROUGE-L like `rouge-score`: the F1 score of the longest common subsequence of words, without stemming.

    Words are those of `split_words`, which for English text are those of `rouge-score`. That package drops all letters
    except a to z, and needs memory proportional to the product of the two lengths.

    >>> rouge_l("It was Jane Austen", "Jane Austen.")
    0.6666666666666666
    """
    words, expected = split_words(response), split_words(reference)
    if not words and not expected:
        return _equal(response, reference)
    return 2 * count_common(words, expected) / (len(words) + len(expected))


def chrf(response: str, reference: str) -> float:
    """Return the sentence-level chrF2 of `sacrebleu`, 0 to 100: character n-grams up to 6, recall counting twice.

    Its mean over examples is not corpus-level chrF, which sums the n-grams first and so gives long answers more weight.
    """
    if not response.strip() and not reference.strip():
        return 100.0
    return float(_chrf_scorer().sentence_score(response, [reference]).score)


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits; a Chinese character or kana is one word.

    >>> split_words("Café no. 5: 東京")
    ['café', 'no', '5', '東', '京']
    """
    return _WORD.findall(text.lower())


def is_repetitive(text: str) -> bool:
    """Return whether a text repeats itself.

    It does if more than 30 % of its 4-grams of words occurred before, or if a sequence of up to 64 words occurs four
    times in a row. In a text without words, such as `!!!!!!!!`, characters are compared instead.

    Source: the share of repeated n-grams is seq-rep-4 of Welleck et al., https://arxiv.org/abs/1908.04319

    >>> is_repetitive("Very, very good. It is very, very late."), is_repetitive("It is. It is. It is. It is. It")
    (False, True)
    """
    words = split_words(text) or list("".join(text.split()))
    grams = [tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1)]
    if grams and 1 - len(set(grams)) / len(grams) > _REPEATED_SHARE:
        return True
    for size in range(1, min(len(words) // _COPIES, _LONGEST_BLOCK) + 1):
        run = 0
        for word, later in zip(words, words[size:], strict=False):
            run = run + 1 if word == later else 0
            if run == size * (_COPIES - 1):
                return True
    return False


def count_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two lists of words.

    A row of the usual table is stored in the bits of one integer, so all of its cells are computed in a few operations.

    Source: Hyyrö, Bit-Parallel LCS-length Computation Revisited, 2004.

    >>> count_common(["a", "b", "c", "d"], ["b", "x", "d", "a"])
    2
    """
    short, long = sorted((first, second), key=len)
    positions: dict[str, int] = dict.fromkeys(set(short) & set(long), 0)
    for index, word in enumerate(short):
        if word in positions:
            positions[word] |= 1 << index
    mask = row = (1 << len(short)) - 1
    for word in long:
        if matches := row & positions.get(word, 0):
            row = (row + matches | row - matches) & mask
    return len(short) - row.bit_count()


def _equal(response: str, reference: str) -> float:
    return float(response.split() == reference.split())


@functools.cache
def _chrf_scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
