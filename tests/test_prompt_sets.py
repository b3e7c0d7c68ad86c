"""Prompts by name, through templates and in chat format: from files in the layouts that the well-known sets have."""

import json
import socket
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import pytest

from dispatch_rl import hub
from dispatch_rl.config import DecodingConfig, FamilyConfig, PromptConfig
from dispatch_rl.config.prompts import PROMPT_SETS
from dispatch_rl.decoding.families import Family
from dispatch_rl.errors import UserError
from dispatch_rl.prompt_files import read_column
from dispatch_rl.prompts import Split, prompts
from dispatch_rl.replay.fingerprint import digest, recording_settings

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "How many eggs {i}?", "answer": "16 - 3 = <<16-3=13>>13\n#### 13"},
    "math-500": {"problem": "Solve $x^2 = {i}$.", "solution": "...", "answer": "2", "subject": "Algebra", "level": 2, "unique_id": "{i}"},
    "humaneval": {"task_id": "HumanEval/{i}", "prompt": "def f_{i}(x):\n", "canonical_solution": "", "test": "", "entry_point": "f"},
    "mt-bench": {"prompt": ["Write a poem {i}.", "Now backwards."], "prompt_id": 7, "category": "writing", "reference": []},
    "spec-bench": {"question_id": 81, "category": "qa", "turns": ["Who was {i}?", "And then?"]},
}
"""A row of each set, with the columns that it has; {i} is the number of the row."""
WRITTEN = {
    "gsm8k": (
        "Question: How many eggs 5?\nAnswer:",
        "How many eggs 5?\nPlease reason step by step, and put your final answer within \\boxed{}.",
    ),
    "math-500": (
        "Problem: Solve $x^2 = 5$.\nSolution:",
        "Solve $x^2 = 5$.\nPlease reason step by step, and put your final answer within \\boxed{}.",
    ),
    "humaneval": ("def f_5(x):\n", "Complete this Python function:\n\ndef f_5(x):\n"),
    "mt-bench": ("Write a poem 5.", "Write a poem 5."),
    "spec-bench": ("Who was 5?", "Who was 5?"),
}
"""What row 5 becomes, to be continued and as a message."""


@pytest.fixture(autouse=True)
def lookup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Cut the network and keep what ``datasets`` caches out of the home folder."""
    lookup = Mock(side_effect=OSError("the tests have no network"))
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return lookup


@pytest.fixture
def chatting(other: Family) -> Family:
    """A family whose tokenizer has a chat template."""
    words = deepcopy(other.tokenizer)
    words.chat_template = CHAT
    return replace(other, tokenizer=words)


def numbered(value: Any, i: int) -> Any:
    """Return a row with its number in its texts."""
    if isinstance(value, dict):
        return {key: numbered(inner, i) for key, inner in value.items()}
    if isinstance(value, list):
        return [numbered(inner, i) for inner in value]
    return value.replace("{i}", str(i)) if isinstance(value, str) else value


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Put a set of 30 rows where its name leads: a hub of folders, or a file at its address."""
    known, rows = PROMPT_SETS[name], [numbered(ROWS[name], i) for i in range(30)]
    if known.url is not None:
        monkeypatch.setitem(PROMPT_SETS, name, replace(known, url=write(tmp_path / "question.jsonl", rows).as_uri()))
        return
    folder, load = tmp_path / "hub", datasets.load_dataset_builder
    write(folder / "rows.jsonl", rows)
    subset = known.subset or "default"
    listed = f"- {{config_name: {subset}, data_files: [{{split: {known.split}, path: rows.jsonl}}]}}"
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}\n---\n")
    monkeypatch.setattr(hub, "obstacle", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda source, subset: load({known.hub: str(folder)}[source], subset))


def texts(config: PromptConfig) -> list[str]:
    """Return all prompts in their order."""
    return [text for _, text in read_column(config).texts()]


