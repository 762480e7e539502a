import dataclasses
from pathlib import Path
from typing import Any

import pytest
from reporting_run import write_run

from hf_instruct.evaluation.intervals import measure_difference
from hf_instruct.records import write_json, write_rows
from hf_instruct.reporting.facts import RunFacts, read_facts
from hf_instruct.reporting.findings import (
    format_judge,
    format_mean,
    format_method,
    list_missing,
    list_notes,
)
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import (
    CheckOutcome,
    JudgeIdentity,
    Leak,
    MeanDifference,
    NearDuplicate,
    NearDuplicates,
    Preflight,
    Repeats,
    RubricName,
    Scores,
    TrainingRow,
)


def _read(run: RunFolder) -> RunFacts:
    return read_facts(run, run.load_experiment())


def _with_scores(facts: RunFacts, owner: str, **changes: Any) -> RunFacts:
    side = getattr(facts, owner)
    side = dataclasses.replace(side, scores=side.scores.model_copy(update=changes))
    return dataclasses.replace(facts, **{owner: side})


def test_difference_needs_two_pairs() -> None:
    assert measure_difference({"a": 1}, {"a": 2}) is None
    assert measure_difference({"a": 1, "b": 2}, {"c": 2}) is None


@pytest.mark.parametrize(("low", "high", "shown"), [(-1, 3, False), (0, 3, False), (0.1, 3, True), (-3, -1, True)])
def test_an_interval_with_zero_shows_no_difference(low: float, high: float, shown: bool) -> None:
    assert MeanDifference(1, low, high, 9).is_shown is shown


def test_texts_of_scores() -> None:
    scores = Scores(mean=49.449, standard_error=2.81, n=110)
    assert format_mean(scores) == "49.4 ± 2.8"
    assert format_mean(Scores(mean=50.0, n=1)) == "50.0"
    assert format_mean(Scores(failures=3)) == "no score"
    assert format_judge(JudgeIdentity(), RubricName(name="course")) == "unnamed judge, rubric course"
    judge = JudgeIdentity(backend="local", model="/home/me/models/SmolLM2", digest="sha256:0123456789abcdef")
    assert format_judge(judge, RubricName()) == "SmolLM2 (local, digest 0123456789ab)"


def test_method(tmp_path: Path) -> None:
    assert format_method(_read(write_run(tmp_path / "full"))) == "full fine-tuning"
    assert format_method(_read(write_run(tmp_path / "lora", lora={"r": 8}))) == "LoRA (r 8, alpha 256)"


def test_nothing_is_missing_from_a_whole_run(tmp_path: Path) -> None:
    assert list_missing(_read(write_run(tmp_path / "demo"))) == []


