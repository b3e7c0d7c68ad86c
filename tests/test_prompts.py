"""Prompts: the same ones for the same seed, three splits that share nothing, and files that may be wrong."""

import json
import socket
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from dispatch_rl.config import PromptConfig
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.pocket import stdlib
from dispatch_rl.prompts import Prompt, Split, prompts

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ROWS = [f"row number {i}" for i in range(30)]


@pytest.fixture(autouse=True)
def lookups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Cut the network and return the hosts that are asked for; keep what ``datasets`` caches out of the home folder."""
    asked: list[object] = []

    def no_network(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("the tests have no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return asked


def draw(family: Family, config: PromptConfig, split: Split, count: int, seed: int = 0) -> list[Prompt]:
    """Return the first ``count`` prompts."""
    return list(islice(prompts(config, family, split, seed), count))


def texts(family: Family, config: PromptConfig, split: Split, count: int, seed: int = 0) -> list[str]:
    """Return the first ``count`` prompts as text."""
    return [family.decode(list(prompt.tokens)) for prompt in draw(family, config, split, count, seed)]


def write_txt(path: Path, rows: Iterable[str]) -> Path:
    """Write a prompt per line, and a blank line, which is none."""
    path.write_text("\n".join(rows) + "\n\n")
    return path


def write_jsonl(path: Path, rows: Iterable[str], column: str = "prompt") -> Path:
    """Write a prompt per row, beside a number."""
    path.write_text("".join(json.dumps({"number": i, column: row}) + "\n" for i, row in enumerate(rows)))
    return path


def write_parquet(path: Path, rows: Iterable[str], column: str = "prompt") -> Path:
    """Write a prompt per row, beside a number."""
    rows = list(rows)
    pyarrow.parquet.write_table(pa.table({"number": range(len(rows)), column: rows}), path)
    return path


def error_of(family: Family, config: PromptConfig, split: Split = "train") -> str:
    """Return what a user is told, which must be one line."""
    with pytest.raises(UserError) as caught:
        next(prompts(config, family, split, seed=0))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_depend_on_the_seeds_alone(pocket: Family, split: Split) -> None:
    """The same seeds give the same prompts, another seed of either kind gives others."""
    config = PromptConfig(seed=3)
    first = draw(pocket, config, split, 10, seed=5)
    assert draw(pocket, PromptConfig(seed=3), split, 10, seed=5) == first
    for other in (draw(pocket, config, split, 10, seed=6), draw(pocket, PromptConfig(seed=4), split, 10, seed=5)):
        # A short question may come again by chance.
        assert len({prompt.tokens for prompt in first} - {prompt.tokens for prompt in other}) >= 8


def test_kinds_take_turns(pocket: Family) -> None:
    """Kinds alternate in the order in which they are listed."""
    for kinds in (["reasoning", "code"], ["code", "reasoning"], ["code"], ["reasoning", "reasoning", "code"]):
        assert [prompt.kind for prompt in draw(pocket, PromptConfig(kinds=kinds), "train", 6)] == (6 * kinds)[:6]


def test_prompts_look_like_their_kind(pocket: Family) -> None:
    """A reasoning prompt is a question whose thinking begins; a code prompt is part of a file."""
    assert all(text.startswith("Problem: ") and text.endswith("\n<think>\n") for text in texts(pocket, pocket_kind("reasoning"), "test", 9))
    library = [stdlib.read_text(path) for path in stdlib.held_out_files()]
    assert all(any(text in module for module in library) for text in texts(pocket, pocket_kind("code"), "test", 9))


def pocket_kind(kind: str) -> PromptConfig:
    """Return the configuration for one kind of pocket prompts."""
    return PromptConfig(kinds=[kind])


def test_every_prompt_has_its_own_noise(pocket: Family) -> None:
    """Prompts are numbered, and the number is added to the seed of the sampling, modulo 2**64."""
    drawn = draw(pocket, PromptConfig(), "train", 4)
    assert [prompt.seed for prompt in drawn] == [0, 1, 2, 3]
    base = Sampling(0.6, top_k=5, seed=2**64 - 2)
    assert [prompt.sampling(base).seed for prompt in drawn] == [2**64 - 2, 2**64 - 1, 0, 1]
    assert drawn[1].sampling(base) == Sampling(0.6, top_k=5, seed=2**64 - 1)


def test_reasoning_prompts_of_train_are_never_tested(pocket: Family) -> None:
    """Six hundred training prompts of three seeds have none in common with validation and test."""
    seen = {text for seed in range(3) for text in texts(pocket, pocket_kind("reasoning"), "train", 200, seed)}
    for split in ("validation", "test"):
        assert not seen & set(texts(pocket, pocket_kind("reasoning"), split, 300))


def test_code_prompts_of_the_splits_come_from_different_files(pocket: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation and test share the held-out modules between them; training reads none of them."""
    read_text, read = stdlib.read_text, dict[str, set[Path]]()

    def recorded(path: Path) -> str:
        read.setdefault(split, set()).add(path)
        return read_text(path)

    monkeypatch.setattr(stdlib, "read_text", recorded)
    for split in SPLITS:
        draw(pocket, pocket_kind("code"), split, 150)
    assert read["validation"] | read["test"] == set(stdlib.held_out_files())
    assert not read["validation"] & read["test"]
    assert read["train"] <= set(stdlib.training_files())
    assert not read["train"] & (read["validation"] | read["test"])


