import dataclasses
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from hf_instruct.data.download import COURSE_SHA256, load_course_data
from hf_instruct.data.readers import convert_dataset
from hf_instruct.data.sources import _advise_on_hub, collect_examples, load_examples, read_examples
from hf_instruct.data.splits import read_splits, split_examples
from hf_instruct.errors import DataError

ROWS = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(5)]
KNOWN = (
    "A source is `instruction-data`, `everyday`, `alpaca`, a file that ends in `.json`, `.jsonl`, `.csv` (each also "
    "with `.gz`, `.bz2` or `.xz`) or `.parquet`, or a Hub dataset (`owner/name`)."
)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_INSTRUCT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """A server that answers every path from its dict `pages` and keeps the paths asked for in `asked`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)  # type: ignore[attr-defined]
            content = served.pages.get(self.path)  # type: ignore[attr-defined]
            self.send_response(200 if content is not None else 404)
            # A length larger than the body is a connection cut half-way.
            length = len(content or b"") + (100 if self.path == "/cut" else 0)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    served = HTTPServer(("127.0.0.1", 0), Handler)
    served.pages, served.asked = {}, []  # type: ignore[attr-defined]
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def write_rows(name: str, rows: object = ROWS) -> str:
    Path(name).write_text(json.dumps(rows), encoding="utf-8")
    return name


def error_of(source: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(source, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_the_courses_file(course_file: Path) -> None:
    examples = read_examples(str(course_file))
    assert len(examples) == len({example.id for example in examples}) == 1100
    assert examples[50].input == "Ocassion"
    assert examples[999].instruction == "What is an antonym of 'complicated'?"
    assert hashlib.sha256(course_file.read_bytes()).hexdigest() == COURSE_SHA256


def test_the_courses_responses_keep_the_ids_of_their_examples(course_file: Path, course_responses_file: Path) -> None:
    answered = read_examples(str(course_responses_file))
    assert answered == read_examples(str(course_file))[935:1045]


def test_a_local_file_with_a_map_and_a_limit() -> None:
    Path("qa.csv").write_text("question,answer\nWho?,Me.\nWhat?,It.\n")
    examples = read_examples("qa.csv", map={"instruction": "question", "output": "answer"}, limit=1)
    assert [(e.instruction, e.input, e.output) for e in examples] == [("Who?", "", "Me.")]


def test_faults_are_one_error() -> None:
    write_rows("bad.json", [ROWS[0], {"instruction": "a"}, {"output": ""}])
    assert error_of("bad.json").splitlines() == [
        "3 problems in `bad.json`:",
        "  - `bad.json` row 1, `output` is missing; add it, or delete the row",
        "  - `bad.json` row 2, `instruction` is missing; add it, or delete the row",
        "  - `bad.json` row 2, `output` is empty; write the output, or delete the row",
    ]


def test_notices_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    write_rows("more.json", [{**ROWS[0], "model_response": "x"}])
    with caplog.at_level(logging.INFO, "hf_instruct"):
        read_examples("more.json")
    assert caplog.messages == ["`more.json`: columns not used: `model_response`."]


def test_a_folder_and_files_that_are_not_there() -> None:
    assert error_of("qa.cvs") == f"`qa.cvs` does not exist. {KNOWN}"
    write_rows("qa.csv")
    assert error_of("qa.cvs") == f"`qa.cvs` does not exist. Nearest: `qa.csv`. {KNOWN}"
    assert error_of("qa.csv/x.json").startswith("`qa.csv/x.json` does not exist. ")
    Path("folder").mkdir()
    assert error_of("folder") == "`folder` is a folder. Name one file."
    write_rows("folder/one.json")
    assert error_of("folder") == "`folder` is a folder; it holds `one.json`. Name one file."
    assert error_of("/dev/null") == f"`/dev/null` is not a regular file. {KNOWN}"


def test_unknown_names() -> None:
    assert error_of("everday") == f"`everday` is not a known source. Nearest: `everyday`. {KNOWN}"
    assert error_of("xyzzy") == f"`xyzzy` is not a known source. {KNOWN}"
    assert error_of("") == f"`` is not a known source. {KNOWN}"
    assert error_of("a\0b.json").startswith("`a\\x00b.json` ")
    assert error_of("x" * 5000).startswith(f"`{'x' * 39}…` cannot be opened (File name too long). ")


def test_arguments_that_make_no_sense() -> None:
    write_rows("mine.json")
    assert error_of("mine.json", limit=0) == ("`limit` is 0; it should be at least 1, or left out to use all examples.")
    assert error_of("mine.json", map={"ouput": "answer"}) == (
        "`map` names the field `ouput`, which no example has; the fields are `output`, `input`, `category`, "
        "`instruction`, `id`. Write `our field=the source's column`."
    )
    assert error_of("mine.json", revision="main") == (
        "`revision` applies to a dataset on the Hub; `mine.json` is none. Leave it out."
    )


def test_collecting_keeps_the_good_rows_beside_the_faults() -> None:
    checked = collect_examples(write_rows("bad.json", [ROWS[0], {}, ROWS[1]]))
    assert [e.output for e in checked.examples] == ["0", "1"]
    assert checked.rows == ["row 0", "row 2"]
    assert len(checked.problems) == 2


def test_the_hub_offline() -> None:
    for source, place in (("alpaca", "cannot be"), ("me/mine", "is no local file, and cannot be")):
        id = "tatsu-lab/alpaca" if source == "alpaca" else source
        assert error_of(source) == (
            f"`{source}` {place} loaded from the Hub (Couldn't reach '{id}' on the Hub (OfflineModeIsEnabled)). Check "
            "the "
            "network and `HF_HUB_OFFLINE`, or use a local file or the packaged source `everyday`."
        )


def test_advice_on_the_hubs_errors() -> None:
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    assert _advise_on_hub(DatasetNotFoundError("Dataset 'a/b' doesn't exist."), "a/b", "train") == (
        "`a/b` is no local file, and cannot be loaded from the Hub (Dataset 'a/b' doesn't exist). Check its spelling "
        "and "
        "`revision`; for a gated or private one run `hf auth login`. Or name a local file or one of "
        "`instruction-data`, "
        "`everyday`, `alpaca`."
    )
    assert _advise_on_hub(ValueError("Unknown split \"dev\". Should be one of ['train']."), "a/b", "dev") == (
        '`a/b` is no local file, and cannot be loaded from the Hub (Unknown split "dev". Should be one of '
        "['train']). "
        "`hub_split` is `dev`; name one of the splits there are."
    )
    assert _advise_on_hub(ValueError("BuilderConfig 'x' not found.\nmore"), "a/b", "train") == (
        "`a/b` is no local file, and cannot be loaded from the Hub (BuilderConfig 'x' not found). Name one of its "
        "configurations as `hub_config`."
    )
    wrapped = DatasetGenerationError("An error occurred")
    wrapped.__cause__ = OSError("No space left on device")
    assert "(No space left on device). Look at its page" in _advise_on_hub(wrapped, "a/b", "train")


def test_a_dataset_is_read_only_where_it_is_used() -> None:
    import datasets

    dataset = datasets.Dataset.from_list([{"question": "a", "answer": "b", "image": b"x"}])
    table = convert_dataset(dataset, file="a/b", columns=["question", "answer"])
    assert [(row.where, row.fields) for row in table.rows] == [("row 0", {"question": "a", "answer": "b"})]
    assert table.columns == ["question", "answer", "image"]


def test_a_limit_spares_the_rest_of_a_dataset() -> None:
    import datasets

    dataset = datasets.Dataset.from_list(ROWS)
    for limit, count in ((2, 2), (9, 5), (None, 5)):
        assert len(convert_dataset(dataset, file="a/b", limit=limit).rows) == count


def test_a_dataset_or_a_path_is_a_source() -> None:
    import datasets

    examples = read_examples(write_rows("mine.json"))
    assert read_examples(Path("mine.json")) == examples
    dataset = datasets.Dataset.from_list(ROWS)
    assert read_examples(dataset) == examples
    assert read_examples(dataset.rename_column("output", "a"), map={"output": "a"}, limit=2) == examples[:2]
    # What comes out of it goes in again.
    again = datasets.Dataset.from_list([dataclasses.asdict(example) for example in examples])
    assert read_examples(again) == examples
    assert error_of(datasets.Dataset.from_list([*ROWS, {"instruction": "a"}])).splitlines() == [
        "1 problem in `dataset`:",
        "  - `dataset` row 5, `output` is null; write the output, or delete the row",
    ]
    assert error_of(dataset, revision="main").startswith("`revision` applies to a dataset on the Hub; `dataset` is")
    for other, name in ((42, "int"), (datasets.DatasetDict(train=dataset), "DatasetDict")):
        assert f"The source is a `{name}`; it should be" in error_of(other)


def test_the_public_door_takes_and_gives_datasets() -> None:
    rows = [{"instruction": f"Say {n}.", "output": str(n), "category": None} for n in range(40)]
    dataset = load_examples(rows)
    assert dataset.column_names == ["id", "instruction", "input", "output", "category"]
    assert {str(dataset.features[name].dtype) for name in dataset.column_names} == {"string"}
    assert dataset.to_list() == [dataclasses.asdict(example) for example in read_examples(rows)]
    splits = split_examples(rows)
    assert splits.num_rows == {"train": 34, "test": 4, "validation": 2}
    assert read_splits(splits) == read_splits(rows) == read_splits({name: splits[name].to_list() for name in splits})
    with pytest.raises(DataError, match="has a split `dev`; the splits are `train`, `test`, `validation`"):
        read_splits({"train": rows, "dev": rows})


def test_the_download_is_checked_and_kept(server: HTTPServer, online: None, tmp_path: Path) -> None:
    content = json.dumps(ROWS).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    server.pages["/data"] = content  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{server.server_port}/data"
    cached = tmp_path / "cache" / "instruction-data.json"
    for _ in range(2):
        assert load_course_data(url=url, sha256=sha256) == content
    assert cached.read_bytes() == content
    assert server.asked == ["/data"]  # type: ignore[attr-defined]
    cached.write_bytes(content[:-5])
    assert load_course_data(url=url, sha256=sha256) == content
    assert cached.read_bytes() == content
    assert [path.name for path in cached.parent.iterdir()] == ["instruction-data.json"]


def test_a_download_of_something_else_is_refused(server: HTTPServer, online: None, tmp_path: Path) -> None:
    server.pages["/data"] = b"<html>Log in</html>"  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="is not the course's data"):
        load_course_data(url=f"http://127.0.0.1:{server.server_port}/data", sha256="0" * 64)
    assert not (tmp_path / "cache").exists()


def test_a_download_that_fails(server: HTTPServer, online: None) -> None:
    base = f"http://127.0.0.1:{server.server_port}"
    server.pages["/cut"] = b"["  # type: ignore[attr-defined]
    for url, reason in ((f"{base}/none", "404 Not Found"), (f"{base}/cut", ""), ("http://127.0.0.1:1/refused", "")):
        with pytest.raises(DataError, match="cannot be downloaded") as caught:
            load_course_data(url=url)
        assert reason in str(caught.value)
        assert f"download {url} elsewhere" in str(caught.value)


def test_a_cache_that_cannot_be_written_costs_only_the_cache(
    server: HTTPServer, online: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Path("file").write_text("in the way")
    monkeypatch.setenv("HF_INSTRUCT_CACHE", "file/cache")
    server.pages["/data"] = b"[]"  # type: ignore[attr-defined]
    sha256 = hashlib.sha256(b"[]").hexdigest()
    url = f"http://127.0.0.1:{server.server_port}/data"
    assert load_course_data(url=url, sha256=sha256) == b"[]"
    assert caplog.messages[-1] == (
        "`file/cache/instruction-data.json` cannot be written (Not a directory); the data is not cached."
    )


def test_offline_the_course_data_comes_from_the_cache_only(course_file: Path, tmp_path: Path) -> None:
    assert "is not in the cache and cannot be downloaded (`HF_HUB_OFFLINE` forbids it)" in error_of("instruction-data")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "instruction-data.json").write_bytes(course_file.read_bytes())
    assert read_examples("instruction-data") == read_examples(str(course_file))


def test_saved_datasets_are_read(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "input": "", "output": "b"}]
    other = [{"instruction": "c", "input": "", "output": "d"}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(other)).save_to_disk(tmp_path / "two")
    assert [example.output for example in read_examples(tmp_path / "one")] == ["b"]
    assert [example.output for example in read_examples(tmp_path / "two")] == ["b"]
    assert [example.output for example in read_examples(tmp_path / "two", hub_split="test")] == ["d"]
    with pytest.raises(DataError, match="has no split `all`; it has `train`, `test`"):
        read_examples(tmp_path / "two", hub_split="all")


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000])
def test_torn_saved_datasets_are_refused(file: str, content: bytes, tmp_path: Path) -> None:
    Dataset.from_list([{"instruction": "a", "input": "", "output": "b"}]).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / file).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a saved dataset"):
        read_examples(tmp_path / "saved")


@pytest.mark.parametrize("cell", ["007", "NA", "null", "2026-11-26", "1e3", "true", " x ", "\x1b[31m", "=1+1", "1,5"])
def test_cells_are_kept_as_they_are_written(cell: str) -> None:
    rows = [{"instruction": cell, "input": cell, "output": cell, "category": cell}]
    write_rows("cells.json", rows)
    Path("cells.jsonl").write_text(json.dumps(rows[0]))
    Path("cells.csv").write_text(f'instruction,input,output,category\n"{cell}","{cell}","{cell}","{cell}"\n')
    Dataset.from_list(rows).to_parquet("cells.parquet")
    for name in ("cells.json", "cells.jsonl", "cells.csv", "cells.parquet"):
        (row,) = load_examples(name)
        assert [row[field] for field in ("instruction", "input", "output", "category")] == [cell] * 4
