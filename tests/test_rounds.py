"""Records, arms and prompt lookup: the vocabulary in which a round is told."""

from math import isnan
from random import Random
from typing import Any

import pytest

from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm, ArmTable
from dispatch_rl.decoding.lookup import LONGEST_MATCH, LookupIndex
from dispatch_rl.decoding.rounds import Round, RoundTable, arm_name, metrics
from dispatch_rl.errors import UserError


def make_round(arm: str, drafted: int, accepted: int, emitted: int | None = None) -> Round:
    """Return a round of ``arm`` that drafts, accepts and emits so many tokens; times are 3, 2 and 0.5 ms."""
    length = accepted + 1 if emitted is None else emitted
    student = arm.partition("-")[0]
    return Round(arm, (student,) * drafted, tuple(range(drafted)), accepted, tuple(range(length)), (0.5,) * length, 3.0, 2.0, 0.5)


def told_of(rounds: list[Round]) -> dict[str, Any]:
    """Return the metrics of one text of ``rounds``."""
    return metrics(RoundTable.of([(rounds, [0.5] * len(rounds))]))


def test_metrics_by_hand() -> None:
    """Rounds of 4 drafted and 3 accepted, 6 and 0, and the target alone."""
    told = told_of([make_round("small-4", 4, 3), make_round("large-6", 6, 0), make_round(NONE, 0, 0)])
    assert told == {
        "num_rounds": 3,
        "num_emitted_tokens": (3 + 1) + (0 + 1) + 1,
        "num_draft_tokens": 4 + 6,
        "num_accepted_tokens": 3,
        "mean_acceptance_length": 6 / 3,  # the bonus token counts
        "draft_acceptance_rate": 3 / 10,  # not (3/4 + 0/6) / 2
        "acceptance_histogram": [2, 0, 0, 1],
        "arm_shares": {"large-6": 1 / 3, "none": 1 / 3, "small-4": 1 / 3},
    }


def test_a_text_that_ends_in_a_round_counts_what_it_emitted() -> None:
    """After an end-of-sequence token nothing is emitted: three of five accepted tokens and no bonus."""
    told = told_of([make_round("small-5", 5, 3, emitted=3), make_round("small-5", 5, 5)])
    assert told["mean_acceptance_length"] == (3 + 6) / 2
    assert told["draft_acceptance_rate"] == (3 + 5) / 10
    assert told["acceptance_histogram"] == [0, 0, 0, 1, 0, 1]
    assert told["arm_shares"] == {"small-5": 1.0}


def test_nothing_drafted_has_no_acceptance_rate() -> None:
    """The target alone has no acceptance rate rather than a perfect or a bad one."""
    told = told_of([make_round(NONE, 0, 0), make_round(NONE, 0, 0)])
    assert told["draft_acceptance_rate"] is None
    assert told["mean_acceptance_length"] == 1
    assert told["acceptance_histogram"] == [2]


def test_no_rounds_at_all() -> None:
    """A text of one token has no round: counts are zero, ratios unknown."""
    told = told_of([])
    assert (told["num_rounds"], told["num_emitted_tokens"], told["arm_shares"]) == (0, 0, {})
    assert isnan(told["mean_acceptance_length"])
    assert told["draft_acceptance_rate"] is None


def test_a_table_knows_where_each_round_began() -> None:
    """Two texts: their rounds begin behind the first token, which the prefill emits, and behind what the rounds before emitted."""
    first, second = [make_round("small-4", 4, 3), make_round(NONE, 0, 0)], [make_round("large-6", 6, 2), make_round("small-4", 4, 0)]
    table = RoundTable.of([(first, [0.1, 0.2]), (second, [0.3, 0.4])])
    assert table.text.tolist() == [0, 0, 1, 1]
    assert table.position.tolist() == [1, 5, 1, 4]
    assert table.emitted.tolist() == [4, 1, 3, 1]
    assert table.entropy_nats.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert table.arm.tolist() == ["small-4", "none", "large-6", "small-4"]


def test_latency_is_the_sum_of_its_parts() -> None:
    """Draft, verification and overhead: 3 + 2 + 0.5 ms."""
    assert make_round("small-4", 4, 3).latency_ms == 5.5


@pytest.mark.parametrize(
    ("students", "name"),
    [
        ([], "none"),
        (["small"], "small-1"),
        (["small"] * 6, "small-6"),
        (["lookup", "small", "small"], "lookup+small-3"),
        (["small", "large", "small"], "small+large+small-3"),
    ],
)
def test_rounds_are_named_by_who_drafted(students: list[str], name: str) -> None:
    """A round of one student is named as its arm is; students that took turns are joined in order."""
    assert arm_name(students) == name
    if students and len(set(students)) == 1:
        assert arm_name(students) == Arm(students[0], len(students)).name