@pytest.mark.parametrize(("write", "name"), [(write_txt, "mine.txt"), (write_jsonl, "mine.jsonl"), (write_parquet, "mine.parquet")])
def test_files_are_split_in_three(pocket: Family, tmp_path: Path, write: Callable[[Path, Iterable[str]], Path], name: str) -> None:
    """Of 30 rows, 24 train, 3 validate and 3 test, whatever the seed; all are used before one comes again."""
    config = PromptConfig(source=str(write(tmp_path / name, ROWS)))
    drawn = {split: texts(pocket, config, split, rows) for split, rows in zip(SPLITS, (24, 3, 3), strict=True)}
    assert sorted(row for rows in drawn.values() for row in rows) == sorted(ROWS)
    for split, rows in drawn.items():
        again = texts(pocket, config, split, 2 * len(rows), seed=1)
        assert set(again[: len(rows)]) == set(again[len(rows) :]) == set(rows)
    assert texts(pocket, config, "train", 24, seed=1) != drawn["train"]
    assert {prompt.kind for prompt in draw(pocket, config, "test", 3)} == {"mine"}


def test_a_prompt_that_stands_twice_in_a_file_is_in_one_split(pocket: Family, tmp_path: Path) -> None:
    """Training prompts never appear in the other splits, even if a file repeats itself."""
    config = PromptConfig(source=str(write_txt(tmp_path / "mine.txt", ROWS + ROWS)))
    train, validation, test = (set(texts(pocket, config, split, 60)) for split in SPLITS)
    assert not train & validation
    assert not train & test
    assert not validation & test


@pytest.mark.parametrize("name", ["a*.txt", "mine[1].txt"])
def test_a_files_name_is_taken_as_it_is(pocket: Family, tmp_path: Path, name: str) -> None:
    """A name with brackets or an asterisk is no pattern, and brings in no other file."""
    write_txt(tmp_path / "another.txt", ["not me"] * 5)
    write_txt(tmp_path / "mine1.txt", ["not me"] * 5)
    config = PromptConfig(source=str(write_txt(tmp_path / name, ROWS)))
    assert set(texts(pocket, config, "train", 24)) < set(ROWS)


def test_reading_a_file_asks_nobody(pocket: Family, tmp_path: Path, lookups: list[object]) -> None:
    """Prompts in a file on the disk are read without a word to the network."""
    draw(pocket, PromptConfig(source=str(write_txt(tmp_path / "mine.txt", ROWS))), "train", 1)
    assert lookups == []


