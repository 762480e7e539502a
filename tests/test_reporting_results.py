import dataclasses
import re
from pathlib import Path

import pytest
from reporting_run import build_judgment, with_sides, write_run
from rows import preference, response

from hf_instruct.config import build_experiment
from hf_instruct.errors import DataError
from hf_instruct.evaluation.comparison import compare_runs
from hf_instruct.evaluation.intervals import compare_values
from hf_instruct.evaluation.metrics import measure_responses
from hf_instruct.evaluation.pair_scores import build_pair_scores
from hf_instruct.evaluation.responses import JoinedPairs
from hf_instruct.records import append_rows, write_json, write_rows
from hf_instruct.reporting.answers import pair_answers, pick_highlights, sort_worst_first
from hf_instruct.reporting.findings import list_findings
from hf_instruct.reporting.page import render_page
from hf_instruct.reporting.results import RunResults, read_results
from hf_instruct.schema import Metrics, MetricValue, Unpaired


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return read_results(write_run(tmp_path_factory.mktemp("runs") / "demo"))


def add_metrics(results: RunResults, **sides: Metrics) -> RunResults:
    """Return results with other reference metrics of `untuned`, `tuned` or both."""
    changed = {name: dataclasses.replace(results.sides[name], metrics=metrics) for name, metrics in sides.items()}
    return with_sides(results, **changed)


def build_metrics(values: dict[str, float], **means: float) -> Metrics:
    """Return metrics of which `rouge_l` is known by example."""
    means["rouge_l"] = sum(values.values()) / len(values)
    return Metrics(
        metrics={name: MetricValue(mean=mean, interval=None, n=len(values)) for name, mean in means.items()},
        examples={id: {"rouge_l": value} for id, value in values.items()},
    )


def test_a_whole_run(results: RunResults) -> None:
    assert results.name == "demo"
    assert results.method == "full fine-tuning"
    assert [row.validation_loss for row in results.evaluations] == [1.193, 0.8, 0.722]
    assert results.tuned.score_by_id == {"a": 85, "b": 100, "c": 20}
    assert (results.before.stop_rate, results.tuned.stop_rate) == (0.25, 1.0)
    assert results.judges == ["llama3@365c0bd (ollama), rubric course@7777777"]
    assert results.difference is not None
    assert (results.difference.mean, results.difference.n) == (35.0, 3)


def test_an_empty_run(tmp_path: Path) -> None:
    results = read_results(write_run(tmp_path / "demo", stages=(), lora={"r": 8}))
    assert results.method == "LoRA (r 8, alpha 256)"
    assert (results.evaluations, results.scores, results.metrics, results.judges) == ([], [], [], [])
    assert results.before == results.tuned
    assert results.tuned.stop_rate is None
    assert results.difference is None


def test_the_latest_judgment_of_each_answer_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    append_rows(run.judgments, [build_judgment("a", 7), build_judgment("gone", 99)])
    tuned = read_results(run).tuned
    assert tuned.score_by_id == {"a": 7, "b": 100, "c": 20}
    # So does a correction of their mean.
    corrected = dataclasses.replace(tuned, people={"a": 10.0}).corrected
    assert corrected
    assert (corrected.n, corrected.total) == (1, 4)


