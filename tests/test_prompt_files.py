"""Reading prompts: every kind of file, folder and hub dataset, and one line for each that is wrong."""

import json
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from dispatch_rl import hub
from dispatch_rl.config import PromptConfig
from dispatch_rl.errors import UserError
from dispatch_rl.prompt_files import read_column

ROWS = [f"row number {i}" for i in range(5)]


@pytest.fixture(autouse=True)
def lookup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Cut the network and return what is called when a host is looked up; keep what ``datasets`` caches out of the home folder."""
    lookup = Mock(side_effect=OSError("the tests have no network"))
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return lookup


def write(path: Path, rows: Iterable[str], column: str = "prompt") -> Path:
    """Write a file of the kind that its suffix says, with a number beside each prompt."""
    path.parent.mkdir(exist_ok=True)
    records = [{"number": i, column: row} for i, row in enumerate(rows)]
    if path.suffix == ".txt":
        path.write_text("".join(f"{record[column]}\n" for record in records) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(records), path)
    return path


def saved(rows: Iterable[str]) -> datasets.Dataset:
    """Return a dataset that can be saved."""
    return datasets.Dataset.from_dict({"prompt": list(rows)})


def texts(source: Path | str, **keys: Any) -> list[str]:
    """Return all prompts of a source in their order, read by index."""
    column = read_column(PromptConfig(source=str(source), **keys))
    read = list(column.texts())
    assert [column[row] for row, _ in read] == [text for _, text in read]
    return [text for _, text in read]


def error_of(source: Path | str, **keys: Any) -> str:
    """Return what a user is told, which must be one line."""
    with pytest.raises(UserError) as caught:
        texts(source, **keys)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", ["mine.txt", "mine.jsonl", "mine.json", "mine.parquet"])
def test_every_kind_of_file_is_read(tmp_path: Path, name: str) -> None:
    """The rows come in their order, and the prompts are called after the file."""
    assert texts(write(tmp_path / name, ROWS)) == ROWS
    assert read_column(PromptConfig(source=str(tmp_path / name))).name == "mine"


@pytest.mark.parametrize("name", ["a*.txt", "mine[1].txt"])
def test_a_files_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    """A name with brackets or an asterisk is no pattern, and brings in no other file."""
    write(tmp_path / "another.txt", ["not me"])
    write(tmp_path / "mine1.txt", ["not me"])
    assert texts(write(tmp_path / name, ROWS)) == ROWS


def test_a_column_is_chosen(tmp_path: Path) -> None:
    """Rows without a text in ``prompts.column`` are passed over, however they miss it; of several texts the first counts."""
    held: tuple[Any, ...] = ("one", None, "two", " ", 3, ["four", "not me"], [], "five")
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"q": q, "prompt": "not me"}) + "\n" for q in held))
    assert texts(tmp_path / "mine.jsonl", column="q") == ["one", "two", "four", "five"]


def test_rows_beyond_the_first_batch_keep_their_numbers(tmp_path: Path) -> None:
    """Rows are counted through, blank ones included."""
    path = write(tmp_path / "mine.parquet", (" " if i % 3 else str(i) for i in range(2_500)))
    assert texts(path) == [str(i) for i in range(0, 2_500, 3)]


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    """A folder from ``save_to_disk``, in whatever format it was saved, and one split of several; no copy is made."""
    saved(ROWS).with_format("arrow").save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "one") == ROWS
    datasets.DatasetDict(train=saved(["not me"]), dev=saved(ROWS)).save_to_disk(tmp_path / "several")
    assert texts(tmp_path / "several", dataset_split="dev") == ROWS
    assert not (tmp_path / "cache").exists()
    assert read_column(PromptConfig(source=f"{tmp_path}/several/")).name == "several"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_folder_of_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Its files are parts or splits by their names; a folder that is called like a format is still a folder."""
    write(tmp_path / "json" / f"train-0{suffix}", ROWS[:2])
    write(tmp_path / "json" / f"train-1{suffix}", ROWS[2:])
    write(tmp_path / "json" / f"test{suffix}", ["held out"])
    monkeypatch.chdir(tmp_path)
    assert texts("json") == ROWS
    assert texts("json", dataset_split="test") == ["held out"]


def several_subsets(folder: Path) -> Path:
    """Write a folder with two subsets, as the hub has them."""
    write(folder / "a.jsonl", ["not me"])
    write(folder / "b.jsonl", ROWS)
    subsets = "".join(f"- {{config_name: {name}, data_files: {file}.jsonl}}\n" for name, file in (("main", "a"), ("other", "b")))
    (folder / "README.md").write_text(f"---\nconfigs:\n{subsets}---\n")
    return folder


def test_a_subset_is_chosen(tmp_path: Path) -> None:
    """``prompts.subset`` names it; without a name, or with a wrong one, the line says which there are."""
    folder = several_subsets(tmp_path / "mine")
    assert texts(folder, subset="other") == ROWS
    assert error_of(folder) == f"prompts.subset: {folder} has several subsets; choose from main, other"
    assert error_of(folder, subset="third") == f"prompts.subset: {folder} has no subset 'third'; choose from main, other"