def test_arms_have_short_names() -> None:
    """Student and length, and plain ``none``."""
    assert [arm.name for arm in (Arm("small", 6), Arm(LOOKUP, 3), Arm(NONE))] == ["small-6", "lookup-3", "none"]


@pytest.mark.parametrize(
    ("student", "length", "message"),
    [
        (NONE, 3, "'none' drafts nothing"),
        ("small", 0, "draft length of 'small' is 0"),
        (LOOKUP, -1, "draft length of 'lookup' is -1"),
    ],
)
def test_impossible_arms_are_refused(student: str, length: int, message: str) -> None:
    """``none`` has no length, and everyone else drafts at least one token."""
    with pytest.raises(UserError, match=f"^arms: .*{message}"):
        Arm(student, length)


def test_an_arm_table_is_a_sequence() -> None:
    """Action ``i`` is the i-th arm, from both ends, and the table tells its length and its members."""
    arms = [Arm("small", 4), Arm("large", 4), Arm("large", 8), Arm(NONE)]
    table = ArmTable(arms)
    assert (list(table), len(table), table[1], table[-1]) == (arms, 4, Arm("large", 4), Arm(NONE))
    assert [table.first_of(student) for student in ("small", "large", NONE)] == [0, 1, 3]
    assert Arm("large", 8) in table
    with pytest.raises(IndexError):
        table[4]


def test_impossible_arm_tables_are_refused() -> None:
    """No arm at all, and an arm twice."""
    with pytest.raises(UserError, match=r"^arms: the list is empty"):
        ArmTable([])
    with pytest.raises(UserError, match=r"^arms: listed twice: none, small-4$"):
        ArmTable([Arm("small", 4), Arm(NONE), Arm("small", 4), Arm("small", 5), Arm(NONE)])


def test_arms_of_students_that_do_not_exist_are_refused() -> None:
    """The reserved names need no student; any other name must be the family's."""
    table = ArmTable([Arm("small", 4), Arm(LOOKUP, 4), Arm(NONE)])
    table.check_students(["small", "large"])
    with pytest.raises(UserError, match=r"^arms: unknown student 'small'; the family has tiny, huge$"):
        table.check_students(["tiny", "huge"])
    with pytest.raises(UserError, match=r"^arms: none drafts with 'large'; there are small-4, lookup-4, none$"):
        table.first_of("large")


def brute_force(committed: list[int], draft: list[int]) -> tuple[int, int | None]:
    """Return the longest end of ``committed + draft`` that stood earlier in ``committed``, and what last followed it there."""
    sequence = committed + draft
    for length in range(min(LONGEST_MATCH, len(sequence)), 0, -1):
        for position in range(len(committed) - 1, length - 1, -1):
            if committed[position - length : position] == sequence[-length:]:
                return length, committed[position]
    return 0, None


def test_lookup_by_hand() -> None:
    """The longest end wins over a later shorter one, and the latest place over earlier ones of the same length."""
    index = LookupIndex()
    assert index.find([]) == (0, None)
    index.extend([1, 2, 3, 9, 2, 3])
    assert index.find([]) == (2, 9)  # 2 3 stood before 9
    index.extend([8, 2, 3])
    assert index.find([]) == (2, 8)  # later than before 9
    index.extend([7, 1, 2, 3])
    assert index.find([]) == (3, 9)  # 1 2 3 stood before 9 only; 2 3 stood before 7 since
    assert index.find([9]) == (4, 2)  # 1 2 3 9 stood before 2
    assert index.find([5]) == (0, None)


def test_drafts_are_matched_but_never_found() -> None:
    """A draft belongs to the end that is looked up, not to the text in which it is found."""
    index = LookupIndex()
    index.extend([1, 2])
    assert index.find([5, 6, 5]) == (0, None)
    assert index.find([1]) == (1, 2)
    assert index.find([5, 1]) == (1, 2)


@pytest.mark.parametrize("alphabet", [2, 3, 6])
def test_lookup_equals_a_search(alphabet: int) -> None:
    """On random texts, committed in pieces of any size, the index finds what a search through the text finds."""
    rng, lengths = Random(alphabet), set()
    for _ in range(30):
        index, committed = LookupIndex(), list[int]()
        while len(committed) < 60:
            piece = [rng.randrange(alphabet) for _ in range(rng.choice([0, 1, 2, 5]))]
            index.extend(piece)
            committed += piece
            draft = [rng.randrange(alphabet) for _ in range(rng.choice([0, 0, 1, 2, 3, 5, 9]))]
            assert index.find(draft) == brute_force(committed, draft), (committed, draft)
            lengths.add(index.find(draft)[0])
    assert lengths == {0, 1, 2, 3, 4}
