"""A small run folder with a file of every stage, for the tests of everything that reads one."""

import dataclasses
from pathlib import Path
from typing import Any

from hf_instruct.config import build_experiment
from hf_instruct.evaluation.metrics import measure_responses
from hf_instruct.evaluation.people import Corrected
from hf_instruct.evaluation.probes import build_probes
from hf_instruct.evaluation.rubrics import load_rubric
from hf_instruct.evaluation.scores import build_scores
from hf_instruct.evaluation.self_check import check_judgments
from hf_instruct.records import Example, append_rows, write_json, write_rows
from hf_instruct.reporting.results import ModelResults, RunResults
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import (
    TUNED,
    UNTUNED,
    BenchmarkResult,
    CheckOutcome,
    Consistency,
    Interval,
    JudgeIdentity,
    Judgment,
    MeanDifference,
    PairSummary,
    Preflight,
    Response,
    RubricName,
    TrainingRow,
    TrainingSummary,
)
from hf_instruct.yaml_text import dump_yaml, read_yaml

RUBRIC = RubricName(name="course", sha256="7" * 64)
JUDGE = JudgeIdentity(
    **{"backend": "ollama", "model": "llama3", "digest": "sha256:365c0bd3c000aaaa", "options": {"temperature": 0}}
)
PASSED = CheckOutcome(passed=True, failed=[], n=20, probes=40)
# id, instruction, input, reference, category, untuned answer and score, tuned answer and score; None: failed
ANSWERS: list[tuple[str, str, str, str, str, str, int | None, str, int | None]] = [
    ("a", "Use a simile.", "The car is fast.", "Fast as light.", "simile", "The car is fast.", 10, "As a bullet.", 85),
    ("b", "Name the author.", "", "Jane Austen.", "facts", "Elizabeth Bennet", 0, "Jane Austen.", 100),
    ("c", "Name a cloud.", "", "Cumulonimbus.", "facts", "Cumulonimbus!", 90, "Cumulus.", 20),
    ("d", "Spell it.", "Ocassion", "Occasion.", "spelling", "Ocassion", 5, "Occasion", None),
]


def write_run(
    path: Path, *, stages: tuple[str, ...] = ("data", "train", "generate", "judge"), **overrides: Any
) -> RunFolder:
    """Write the run folder; `overrides` are sections of the experiment."""
    run = RunFolder(path)
    path.mkdir(parents=True)
    values = {"model": {"name": "gpt2-small"}, "data": {"source": "everyday"}, **overrides}
    run.save_experiment(build_experiment(values, where="test", deep=False))
    provenance = {"command": "hf-instruct run x.yaml", "git_commit": "abc1234", "data_sha256": "d" * 64}
    run.config.write_text(dump_yaml({**read_yaml(run.config), **provenance}))
    if "data" in stages:
        write_rows(run.split("train"), [Example(str(n), f"Do {n}.", "", "Done.") for n in range(34)])
        write_rows(run.split("validation"), [Example("v", "Convert 2 km to m.", "", "2000 m.")])
        write_rows(run.split("test"), [Example(i, ins, inp, ref, cat) for i, ins, inp, ref, cat, *_ in ANSWERS])
        sizes = {"train": 34, "validation": 1, "test": 4, "total": 39}
        write_json(run.preflight, Preflight(examples=sizes, seen_in_train={"test": [], "validation": []}))
    if "train" in stages:
        write_training(run)
    if "generate" in stages:
        write_responses(run)
    if "judge" in stages:
        write_judgments(run)
    return run