def test_a_hub_dataset_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``owner/name`` goes to the hub as it is, with its subset and split."""
    load, folder = datasets.load_dataset_builder, several_subsets(tmp_path / "mine")
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda source, subset: load({"openai/some-1.5": str(folder)}[source], subset))
    assert texts("openai/some-1.5", subset="other") == ROWS
    assert read_column(PromptConfig(source="openai/some-1.5", subset="other")).name == "some-1.5"
    told = error_of("openai/some-1.5", subset="other", dataset_split="test")
    assert told == "prompts.dataset_split: openai/some-1.5 has no split 'test'; it has train"


ABSENT = "prompts.source: openai/some is neither a file nor a folder here"


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, lookup: Mock) -> None:
    """Without a network, as ``HF_HUB_OFFLINE=1`` declares."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert error_of("openai/some") == ABSENT + " nor in the local cache, and HF_HUB_OFFLINE=1 is set"
    assert not lookup.called


def test_a_dataset_that_the_hub_does_not_have_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that it does not show to everyone."""
    monkeypatch.setattr(hub, "obstacle", lambda: None)
    missing = Mock(side_effect=datasets.exceptions.DatasetNotFoundError("It doesn't exist"))
    monkeypatch.setattr(datasets, "load_dataset_builder", missing)
    assert error_of("openai/some") == ABSENT + ", and the hub does not have it or stopped answering: It doesn't exist"


def test_reading_asks_nobody(tmp_path: Path, lookup: Mock) -> None:
    """Files and folders on the disk are read without a word to the network."""
    assert texts(write(tmp_path / "mine" / "train.jsonl", ROWS)) == texts(tmp_path / "mine") == ROWS
    saved(ROWS).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == ROWS
    assert not lookup.called


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "there is no file"),
        ("mine.csv", "prompt\nhello\n", "is none of pocket, gsm8k, math-500, humaneval, mt-bench, spec-bench, nor a .txt"),
        ("nowhere", None, "is none of pocket"),
        ("empty.parquet", "", "empty.parquet is empty"),
        ("no-rows.json", "[]", "holds no prompt"),
        ("broken.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"\n', "line 3 of broken.jsonl is no JSON: Expecting ',' delimiter (column 15)"),
        ("strings.jsonl", '"one"\n"two"\n', "line 1 of strings.jsonl is no JSON object"),
        ("broken.json", '[{"prompt": "one"}', "cannot be read: Unexpected character"),
        ("broken.parquet", "this is no parquet file", "cannot be read: Parquet magic bytes not found"),
        ("latin.txt", "one\n\xe9\n", "cannot be read: line 2 of latin.txt is not UTF-8 text"),
        ("latin.jsonl", '{"prompt": "\xe9"}\n', "cannot be read: line 1 of latin.jsonl is not UTF-8 text"),
        ("mine/broken.jsonl", "{\n", "mine cannot be read: line 1 of broken.jsonl is no JSON"),
        ("mine/no-rows.jsonl", "", "mine holds no prompt"),
        ("mine/poems.doc", "one\n", "mine cannot be read: No (supported) data files found"),
        ("[mine]/one.txt", "one\n", "would be taken for a pattern of names; rename the folder"),
    ],
)
def test_wrong_sources_are_one_line(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    """Whatever is wrong with a file or folder is told in one line that names ``prompts.source``."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_text(content, encoding="latin-1")
    told = error_of(tmp_path / Path(name).parts[0])
    assert told.startswith("prompts.source: ")
    assert message in told


def test_files_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    """Files of a folder must have the same columns."""
    for column in ("prompt", "question"):
        write(tmp_path / "mine" / f"{column}.jsonl", ROWS, column)
    assert re.search(r"mine has files with different columns: .* new columns \(.*question", error_of(tmp_path / "mine"))


def test_an_unknown_split_is_one_line(tmp_path: Path) -> None:
    """The line says which splits there are, in a saved dataset and in a folder of files."""
    datasets.DatasetDict(train=saved(ROWS), dev=saved(ROWS)).save_to_disk(tmp_path / "saved")
    write(tmp_path / "files" / "train.jsonl", ROWS)
    for name, splits in (("saved", "train, dev"), ("files", "train")):
        told = error_of(tmp_path / name, dataset_split="tset")
        assert told == f"prompts.dataset_split: {tmp_path}/{name} has no split 'tset'; it has {splits}"


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json", "mine.parquet"])
def test_a_missing_column_is_one_line(tmp_path: Path, name: str) -> None:
    """The line says which columns there are."""
    path = write(tmp_path / name, ROWS)
    assert error_of(path, column="question") == f"prompts.column: {path} has no column 'question'; it has number, prompt"


@pytest.mark.parametrize(("held", "kind"), [(1, "int64"), ([{"role": "user"}], "list<item: struct<role: string>>"), (None, "null")])
def test_a_column_without_text_is_one_line(tmp_path: Path, held: object, kind: str) -> None:
    """The line says what the column holds instead."""
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": held}) + "\n")
    assert error_of(path) == f"prompts.column: column 'prompt' of {path} holds {kind}, not text"


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("content", ['{"prompt": "one"}', "{"])
def test_reading_is_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, shown: bool, content: str
) -> None:
    """``datasets`` shows no bar and logs no error of its own; whether it does so elsewhere stays as it was."""
    datasets.logging.enable_propagation()
    datasets.logging.set_verbosity_warning()
    (tmp_path / "mine.jsonl").write_text(content)
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    with suppress(UserError):
        texts(tmp_path / "mine.jsonl")
    hidden = datasets.utils.are_progress_bars_disabled()
    datasets.enable_progress_bars()
    datasets.logging.disable_propagation()
    assert (hidden, datasets.logging.get_verbosity()) == (not shown, datasets.logging.WARNING)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
