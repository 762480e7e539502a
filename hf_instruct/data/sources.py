"""Find a source of examples by its name, read it, and return its examples or all of its problems."""

import difflib
import importlib.resources
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import DataSection
from hf_instruct.data.checks import (
    FIELDS,
    CheckedData,
    RawTable,
    build_examples,
    choose_columns,
    describe_nearest,
    raise_problems,
    shorten,
)
from hf_instruct.data.datasets import build_dataset
from hf_instruct.data.download import load_course_data
from hf_instruct.data.readers import (
    SAVED_DATASET,
    SUFFIX_LIST,
    SUFFIXES,
    collect_rows,
    convert_dataset,
    find_suffix,
    load_saved,
    parse_json,
    parse_jsonl,
    read_file,
)
from hf_instruct.errors import DataError
from hf_instruct.offline import cache_alone_if_unreachable, transport_error
from hf_instruct.records import Example

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

COURSE = "instruction-data"
EVERYDAY = "everyday"
HUB_ALIASES = {"alpaca": "tatsu-lab/alpaca"}
_SOURCE_FIELDS = ("map", "hub_config", "hub_split", "revision", "limit")
NAMED_SOURCES = (COURSE, EVERYDAY, *HUB_ALIASES)
# Some rows of this dataset have no output; in anybody else's data that is a problem.
# Source: https://github.com/gururise/AlpacaDataCleaned
_KNOWN_GAPS = ("tatsu-lab/alpaca",)

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def load_examples(
    source: "str | Path | Dataset | Iterable[Mapping[str, Any]]" = COURSE,
    *,
    map: Mapping[str, str] | None = None,
    hub_config: str | None = None,
    hub_split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
) -> "Dataset":
    """Return the examples of a source, in its order, with the columns `id, instruction, input, output, category`.

    Args:
        source: `instruction-data`, `everyday`, `alpaca`; a local `.json`, `.jsonl`, `.csv` or `.parquet` file; a folder
            of `Dataset.save_to_disk`; the id of a dataset on the Hub; a `datasets.Dataset`; or rows as mappings.
        map: Our field (`instruction`, `input`, `output`, `category`, `id`) = the source's column.
        hub_config: Configuration name of a Hub dataset.
        hub_split: Split of a Hub dataset, or of a saved `DatasetDict`, to read.
        revision: Commit, tag or branch of a Hub dataset.
        limit: Use only the first so many rows.

    Raises:
        DataError: The source cannot be found or read, or holds problems; all of them are listed.
    """
    options = {"map": map, "hub_config": hub_config, "hub_split": hub_split, "revision": revision, "limit": limit}
    return build_dataset(read_examples(source, **options), Example)


def read_examples(source: Any, **options: Any) -> list[Example]:
    """Return the examples of a source as rows; see `load_examples`."""
    if isinstance(source, list) and source and all(isinstance(row, Example) for row in source):
        return source
    checked = collect_examples(source, **options)
    raise_problems(checked.problems)
    for notice in checked.notices:
        logger.info("%s", notice)
    return checked.examples


def collect_section(section: DataSection) -> CheckedData:
    """Return what came of reading the source that a `data` section names."""
    return collect_examples(section.source, **{name: getattr(section, name) for name in _SOURCE_FIELDS})


def read_section(section: DataSection) -> list[Example]:
    """Return the examples of the source that a `data` section names."""
    return read_examples(section.source, **{name: getattr(section, name) for name in _SOURCE_FIELDS})


def collect_examples(
    source: "str | Path | Dataset | Iterable[Mapping[str, Any]]",
    *,
    map: Mapping[str, str] | None = None,
    hub_config: str | None = None,
    hub_split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
) -> CheckedData:
    """Return the usable examples of a source beside its problems; the arguments are those of `load_examples`.

    Raises:
        DataError: The source cannot be found or opened at all, or an argument is wrong.
    """
    _check_arguments(map, limit)
    columns = choose_columns(map or {}).values()
    if not isinstance(source, str | Path) and not hasattr(source, "column_names"):
        table = collect_rows("data", _place_rows(source), [])
        return build_examples(table._replace(rows=table.rows[:limit]), map=map)
    dataset = None if isinstance(source, str | Path) else _check_dataset(source)
    file = str(source) if dataset is None else "dataset"
    location = HUB_ALIASES.get(file, file)
    path = None if dataset is not None or file in NAMED_SOURCES else _find_file(file)
    on_hub = dataset is None and path is None and file not in (COURSE, EVERYDAY)
    if not on_hub and (hub_config or revision):
        name = "hub_config" if hub_config else "revision"
        raise DataError(f"`{name}` applies to a dataset on the Hub; `{file}` is none. Leave it out.")
    if on_hub:
        dataset = _load_from_hub(location, file=file, name=hub_config, split=hub_split, revision=revision)
    elif path is not None and path.is_dir():
        dataset = load_saved(path, file=file, split=hub_split)
    if dataset is not None:
        table = convert_dataset(dataset, file=file, columns=columns, limit=limit)
    elif path is not None:
        table = read_file(path, file=file, columns=columns)
    else:
        table = parse_json(load_course_data(), file) if file == COURSE else _load_everyday()
    if limit is not None:
        table = table._replace(rows=table.rows[:limit])
    return build_examples(table, map=map, drop_without_output=location in _KNOWN_GAPS)


