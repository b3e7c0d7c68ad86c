"""Prompts: the same ones for the same seed, and three splits that share nothing."""

import gc
import re
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

import dispatch_rl
from dispatch_rl.config import PromptConfig
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.pocket import stdlib
from dispatch_rl.prompts import Prompt, Split, prompts

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ROWS = [f"row number {i}" for i in range(30)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` caches out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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


@pytest.mark.parametrize("split", SPLITS)
def test_a_file_is_split_in_three(pocket: Family, tmp_path: Path, split: Split) -> None:
    """Of 30 rows, 24 train, 3 validate and 3 test, and no row is in two splits."""
    config = PromptConfig(source=str(write_txt(tmp_path / "mine.txt", ROWS)))
    counts = {"train": 24, "validation": 3, "test": 3}
    mine = texts(pocket, config, split, 60)
    assert len(set(mine)) == counts[split]
    others = {text for other in SPLITS if other != split for text in texts(pocket, config, other, 60)}
    assert others == set(ROWS) - set(mine)
    assert {prompt.kind for prompt in draw(pocket, config, split, 3)} == {"mine"}


def test_every_pass_over_a_file_has_its_own_order(pocket: Family, tmp_path: Path) -> None:
    """All rows of a split come once before one comes again; the order is another in each pass and for each seed."""
    config = PromptConfig(source=str(write_txt(tmp_path / "mine.txt", ROWS)))
    drawn = texts(pocket, config, "train", 72)
    passes = [drawn[:24], drawn[24:48], drawn[48:], texts(pocket, config, "train", 24, seed=1)]
    assert len({frozenset(rows) for rows in passes}) == 1
    assert len({tuple(rows) for rows in passes}) == 4
    assert all(len(set(rows)) == 24 for rows in passes)
    assert texts(pocket, config, "train", 72) == drawn


def test_a_prompt_that_stands_twice_in_a_file_is_drawn_once(pocket: Family, tmp_path: Path) -> None:
    """A file that repeats itself gives what it would give without: one split for a text, and once in a pass."""
    twice, once = (PromptConfig(source=str(write_txt(tmp_path / f"{n}.txt", ROWS * n))) for n in (2, 1))
    for split in SPLITS:
        assert texts(pocket, twice, split, 60) == texts(pocket, once, split, 60)


def test_the_order_of_rows_does_not_matter(pocket: Family, tmp_path: Path) -> None:
    """A file that was shuffled or sorted since has the same splits, and gives the same prompts."""
    there, back = (PromptConfig(source=str(write_txt(tmp_path / f"{step}.txt", ROWS[::step]))) for step in (1, -1))
    for split in SPLITS:
        assert texts(pocket, there, split, 30) == texts(pocket, back, split, 30)


def test_another_seed_splits_a_file_otherwise(pocket: Family, tmp_path: Path) -> None:
    """Which rows are held out depends on ``prompts.seed``."""
    source = str(write_txt(tmp_path / "mine.txt", ROWS))
    held_out = [set(texts(pocket, PromptConfig(source=source, seed=seed), "test", 3)) for seed in (-1, -1, 2**70)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_three_prompts_are_enough(pocket: Family, tmp_path: Path) -> None:
    """Each split has one of them."""
    config = PromptConfig(source=str(write_txt(tmp_path / "mine.txt", ["one", "two", "three"])))
    drawn = [texts(pocket, config, split, 2) for split in SPLITS]
    assert [len(set(two)) for two in drawn] == [1, 1, 1]
    assert {two[0] for two in drawn} == {"one", "two", "three"}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("rows", "message"),
    [(["one", "two", "one"], "holds 2 distinct prompts; three splits need at least 3"), ([" ", "\t"], "holds no prompt")],
)
def test_too_few_prompts_are_refused(pocket: Family, tmp_path: Path, rows: list[str], message: str, split: Split) -> None:
    """Whichever split is asked for."""
    told = error_of(pocket, PromptConfig(source=str(write_txt(tmp_path / "mine.txt", rows))), split)
    assert told == f"prompts.source: {tmp_path}/mine.txt {message}"


def test_texts_stay_on_the_disk(pocket: Family, tmp_path: Path) -> None:
    """Of twenty megabytes of prompts, reading takes less than a fifth: a batch and the hashes. What stays is 8 bytes a row."""
    config = PromptConfig(source=str(write_txt(tmp_path / "mine.txt", (f"{i} {'x' * 997}" for i in range(20_000)))))
    draw(pocket, config, "train", 1)
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    stream = prompts(config, pocket, "train", seed=0)
    assert len({next(stream).tokens for _ in range(20)}) == 20
    gc.collect()
    held, peak = (taken + pa.total_allocated_bytes() - arrow for taken in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert peak < 4e6
    assert held < 20_000 * 8 + 1e5


def test_prompts_that_are_all_too_long_are_refused(pocket: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They leave no room in the context; how far they are from it is said."""
    path = write_txt(tmp_path / "long.txt", [f"{i} " * 600 for i in range(3)])
    told = error_of(pocket, PromptConfig(source=str(path)))
    shortest = min(len(pocket.encode(f"{i} " * 600)) for i in range(3))
    room = "leaves no room in a context of 1024"
    assert told == f"prompts.source: every train prompt of {path} {room}; the shortest has {shortest} tokens"
    assert capsys.readouterr().err == ""


def test_prompts_that_are_too_long_are_left_out(pocket: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others come, in the parts that they were in; how many are left out is said once, whichever part is drawn first."""
    long = {f"row number {i}": f"row number {i} {'~^' * 3_000}" for i in (3, 4, 12, 20, 28)}
    path = write_txt(tmp_path / "mine.txt", [long.get(row, row) for row in ROWS])
    config, roomy = PromptConfig(source=str(path)), replace(pocket, context_limit=10_000)
    kept = {split: set(texts(pocket, config, split, 60)) for split in SPLITS}
    told = f"prompts.source: 5 of 30 prompts of {path} are left out: they leave no room in a context of 1024 tokens\n"
    assert capsys.readouterr().err == told
    assert set().union(*kept.values()) == set(ROWS) - set(long)
    for split in SPLITS:
        assert kept[split] == set(texts(roomy, config, split, 60)) - set(long.values())
    assert capsys.readouterr().err == ""
    drawn = draw(pocket, config, "train", 40)
    assert [prompt.seed for prompt in drawn] == [*range(40)]
    assert drawn == draw(pocket, config, "train", 40)


def test_the_longest_prompt_leaves_room_for_one_token(other: Family, tmp_path: Path) -> None:
    """In a context of 128 a prompt of 127 tokens is taken and one of 128 is not."""
    signs = "~^|"
    assert [len(other.encode(sign * 127)) for sign in signs] == [127, 127, 127]
    path = write_txt(tmp_path / "fits.txt", [sign * 127 for sign in signs])
    assert len(draw(other, PromptConfig(source=str(path)), "train", 1)[0].tokens) == 127
    path = write_txt(tmp_path / "full.txt", [sign * 128 for sign in signs])
    assert "leaves no room in a context of 128; the shortest has 128 tokens" in error_of(other, PromptConfig(source=str(path)))


def test_validation_and_test_share_no_reasoning_prompt(pocket: Family) -> None:
    """What is chosen on validation is not judged on the same problems, easy ones that recur included."""
    config = PromptConfig(kinds=["reasoning"])
    validation, test = ({p.tokens for p in draw(pocket, config, split, 300)} for split in ("validation", "test"))
    assert not validation & test


@pytest.mark.parametrize("module", ["prompts", "prompt_files", "prompt_sources"])
def test_datasets_is_imported_late(module: str) -> None:
    """It takes most of a second, and pocket prompts need none of it."""
    code = Path(dispatch_rl.__file__).with_name(f"{module}.py").read_text()
    assert not re.search(r"^(import|from) datasets", code, re.MULTILINE)
