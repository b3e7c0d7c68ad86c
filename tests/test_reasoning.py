"""Every generated problem has the right answer, found again from its question alone by another way."""

import re
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import date, timedelta
from fractions import Fraction
from io import StringIO
from itertools import islice, product
from math import floor
from random import Random

import pytest

from dispatch_rl.pocket.reasoning import KINDS, LEVELS, Problem, is_held_out, make_problem, problems, stated_answer

PER_LEVEL = 200
MONDAY = date(2001, 1, 1)
"""A Monday in a year that is no leap year, and neither are the two after it."""
SIDE = r"-?\d+(?: [-+*/] \d+)*"
CALCULATION = re.compile(rf"(?<![\w*+/-] )(?<![-\w])({SIDE})(?= = ({SIDE})(?!\d| [-+*/]))")
"""A number or a calculation, and what it is said to equal; neighbours in a chain of equals signs."""


def numbers(question: str) -> list[int]:
    """Return the numbers in a text, without signs."""
    return [int(number) for number in re.findall(r"\d+", question)]


def operands(question: str, *wordings: str) -> tuple[int, int]:
    """Return the two numbers of a question that fits one of the wordings."""
    for wording in wordings:
        if fits := re.fullmatch(re.escape(wording).replace("N", r"(\d+)"), question):
            return int(fits[1]), int(fits[2])
    raise AssertionError(question)


def solve_addition(question: str) -> str:
    """The sum, as a difference."""
    a, b = operands(question, "Compute N + N.", "What is the sum of N and N?")
    return str(a - -b)


def solve_subtraction(question: str) -> str:
    """What must be added to ``b`` to give ``a``."""
    a, b = operands(question, "Compute N - N.", "What is N minus N?")
    return str(len(range(b, a)))


def solve_multiplication(question: str) -> str:
    """Repeated addition."""
    a, b = operands(question, "Compute N * N.", "What is N times N?")
    return str(sum([a] * b))


def solve_remainder(question: str) -> str:
    """What the whole part of the quotient leaves."""
    a, b = operands(question, "What is N mod N?", "Find the remainder of N divided by N.")
    return str(a - b * floor(Fraction(a, b)))


def solve_equation(question: str) -> str:
    """Every number below 1000 is tried."""
    left, right = question.removeprefix("Solve ").removesuffix(" for x.").split(" = ")
    (root,) = [x for x in range(1000) if eval(left, {"x": x}) == int(right)]
    return str(root)


def solve_word_problem(question: str) -> str:
    """The story as a chain of fractions."""
    told, asked = question.split(". How many ")
    (owner, has, start, things), *events = (part.split(" ") for part in told.split(", "))
    assert (has, asked) == ("has", f"{things} does {owner} have now?")
    count = Fraction(start)
    for _, *event in events:
        match event:
            case ["doubles", "the", "number"]:
                count *= 2
            case ["keeps", "only", "half"]:
                count /= 2
            case ["buys" | "finds" | "wins" | "gets", amount]:
                count += int(amount)
            case ["loses" | "sells" | "drops", amount] | ["gives", "away", amount]:
                count -= int(amount)
            case _:
                raise AssertionError(question)
    assert count.denominator == 1
    assert count >= 0
    return str(count)


def solve_weekday(question: str) -> str:
    """The calendar of 2001."""
    fits = re.fullmatch(r"Which weekday is (\d+) days after a (\w+)\?", question)
    assert fits
    (start,) = [MONDAY + timedelta(i) for i in range(7) if f"{MONDAY + timedelta(i):%A}" == fits[2]]
    return f"{start + timedelta(int(fits[1])):%A}"


def solve_date(question: str) -> str:
    """The calendar of 2001, and of 2002 behind it."""
    fits = re.fullmatch(r"It is (\d+) (\w+), not in a leap year\. Which date is it (\d+) days later\?", question)
    assert fits
    (start,) = [day for i in range(365) if f"{(day := MONDAY + timedelta(i)).day} {day:%B}" == f"{fits[1]} {fits[2]}"]
    later = start + timedelta(int(fits[3]))
    return f"{later.day} {later:%B}"


def solve_sorting(question: str) -> str:
    """Python's own sort."""
    assert re.fullmatch(r"Sort \d+( \d+)*\.", question)
    return " ".join(map(str, sorted(numbers(question))))


def solve_list_edits(question: str) -> str:
    """Python's own list methods, in place."""
    told = question.removeprefix("Start with ").removesuffix(". What is the list?")
    start, *edits = re.split(r"(?<=\]), |, then ", told)
    values = eval(start)
    for edit in edits:
        match edit.split(" "):
            case ["reverse", "it"]:
                values.reverse()
            case ["append", digit]:
                values.append(int(digit))
            case ["put", digit, "in", "front"]:
                values.insert(0, int(digit))
            case ["move", "the", "first", "to", "the", "end"]:
                values.append(values.pop(0))
            case ["swap", "the", "first", "two"]:
                values.insert(1, values.pop(0))
            case ["drop", "the", "first"]:
                del values[0]
            case ["drop", "the", "last"]:
                values.pop()
            case _:
                raise AssertionError(question)
    return repr(values)


def solve_brackets(question: str) -> str:
    """Adjacent pairs are struck out until none is left."""
    text = question.removeprefix("Are these brackets balanced? ").replace(" ", "")
    assert re.fullmatch(r"[()\[\]{}]+", text)
    while text != (text := re.sub(r"\(\)|\[\]|\{\}", "", text)):
        pass
    return "no" if text else "yes"


