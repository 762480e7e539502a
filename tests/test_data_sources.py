import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from hf_instruct.config import build_experiment
from hf_instruct.data.loaders import COURSE_SHA256, advise_on_hub, load_course_data
from hf_instruct.data.sources import check_section, check_source, load_examples, read_examples
from hf_instruct.data.splits import CheckedSplits, load_splits, split_examples
from hf_instruct.errors import ConfigError, DataError

ROWS = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(5)]
KNOWN = "A source is `instruction-data`, `everyday`, `alpaca`, a file that ends in `.json`, "


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


def test_responses_keep_the_ids_of_their_examples(sample_file: Path, sample_responses_file: Path) -> None:
    assert read_examples(sample_responses_file) == read_examples(sample_file)[:60]


def test_a_local_file_with_a_map_and_a_limit() -> None:
    Path("qa.csv").write_text("question,answer\nWho?,Me.\nWhat?,It.\n")
    examples = read_examples("qa.csv", map={"instruction": "question", "output": "answer"}, limit=1)
    assert [(e.instruction, e.input, e.output) for e in examples] == [("Who?", "", "Me.")]


def test_problems_are_one_error() -> None:
    write_rows("bad.json", [ROWS[0], {"instruction": "a"}, {"output": ""}])
    lines = error_of("bad.json").splitlines()
    assert lines[0] == "3 problems in `bad.json`:"
    assert lines[1] == "  - `bad.json` row 1, `output` is missing; add it, or delete the row"


def test_notices_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    write_rows("more.json", [{**ROWS[0], "model_response": "x"}])
    with caplog.at_level(logging.INFO, "hf_instruct"):
        read_examples("more.json")
    assert caplog.messages == ["`more.json`: columns not used: `model_response`."]


def test_missing_files_and_folders() -> None:
    assert error_of("qa.cvs").startswith(f"`qa.cvs` does not exist. {KNOWN}")
    write_rows("qa.csv")
    assert error_of("qa.cvs").endswith("Did you mean `qa.csv`?")
    assert error_of("qa.csv/x.json").startswith("`qa.csv/x.json` does not exist. ")
    Path("folder").mkdir()
    assert error_of("folder") == "`folder` is a folder. Use one file."
    write_rows("folder/one.json")
    assert error_of("folder") == "`folder` is a folder; it contains `one.json`. Use one file."
    assert error_of("/dev/null").startswith(f"`/dev/null` is not a regular file. {KNOWN}")
    write_rows("qa.txt")
    assert error_of("qa.txt").startswith("`qa.txt` ends in `.txt`; a data file ends in `.json`, ")


def test_unknown_names() -> None:
    assert error_of("everday").startswith(f"`everday` is not a known source. {KNOWN}")
    assert error_of("everday").endswith("Did you mean `everyday`?")
    assert error_of("").startswith("`` is not a known source. ")
    assert error_of("a\0b.json").startswith("`a\\x00b.json` ")
    assert error_of("x" * 5000).startswith(f"`{'x' * 39}…` cannot be opened (File name too long). ")


def test_invalid_arguments() -> None:
    write_rows("mine.json")
    assert error_of("mine.json", limit=0).startswith("`limit` is 0; it must be at least 1")
    assert "has the unknown field `ouput`. Did you mean `output`?" in error_of("mine.json", map={"ouput": "answer"})
    assert "no row format has all of these" in error_of("mine.json", map={"messages": "a", "output": "b"})
    assert error_of("mine.json", revision="main").startswith(
        "`revision` is only for datasets on the Hub, and `mine.json`"
    )


def test_valid_rows_are_returned_with_the_problems() -> None:
    checked = check_source(write_rows("bad.json", [ROWS[0], {}, ROWS[1]]))
    assert checked.examples["output"][:] == ["0", "1"]
    assert checked.examples["row"][:] == ["row 0", "row 2"]
    assert len(checked.problems) == 2


def test_the_hub_offline() -> None:
    for source, place in (("alpaca", "cannot be"), ("me/mine", "is not a local file, and cannot be")):
        id = "tatsu-lab/alpaca" if source == "alpaca" else source
        message = f"`{source}` {place} loaded from the Hub (Couldn't reach '{id}' on the Hub (OfflineModeIsEnabled))."
        assert error_of(source).startswith(message)


