"""A small run folder with a file of every stage, written by hand; the tests of the report read it."""

from pathlib import Path
from typing import Any

from hf_instruct.config import build_experiment
from hf_instruct.records import Example, write_json, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import (
    JudgeIdentity,
    Judgment,
    Response,
    RubricName,
    Scores,
    ScoreSummary,
    TrainingRow,
    TrainingSummary,
)
from hf_instruct.yaml_text import dump_yaml, read_yaml

RUBRIC = RubricName(**{"name": "course", "sha256": "7" * 64})
JUDGE = JudgeIdentity(
    **{"backend": "ollama", "model": "llama3", "digest": "sha256:365c0bd3c000aaaa", "options": {"temperature": 0}}
)
# id, instruction, input, reference, category, base answer, base score, tuned answer, tuned score; None is a failure
ANSWERS: list[tuple[str, str, str, str, str, str, int | None, str, int | None]] = [
    (
        "a",
        "Use a simile.",
        "The car is fast.",
        "Fast as lightning.",
        "simile",
        "The car is fast.",
        10,
        "As a bullet.",
        85,
    ),
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
        write_json(run.preflight, {"seen_in_train": {"test": [], "validation": []}})
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
    rows = [
        TrainingRow(step=0, epoch=0.0, tokens_seen=0, kind="evaluation", train_loss=1.2, validation_loss=1.193),
        TrainingRow(step=0, epoch=0.0, tokens_seen=0, kind="samples", samples=[{**sample, "response": "Convert 2 km"}]),
        TrainingRow(
            step=4, epoch=1.0, tokens_seen=900, kind="train", loss=0.9, learning_rate=5e-5, tokens_per_second=400.0
        ),
        TrainingRow(step=4, epoch=1.0, tokens_seen=900, kind="evaluation", train_loss=0.8, validation_loss=0.8),
        TrainingRow(step=4, epoch=1.0, tokens_seen=900, kind="samples", samples=[{**sample, "response": "20 m."}]),
        TrainingRow(
            step=8, epoch=2.0, tokens_seen=1800, kind="train", loss=0.7, learning_rate=5e-5, tokens_per_second=400.0
        ),
        TrainingRow(step=8, epoch=2.0, tokens_seen=1800, kind="evaluation", train_loss=0.6, validation_loss=0.722),
        TrainingRow(step=8, epoch=2.0, tokens_seen=1800, kind="samples", samples=[{**sample, "response": "2000 m."}]),
    ]
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
    )
    write_json(run.training_summary, summary)


def write_responses(run: RunFolder) -> None:
    """Write both models' answers; the base model ends one of four itself, the tuned one all."""
    for i, folder in enumerate((run.base, run)):
        rows = [
            Response(
                id=id,
                instruction=ins,
                input=inp,
                output=ref,
                response=(base, tuned)[i],
                category=category,
                stopped=i == 1 or id == "a",
                num_tokens=9,
            )
            for id, ins, inp, ref, category, base, _, tuned, _ in ANSWERS
        ]
        write_rows(folder.responses, rows)


def write_judgments(run: RunFolder) -> None:
    """Write the judge's verdicts and their summary."""
    for i, folder in enumerate((run.base, run)):
        scores = {row[0]: (row[6], row[8])[i] for row in ANSWERS}
        write_rows(folder.judgments, [build_judgment(id, score) for id, score in scores.items()])
        numbers = [score for score in scores.values() if score is not None]
        scores = Scores(
            mean=sum(numbers) / len(numbers),
            standard_error=2.5,
            n=len(numbers),
            failures=4 - len(numbers),
            total=4,
            judge=JUDGE,
            rubric=RUBRIC,
            by_category={
                "facts": ScoreSummary(mean=60.0, standard_error=40.0, n=2),
                "simile": ScoreSummary(mean=85.0, n=1),
            },
        )
        write_json(folder.scores, scores)


def build_judgment(id: str, score: int | None) -> Judgment:
    """Return a judgment; without a score it is a failure."""
    failure = None if score is not None else "no integer from 0 to 100"
    replies = ["Well done!"] if score is None else [str(score)]
    return Judgment(
        id=id,
        score=score,
        replies=replies,
        judge=JUDGE,
        rubric="course",
        prompt_sha256="f" * 64,
        seconds=0.5,
        failure=failure,
        reasons="Close." if score else None,
    )
