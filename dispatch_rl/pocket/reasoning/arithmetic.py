"""Written arithmetic: every column, digit and carry is spelled out.

Each function takes a random generator and a level from 1 to 5 and returns the question, the steps and the answer.
"""

from random import Random

Draft = tuple[str, list[str], str]


def _number(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _operands(rng: Random, level: int) -> tuple[int, int]:
    """Return a number of two to five digits and one that is as long or a digit shorter."""
    digits = max(2, level)
    return _number(rng, digits), _number(rng, rng.randint(digits - 1, digits))


def _backwards(number: int, width: int) -> list[int]:
    return [int(digit) for digit in reversed(str(number).zfill(width))]


def _spaced(digits: list[int]) -> str:
    return " ".join(map(str, digits))


def column_sum(a: int, b: int) -> list[str]:
    """Add ``a`` and ``b`` column by column."""
    width = max(len(str(a)), len(str(b)))
    a_digits, b_digits = _backwards(a, width), _backwards(b, width)
    steps = [f"Backwards the numbers are {_spaced(a_digits)} and {_spaced(b_digits)}."]
    carry, result = 0, ""
    for x, y in zip(a_digits, b_digits, strict=True):
        column = x + y + carry
        line = f"{x} + {y} + {carry} = {column}"
        carry, result = column // 10, f"{column % 10}{result}"
        steps.append(f"{line}, write {column % 10}, carry {carry}. So far {result}.")
    if carry:
        result = f"{carry}{result}"
        steps.append(f"The carry {carry} goes in front: {result}.")
    return steps


def digit_product(a: int, digit: int) -> list[str]:
    """Multiply ``a`` by one digit, from the last digit of ``a`` to the first."""
    digits = _backwards(a, len(str(a)))
    steps = [f"{a} backwards is {_spaced(digits)}, times {digit}."]
    carry, result = 0, ""
    for x in digits:
        product = x * digit
        column = product + carry
        line = f"{x} * {digit} = {product}, {product} + {carry} = {column}"
        carry, result = column // 10, f"{column % 10}{result}"
        steps.append(f"{line}, write {column % 10}, carry {carry}. So far {result}.")
    if carry:
        result = f"{carry}{result}"
        steps.append(f"The carry {carry} goes in front: {result}.")
    return steps


def addition(rng: Random, level: int) -> Draft:
    a, b = _operands(rng, level)
    question = rng.choice((f"Compute {a} + {b}.", f"What is the sum of {a} and {b}?"))
    return question, column_sum(a, b), str(a + b)


def subtraction(rng: Random, level: int) -> Draft:
    a, b = sorted(_operands(rng, level), reverse=True)
    width = len(str(a))
    a_digits, b_digits = _backwards(a, width), _backwards(b, width)
    steps = [f"Backwards the numbers are {_spaced(a_digits)} and {_spaced(b_digits)}."]
    borrow, result = 0, ""
    for x, y in zip(a_digits, b_digits, strict=True):
        taken = y + borrow
        short = x < taken
        line = f"{y} + {borrow} = {taken}, {x + 10 * short} - {taken} = {x + 10 * short - taken}"
        borrow, result = int(short), f"{x + 10 * short - taken}{result}"
        steps.append(f"{line}, write {result[0]}, borrow {borrow}. So far {result}.")
    if result != str(a - b):
        steps.append(f"Without leading zeros: {a - b}.")
    question = rng.choice((f"Compute {a} - {b}.", f"What is {a} minus {b}?"))
    return question, steps, str(a - b)


def multiplication(rng: Random, level: int) -> Draft:
    a, b = _number(rng, min(level + 1, 4)), rng.randint(2, 9)
    if level < 5:
        steps = digit_product(a, b)
    else:
        a, b = _number(rng, 2), 10 * rng.randint(1, 9) + rng.randint(1, 9)
        ones, tens = a * (b % 10), a * (b // 10) * 10
        steps = [f"Split {b} into {b // 10 * 10} and {b % 10}.", *digit_product(a, b % 10)]
        steps += [*digit_product(a, b // 10), f"Times ten that is {tens}."]
        steps += [f"Now add {ones} and {tens}.", *column_sum(ones, tens)]
    question = rng.choice((f"Compute {a} * {b}.", f"What is {a} times {b}?"))
    return question, steps, str(a * b)


def remainder(rng: Random, level: int) -> Draft:
    number, modulus = _number(rng, max(2, level)), rng.randint(2, 4 + level)
    rest, steps = 0, []
    for digit in str(number):
        value = 10 * rest + int(digit)
        quotient, rest = divmod(value, modulus)
        steps.append(f"Bring down {digit}: {value} = {quotient} * {modulus} + {rest}, remainder {rest}.")
    question = rng.choice((f"What is {number} mod {modulus}?", f"Find the remainder of {number} divided by {modulus}."))
    return question, steps, str(rest)


def equation(rng: Random, level: int) -> Draft:
    factor, x = rng.randint(2, 4 + level), rng.randint(2, 5 + 2 * level)
    shift = rng.randint(1, 10 * level) * rng.choice((1, -1))
    total = factor * x + shift
    sign, undo = ("+", "-") if shift > 0 else ("-", "+")
    product = factor * x
    verb = "Subtract" if shift > 0 else "Add"
    steps = [
        f"{verb} {abs(shift)} on both sides: {factor} * x = {total} {undo} {abs(shift)} = {product}.",
        f"Divide by {factor}: x = {product} / {factor} = {x}.",
        f"Check: {factor} * {x} {sign} {abs(shift)} = {product} {sign} {abs(shift)} = {total}.",
    ]
    return f"Solve {factor} * x {sign} {abs(shift)} = {total} for x.", steps, str(x)