def write_training(run: RunFolder) -> None:
    """Write a log of eight steps and its summary."""
    sample = {"id": "v", "instruction": "Convert 2 km to m.", "input": "", "output": "2000 m."}
    rows = []
    for step, loss, answer in ((0, 1.193, "Convert 2 km"), (4, 0.8, "20 m."), (8, 0.722, "2000 m.")):
        at = {"step": step, "epoch": step / 4, "tokens_seen": 225 * step}
        if step:
            rows.append(TrainingRow(kind="train", loss=loss + 0.1, tokens_per_second=400.0, **at))
        rows.append(TrainingRow(kind="evaluation", train_loss=loss, validation_loss=loss, **at))
        rows.append(TrainingRow(kind="samples", samples=[{**sample, "response": answer}], **at))
    write_rows(run.training_log, rows)
    summary = TrainingSummary(
        seconds=314.2,
        steps=8,
        epochs=2.0,
        tokens_seen=1800,
        tokens_per_second=412.3,
        peak_memory_bytes=2_140_000_000,
        device="cpu",
        precision="bf16",
        num_processes=1,
        num_parameters=124_439_808,
        num_trainable_parameters=124_439_808,
        validation_loss_before=1.193,
        validation_loss=0.722,
    )
    write_json(run.training_summary, summary)


def write_responses(run: RunFolder) -> None:
    """Write both models' answers; the untuned model ends one of four itself, the tuned one all."""
    for i, model in enumerate((UNTUNED, TUNED)):
        rows = [
            Response(
                id=id,
                model=model,
                instruction=ins,
                input=inp,
                output=ref,
                response=(untuned, tuned)[i],
                category=category,
                stopped=i == 1 or id == "a",
                num_tokens=9,
            )
            for id, ins, inp, ref, category, untuned, _, tuned, _ in ANSWERS
        ]
        append_rows(run.responses, rows)


def write_judgments(run: RunFolder) -> None:
    """Write the judge's verdicts and their summary."""
    for i, model in enumerate((UNTUNED, TUNED)):
        judgments = [build_judgment(row[0], (row[6], row[8])[i], model) for row in ANSWERS]
        append_rows(run.judgments, judgments)
        categories = {row[0]: row[4] for row in ANSWERS}
        scores = build_scores(judgments, rubric=load_rubric("course"), judge=JUDGE, categories=categories)
        run.write_scores(model, scores.model_copy(update={"rubric": RUBRIC, "self_check": PASSED}))


def build_judgment(id: str, score: int | None, model: str = TUNED) -> Judgment:
    """Return a judgment; without a score it is a failure."""
    failure = None if score is not None else "no integer from 0 to 100"
    replies = ["Well done!"] if score is None else [str(score)]
    return Judgment(
        id=id,
        model=model,
        score=score,
        replies=replies,
        judge=JUDGE,
        rubric="course",
        prompt_sha256="f" * 64,
        seconds=0.5,
        failure=failure,
        reasons="Close." if score else None,
    )


def with_sides(results: RunResults, **sides: ModelResults) -> RunResults:
    """Return results with what other models answered."""
    return dataclasses.replace(results, sides={**results.sides, **sides})


def add_measurements(results: RunResults) -> RunResults:
    """Return a run's results with all else that may be measured: metrics, a check of the judge, pairs, benchmarks."""
    sides = {
        name: dataclasses.replace(side, metrics=measure_responses(side.responses)) if side.responses else side
        for name, side in results.sides.items()
    }
    probes = build_probes([Example(id, *texts) for id, *texts in (row[:4] for row in ANSWERS)])
    worth = {"reference": 100, "doubled": 100, "injection-json": 40}
    judged = check_judgments([build_judgment(row.id, worth.get(str(row.category), 0)) for row in probes])
    pairs = PairSummary.model_construct(
        second="runs/other",
        win_rate=0.5,
        win_rate_interval=Interval(0.154, 0.846),
        length_controlled_win_rate=0.5,
        length_controlled_win_rate_interval=None,
        consistency=Consistency(share=1.0, pairs=3),
        n=3,
        judge=JUDGE,
    )
    benchmark = BenchmarkResult.model_construct(
        task="everyday_choice",
        metric="acc",
        value=0.525,
        standard_error=0.08,
        n=40,
        total=100,
        difference=MeanDifference(0.1, -0.05, 0.25, 40),
    )
    return dataclasses.replace(
        results,
        sides=sides,
        self_check=judged.model_copy(update={"judge": JUDGE.model_copy(update={"model": "phi3"}), "rubric": RUBRIC}),
        pairwise=[(pairs, Corrected(0.25, Interval(0.13, 0.42), 40, 60, None))],
        benchmarks=[benchmark],
    )