def error_of(config: PromptConfig) -> str:
    """Return what a user is told, which must be one line."""
    with pytest.raises(UserError) as caught:
        texts(config)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_sets_are_known_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is found where it is, in its own split, and put as a text to continue or as a message; its prompts are called after it."""
    elsewhere(tmp_path, monkeypatch, name)
    continued, message = texts(PromptConfig(source=name)), texts(PromptConfig(source=name, chat=True))
    assert (continued[5], message[5]) == WRITTEN[name]
    assert len(set(continued)) == len(set(message)) == 30
    assert read_column(PromptConfig(source=name)).name == name


def test_a_known_set_may_be_put_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a template or a column of one's own, in chat too."""
    elsewhere(tmp_path, monkeypatch, "gsm8k")
    assert texts(PromptConfig(source="gsm8k", template="Q: {question}", chat=True))[5] == "Q: How many eggs 5?"
    assert texts(PromptConfig(source="gsm8k", column="question"))[5] == "How many eggs 5?"
    assert error_of(PromptConfig(source="gsm8k", dataset_split="train")).endswith("has no split 'train'; it has test")


def test_a_set_that_is_out_of_reach_is_one_line(lookup: Mock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the hub and elsewhere, without a network and where ``HF_HUB_OFFLINE=1`` says so; what was fetched once is kept."""
    absent = "prompts.source: openai/gsm8k is neither a file nor a folder here nor in the local cache, and "
    told = error_of(PromptConfig(source="gsm8k"))
    assert told == absent + "the hub, https://huggingface.co, cannot be reached: the tests have no network"
    lookup.assert_called_once()
    assert "prompts.source: spec-bench cannot be fetched: " in error_of(PromptConfig(source="spec-bench"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert error_of(PromptConfig(source="gsm8k")) == absent + "HF_HUB_OFFLINE=1 is set"
    told = error_of(PromptConfig(source="spec-bench"))
    assert told.startswith("prompts.source: spec-bench is not in the local cache, and HF_HUB_OFFLINE=1 is set; save https://")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    elsewhere(tmp_path, monkeypatch, "spec-bench")
    fetched = texts(PromptConfig(source="spec-bench"))
    (tmp_path / "question.jsonl").unlink()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert texts(PromptConfig(source="spec-bench")) == fetched


def test_a_dataset_in_the_cache_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lookup: Mock) -> None:
    """What ``datasets`` has prepared before is read from where it keeps it."""
    elsewhere(tmp_path, monkeypatch, "math-500")
    prepared = tmp_path / "cache" / "HuggingFaceH4___math-500" / "default" / "0.0.0" / "0123abcd"
    builder = datasets.load_dataset_builder("HuggingFaceH4/MATH-500", None)
    builder.download_and_prepare()
    prepared.parent.mkdir(parents=True)
    Path(builder.cache_dir).rename(prepared)
    for file in prepared.glob("*.arrow"):
        file.rename(file.with_name(f"math-500-{file.name.rpartition('-')[2]}"))
    monkeypatch.undo()
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert texts(PromptConfig(source="math-500"))[5] == WRITTEN["math-500"][0]
    lookup.assert_called_once()


def test_a_template_is_filled_from_columns(tmp_path: Path) -> None:
    """Texts, numbers and first turns; braces stand for themselves when doubled; rows that lack a column are passed over."""
    rows: list[dict[str, Any]] = [{"a": i, "b.c": f"word {i}", "d": ["first", "second"]} for i in range(3)]
    path = write(tmp_path / "mine.jsonl", [*rows, {"a": 3, "b.c": None, "d": ["x"]}, {"a": 4, "b.c": "y", "d": []}])
    assert texts(PromptConfig(source=str(path), template="{{{a}}} {b.c}, {d}!")) == [f"{{{i}}} word {i}, first!" for i in range(3)]
    assert texts(PromptConfig(source=str(path), column="d")) == ["first", "first", "first", "x"]
    (tmp_path / "mine.txt").write_text("one\ntwo\n")
    assert texts(PromptConfig(source=str(tmp_path / "mine.txt"), template="Q: {text}")) == ["Q: one", "Q: two"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"template": "Q: {question}"}, "prompts.template: {path} has no column 'question'; it has a, nested"),
        ({"template": "Q: {nested}"}, "prompts.template: column 'nested' of {path} holds struct<x: int64>, not text"),
        ({"template": "Q:"}, "prompts.template: it names no column; write one in braces, as {{question}}"),
        ({"template": "Q: {}"}, "prompts.template: {{}} is not the name of a column"),
        ({"template": "{a!r:>9}"}, "prompts.template: {{a!r:>9}} is not the name of a column"),
        ({"template": "Q: {a"}, "prompts.template: expected '}}' before end of string"),
        ({"template": "{a}", "column": "a"}, "prompts.column: prompts.template names the columns already"),
        ({"system": "Be brief."}, "prompts.system: a system message needs prompts.chat=true"),
        ({"source": "pocket", "template": "{a}"}, "prompts.template: pocket prompts are generated"),
    ],
)
def test_wrong_templates_are_one_line(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The line names the key, and the columns that there are."""
    path = write(tmp_path / "mine.jsonl", [{"a": "x", "nested": {"x": 1}}])
    with pytest.raises(UserError) as caught:
        texts(PromptConfig(**{"source": str(path), **keys}))
    assert str(caught.value).startswith(message.format(path=path))


def test_chat_prompts_are_messages(chatting: Family, tmp_path: Path) -> None:
    """The template's own text around the message, with a system message if there is one, and the answer begun; no text is in two splits."""
    path = write(tmp_path / "mine.jsonl", ({"prompt": f"row {i % 20}"} for i in range(40)))
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for system, begin in ((None, ""), ("Be brief.", "<system>Be brief.</system>")):
        config = PromptConfig(source=str(path), chat=True, system=system)
        drawn = {
            split: {chatting.decode(list(prompt.tokens)) for prompt in islice(prompts(config, chatting, split, 0), 40)} for split in splits
        }
        assert sorted(map(len, drawn.values())) == [2, 2, 16]
        assert set().union(*drawn.values()) == {f"{begin}<user>row {i}</user><assistant>" for i in range(20)}


def test_chat_without_a_chat_template_is_one_line(other: Family, chatting: Family, tmp_path: Path) -> None:
    """So is a chat template that will not have the messages."""
    path = write(tmp_path / "mine.jsonl", ({"prompt": f"row {i}"} for i in range(9)))
    config = PromptConfig(source=str(path), chat=True, system="Be brief.")
    with pytest.raises(UserError, match=r"^chat: the tokenizer of .*target has no chat template; leave out --chat, or set prompts"):
        next(prompts(config, other, "train", 0))
    chatting.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(UserError, match=r"^chat: the chat template of .*target fails: no system role$"):
        next(prompts(config, chatting, "train", 0))


def test_recordings_know_their_prompts() -> None:
    """Settings that came later enter the fingerprint once they are set; recordings from before them keep theirs."""
    old = digest(PromptConfig().settings()), digest(PromptConfig(source="mine.jsonl", column="question", max_new_tokens=64).settings())
    assert old == ("d078fa88e31e145a", "085b808cb87912ef")  # of the version before templates
    changes: list[dict[str, Any]] = [{}, {"chat": True}, {"chat": True, "system": "x"}, {"template": "{q}"}, {"template": "{q}?"}]
    assert len({digest(PromptConfig(source="mine.jsonl", **change).settings()) for change in changes}) == len(changes)
    spelled = PromptConfig(source="gsm8k", subset="main", dataset_split="test", template="Question: {question}\nAnswer:")
    assert PromptConfig(source="gsm8k").settings() == spelled.settings()
    plain, cut = (DecodingConfig(family=FamilyConfig(max_context=limit)) for limit in (None, 64))
    assert set(recording_settings(cut, "train", 0)) - set(recording_settings(plain, "train", 0)) == {"max_context"}