def test_another_seed_splits_a_file_otherwise(pocket: Family, tmp_path: Path) -> None:
    """Which rows are held out depends on ``prompts.seed``."""
    source = str(write_txt(tmp_path / "mine.txt", ROWS))
    held_out = [set(texts(pocket, PromptConfig(source=source, seed=seed), "test", 3)) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_a_column_is_chosen(pocket: Family, tmp_path: Path) -> None:
    """``prompts.column`` names the column; rows that hold no text in it are passed over."""
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"q": q, "prompt": "not me"}) + "\n" for q in ("one", None, "two", " ", "three")))
    config = PromptConfig(source=str(path), column="q")
    assert {text for split in SPLITS for text in texts(pocket, config, split, 3)} == {"one", "two", "three"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "there is no file"),
        ("mine.csv", "prompt\nhello\n", "neither 'pocket' nor a .txt, .jsonl, .json, .parquet file"),
        ("pockets", None, "neither 'pocket' nor"),
        ("broken.jsonl", "{no json\n", "cannot be read"),
        ("broken.parquet", "no parquet", "cannot be read"),
        ("latin.txt", "\xe9", "cannot be read"),
        ("empty.txt", "", "empty.txt"),
        ("empty.jsonl", "", "empty.jsonl"),
        ("empty.parquet", "", "empty.parquet"),
        ("blank.txt", "\n \n\n", "holds no prompt"),
        ("numbers.jsonl", '{"prompt": 1}\n{"prompt": 2}\n', "holds no prompt"),
        ("two.txt", "one\ntwo\n", "has 2 prompts; at least 3 are needed"),
        ("long.txt", "\n".join(f"{i} " * 600 for i in range(3)), "leaves no room in a context of 1024"),
    ],
)
def test_wrong_files_are_one_line(pocket: Family, tmp_path: Path, name: str, content: str | None, message: str) -> None:
    """Whatever is wrong with a file is told in one line that names ``prompts.source``."""
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="latin-1")
    told = error_of(pocket, PromptConfig(source=str(path)))
    assert told.startswith("prompts.source: ")
    assert message in told


@pytest.mark.parametrize(("write", "name"), [(write_jsonl, "mine.jsonl"), (write_parquet, "mine.parquet")])
def test_a_missing_column_is_one_line(pocket: Family, tmp_path: Path, write: Callable[[Path, Iterable[str]], Path], name: str) -> None:
    """The line names ``prompts.column``, the column that was asked for and those that there are."""
    told = error_of(pocket, PromptConfig(source=str(write(tmp_path / name, ROWS)), column="question"))
    assert told.startswith("prompts.column: ")
    assert "no column 'question'; it has number, prompt" in told


def test_the_longest_prompt_leaves_room_for_one_token(other: Family, tmp_path: Path) -> None:
    """In a context of 128 a prompt of 127 tokens is taken and one of 128 refused."""
    signs = "~^|"
    assert [len(other.encode(sign * 127)) for sign in signs] == [127, 127, 127]
    path = write_txt(tmp_path / "fits.txt", [sign * 127 for sign in signs])
    assert len(draw(other, PromptConfig(source=str(path)), "train", 1)[0].tokens) == 127
    path = write_txt(tmp_path / "full.txt", [sign * 128 for sign in signs])
    assert "a prompt of 128 tokens leaves no room in a context of 128" in error_of(other, PromptConfig(source=str(path)))


def test_validation_and_test_share_no_reasoning_prompt(pocket: Family) -> None:
    """What is chosen on validation is not judged on the same problems, easy ones that recur included."""
    config = PromptConfig(kinds=["reasoning"])
    validation, test = ({p.tokens for p in draw(pocket, config, split, 300)} for split in ("validation", "test"))
    assert not validation & test
