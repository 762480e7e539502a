"""Find a source of examples by name, read it, and return its examples or all of its problems."""

import contextlib
import dataclasses
import hashlib
import importlib.resources
import io
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import DataSection, SourceSection
from hf_instruct.data.examples import (
    BATCH,
    CheckedData,
    build_examples,
    build_features,
    drop_unused,
    new_fingerprint,
    number_repeats,
)
from hf_instruct.data.formats import EARLIER, FIELDS, choose_fields
from hf_instruct.data.loaders import (
    COURSE,
    EVERYDAY,
    HUB_ALIASES,
    NAMED_SOURCES,
    load_arrow,
    load_course_data,
    load_from_hub,
)
from hf_instruct.data.problems import Problem, RawRow, describe_type, list_names, shorten_text
from hf_instruct.data.readers import SUFFIX_LIST, SUFFIXES, find_suffix, parse_rows, read_text_file
from hf_instruct.errors import DataError, did_you_mean, did_you_mean_path, quote_names
from hf_instruct.records import Example

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)

_MAX_LINE_BYTES = 1 << 26

# Some rows of this dataset have no output; in other data, that is a problem.
# Source: https://github.com/gururise/AlpacaDataCleaned
_KNOWN_GAPS = ("tatsu-lab/alpaca",)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
# A file in folders of `DatasetDict.save_to_disk`, and one in folders of `Dataset.save_to_disk`.
_SAVED = ("dataset_dict.json", "state.json")


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

    Conversations are also in `messages`, and prompts without a prompt format in `prompt`; `instruction` and `output`
    are then the last question and its answer.

    Args:
        source: `instruction-data`, `everyday`, `alpaca`; a local `.json`, `.jsonl`, `.csv`, `.parquet` or `.arrow`
            file; a folder of `Dataset.save_to_disk`; the id of a dataset on the Hub; a `Dataset`; or rows as mappings.
        map: Our field (`instruction`, `input`, `output`, `category`, `id`, `prompt`, `messages`, and `system` and
            `history`, the turns before) = the source's column, if its format is not recognized.
        hub_config: Configuration name of a Hub dataset.
        hub_split: Split of a Hub dataset, or of a saved `DatasetDict`, to read.
        revision: Commit, tag or branch of a Hub dataset.
        limit: Use only the first N rows.

    Raises:
        DataError: The source cannot be found or read, or has problems; all of them are listed.
    """
    checked = check_source(source, map=map, hub_config=hub_config, hub_split=hub_split, revision=revision, limit=limit)
    return checked.require_valid()


def read_examples(source: Any, **options: Any) -> list[Example]:
    """Return the examples of a source as rows; see `load_examples`."""
    return list(iterate_examples(load_examples(source, **options)))


def iterate_examples(examples: "Dataset") -> Iterator[Example]:
    """Yield the rows of a `Dataset` that `load_examples` returned."""
    names = [field.name for field in dataclasses.fields(Example) if field.name in examples.column_names]
    for batch in examples.select_columns(names).iter(BATCH):
        for values in zip(*(batch[name] for name in names), strict=True):
            yield Example(**dict(zip(names, values, strict=True)))


def load_split(run: "RunFolder", name: str) -> "Dataset":
    """Return the examples of a split of a run folder.

    Raises:
        DataError: The file is not the one that the run was prepared with, or cannot be read.
    """
    import pyarrow
    import pyarrow.json
    from datasets import Dataset

    run.check_data()
    schema = build_features(Example).arrow_schema
    # No line may be longer than a block.
    blocks = pyarrow.json.ReadOptions(block_size=_MAX_LINE_BYTES)
    types = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pyarrow.json.read_json(run.split(name), read_options=blocks, parse_options=types)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(
            f"`{run.split(name)}` cannot be read ({error}); restore it, or prepare the run again."
        ) from error
    return Dataset(drop_unused(table.select(schema.names)), fingerprint=new_fingerprint())


def check_section(section: DataSection) -> CheckedData:
    """Return the result of reading the sources of a `data` section."""
    if isinstance(section.source, str):
        names = ("map", "hub_config", "hub_split", "revision", "limit")
        return check_source(section.source, **{name: getattr(section, name) for name in names})
    from datasets import concatenate_datasets

    parts = section.source
    checked = [_check_part(part) for part in parts]
    if problems := [problem for one in checked for problem in one.problems]:
        return CheckedData(checked[0].examples, problems, [], 0)
    whole = concatenate_datasets([one.examples for one in checked])
    rows = [f"`{part.path}` {row}" for part, one in zip(parts, checked, strict=True) for row in one.examples["row"][:]]
    ids = number_repeats(whole["id"][:])
    names = whole.column_names
    whole = whole.remove_columns(["row", "id"]).add_column("row", rows).add_column("id", ids).select_columns(names)
    sizes = _choose_mixture_sizes([len(one.examples) for one in checked], [part.fraction for part in parts])
    order = _interleave(ids, [len(one.examples) for one in checked], sizes, section.seed)[: section.limit]
    notices = [notice for one in checked for notice in one.notices]
    notices += [
        f"`{part.path}`: {size:,} of {len(one.examples):,} rows"
        for part, one, size in zip(parts, checked, sizes, strict=True)
    ]
    return CheckedData(whole.select(order), [], notices, sum(one.num_without_output for one in checked))


def _check_part(part: SourceSection) -> CheckedData:
    return check_source(
        part.path,
        map=part.map,
        columns=part.columns,
        hub_config=part.name,
        hub_split=part.split,
        revision=part.revision,
        limit=part.limit,
    )


def _choose_mixture_sizes(counts: Sequence[int], fractions: Sequence[float | None]) -> list[int]:
    """Return the number of rows from each source in the largest mixture with these shares and without repeated rows.

    Raises:
        DataError: Some sources have a fraction and others none.
    """
    given = [fraction for fraction in fractions if fraction is not None]
    if not given:
        return list(counts)
    if len(given) < len(fractions):
        raise DataError("Some sources have a `fraction` and others do not; set it for all of them, or for none.")
    most = min(count / fraction for count, fraction in zip(counts, given, strict=True))
    return [min(max(round(most * fraction), 1), count) for count, fraction in zip(counts, given, strict=True)]


def _interleave(ids: Sequence[str], counts: Sequence[int], sizes: Sequence[int], seed: int) -> list[int]:
    """Return the indices of a mixture, with the rows of each source in order and the sources spread evenly.

    Each split thus has all sources in proportion. If only some rows of a source are used, they are sampled by a hash of
    `seed` and id; TRL takes the first ones.
    """
    placed: list[tuple[float, int]] = []
    start = 0
    for count, size in zip(counts, sizes, strict=True):
        indices = list(range(start, start + count))
        if size < count:
            draws = {index: hashlib.sha256(f"{seed}\0{ids[index]}".encode()).digest() for index in indices}
            indices = sorted(sorted(draws, key=draws.__getitem__)[:size])
        placed += [((rank + 0.5) / size, index) for rank, index in enumerate(indices)]
        start += count
    return [index for _, index in sorted(placed)]


def check_source(
    source: "str | Path | Dataset | Iterable[Mapping[str, Any]]",
    *,
    map: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
    hub_config: str | None = None,
    hub_split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
) -> CheckedData:
    """Return the valid examples of a source and its problems; the arguments are those of `load_examples`.

    Args:
        columns: Use only these columns; all by default.

    Raises:
        DataError: The source cannot be found or opened at all, or an argument is wrong.
    """
    from datasets import Dataset

    _check_arguments(map, limit)
    problems: list[Problem] = []
    options: dict[str, Any] = {"map": map, "problems": problems}
    if isinstance(source, str | Path):
        file = str(source)
        location = HUB_ALIASES.get(file, file)
        options["drop_without_output"] = location in _KNOWN_GAPS
        path = None if file in NAMED_SOURCES else find_file(file)
        on_hub = path is None and file not in (COURSE, EVERYDAY)
    else:
        file, path, on_hub = "dataset" if isinstance(source, Dataset) else "data", None, False
    if not on_hub and (hub_config or revision):
        name = "hub_config" if hub_config else "revision"
        raise DataError(f"`{name}` is only for datasets on the Hub, and `{file}` is not one. Leave it out.")
    with contextlib.ExitStack() as stack:
        dataset: Dataset | None = None
        rows: Iterable[RawRow]
        if on_hub:
            dataset = load_from_hub(location, file=file, name=hub_config, split=hub_split, revision=revision)
        elif path is not None and (path.is_dir() or find_suffix(path) in (".parquet", ".arrow")):
            dataset = load_arrow(path, file=file, split=hub_split, stack=stack)
        elif path is not None:
            rows = read_text_file(path, file=file, problems=problems)
        elif file in (COURSE, EVERYDAY):
            rows = _read_named(file, problems)
        elif isinstance(source, Dataset):
            dataset = source
        elif isinstance(source, Mapping) or not isinstance(source, Iterable):
            raise DataError(
                f"The source is a `{type(source).__name__}`; it must be a name, a file, a `datasets.Dataset` or a list "
                "of mappings. For a `DatasetDict`, pass one of its splits."
            )
        else:
            rows = _enumerate_rows(source, problems)
        if dataset is not None:
            if columns is not None:
                dataset = dataset.select_columns([name for name in columns if name in dataset.column_names])
            options["columns"] = dataset.column_names
            fields, _ = choose_fields(dataset.column_names, map or {}, file=file, problems=[])
            rows = _iterate_dataset(dataset, list(dict.fromkeys(fields.values())))
        elif columns is not None:
            kept = set(columns)
            rows = (RawRow(row.where, {n: v for n, v in row.fields.items() if n in kept}) for row in rows)
        return build_examples(itertools.islice(rows, limit), file=file, **options)


def _iterate_dataset(dataset: "Dataset", columns: Sequence[str]) -> Iterator[RawRow]:
    """Yield the rows of a dataset, with these columns only, so that no images are decoded."""
    number = 0
    for batch in dataset.select_columns(list(columns)).with_format("arrow").iter(BATCH) if columns else ():
        for row in batch.to_pylist():
            yield RawRow(f"row {number}", row)
            number += 1


def _enumerate_rows(source: Any, problems: list[Problem]) -> Iterator[RawRow]:
    for number, row in enumerate(source):
        if isinstance(row, Example):
            row = {name: value for name, value in vars(row).items() if value is not None or name == "category"}
        if isinstance(row, Mapping):
            yield RawRow(f"row {number}", row)
        else:
            what, remedy = f"is {describe_type(row)}, not an object", 'a row is {"instruction": …, "output": …}'
            problems.append(Problem("data", f"row {number}", None, what, remedy))


def _check_arguments(map: Mapping[str, str] | None, limit: int | None) -> None:
    for ours in map or {}:
        if ours not in (fields := (*FIELDS, *EARLIER)):
            raise DataError(
                f"`map` has the unknown field `{shorten_text(ours)}`.{did_you_mean(ours, fields)} The "
                f"fields are {quote_names(fields)}; write `our field=the source's column`."
            )
    if limit is not None and limit < 1:
        raise DataError(f"`limit` is {limit}; it must be at least 1. Leave it out to use all examples.")


def find_file(source: str) -> Path | None:
    """Return the file or saved dataset of a source, or None if it looks like the id of a dataset on the Hub.

    Raises:
        DataError: It is neither.
    """
    path = Path(source).expanduser()
    try:
        if source.strip() and path.is_dir():
            if any((path / name).is_file() for name in _SAVED):
                return path
            held = sorted(file.name for file in path.iterdir() if find_suffix(file) in SUFFIXES)
            inside = f"; it contains {list_names(held)}" if held else ""
            raise DataError(f"`{source}` is a folder{inside}. Use one file.")
        if path.is_file():
            if find_suffix(path) in SUFFIXES:
                return path
            raise DataError(
                f"`{source}` ends in `{''.join(path.suffixes[-2:])}`; a data file ends in {SUFFIX_LIST}. "
                "Convert or decompress it, or rename it if it is one of these."
            )
        if source.strip() and path.exists():
            raise DataError(f"`{source}` is not a regular file. {_advise_on_name(source)}")
    except (OSError, ValueError) as error:
        # The name is too long or contains a NUL, or a parent folder may not be read.
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"`{shorten_text(source)}` cannot be opened ({reason}). {_advise_on_name(source)}") from error
    if _HUB_ID.fullmatch(source) and find_suffix(path) not in SUFFIXES and not source.startswith("."):
        return None
    looks_like_file = bool(path.suffix) or "/" in source or "\\" in source
    what = "does not exist" if looks_like_file else "is not a known source"
    raise DataError(f"`{shorten_text(source, 200)}` {what}. {_advise_on_name(source)}")


def _advise_on_name(source: str) -> str:
    path = Path(source).expanduser()
    near = did_you_mean(source, NAMED_SOURCES)
    # The folder may not exist.
    with contextlib.suppress(OSError, ValueError):
        near = near or did_you_mean_path(
            path, [file for file in path.parent.iterdir() if find_suffix(file) in SUFFIXES]
        )
    return (
        f"A source is {quote_names(NAMED_SOURCES)}, a file that ends in {SUFFIX_LIST}, a folder of `save_to_disk` or a "
        f"Hub dataset (`owner/name`).{near}"
    )


def _read_named(name: str, problems: list[Problem]) -> Iterator[RawRow]:
    """Yield the rows of the course's data, or of the packaged data."""
    if name == COURSE:
        return parse_rows(io.BytesIO(load_course_data()), ".json", file=name, problems=problems)
    packaged = importlib.resources.files("hf_instruct.data") / f"{EVERYDAY}.jsonl"
    return parse_rows(io.BytesIO(packaged.read_bytes()), ".jsonl", file=name, problems=problems)


def build_dataset(rows: Sequence[Any], row_type: type) -> "Dataset":
    """Return rows of one type as a `Dataset` with a column for each of the type's fields."""
    from datasets import Dataset

    features = build_features(row_type)
    return Dataset.from_dict({name: [getattr(row, name) for row in rows] for name in features}, features=features)