@pytest.mark.parametrize("text", ['{"mean"', "[1]"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "demo")
    run.scores.write_text(text)
    with pytest.raises(DataError, match=r"scores\.json` cannot be read .* run the stage that writes it again"):
        read_results(run)


def test_a_pairwise_file_without_rows_leaves_its_summary_uncorrected(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    rows = [preference("a", 1.0, judge={"backend": "ollama", "model": "m"})]
    joined = JoinedPairs([], ("runs/a", "runs/b"), "id", Unpaired(first=0, second=0))
    write_json(run.pairwise / "b.json", build_pair_scores(rows, joined, rows[0].judge))
    write_rows(run.pairwise / "b.jsonl", [])
    ((summary, corrected),) = read_results(run).pairwise
    assert (summary.second, corrected) == ("runs/b", None)


def test_metrics_stand_side_by_side_with_their_paired_difference(results: RunResults) -> None:
    changed = add_metrics(
        results,
        untuned=build_metrics({"a": 0.25, "b": 0.25, "c": 0.5}, exact_match=0.04, perplexity=12.5),
        tuned=build_metrics({"a": 0.5, "b": 0.5, "c": 0.75}, exact_match=0.171, perplexity=6.0, mine=1.5),
    )
    rows = {row.label: (row.show(row.before), row.show(row.tuned), row.show_difference()) for row in changed.metrics}
    assert rows == {
        "exact match": ("4 %", "17 %", ""),
        "ROUGE-L": ("0.33", "0.58", "+0.25 (+0.25 to +0.25)"),
        # A mean of ratios is not the ratio that is shown.
        "perplexity": ("12.5", "6.00", ""),
        "mine": ("", "1.50", ""),
    }
    assert list(rows) == ["exact match", "ROUGE-L", "perplexity", "mine"]


def test_the_report_and_compare_tell_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    for model in ("untuned", "tuned"):
        run.write_metrics(model, measure_responses(run.read_responses(model)))
    results, compared = read_results(run), compare_runs([run.path / "untuned", run.path])
    assert results.difference == compared.rows[1].difference
    assert results.leading == compared.leading
    differences = {row.name: row.difference for row in results.metrics}
    assert len(compared.metrics) > 4
    assert all(differences[part.name] == part.differences[1] for part in compared.metrics)


def test_examples_with_one_instruction_count_as_one_draw(results: RunResults) -> None:
    values = [i // 2 % 5 / 10 for i in range(40)]
    metrics = {
        "untuned": build_metrics({str(i): 0.0 for i in range(40)}),
        "tuned": build_metrics({str(i): value for i, value in enumerate(values)}),
    }
    changed = add_metrics(results, **metrics)
    rows = [response(str(i), instruction=f"Task {i // 2}.") for i in range(40)]
    (row,) = with_sides(changed, tuned=dataclasses.replace(changed.tuned, responses=rows)).metrics
    assert row.difference
    assert row.difference.interval == compare_values(values, [0.0] * 40, [i // 2 for i in range(40)]).interval
    assert row.difference.interval != compare_values(values, [0.0] * 40).interval


def test_rows_pair_the_answers(results: RunResults) -> None:
    rows = pair_answers(results)
    assert [(row.example.id, row.number, row.value, row.gain) for row in rows] == [
        ("a", 1, 85, 75),
        ("b", 2, 100, 100),
        ("c", 3, 20, -70),
        ("d", 4, None, None),
    ]
    assert [row.example.id for row in sort_worst_first(rows)] == ["c", "a", "b", "d"]
    best, worst = pick_highlights(rows)
    assert [row.example.id for row in best] == ["b", "a"]
    assert worst is not None
    assert worst.example.id == "c"


def test_rows_of_one_side_only(results: RunResults) -> None:
    rows = pair_answers(with_sides(results, tuned=dataclasses.replace(results.tuned, responses=[])))
    assert [(row.example.id, row.tuned, row.value) for row in rows] == [
        ("a", None, 10),
        ("b", None, 0),
        ("c", None, 90),
        ("d", None, 5),
    ]


def test_highlights_without_scores_are_changed_answers(tmp_path: Path) -> None:
    best, worst = pick_highlights(pair_answers(read_results(write_run(tmp_path / "demo", stages=("generate",)))))
    assert [row.example.id for row in best] == ["a", "b", "c"]
    assert worst is None


@pytest.fixture
def preferred(results: RunResults) -> RunResults:
    """A run of DPO, whose start is a fine-tuned model: what was answered, with the length of each model's answers."""
    experiment = build_experiment({"dpo": {}}, where="test", deep=False)
    before = results.before
    whole = dataclasses.replace(with_sides(results, SFT=before), experiment=experiment)
    return add_metrics(
        whole,
        untuned=build_metrics({"a": 0.1, "b": 0.1, "c": 0.1}, length_ratio=2.0),
        SFT=build_metrics({"a": 0.25, "b": 0.25, "c": 0.5}, length_ratio=0.9),
        tuned=build_metrics({"a": 0.5, "b": 0.5, "c": 0.75}, length_ratio=1.2),
    )


def test_three_models_stand_side_by_side_after_preference_training(preferred: RunResults) -> None:
    assert (preferred.start, preferred.others) == ("SFT", ["untuned", "SFT"])
    assert list(preferred.differences) == ["untuned", "SFT"]
    row = next(row for row in preferred.metrics if row.name == "rouge_l")
    assert [row.show_difference(name).split()[0] for name in ("SFT", "untuned")] == ["+0.25", "+0.48"]
    assert preferred.lengths == "length of the answers 0.90 -> 1.20 of their references'"
    (longer,) = [finding for finding in list_findings(preferred) if finding.name == "longer_answers"]
    assert longer.text.startswith("DPO made the answers 33 % longer (0.90 -> 1.20 of")
    page = render_page(preferred)
    heads = ["Untuned", "SFT", "Tuned", "Tuned - SFT, paired", "Tuned - untuned, paired"]
    metrics = page[page.index('id="metrics"') :]
    assert re.findall(r'class="num">([^<]+)</th>', metrics)[: len(heads)] == heads
    assert page.count('<td class="untuned"') == page.count('<td class="SFT"') == len(pair_answers(preferred))


def test_a_start_model_is_called_by_what_trained_it(preferred: RunResults) -> None:
    after_dpo = dataclasses.replace(preferred, provenance=preferred.provenance.model_copy(update={"start": "DPO"}))
    page = render_page(after_dpo)
    assert ("Tuned - SFT" in page, "Tuned - DPO" in page) == (False, True)
    assert 'data-title="DPO"' in page


def test_a_run_that_only_fine_tunes_says_nothing_of_length(results: RunResults) -> None:
    longer = add_metrics(
        results, **{name: build_metrics({"a": 1}, length_ratio=n) for name, n in (("untuned", 1), ("tuned", 2))}
    )
    assert longer.lengths == ""
    assert "longer_answers" not in {finding.name for finding in list_findings(longer)}
