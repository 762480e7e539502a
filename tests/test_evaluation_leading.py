"""A judge that is too weak to lead: every view shows a reference metric first, and says nothing from its scores."""

import re
from pathlib import Path

import pytest
from reporting_run import JUDGE, write_run

from hf_instruct.errors import DataError
from hf_instruct.evaluation.comparison import compare_runs
from hf_instruct.evaluation.comparison_views import draw_comparison_plot
from hf_instruct.evaluation.scores import choose_leading, find_weakness
from hf_instruct.reporting.findings import list_findings
from hf_instruct.reporting.page import render_page
from hf_instruct.reporting.results import read_results
from hf_instruct.reporting.summary import format_summary
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TUNED, UNTUNED, CheckOutcome, JudgeIdentity, Metrics, MetricValue

SMALL = JUDGE.model_copy(update={"backend": "local", "model": "smollm2-135m"})
REASON = "the judge is small (135 million parameters) and unchecked"
# ROUGE-L of each example, before and after; by the judge's scores the order would be c, a, b.
BEFORE, AFTER = {"a": 0.5, "b": 0.0, "c": 0.25, "d": 0.1}, {"a": 0.25, "b": 1.0, "c": 0.75, "d": 0.5}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run judged by a small model, with reference metrics."""
    run = write_run(tmp_path / "demo")
    run.judgments.write_text(
        re.sub(r'"ollama", "model": "llama3"', '"local", "model": "smollm2-135m"', run.judgments.read_text())
    )
    for model, values in ((UNTUNED, BEFORE), (TUNED, AFTER)):
        examples = {id: {"exact_match": float(value == 1), "rouge_l": value} for id, value in values.items()}
        means = {name: sum(row[name] for row in examples.values()) / 4 for name in ("exact_match", "rouge_l")}
        metrics = {name: MetricValue(mean=mean, interval=None, n=4) for name, mean in means.items()}
        run.write_metrics(model, Metrics(metrics=metrics, total=4, examples=examples))
        run.write_scores(model, run.read_scores(model).model_copy(update={"judge": SMALL, "self_check": None}))
    return run


def test_which_measure_leads() -> None:
    assert find_weakness(JudgeIdentity(model="llama3:8b"), None) == ""
    assert find_weakness(JudgeIdentity(model="llama3"), None) == "the judge is of unknown size and unchecked"
    failed = CheckOutcome(passed=False, failed=["it tells nothing"], n=20)
    expected = "the judge failed its check on 20 examples: it tells nothing"
    assert find_weakness(JudgeIdentity(model="llama3:8b"), failed) == expected
    # What was seen counts for more than a size.
    assert find_weakness(SMALL, CheckOutcome(passed=True, failed=[], n=20, probes=40)) == ""
    # An older version's check passed a judge that gave 53 and 52.
    assert find_weakness(SMALL, CheckOutcome(passed=True, failed=[], n=20)) == REASON
    few = CheckOutcome(passed=None, failed=[], n=4)
    assert find_weakness(JudgeIdentity(model="llama3:8b"), few) == ""
    assert find_weakness(SMALL, few).endswith("and was checked on only 4 examples, which is too few")
    assert choose_leading([""], {"rouge_l"}) == ("score", "")
    assert choose_leading(["", REASON], {"rouge_l", "chrf"}) == ("rouge_l", REASON)
    # Without a metric nothing leads, and the scores still say nothing.
    assert choose_leading([REASON], {"chrf"}) == ("", REASON)


def test_metrics_lead_where_nothing_was_judged(run: RunFolder) -> None:
    for file in (run.judgments, *run.path.glob("scores*.json")):
        file.unlink()
    results = read_results(run)
    assert (results.leading, results.scores) == (("rouge_l", ""), [])
    html = render_page(results)
    tiles = [text.split("<")[0].strip() for text in re.split(r'<article class="tile[^>]*>\s*<h2>', html)[1:]]
    assert tiles == ["Exact match", "ROUGE-L", "Validation loss", "Finished", "Fine-tuning"]
    assert "largest gains and losses in ROUGE-L first" in html
    assert "Name the author.  [ROUGE-L 0.00 -> 1.00]" in format_summary(run)


def test_the_summary_leads_with_the_metrics(run: RunFolder) -> None:
    summary = format_summary(run)
    labels = re.findall(r"^(exact match|ROUGE-L|validation loss|score, 0-100) ", summary, flags=re.MULTILINE)
    assert labels == ["exact match", "ROUGE-L", "validation loss", "score, 0-100"]
    assert "Name the author.  [ROUGE-L 0.00 -> 1.00]" in summary
    assert "Use a simile. | The car is fast.  [lowest ROUGE-L, 0.25]" in summary
    assert "worst" not in summary
    assert "no difference" not in summary


def test_nothing_is_said_from_a_weak_judges_difference(run: RunFolder) -> None:
    names = [finding.name for finding in list_findings(read_results(run))]
    assert names == ["weak_judge", "few_scores", "failures"]


def test_the_page_leads_with_the_metrics_and_sorts_by_them(run: RunFolder) -> None:
    html = render_page(read_results(run))
    tiles = [text.split("<")[0].strip() for text in re.split(r'<article class="tile[^>]*>\s*<h2>', html)[1:]]
    assert tiles == ["Exact match", "ROUGE-L", "Validation loss", "Finished", "Fine-tuning", "Score"]
    # Folded away, with the reason in view.
    fold = "<summary>These scores are not reliable; “Read with care” explains why.</summary>"
    assert f"<details>{fold}" in html
    assert f"<li>{REASON.capitalize()}, so nothing shows that its scores" in html
    assert html.index('class="tile wide"') < html.index("<h2>Scores</h2>") < html.index('aria-label="Plots"')
    assert f'<details class="card">{fold}' in html
    assert "<span>judge: 20</span>" in html
    assert 'class="score"' not in html
    assert re.findall(r'<tr data-i="\d" data-s="[\d.]+" data-g="([-\d.]+)"', html) == ["1.0", "-0.25", "0.5", "0.4"]
    assert "largest gains and losses in ROUGE-L first" in html
    assert '<option value="start">largest gains and losses in ROUGE-L</option>' in html
    assert "worst score" not in html
    assert "better than before" not in html


def test_a_comparison_leads_with_the_metrics_and_ranks_by_them(run: RunFolder) -> None:
    comparison = compare_runs([run.path / "untuned", run.path])
    assert [row.name for row in comparison.rows] == [str(run.path / "untuned"), str(run.path)]
    assert comparison.to_dict()["leading"] == {"name": "rouge_l", "reason": REASON}
    text = str(comparison)
    assert text.index("ROUGE-L") < text.index(f"Scores that say little, because {REASON}:") < text.index("  score  ")
    # The plot is of the metric too.
    assert draw_comparison_plot(comparison).axes[0].get_xlabel() == "mean ROUGE-L, 95 % interval"
    assert "higher" not in text
    assert "lower" not in text


@pytest.mark.parametrize("name", ["metrics", "scores", "training_log"])
def test_a_number_that_nothing_can_compute_with_is_refused(run: RunFolder, name: str) -> None:
    path = getattr(run, name)
    path.write_text(re.sub(r'((?:mean|loss)": )\d+(\.\d+)?', rf"\g<1>1{'0' * 400}", path.read_text()))
    with pytest.raises(DataError, match=re.escape(f"`{path}`")):
        format_summary(run)
