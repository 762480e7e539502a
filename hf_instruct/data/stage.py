"""The prepare stage: from a source to the three files that every later stage reads."""

import hashlib
import logging

from hf_instruct.config import Experiment
from hf_instruct.data.preflight import build_preflight
from hf_instruct.data.sources import load_examples
from hf_instruct.data.splits import split_examples
from hf_instruct.errors import RunError
from hf_instruct.records import SPLIT_NAMES, write_json, write_rows
from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)


def prepare(run: RunFolder, experiment: Experiment) -> None:
    """Write `data/{train,test,validation}.jsonl` and, last, `data/preflight.json` into the run folder.

    Raises:
        DataError: The source cannot be read, has faults, or cannot be split.
        RunError: The files cannot be written.
    """
    settings = experiment.data
    examples = load_examples(
        settings.source,
        map=settings.map,
        hub_config=settings.hub_config,
        hub_split=settings.hub_split,
        revision=settings.revision,
        limit=settings.limit,
    )
    splits = split_examples(
        examples,
        split=settings.split,
        train_fraction=settings.train_fraction,
        test_fraction=settings.test_fraction,
        validation_fraction=settings.validation_fraction,
        seed=settings.seed,
    )
    try:
        # Its presence says that the splits beside it are whole, so it goes before they change.
        run.preflight.unlink(missing_ok=True)
        digest = hashlib.sha256()
        for name, rows in splits.named().items():
            write_rows(run.split(name), rows)
            digest.update(run.split(name).read_bytes())
        preflight = build_preflight(splits, source=settings.source, data_sha256=digest.hexdigest())
        write_json(run.preflight, preflight)
    except OSError as error:
        raise RunError(
            f"The data cannot be written to `{run.data}` ({error.strerror or error}). Make room or choose another "
            "folder with `--run-dir`, and start again."
        ) from error
    sizes = ", ".join(f"{preflight['examples'][name]:,} {name}" for name in SPLIT_NAMES)
    logger.info("%s: %s", settings.source, sizes)
    if seen := preflight["seen_in_train"]["test"]:
        logger.info(
            "%d of the %d test examples have an instruction and input that also stand in train; `--data.split grouped` "
            "keeps such pairs together.",
            len(seen),
            len(splits.test),
        )
