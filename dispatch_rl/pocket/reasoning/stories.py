"""Small stories in words: things that are bought and lost, days that pass.

Each function takes a random generator and a level from 1 to 5 and returns the question, the steps and the answer.
"""

from random import Random

Draft = tuple[str, list[str], str]

NAMES = ("Mia", "Omar", "Lena", "Ravi", "Noor", "Tom", "Sara", "Kofi", "Yuki", "Ana")
THINGS = ("apples", "coins", "books", "stamps", "marbles", "cards", "shells", "pencils")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = {
    "January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30,
    "July": 31, "August": 31, "September": 30, "October": 31, "November": 30, "December": 31,
}  # fmt: skip
GAINS = ("buys", "finds", "wins", "gets")
LOSSES = ("loses", "sells", "gives away", "drops")


def _event(rng: Random, count: int, level: int) -> tuple[str, str, int]:
    """Return what happens, as the story tells it, the sum that works it out, and the new count."""
    options = ["gain"] * 2 + ["loss"] * 2 * (count > 3) + ["double"] * (count <= 40) + ["half"] * (count % 2 == 0 < count)
    match rng.choice(options):
        case "double":
            return "doubles the number", f"2 * {count} = {2 * count}", 2 * count
        case "half":
            return "keeps only half", f"{count} / 2 = {count // 2}", count // 2
        case "loss":
            amount = rng.randint(1, min(count - 1, 4 + 3 * level))
            return f"{rng.choice(LOSSES)} {amount}", f"{count} - {amount} = {count - amount}", count - amount
        case _:
            amount = rng.randint(1, 4 + 3 * level)
            return f"{rng.choice(GAINS)} {amount}", f"{count} + {amount} = {count + amount}", count + amount


def word_problem(rng: Random, level: int) -> Draft:
    name, things, count = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 8 + 4 * level)
    story, steps = [f"{name} has {count} {things}"], [f"At first {name} has {count} {things}."]
    for _ in range(level):
        event, working, count = _event(rng, count, level)
        story.append(f"then {event}")
        steps.append(f"{name} then {event}: {working}.")
    steps.append(f"So now {name} has {count} {things}.")
    return f"{', '.join(story)}. How many {things} does {name} have now?", steps, str(count)


def weekday(rng: Random, level: int) -> Draft:
    start, days = rng.randrange(7), rng.randint(2, 12 * level)
    weeks, rest = divmod(days, 7)
    steps = [f"{days} = {weeks} * 7 + {rest}, so only {rest} days count."]
    steps += [f"{i} after {DAYS[start]} is {DAYS[(start + i) % 7]}." for i in range(1, rest + 1)]
    answer = DAYS[(start + rest) % 7]
    steps.append(f"So it is a {answer}.")
    return f"Which weekday is {days} days after a {DAYS[start]}?", steps, answer


def date(rng: Random, level: int) -> Draft:
    names = list(MONTHS)
    month = rng.randrange(12)
    day, days = rng.randint(1, MONTHS[names[month]]), rng.randint(3, 15 * level)
    question = f"It is {day} {names[month]}, not in a leap year. Which date is it {days} days later?"
    steps = [f"{day} + {days} = {day + days}."]
    day += days
    while day > (length := MONTHS[names[month]]):
        following = names[(month + 1) % 12]
        steps.append(f"Now {names[month]} has {length} days, {day} - {length} = {day - length}, so {day - length} {following}.")
        day, month = day - length, (month + 1) % 12
    steps.append(f"Now {names[month]} has {MONTHS[names[month]]} days, {day} fits.")
    return question, steps, f"{day} {names[month]}"
