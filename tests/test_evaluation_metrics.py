"""The reference metrics: by hand, beside the libraries' own numbers, and as `evaluate.Metric` classes."""

import json
import math
import random
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path

import evaluate
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rows import response
from sacrebleu.metrics.chrf import CHRF

from hf_instruct.cli.main import main
from hf_instruct.config import load_experiment
from hf_instruct.errors import DataError
from hf_instruct.evaluation import metrics
from hf_instruct.evaluation.intervals import bootstrap_mean
from hf_instruct.evaluation.metrics import measure_responses
from hf_instruct.evaluation.responses import load_responses
from hf_instruct.evaluation.text_metrics import (
    chrf,
    exact_match,
    is_repetitive,
    normalize_answer,
    rouge_l,
    split_words,
    token_f1,
)
from hf_instruct.records import write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Response

PAIRS = [
    ("It was Jane Austen", "Jane Austen."),
    ("The chef cooks the meal every day.", "The meal is cooked by the chef every day."),
    ("don't 3.5 e-mail_me", "Don't e mail me 3 5"),
    ("", "Nothing."),
    ("42", "42"),
]
CHINESE = "东京是日本的首都。"


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Author, a man!", "author man"),
        ("An apple\n a day", "apple day"),
        ("theory", "theory"),
        ("don't", "dont"),
        ("...", ""),
        ("Ünïcode—dash", "ünïcode—dash"),
        (CHINESE, CHINESE),
    ],
)
def test_normalizing_as_squad_does(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("text", "reference", "match", "f1"),
    [
        ("Jane Austen", "jane  AUSTEN.", 1, 1),
        ("It was Jane Austen", "Jane Austen", 0, 2 * 0.5 * 1 / 1.5),
        ("to be or not to be", "to be", 0, 0.5),
        ("b a c", "c b", 0, 1),  # order does not count, and articles do not
        ("", "x", 0, 0),
        ("x", "", 0, 0),
        ("", "", 1, 1),
        ("  ", "", 1, 1),
        # Without its articles and punctuation, nothing would be left of either.
        ("the", "a", 0, 0),
        ("", "!", 0, 0),
        ("!", "!", 1, 1),
        # Without white space a text is one word.
        (CHINESE, CHINESE, 1, 1),
        (CHINESE, CHINESE[:-3], 0, 0),
    ],
)
def test_exact_match_and_f1_by_hand(text: str, reference: str, match: float, f1: float) -> None:
    assert exact_match(text, reference) == match
    assert token_f1(text, reference) == pytest.approx(1 if (text, reference) == ("b a c", "c b") else f1)


def test_rouge_and_chrf_are_the_libraries() -> None:
    rouge = RougeScorer(["rougeL"])
    for text, reference in PAIRS:
        assert rouge_l(text, reference) == pytest.approx(rouge.score(reference, text)["rougeL"].fmeasure)
        assert chrf(text, reference) == CHRF().sentence_score(text, [reference]).score
    # Two of five and seven words stand in both in one order: the chef, or the meal.
    assert rouge_l("the chef cooks the meal", "the meal is cooked by the chef") == pytest.approx(2 * 2 / 12)


def test_rouge_of_random_texts_is_the_librarys() -> None:
    rouge, draw = RougeScorer(["rougeL"]), random.Random(5)
    for _ in range(300):
        text, reference = (" ".join(draw.choices("abcdef", k=draw.randrange(1, 90))) for _ in range(2))
        assert rouge_l(text, reference) == pytest.approx(rouge.score(reference, text)["rougeL"].fmeasure)


def test_an_endless_answer_takes_memory_for_its_length_only() -> None:
    """The table of `rouge-score` would hold 20 million cells here."""
    answer, reference = " ".join(f"w{n % 977}" for n in range(20_000)), " ".join(f"w{n % 977}" for n in range(1_000))
    tracemalloc.start()
    try:
        value = rouge_l(answer, reference)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert value == pytest.approx(2 * 1_000 / 21_000)
    assert peak < 20_000_000


def test_rouge_reads_scripts_that_rouge_score_drops() -> None:
    assert RougeScorer(["rougeL"]).score(CHINESE, CHINESE)["rougeL"].fmeasure == 0
    assert rouge_l(CHINESE, CHINESE) == 1
    # Five of six and eight characters stand in both in one order.
    assert rouge_l("东京是首都了", CHINESE) == pytest.approx(2 * 5 / (6 + 8))
    assert split_words("Café_9 naïve, 東京タワー!") == ["café", "9", "naïve", *"東京タワー"]


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("", False),
        ("Row, row, row your boat.", False),
        ("no no no no", True),
        ("25, 25, 25, 25, 25", True),
        ("It is hot. It is hot. It is hot. It is hot.", True),
        ("The answer is no.\n\n### Explanation:\nThe answer is no.\n\n### Explanation:\nThe answer is no.", True),
        ("one two three four five six seven eight nine ten and then the end, the end, the end, the end", True),
        ("The cat sat on the mat. The dog sat on the mat. The cow sat on the grass.", False),
        ("!!!!!!!!!!!!", True),
        ("...", False),
        ("哈哈哈哈哈哈哈哈", True),
        (CHINESE, False),
        ("so " * 50_000, True),
    ],
)
def test_what_repeats_itself(text: str, repeats: bool) -> None:
    assert is_repetitive(text) is repeats


