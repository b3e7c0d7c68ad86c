"""Symbols to be moved about: sorting, lists, brackets, small programs, truth tables.

Each function takes a random generator and a level from 1 to 5 and returns the question, the steps and the answer.
"""

from itertools import product
from random import Random

Draft = tuple[str, list[str], str]

CLOSES = {")": "(", "]": "[", "}": "{"}
OPENS = {opening: closing for closing, opening in CLOSES.items()}


def sorting(rng: Random, level: int) -> Draft:
    numbers = rng.sample(range(1, 100 if level > 1 else 10), level + 1)
    question, rest, done, steps = f"Sort {_row(numbers)}.", list(numbers), [], []
    while len(rest) > 1:
        least = min(rest)
        rest.remove(least)
        done.append(least)
        steps.append(f"The smallest is {least}. Left: {_row(rest)}. Sorted: {_row(done)}.")
    answer = _row([*done, *rest])
    return question, [*steps, f"The last is {rest[0]}. Sorted: {answer}."], answer


def _row(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def list_edits(rng: Random, level: int) -> Draft:
    values = [rng.randint(0, 9) for _ in range(rng.randint(3, 4))]
    start, told, steps = str(values), [], []
    for _ in range(level):
        edit, values = _edit(rng, values)
        told.append(edit)
        steps.append(f"Now {edit}: {values}.")
    return f"Start with {start}, " + ", then ".join(told) + ". What is the list?", steps, str(values)


def _edit(rng: Random, values: list[int]) -> tuple[str, list[int]]:
    digit = rng.randint(0, 9)
    edits = {
        "reverse it": values[::-1],
        f"append {digit}": [*values, digit],
        f"put {digit} in front": [digit, *values],
        "move the first to the end": values[1:] + values[:1],
        "swap the first two": [values[1], values[0], *values[2:]],
    }
    if len(values) > 3:
        edits |= {"drop the first": values[1:], "drop the last": values[:-1]}
    return rng.choice(list(edits.items()))


def brackets(rng: Random, level: int) -> Draft:
    text = _balanced(rng, level + 1)
    if rng.random() < 0.5:
        text[rng.randrange(len(text))] = rng.choice("()[]{}")
    steps, stack, answer = [], list[str](), "yes"
    for symbol in text:
        if symbol in OPENS:
            stack.append(symbol)
            steps.append(f"Read {symbol} opens. Stack: {' '.join(stack)}")
        elif stack and stack[-1] == CLOSES[symbol]:
            stack.pop()
            steps.append(f"Read {symbol} closes {CLOSES[symbol]} . Stack: {' '.join(stack) or 'empty'}")
        else:
            steps.append(f"Read {symbol} cannot close {stack[-1] if stack else 'anything'} here.")
            answer = "no"
            break
    else:
        answer = "no" if stack else "yes"
        steps.append(f"At the end the stack is {' '.join(stack) or 'empty'} .")
    return f"Are these brackets balanced? {' '.join(text)}", steps, answer


def _balanced(rng: Random, pairs: int) -> list[str]:
    if pairs == 0:
        return []
    inside = rng.randrange(pairs)
    opening = rng.choice(list(OPENS))
    return [opening, *_balanced(rng, inside), OPENS[opening], *_balanced(rng, pairs - 1 - inside)]


def program(rng: Random, level: int) -> Draft:
    x, rounds = rng.randint(0, 9), max(2, level)
    operator, amount = rng.choice("+-"), rng.choice(("i", str(rng.randint(1, 9))))
    limit, change = rng.randint(3, 20), rng.randint(1, 5)
    code = [f"x = {x}", f"for i in range({rounds}):", f"    x = x {operator} {amount}"]
    conditional = level > 2
    if conditional:
        code += [f"    if x > {limit}:", f"        x = x - {change}"]
    steps = [f"x starts at {x}."]
    for i in range(rounds):
        operand = i if amount == "i" else int(amount)
        new = x + operand if operator == "+" else x - operand
        step, x = f"i is {i}: x = {x} {operator} {operand} = {new}.", new
        if conditional:
            step += f" {x} > {limit} is {x > limit}"
            if x > limit:
                step, x = f"{step}: x = {x} - {change} = {x - change}", x - change
            step += "."
        steps.append(step)
    return "What does this program print?\n" + "\n".join([*code, "print(x)"]), steps, str(x)


def truth_table(rng: Random, level: int) -> Draft:
    names = "ABC" if level > 3 else "AB"
    first, second = rng.sample(names[:3], 2)
    inner, outer = rng.choice(("and", "or")), rng.choice(("and", "or"))
    negated, last = rng.random() < 0.4, rng.choice([n for n in names if n not in (first, second)] or [first])
    left = f"not {first}" if negated else first
    formula = f"({left} {inner} {second}) {outer} {last}"
    steps, count = [], 0
    for row in product((0, 1), repeat=len(names)):
        value = dict(zip(names, row, strict=True))
        a = 1 - value[first] if negated else value[first]
        part = (a and value[second]) if inner == "and" else (a or value[second])
        whole = (part and value[last]) if outer == "and" else (part or value[last])
        count += whole
        setting = " ".join(f"{name}={value[name]}" for name in names)
        steps.append(f"{setting}: {a} {inner} {value[second]} = {part}, {part} {outer} {value[last]} = {whole}, count {count}.")
    listed = ", ".join(names[:-1]) + f" and {names[-1]}"
    return f"For how many values of {listed} is {formula} true?", steps, str(count)
