"""How often do the rules for judges pass which judge? `python -m benchmarks.judges` prints it, from simulated judges.

A simulated judge draws the scores of all kinds of probes for a number of examples, or the verdicts on pairs of answers
in both orders. `docs/evaluation.md` shows the table.
"""

from collections.abc import Callable, Mapping

import numpy
from numpy.random import Generator

from hf_instruct.console import align
from hf_instruct.evaluation.pair_scores import build_pair_scores, find_pair_problems
from hf_instruct.evaluation.probes import (
    CONTROL,
    DOUBLED,
    EMPTY,
    INJECTIONS,
    REFERENCE,
    REPEATED,
    SHUFFLED,
    SHUFFLED_DOUBLED,
    Table,
    check_table,
)
from hf_instruct.evaluation.responses import JoinedPairs
from hf_instruct.schema import JudgeIdentity, PairSummary, Preference, Unpaired

DRAWS = 200
SIZES = (20, 100)
_RIGHT = (REFERENCE, DOUBLED)
_INJECTED = tuple(INJECTIONS)
_WRONG = (SHUFFLED, REPEATED, EMPTY, SHUFFLED_DOUBLED, CONTROL, *_INJECTED)

Draw = Callable[[Generator, int], Table]
"""Draws the scores of every kind for n examples."""


def _to_scores(values: "numpy.ndarray") -> list[int | None]:
    return list(numpy.clip(numpy.rint(values), 0, 100).astype(int).tolist())


def noisy(right: float, wrong: float, deviation: float, *, fooled: float = 0.0, obeys: float = 0.0) -> Draw:
    """Return a judge with normal noise; it gives a share `fooled` of the wrong answers 60 to 80, and obeys injections.

    Args:
        right: Mean score of a right answer.
        wrong: Mean score of a wrong answer.
        deviation: Standard deviation of each score.
        fooled: Share of the wrong answers that get 60 to 80.
        obeys: Share of the injections that get 100.
    """

    def draw(generator: Generator, n: int) -> Table:
        table = {kind: _to_scores(generator.normal(right, deviation, n)) for kind in _RIGHT}
        for kind in _WRONG:
            values = generator.normal(wrong, deviation, n)
            values = numpy.where(generator.random(n) < fooled, generator.uniform(60, 80, n), values)
            if kind in _INJECTED:
                values = numpy.where(generator.random(n) < obeys, 100, values)
            table[kind] = _to_scores(values)
        return table

    return draw


def _coin(generator: Generator, n: int) -> Table:
    return {kind: _to_scores(100 * generator.integers(0, 2, n)) for kind in (*_RIGHT, *_WRONG)}


def _constant(generator: Generator, n: int) -> Table:
    return {kind: [50] * n for kind in (*_RIGHT, *_WRONG)}


def _by_length(generator: Generator, n: int) -> Table:
    """Score by the number of characters: references and the answers of other rows are equally long on average."""
    lengths = {kind: generator.lognormal(3.3, 0.8, n) for kind in (REFERENCE, SHUFFLED, REPEATED)}
    lengths |= {EMPTY: numpy.zeros(n), DOUBLED: 2 * lengths[REFERENCE], SHUFFLED_DOUBLED: 2 * lengths[SHUFFLED]}
    lengths |= dict.fromkeys((CONTROL, *_INJECTED), lengths[SHUFFLED] + 100)
    return {kind: _to_scores(values) for kind, values in lengths.items()}


def _by_position(generator: Generator, n: int) -> Table:
    """Score by how early a row is asked about."""
    return {kind: _to_scores(100 - numpy.arange(n) % 101) for kind in (*_RIGHT, *_WRONG)}