AUSTEN = {"category": "facts", "stopped": True, "reference_nll": 6.0, "reference_tokens": 3}
ROWS = [
    response("a", "It was Jane Austen", "Jane Austen.", **AUSTEN),
    response("b", "42", "42", category="facts", stopped=True, reference_nll=2.0, reference_tokens=1),
    response("c", "ha ha ha ha", "Ha.", category="jokes", stopped=False),
    response("d", "", "Nothing."),
]


def test_measuring_by_hand() -> None:
    measured = measure_responses(ROWS)
    found = measured.metrics
    assert list(found) == [
        *("exact_match", "token_f1", "rouge_l", "chrf", "length_ratio", "stopped", "repetitive", "perplexity")
    ]
    f1 = [2 / 3, 1.0, 0.4, 0.0]
    assert found["token_f1"].to_dict() == {
        "mean": round(sum(f1) / 4, 6),
        "interval": [round(end, 6) for end in bootstrap_mean(f1)],
        "n": 4,
    }
    assert (found["exact_match"].mean, found["repetitive"].mean) == (0.25, 0.25)
    # All characters by all characters: the mean of ratios would be 1.54.
    assert found["length_ratio"].mean == round((18 + 2 + 11 + 0) / (12 + 2 + 3 + 8), 6)
    assert (found["stopped"].mean, found["stopped"].n) == (round(2 / 3, 6), 3)
    # Four tokens cost eight nats.
    assert found["perplexity"].to_dict() == {
        "mean": round(math.exp(2), 6),
        "interval": [round(math.exp(2), 6)] * 2,
        "n": 2,
    }
    assert measured.total == 4
    assert list(measured.by_category) == ["facts", "jokes"]
    assert measured.by_category["facts"]["token_f1"].mean == round((2 / 3 + 1) / 2, 6)
    assert measured.by_category["jokes"]["stopped"].to_dict() == {"mean": 0.0, "interval": None, "n": 1}
    assert "perplexity" not in measured.by_category["jokes"]
    assert measured.examples["a"]["length_ratio"] == 1.5
    assert set(measured.examples["d"]) == {
        *("exact_match", "token_f1", "rouge_l", "chrf", "length_ratio", "repetitive")
    }


def test_perplexity_weighs_by_tokens_and_its_interval_by_examples() -> None:
    rows = [
        response(str(i), "x", "y", reference_nll=nll, reference_tokens=tokens)
        for i, (nll, tokens) in enumerate([(1.0, 10), (30.0, 10), (2.0, 1), (700.0, 0)])
    ]
    perplexity = metrics.METRICS["perplexity"]
    terms = [perplexity.build_term(row.reference_nll, row.reference_tokens) for row in rows]
    # What is in no file, which would be refused, is left out.
    measured = perplexity.summarize([term for term in terms if term])
    assert measured is not None
    assert measured.n == 3
    assert measured.mean == pytest.approx(math.exp(33 / 21), abs=1e-6)
    low, high = measured.interval
    assert math.exp(0.1) <= low + 1e-6 < measured.mean < high <= math.exp(3) + 1e-6
    # A model that has diverged: no number that JSON cannot hold.
    worst = perplexity.summarize([metrics.Term(1e6, 1), metrics.Term(1e6, 1)])
    assert json.dumps(worst.to_dict(), allow_nan=False)


def test_without_categories_or_with_faults() -> None:
    row = {"instruction": "Do.", "input": "", "output": "Done.", "model_response": ""}
    measured = measure_responses([row, row])
    assert measured.by_category == {}
    assert len(measured.examples) == 2
    assert measured.metrics["length_ratio"].to_dict() == {"mean": 0.0, "interval": [0.0, 0.0], "n": 2}
    with pytest.raises(DataError, match="There are no responses in the responses"):
        measure_responses([])
    with pytest.raises(DataError, match="row 0: `stopped`: it must be a valid boolean"):
        measure_responses([{**row, "stopped": "yes"}])
    with pytest.raises(DataError, match="row 0: `reference_tokens`: it must be a valid integer"):
        measure_responses([{**row, "reference_nll": 1, "reference_tokens": True}])


def test_the_courses_answers(course_responses_file: Path) -> None:
    found = measure_responses(load_responses(course_responses_file)).metrics
    assert {name: values.n for name, values in found.items()} == dict.fromkeys(found, 110)
    assert "stopped" not in found
    assert (found["exact_match"].mean, found["repetitive"].mean) == (round(17 / 110, 6), round(2 / 110, 6))
    assert [round(found[name].mean, 3) for name in ("token_f1", "rouge_l")] == [0.574, 0.583]


