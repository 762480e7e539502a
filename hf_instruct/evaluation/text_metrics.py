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
# When an answer repeats itself: see `is_repetitive`.
_GRAM = 4
_REPEATED_SHARE = 0.3
_COPIES = 4
_LONGEST_BLOCK = 64


def normalize_answer(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation, English articles and needless white space.

    Source: the evaluation script of SQuAD 1.1, https://rajpurkar.github.io/SQuAD-explorer/

    >>> normalize_answer("The author was  Jane Austen.")
    'author was jane austen'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(response: str, reference: str) -> float:
    """Return 1 where the two texts are equal once normalized as SQuAD does, else 0.

    Texts that hold nothing but punctuation and articles are compared as they are.

    >>> exact_match("Jane Austen", "jane austen."), exact_match("", "."), exact_match("!", "!")
    (1.0, 0.0, 1.0)
    """
    texts = normalize_answer(response), normalize_answer(reference)
    return float(texts[0] == texts[1]) if any(texts) else _equal(response, reference)


def token_f1(response: str, reference: str) -> float:
    """Return the F1 of the words that two texts share, normalized as SQuAD does; order does not count.

    Words are what white space separates, so that in a language written without it the whole text is one: read chrF
    there.

    >>> token_f1("It was Jane Austen", "Jane Austen.")
    0.6666666666666666
    """
    words, expected = normalize_answer(response).split(), normalize_answer(reference).split()
    if not words and not expected:
        return _equal(response, reference)
    shared = sum((Counter(words) & Counter(expected)).values())
    return 2 * shared / (len(words) + len(expected))


def rouge_l(response: str, reference: str) -> float:
    """Return ROUGE-L as `rouge-score` does: the F1 of the longest common subsequence of words, without stemming.

    Words are those of `split_words`. On English text they are those of `rouge-score`, which would drop all letters
    but a to z, and whose table takes memory for every word of the one text times every word of the other.

    >>> rouge_l("It was Jane Austen", "Jane Austen.")
    0.6666666666666666
    """
    words, expected = split_words(response), split_words(reference)
    if not words and not expected:
        return _equal(response, reference)
    return 2 * count_common(words, expected) / (len(words) + len(expected))


def chrf(response: str, reference: str) -> float:
    """Return chrF2 by `sacrebleu`, of one sentence, 0 to 100: character n-grams up to 6, recall counting twice.

    Its mean over examples is not the chrF of the corpus, which adds up n-grams first: long answers weigh more there.
    """
    if not response.strip() and not reference.strip():
        return 100.0
    return float(_chrf_scorer().sentence_score(response, [reference]).score)


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits; each Chinese character and kana is one.

    >>> split_words("Café no. 5: 東京")
    ['café', 'no', '5', '東', '京']
    """
    return _WORD.findall(text.lower())


def is_repetitive(text: str) -> bool:
    """Return whether a text says the same again and again.

    It does where more than 30 % of its runs of four words stood in it before, or where up to 64 words come four times
    in a row. A text without words, such as `!!!!!!!!`, goes by its characters.

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

    A row of the usual table is the bits of one integer, so all of its cells are computed in a few operations.

    Source: Hyyrö, Bit-Parallel LCS-length Computation Revisited, 2004.

    >>> count_common(["a", "b", "c", "d"], ["b", "x", "d", "a"])
    2
    """
    short, long = sorted((first, second), key=len)
    places: dict[str, int] = dict.fromkeys(set(short) & set(long), 0)
    for number, word in enumerate(short):
        if word in places:
            places[word] |= 1 << number
    whole = row = (1 << len(short)) - 1
    for word in long:
        if matches := row & places.get(word, 0):
            row = (row + matches | row - matches) & whole
    return len(short) - row.bit_count()


def _equal(response: str, reference: str) -> float:
    return float(response.split() == reference.split())


@functools.cache
def _chrf_scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