USEFUL: Mapping[str, Draw] = {
    "perfect, noise of sd 5": noisy(95, 5, 5),
    "80 against 40, sd 15": noisy(80, 40, 15),
    "95 against 55, sd 15": noisy(95, 55, 15),
    "80 against 40, sd 15, 10 % fooled": noisy(80, 40, 15, fooled=0.1),
    "70 against 30, sd 15, 10 % fooled": noisy(70, 30, 15, fooled=0.1),
    "perfect, sd 5, 10 % fooled": noisy(95, 5, 5, fooled=0.1),
}
USELESS: Mapping[str, Draw] = {
    "53 against 52, sd 0.5": noisy(53, 52, 0.5),
    "53 against 50, sd 2": noisy(53, 50, 2),
    "53 against 50, sd 15": noisy(53, 50, 15),
    "coin: 0 or 100": _coin,
    "constant": _constant,
    "by length": _by_length,
    "by position": _by_position,
}
GULLIBLE: Mapping[str, Draw] = {
    "perfect, obeys 1 injection in 2": noisy(95, 5, 5, obeys=0.5),
    "perfect, obeys 1 injection in 5": noisy(95, 5, 5, obeys=0.2),
    "perfect, obeys 1 injection in 10": noisy(95, 5, 5, obeys=0.1),
}


Ask = Callable[[Generator, float, int, int], float]
"""Returns the score of the answer shown first: given its worth less the other's, and both lengths."""


def _knowing(accuracy: float, *, pull: float = 0.0) -> Ask:
    """Return a judge that finds the better answer in a share of its verdicts, and takes the first in a share `pull`."""

    def ask(generator: Generator, gap: float, *_: int) -> float:
        right = float(gap > 0)
        return 1.0 if generator.random() < pull else right if generator.random() < accuracy else 1 - right

    return ask


USEFUL_OF_PAIRS: Mapping[str, Ask] = {"right in 95 %": _knowing(0.95), "right in 90 %": _knowing(0.9)}
USELESS_OF_PAIRS: Mapping[str, Ask] = {
    "coin": lambda generator, *_: float(generator.random() < 0.5),
    "always a tie": lambda *_: 0.5,
    "first in 30 %, else right in 95 %": _knowing(0.95, pull=0.3),
    "always first": lambda *_: 1.0,
    "the longer one": lambda generator, gap, first, second: float(first > second),
}


def draw_pairs(ask: Ask, generator: Generator, n: int) -> PairSummary:
    """Return the summary of a judge's verdicts on n pairs in both orders; the better answer is as often the shorter."""
    rows = []
    for number in range(n):
        gap = float(generator.normal())
        first, second = (int(length) for length in generator.lognormal(3.5, 0.8, 2))
        orders = [ask(generator, gap, first, second), 1 - ask(generator, -gap, second, first)]
        rows.append(
            Preference(
                id=str(number),
                first="a",
                second="b",
                score=orders[0] if orders[0] == orders[1] else 0.5,
                judge=JudgeIdentity(),
                rubric="pairs",
                orders=orders,
                replies=[],
                first_length=first,
                second_length=second,
            )
        )
    return build_pair_scores(rows, JoinedPairs([], ("a", "b"), "id", Unpaired(first=0, second=0)), JudgeIdentity())


def warned_rate(ask: Ask, n: int, *, draws: int = DRAWS) -> float:
    """Return the share of draws of n pairs in which something is said against a judge of pairs."""
    generator = numpy.random.default_rng(0)
    return sum(bool(find_pair_problems(draw_pairs(ask, generator, n))) for _ in range(draws)) / draws


def pass_rate(draw: Draw, n: int, *, draws: int = DRAWS) -> float:
    """Return the share of draws in which a judge passes every rule over n examples."""
    generator = numpy.random.default_rng(0)
    return sum(all(not check.problem for check in check_table(draw(generator, n))) for _ in range(draws)) / draws


def main() -> None:
    """Print the share of draws in which each judge passes."""
    rows = [["judge of scores", *(f"passes at n={n}" for n in SIZES)]]
    for judges in (USEFUL, USELESS, GULLIBLE):
        rows += [[name, *(f"{100 * pass_rate(draw, n):.1f} %" for n in SIZES)] for name, draw in judges.items()]
    pairs = [["judge of pairs", *(f"warned of at n={n}" for n in SIZES)]]
    for judges in (USEFUL_OF_PAIRS, USELESS_OF_PAIRS):
        pairs += [[name, *(f"{100 * warned_rate(ask, n):.1f} %" for n in SIZES)] for name, ask in judges.items()]
    print(*align(rows, right={1, 2}), "", *align(pairs, right={1, 2}), sep="\n")


if __name__ == "__main__":
    main()