def all_metrics() -> list[evaluate.Metric]:
    names = ("ExactMatch", "TokenF1", "RougeL", "ChrF", "LengthRatio", "RepetitiveShare", "StoppedShare")
    return [getattr(metrics, name)() for name in (*names, "ReferencePerplexity")]


def columns(rows: list[Response]) -> dict[str, list]:
    return {
        "predictions": [row.response for row in rows],
        "references": [row.output for row in rows],
        "stopped": [row.stopped for row in rows],
        "reference_nll": [row.reference_nll for row in rows],
        "reference_tokens": [row.reference_tokens for row in rows],
    }


def test_the_classes_say_what_measuring_does_and_combine() -> None:
    rows = ROWS[:2]
    measured = measure_responses(rows)
    found = evaluate.combine(all_metrics()).compute(**columns(rows), per_example=True)
    for name, values in measured.metrics.items():
        assert round(found[name], 6) == values.mean
        examples = [round(value, 6) for value in found[f"{name}_per_example"]]
        assert examples == [measured.examples[row.id][name] for row in rows]
    texts = {name: columns(ROWS)[name] for name in ("predictions", "references")}
    assert evaluate.combine(all_metrics()[:4]).compute(**texts) == {
        name: pytest.approx(measure_responses(ROWS).metrics[name].mean, abs=1e-6)
        for name in ("exact_match", "token_f1", "rouge_l", "chrf")
    }


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("RougeL", {}, "There is nothing to measure"),
        ("RougeL", {"predictions": [], "references": []}, "there are no examples"),
        ("ChrF", {"predictions": ["a", None], "references": ["a", "b"]}, "not defined for the example at index 1"),
        (
            "ExactMatch",
            {"predictions": ["a"], "references": ["a"], "per_exampel": True},
            "does not accept `per_exampel`",
        ),
        ("LengthRatio", {"predictions": ["a"], "references": [""]}, "LengthRatio is not defined"),
        ("ReferencePerplexity", {"reference_nll": [1.0], "reference_tokens": [0]}, "the example at index 0"),
    ],
)
def test_bad_columns(name: str, arguments: dict, text: str) -> None:
    metric = getattr(metrics, name)()
    with pytest.raises(DataError, match=text):
        metric.compute(**arguments)
    # What failed leaves nothing behind.
    assert metrics.RougeL().compute(predictions=["a"], references=["a"]) == {"rouge_l": 1.0}


def test_no_litter_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    assert metrics.ChrF().compute(predictions=["a"], references=["a"]) == {"chrf": 100.0}
    assert list(tmp_path.iterdir()) == []
    # What asks for files gets them, and they go again.
    metric = metrics.ChrF(cache_dir=str(tmp_path / "named"))
    metric.add(prediction="a", reference="a")
    assert [path.name for path in (tmp_path / "named").rglob("*.arrow")] == ["default_experiment-1-0.arrow"]
    assert metric.compute() == {"chrf": 100.0}
    assert not list((tmp_path / "named").rglob("*.arrow"))


def test_measuring_loads_neither_torch_nor_evaluate() -> None:
    code = (
        "import sys; from hf_instruct import measure_responses\n"
        "print(any(name in sys.modules for name in ('numpy', 'nltk', 'sacrebleu')))\n"
        "measure_responses([{'instruction': 'a', 'input': '', 'output': 'b', 'response': 'b'}])\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'evaluate') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines() == ["False", "[]"]


def run_with_answers(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.save_experiment(load_experiment(None, {}, deep=False))
    write_rows(run.responses, [*(row.model_copy(update={"model": "untuned"}) for row in ROWS[2:]), *ROWS])
    return run


def test_metrics_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with_answers(tmp_path / "run")
    assert main(["judge", "metrics", str(run.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["untuned,", "n", "2", "tuned,", "n", "4"]
    assert lines[1].endswith("25 % [5 %, 70 %]")
    assert " ".join(lines[6].split()) == "finished 0 %, n 1 67 % [21 %, 94 %], n 3"
    assert lines[8].split() == ["perplexity", "not", "known", "7.39", "[7.39,", "7.39],", "n", "2"]
    assert lines[-2:] == ["(95 % intervals in brackets)", str(run.metrics)]
    assert run.read_metrics() == measure_responses(ROWS)
    assert not run.judgments.exists()


def test_the_judge_stage_measures_before_it_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with_answers(tmp_path / "run")
    unknown = ["judge", str(run.path), "--rubric", "curse"]
    assert main(unknown) == 1
    assert not run.metrics.exists()
    assert main(["judge", str(run.path), "--judge", "ollama", "--base-url", "http://127.0.0.1:9"]) == 1
    assert "No Ollama server answers" in capsys.readouterr().err
    assert run.read_metrics().total == 4
    # Also where the untuned model's answers are not to be judged.
    assert run.read_metrics("untuned").total == 2
