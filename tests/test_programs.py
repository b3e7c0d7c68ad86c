"""When captured passes serve, and what they are told: nothing where their inputs are right already, everything where they are not."""

from typing import Any

import pytest
import torch

from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.cache import StackedCache
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.static import Choice, Inputs, Told
from dispatch_rl.kernels.noise import gumbel
from dispatch_rl.kernels.verify import Rule
from tests.statics import again, decode


def test_the_host_speaks_to_the_device_twice_a_round(taped: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the draft, however long it is, and once for its verification."""
    told: list[int] = []
    write = Inputs.write

    def counted(self: Inputs, *args: Any, **options: Any) -> None:
        told.append(args[0])
        write(self, *args, **options)

    monkeypatch.setattr(Inputs, "write", counted)
    for arm in (Arm("twin", 5), Arm("twin", 9)):  # captured at once, and a graph for each step
        session = decode(taped, [5, 6, 7], Sampling(1.0, seed=1), 60, lambda s, arm=arm: s.step(arm))  # type: ignore[misc]
        rounds = [record for record in session.rounds if record.drafted]
        assert len(told) == 1 + len(session.rounds) + len(rounds), "the prompt is read by a graph too"
        assert any(len(record.drafted) == arm.length for record in rounds)
        told.clear()


@pytest.mark.parametrize("change", ["none", "rolled back", "other token", "other position", "other seed"])
def test_inputs_are_kept_only_while_they_are_right(other: Family, taped: Family, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second token of a draft is chosen without a word from the host if it follows the first, and else by what the host says."""
    student, plain, written = taped.students["twin"], again(other, None).students["twin"], list[int]()
    for model in (student, plain):
        model.start(100)
        model.eager(torch.tensor([5, 6, 7]), rows=1)
    programs, choice, told = student.programs, Choice(Rule("coupled")), Told(position=4, seed=3)
    assert programs is not None
    first = programs.draft(choice, told, [9], [])
    assert first is not None
    token, told, read = first[0].token, told.after(1), [9]
    if change == "rolled back":
        student.roll_back(3)
        read = []
    elif change == "other token":
        token = (token + 1) % taped.vocab
    elif change == "other position":
        told = told._replace(position=told.position + 3)
    elif change == "other seed":
        told = told._replace(seed=8)
    logits = plain.eager(torch.tensor([*read, int(token)]), rows=1)
    expected = (logits + gumbel(told.seed, torch.tensor([told.position]), taped.vocab)).argmax(-1)
    write = Inputs.write

    def counted(self: Inputs, *args: Any, **options: Any) -> None:
        written.append(args[0])
        write(self, *args, **options)

    monkeypatch.setattr(Inputs, "write", counted)
    second = programs.draft(choice, told, [], [token])
    assert second is not None
    assert second[0].token.tolist() == expected.tolist()
    assert len(written) == (change != "none")


def test_second_choices_are_no_part_of_the_draft(other: Family, taped: Family) -> None:
    """Behind a draft that stands whole comes a second choice that happens to be the token that follows: it is not accepted with it."""
    target, plain, tokens = taped.target, again(other, None).target, [5, 6, 7]
    for model in (target, plain):
        model.start(100)
        model.eager(torch.tensor(tokens), rows=1)
    own = [9]
    for _ in range(3):
        own.append(int(plain.eager(torch.tensor(own[-1:]), rows=1).argmax()))
    assert target.programs is not None
    *drafted, following = (torch.tensor([token]) for token in own[1:])
    judged = target.programs.judge(Rule(), Told(position=4), 9, drafted, {0: following})
    assert judged is not None
    found, read = judged.told(judged.report)
    assert (int(found.accepted), int(found.following), read[:4]) == (2, own[3], [*own[:3], own[3]])


def test_a_full_cache_is_not_written_beyond(other: Family, taped: Family, eager: list[int]) -> None:
    """Where filling would not fit, the pass is done operation by operation, and the length is refused there as ever."""
    model = taped.students["tiny"]
    model.start(100)
    assert isinstance(model.cache, StackedCache)
    model.cache.lengthen(model.cache.capacity - 5)
    model.forward(torch.tensor([1, 2, 3]), rows=1)
    assert eager == []
    model.forward(torch.tensor([1]), rows=1)
    assert eager == []
    with pytest.raises(IndexError, match="the cache holds 512 tokens, 513 are needed"):
        model.forward(torch.tensor([1, 2]), rows=1)
    model.roll_back(0)