def solve_program(question: str) -> str:
    """The program is run."""
    printed = StringIO()
    with redirect_stdout(printed):
        exec(question.removeprefix("What does this program print?\n"), {})
    return printed.getvalue().strip()


def solve_truth_table(question: str) -> str:
    """Python evaluates the formula under every setting."""
    fits = re.fullmatch(r"For how many values of ((?:[A-Z], )*[A-Z] and [A-Z]) is (.*) true\?", question)
    assert fits
    names = re.findall("[A-Z]", fits[1])
    return str(sum(bool(eval(fits[2], dict(zip(names, row, strict=True)))) for row in product((False, True), repeat=len(names))))


SOLVERS: dict[str, Callable[[str], str]] = {
    "addition": solve_addition,
    "subtraction": solve_subtraction,
    "multiplication": solve_multiplication,
    "remainder": solve_remainder,
    "equation": solve_equation,
    "word_problem": solve_word_problem,
    "weekday": solve_weekday,
    "date": solve_date,
    "sorting": solve_sorting,
    "list_edits": solve_list_edits,
    "brackets": solve_brackets,
    "program": solve_program,
    "truth_table": solve_truth_table,
}


def drawn(kind: str, level: int) -> list[Problem]:
    """Return :data:`PER_LEVEL` problems."""
    rng = Random(f"{kind} {level}")
    return [make_problem(rng, kind, level) for _ in range(PER_LEVEL)]


def test_every_kind_has_a_solver() -> None:
    """No kind of problem goes unchecked."""
    assert list(SOLVERS) == list(KINDS)
    assert len(KINDS) == 13


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right(kind: str, level: int) -> None:
    """The stated answer is the problem's answer, and another way of solving the question finds it too."""
    for problem in drawn(kind, level):
        assert (problem.kind, problem.level) == (kind, level)
        assert stated_answer(problem.solution) == problem.answer == SOLVERS[kind](problem.question), problem


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("sorting", "list_edits", "brackets", "truth_table")])
@pytest.mark.parametrize("level", LEVELS)
def test_every_calculation_in_the_steps_is_right(kind: str, level: int) -> None:
    """Both sides of every equals sign between numbers agree, in every solution that calculates."""
    for problem in drawn(kind, level):
        calculations = CALCULATION.findall(problem.solution)
        assert calculations, problem
        assert all(eval(left) == eval(right) for left, right in calculations), problem


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("brackets", "date")])
def test_the_steps_reach_the_answer(kind: str) -> None:
    """The last steps, a closing remark perhaps behind them, spell out what the answer line repeats."""
    for problem in (problem for level in LEVELS for problem in drawn(kind, level)):
        last = " ".join(problem.steps[-3:])
        assert re.search(rf"(?<![\w-]){re.escape(problem.answer)}(?!\w)", last), problem


@pytest.mark.parametrize("kind", KINDS)
def test_answers_vary(kind: str) -> None:
    """No answer is right for more than three quarters of a kind's problems."""
    answers = [problem.answer for level in LEVELS for problem in drawn(kind, level)]
    assert max(map(answers.count, set(answers))) <= 0.75 * len(answers)


@pytest.mark.parametrize("kind", KINDS)
def test_higher_levels_are_longer(kind: str) -> None:
    """The solutions of level 5 are longer on average than those of level 1."""
    easy, hard = (sum(len(problem.solution) for problem in drawn(kind, level)) for level in (1, 5))
    assert hard > easy


def test_a_seed_gives_the_same_problems() -> None:
    """Equal seeds give equal problems, other seeds and the other side of the split give others."""
    first, again, other = (list(islice(problems(seed, held_out=False), 300)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert first != list(islice(problems(7, held_out=True), 300))


def test_held_out_and_training_prompts_are_disjoint() -> None:
    """5,000 problems of each side share no prompt, from the same seed or others."""
    sides = {side: {p.prompt for seed in (0, 1) for p in islice(problems(seed, held_out=side), 2_500)} for side in (True, False)}
    assert sides[True].isdisjoint(sides[False])
    assert all(len(prompts) > 1_000 for prompts in sides.values())


@pytest.mark.parametrize("side", [True, False])
def test_all_kinds_and_levels_occur(side: bool) -> None:
    """Each of the 13 * 5 cells has its share of 5,000 problems, 76.9 on average; at six standard deviations, at least 25."""
    found = [(problem.kind, problem.level) for problem in islice(problems(3, held_out=side), 5_000)]
    assert min(found.count(cell) for cell in product(KINDS, LEVELS)) >= 25


@pytest.mark.parametrize("side", [True, False])
def test_prompts_and_solutions_are_whole(side: bool) -> None:
    """A prompt asks something and opens the thinking, a solution thinks, closes it and answers; the split knows its own."""
    for problem in islice(problems(4, held_out=side), 2_000):
        assert is_held_out(problem) is side
        assert problem.question.strip()
        assert problem.prompt == f"Problem: {problem.question}\n<think>\n"
        assert len(problem.steps) >= 2
        assert all(step.strip() for step in problem.steps)
        assert problem.solution.endswith(f"\n</think>\nAnswer: {problem.answer}\n")


def test_stated_answer_by_hand() -> None:
    """The first answer line counts; without one there is none."""
    assert stated_answer("2 + 2 = 4\n</think>\nAnswer:  4 \nAnswer: 5\n") == "4"
    assert stated_answer("The Answer: 4\n") is None
    assert stated_answer("") is None