def test_advice_on_the_hubs_errors() -> None:
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    wrapped = DatasetGenerationError("An error occurred")
    wrapped.__cause__ = OSError("No space left on device")
    for error, what, advice in (
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist."), "(Dataset 'a/b' doesn't exist)", "Check its spelling"),
        (
            ValueError('Unknown split "dev".'),
            '(Unknown split "dev")',
            "`hub_split` is `dev`; use one of the existing splits",
        ),
        (ValueError("BuilderConfig 'x' not found.\nmore"), "(BuilderConfig 'x' not found)", "Set `hub_config`"),
        (wrapped, "(No space left on device)", "Check its page"),
    ):
        message = advise_on_hub(error, "a/b", "dev")
        assert message.startswith(f"`a/b` is not a local file, and cannot be loaded from the Hub {what}. ")
        assert advice in message


def test_only_columns_of_the_format_are_read_from_a_dataset() -> None:
    dataset = Dataset.from_list([{"question": "a", "answer": "b", "image": b"x", "number": n} for n in range(9)])
    checked = check_source(dataset, limit=2)
    assert checked.examples.select_columns(["row", "output"]).to_list() == [
        {"row": "row 0", "output": "b"},
        {"row": "row 1", "output": "b"},
    ]
    assert checked.notices[-1] == "`dataset`: columns not used: `image`, `number`."


def test_a_dataset_or_a_path_is_a_source() -> None:
    examples = read_examples(write_rows("mine.json"))
    assert read_examples(Path("mine.json")) == examples
    dataset = Dataset.from_list(ROWS)
    assert read_examples(dataset) == examples
    assert read_examples(dataset.rename_column("output", "a"), map={"output": "a"}, limit=2) == examples[:2]
    # What comes out of it goes in again.
    assert read_examples(load_examples("mine.json")) == read_examples(examples) == examples
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    conversation = read_examples([{"messages": turns}])
    assert read_examples(load_examples([{"messages": turns}])) == read_examples(conversation) == conversation
    assert error_of(Dataset.from_list([*ROWS, {"instruction": "a"}])).splitlines() == [
        "1 problem in `dataset`:",
        "  - `dataset` row 5, `output` is null; write the output, or delete the row",
    ]
    assert error_of(dataset, revision="main").startswith("`revision` is only for datasets on the Hub, and `dataset` is")
    for other, name in ((42, "int"), (DatasetDict(train=dataset), "DatasetDict")):
        assert f"The source is a `{name}`; it must be" in error_of(other)


def test_load_examples_accepts_and_returns_datasets() -> None:
    rows = [{"instruction": f"Say {n}.", "output": str(n), "category": None} for n in range(40)]
    dataset = load_examples(rows)
    assert dataset.column_names == ["id", "instruction", "input", "output", "category"]
    assert {str(dataset.features[name].dtype) for name in dataset.column_names} == {"string"}
    splits = split_examples(rows)
    assert splits.num_rows == {"train": 34, "test": 4, "validation": 2}
    for given in (splits, rows, {name: splits[name].to_list() for name in splits}):
        loaded = load_splits(given)
        assert {name: part.to_list() for name, part in loaded.items()} == {n: splits[n].to_list() for n in splits}
    assert load_splits(loaded) is loaded
    assert isinstance(loaded, CheckedSplits)
    assert len(load_splits({"train": rows})["test"]) == 0
    with pytest.raises(DataError, match="has a split `dev`; the splits are `train`, `test`, `validation`"):
        load_splits({"train": rows, "dev": rows})


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


def test_an_unwritable_cache_is_a_warning(
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
def test_damaged_saved_datasets_are_refused(file: str, content: bytes, tmp_path: Path) -> None:
    Dataset.from_list([{"instruction": "a", "input": "", "output": "b"}]).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / file).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a saved dataset"):
        read_examples(tmp_path / "saved")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_files_that_are_not_tables_are_refused(suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path(f"f.{suffix}").write_bytes(b"nonsense")
    assert error_of(f"f.{suffix}").startswith(f"`f.{suffix}` cannot be read as a {suffix.capitalize()} file (")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cell", ["007", "NA", "null", "2026-11-26", "1e3", "true", " x ", "\x1b[31m", "=1+1", "1,5"])
def test_cells_are_kept_as_they_are_written(cell: str) -> None:
    rows = [{"instruction": cell, "input": cell, "output": cell, "category": cell}]
    write_rows("cells.json", rows)
    Path("cells.jsonl").write_text(json.dumps(rows[0]))
    Path("cells.csv").write_text(f'instruction,input,output,category\n"{cell}","{cell}","{cell}","{cell}"\n')
    Dataset.from_list(rows).to_parquet("cells.parquet")
    Dataset.from_list(rows).save_to_disk("cells")
    for name in ("cells.json", "cells.jsonl", "cells.csv", "cells.parquet", "cells/data-00000-of-00001.arrow"):
        (row,) = load_examples(name)
        assert [row[field] for field in ("instruction", "input", "output", "category")] == [cell] * 4


def check_mixture(*parts: object, **section: object):
    data = {"source": list(parts), **section}
    return check_section(build_experiment({"data": data}, where="a test", deep=False).data)


def test_several_sources_are_spread_evenly() -> None:
    write_rows("a.json", [{"instruction": f"Ask {n}.", "output": "a"} for n in range(6)])
    write_rows("b.json", [{"q": f"Say {n}.", "a": "b"} for n in range(3)])
    map = {"instruction": "q", "output": "a"}
    checked = check_mixture("a.json", {"path": "b.json", "map": map})
    assert "".join(checked.examples["output"][:]) == "abaabaaba"
    assert checked.examples["row"][:][:2] == ["`a.json` row 0", "`b.json` row 0"]
    assert checked.notices == ["`a.json`: 6 of 6 rows", "`b.json`: 3 of 3 rows"]
    assert len(check_mixture({"path": "a.json", "limit": 2}, {"path": "b.json", "map": map}).examples) == 5
    # Equal rows keep ids of their own.
    twice = check_mixture("a.json", "a.json").examples["id"][:]
    assert len(set(twice)) == 12
    assert twice[1] == f"{twice[0]}-2"


def test_fractions_are_sampled_by_seed_without_repeats() -> None:
    for name in "ab":
        write_rows(f"{name}.json", [{"instruction": f"Say {n}.", "output": name} for n in range(100)])
    parts = [{"path": "a.json", "fraction": 0.75}, {"path": "b.json", "fraction": 0.25}]
    examples = check_mixture(*parts).examples
    assert examples["output"][:].count("a") == 100
    chosen = [row["instruction"] for row in examples if row["output"] == "b"]
    assert len(chosen) == len(set(chosen)) == 33
    assert chosen != [f"Say {n}." for n in range(33)]
    assert examples["id"][:] == check_mixture(*parts).examples["id"][:]
    assert examples["id"][:] != check_mixture(*parts, seed=7).examples["id"][:]
    with pytest.raises(DataError, match="Some sources have a `fraction` and others do not"):
        check_mixture(parts[0], "b.json")


def test_a_mixture_names_the_file_of_each_problem() -> None:
    write_rows("good.json")
    write_rows("bad.json", [{"instruction": "a", "output": 7}])
    assert [str(problem)[:26] for problem in check_mixture("good.json", "bad.json").problems] == [
        "`bad.json` row 0, `output`"
    ]
    with pytest.raises(
        ConfigError, match=r"`data\.map` applies to a single source; with several sources, set `map` for each"
    ):
        check_mixture("good.json", "bad.json", map={"output": "a"})
    with pytest.raises(ConfigError, match=r"`data\.source\.0\.nmae` is unknown\. Did you mean `name`\?"):
        check_mixture({"path": "good.json", "nmae": "x"})
    # Columns that are not to be looked at are as if they were not there.
    write_rows("both.json", [{"question": "q", "answer": "a", "instruction": "i", "response": "r"}])
    (row,) = check_mixture({"path": "both.json", "columns": ["question", "answer"]}).examples
    assert (row["instruction"], row["output"]) == ("q", "a")