def _place_rows(source: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(_advise_on_type(source))
    return ((f"row {number}", row) for number, row in enumerate(source))


def _check_dataset(source: Any) -> "Dataset":
    import datasets

    if not isinstance(source, datasets.Dataset):
        raise DataError(_advise_on_type(source))
    return source


def _advise_on_type(source: Any) -> str:
    return (
        f"The source is a `{type(source).__name__}`; it should be a name, a file, a `datasets.Dataset` or a list of "
        "mappings. Take one split of a `DatasetDict`."
    )


def _check_arguments(map: Mapping[str, str] | None, limit: int | None) -> None:
    for ours in map or {}:
        if ours not in FIELDS:
            raise DataError(
                f"`map` names the field `{shorten(ours)}`, which no example has; the fields are "
                f"{describe_nearest(ours, FIELDS)}. Write `our field=the source's column`."
            )
    if limit is not None and limit < 1:
        raise DataError(f"`limit` is {limit}; it should be at least 1, or left out to use all examples.")


def _find_file(source: str) -> Path | None:
    """Return the file or saved dataset that a source names, or None where it reads like the id of one on the Hub.

    Raises:
        DataError: It is neither.
    """
    path = Path(source).expanduser()
    try:
        if source.strip() and path.is_dir():
            if any((path / name).is_file() for name in SAVED_DATASET):
                return path
            held = sorted(file.name for file in path.iterdir() if find_suffix(file) in SUFFIXES)
            inside = f"; it holds {describe_nearest('', held)}" if held else ""
            raise DataError(f"`{source}` is a folder{inside}. Name one file.")
        if path.is_file():
            return path
        if source.strip() and path.exists():
            raise DataError(f"`{source}` is not a regular file. {_advise_on_name(source)}")
    except (OSError, ValueError) as error:
        # Too long for a file name, a NUL in it, or a folder on the way that may not be entered.
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"`{shorten(source)}` cannot be opened ({reason}). {_advise_on_name(source)}") from error
    if _HUB_ID.fullmatch(source) and find_suffix(path) not in SUFFIXES and not source.startswith("."):
        return None
    looks_like_file = bool(path.suffix) or "/" in source or "\\" in source
    what = "does not exist" if looks_like_file else "is not a known source"
    raise DataError(f"`{shorten(source, 200)}` {what}. {_advise_on_name(source)}")


def _advise_on_name(source: str) -> str:
    folder = Path(source).expanduser().parent
    try:
        files = [str(folder / file.name) for file in folder.iterdir() if find_suffix(file) in SUFFIXES]
    except (OSError, ValueError):
        # No folder to suggest a file from.
        files = []
    near = difflib.get_close_matches(source, [*NAMED_SOURCES, *files], n=3, cutoff=0.5)
    nearest = f"Nearest: {', '.join(f'`{shorten(name, 200)}`' for name in near)}. " if near else ""
    return (
        f"{nearest}A source is {', '.join(f'`{name}`' for name in NAMED_SOURCES)}, a file that ends in "
        f"{SUFFIX_LIST}, or a Hub dataset (`owner/name`)."
    )


def _load_everyday() -> RawTable:
    packaged = importlib.resources.files("hf_instruct.data") / f"{EVERYDAY}.jsonl"
    return parse_jsonl(packaged.read_bytes(), EVERYDAY)


def _load_from_hub(location: str, *, file: str, name: str | None, split: str, revision: str | None) -> "Dataset":
    import datasets

    try:
        with cache_alone_if_unreachable(location):
            return datasets.load_dataset(location, name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, transport_error()) as error:
        raise DataError(_advise_on_hub(error, file, split)) from error


def _advise_on_hub(error: Exception, file: str, split: str) -> str:
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    # `datasets` wraps what went wrong while reading in an error that says only that something did.
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
    reason = (str(cause).splitlines() or [""])[0].strip().rstrip(".") or type(cause).__name__
    if isinstance(error, DatasetNotFoundError):
        named = ", ".join(f"`{name}`" for name in NAMED_SOURCES)
        advice = (
            "Check its spelling and `revision`; for a gated or private one run `hf auth login`. Or name a local file "
            f"or one of {named}"
        )
    elif isinstance(error, ConnectionError):
        advice = "Check the network and `HF_HUB_OFFLINE`, or use a local file or the packaged source `everyday`"
    elif "split" in reason.lower():
        advice = f"`hub_split` is `{split}`; name one of the splits there are"
    elif "config" in reason.lower():
        advice = "Name one of its configurations as `hub_config`"
    else:
        advice = "Look at its page on the Hub, or save it as a local .parquet or .jsonl file and name that"
    what = "cannot be loaded" if file in HUB_ALIASES else "is no local file, and cannot be loaded"
    return f"`{file}` {what} from the Hub ({reason}). {advice}."