def test_missing_parts_and_their_commands(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my run", stages=())
    where = f"'{run.path}'"
    assert [(part.what, part.command) for part in list_missing(_read(run))] == [
        ("the examples and the training log", f"hf-instruct train EXPERIMENT.yaml --run-dir {where} --resume"),
        ("the tuned model's answers", f"hf-instruct generate {where}"),
        ("the base model's answers, to compare with", f"hf-instruct generate {where}"),
    ]


def test_a_half_done_stage_is_missing_its_rest(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    run.scores.unlink()
    lines = run.responses.read_text().splitlines(keepends=True)
    run.responses.write_text("".join(lines[:3]))
    assert [part.what for part in list_missing(_read(run))] == [
        "1 of the tuned model's answers",
        "the scores of the tuned model's answers (3 of 3 are judged)",
    ]


def test_base_answers_that_nobody_asked_for_are_not_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=("data", "train"), generate={"base": False})
    assert [part.what for part in list_missing(_read(run))] == ["the tuned model's answers"]


def test_notes_of_a_small_sample_with_failures(tmp_path: Path) -> None:
    facts = _read(write_run(tmp_path / "demo"))
    assert list_notes(facts) == [
        "No difference shown in the scores: tuned - base is +35.0 points, 95 % interval -70.0 to +100.0, over the "
        "3 examples scored on both sides. The interval includes zero.",
        "Only 3 answers have a score: the standard error itself is uncertain.",
        "The judge gave no readable verdict on 1 of 4 tuned answers. The means are over the others.",
    ]


def test_notes_on_judges(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", judge={"base": False})
    run.base.scores.unlink()
    facts = _with_scores(_read(run), "tuned", n=110, failures=0, total=110)
    assert list_notes(facts) == []
    small = _with_scores(facts, "tuned", judge=JudgeIdentity(backend="local", model="SmolLM2-135M-Instruct"))
    assert list_notes(small) == [
        "The judge is a small model (135 million parameters), so its scores do not tell good answers from bad ones: go "
        "by the reference metrics and the answers themselves, and quote scores of a better judge only."
    ]
    unknown = _with_scores(facts, "tuned", judge=JudgeIdentity(backend="local", model="mine"))
    assert list_notes(unknown)[0].startswith("The judge ran locally and its name does not tell its size.")
    big = _with_scores(facts, "tuned", judge=JudgeIdentity(backend="local", model="Qwen3-8B"))
    assert list_notes(big) == []


def test_notes_on_a_judge_that_was_checked_and_asked_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    repeats = Repeats(count=3, seeds=[1, 2, 3], means=[], n=[], failures=[], spread=4.71, changed=0.5)
    check = CheckOutcome(passed=False, failed=["order", "injection"], n=20)
    told = {"self_check": check, "constant": True, "repeats": repeats, "mean": 60.0}
    facts = _with_scores(_read(run), "tuned", n=110, failures=0, total=110, **told)
    assert list_notes(dataclasses.replace(facts, base=facts.tuned)) == [
        "The judge failed its self-check (order, injection), so its scores do not tell good answers from bad ones: go "
        "by the reference metrics and the answers themselves, and quote scores of a better judge only.",
        "The judge gave every answer the same score, 60.0: it tells nothing.",
        "Each answer was judged 3 times: the judge's own spread is 4.7 points an answer, and 50 % of its verdicts "
        "changed.",
    ]


def test_failures_leave_a_range_open(tmp_path: Path) -> None:
    facts = _with_scores(
        _read(write_run(tmp_path / "demo")), "tuned", mean_failures_as_0=51.25, mean_failures_as_100=76.25
    )
    assert list_notes(facts)[-1] == (
        "The judge gave no readable verdict on 1 of 4 tuned answers. The means are over the others. With every failure "
        "counted as 0 or as 100 the tuned mean would be 51.3 or 76.3."
    )


def test_leaks_are_told_with_near_duplicates(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=("data",))
    seen = {"test": [Leak(id="a", train_ids=["1"])], "validation": []}
    near = NearDuplicates(threshold=0.9, test=[NearDuplicate(id="b", train_id="1", cosine=0.95)] * 2)
    write_json(run.preflight, Preflight(seen_in_train=seen, near_duplicates=near))
    assert list_notes(_read(run)) == [
        "1 of 4 test examples have the same instruction and input as a training example, and 2 more are "
        "near-duplicates of one."
    ]
    write_json(run.preflight, Preflight(near_duplicates=near))
    assert list_notes(_read(run)) == ["2 of 4 test examples are near-duplicates of a training example."]
    write_json(run.preflight, Preflight(near_duplicates=near.model_copy(update={"test": near.test[:1]})))
    assert list_notes(_read(run)) == ["1 of 4 test examples is a near-duplicate of a training example."]


def test_sides_judged_differently_have_no_difference(tmp_path: Path) -> None:
    facts = _with_scores(
        _read(write_run(tmp_path / "demo")),
        "tuned",
        rubric=RubricName(name="critique", sha256="7" * 64),
        n=110,
        failures=0,
    )
    assert facts.difference is None
    assert list_notes(facts) == [
        "The two sides were judged differently: base by llama3 (ollama, digest 365c0bd3c000), rubric course@7777777, "
        "tuned by llama3 (ollama, digest 365c0bd3c000), rubric critique@7777777. Their scores cannot be compared."
    ]


def test_note_on_getting_worse(tmp_path: Path) -> None:
    facts = _read(write_run(tmp_path / "demo"))
    worse = dataclasses.replace(facts, tuned=facts.base, base=facts.tuned)
    judgments = {id: judgment.model_copy(update={"score": 99}) for id, judgment in worse.base.judgments.items()}
    worse = dataclasses.replace(worse, base=dataclasses.replace(worse.base, judgments=judgments))
    assert list_notes(worse)[0] == (
        "The tuned model scores lower than the base model: -72.8 points, 95 % interval -96.5 to -30.3 (n=4)."
    )


def test_notes_on_answers_and_training(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=("data", "generate"))
    run.responses.write_text(run.responses.read_text().replace('"stopped": true', '"stopped": false', 1))
    write_json(run.preflight, {"seen_in_train": {"test": [{"id": "a", "train_ids": ["1"]}]}})
    losses = {0: 1.2, 4: 0.7, 8: 0.9}
    rows = [
        TrainingRow(step=s, epoch=s / 4, tokens_seen=s * 9, kind="evaluation", validation_loss=loss)
        for s, loss in losses.items()
    ]
    write_rows(run.training_log, rows)
    assert list_notes(_read(run)) == [
        "1 of 4 test examples have the same instruction and input as a training example.",
        "25 % of the tuned model's answers did not end by themselves and were cut off at `generate.max_new_tokens` "
        "(256).",
        "The validation loss was lowest at step 4 (0.700) and has risen to 0.900: overfitting.",
    ]
