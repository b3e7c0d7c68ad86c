"""What a study says: ``study.md`` for people, ``study.json`` for scripts, and a figure."""

from collections.abc import Sequence
from pathlib import Path

from dispatch_rl.runs import write_atomically, write_json
from dispatch_rl.study import tables
from dispatch_rl.study.conditions import conditions
from dispatch_rl.study.drawing import draw
from dispatch_rl.study.plan import Row, Study


def write(study: Study, rows: Sequence[Row]) -> list[Path]:
    """Write the rows, the figure and the page; print the tables and return the files."""
    page, json, figure = (study.folder / f"study.{suffix}" for suffix in ("md", "json", "png"))
    write_json(json, rows)
    draw(rows, figure)
    sections = _sections(study, rows)
    print("\n" + "\n\n".join(sections) + "\n")
    picture = f"![Latency by policy, what features are worth, and where time is lost]({figure.name})"
    head = f"# Study `{study.config.name}`\n\n{conditions(study, rows)}\n\n{picture}"
    write_atomically(page, "\n\n".join([head, *sections]) + "\n")
    return [page, json, figure]


def _sections(study: Study, rows: Sequence[Row]) -> list[str]:
    by_table: dict[str, list[Row]] = {}
    for row in rows:
        by_table.setdefault(row["table"], []).append(row)
    found = []
    for table, title in (("policies", "Policies"), ("students", "Students alone, one draft length")):
        for temperature in dict.fromkeys(row["temperature"] for row in by_table.get(table, [])):
            here, ratios = ([r for r in by_table.get(t, []) if r["temperature"] == temperature] for t in (table, f"{table}, ratios"))
            found.append(f"## {title}, temperature {temperature:g}\n\n{tables.policies(here)}\n\n{tables.ratios(ratios)}")
    for table, title, render in (
        ("features", "What features are worth", tables.features),
        ("arms", "What arms are worth", tables.arms),
        ("transfer", "Trained on one thing, tested on another", tables.transfer),
        ("adaptation", "The same with fixed arms to fall back on", tables.adaptation),
        ("regret", "Where time is lost against the oracle", tables.regret),
        ("bound", "What is possible with what is known before drafting", tables.bound),
    ):
        if table in by_table:
            found.append(f"## {title}\n\n{render(by_table[table])}")
    return found + _notes(study)


def _notes(study: Study) -> list[str]:
    """Return what was left out, and why."""
    wanted, config = study.config.study.sections, study.config
    notes = []
    if "transfer" in wanted:
        if len(study.base.kinds_there()) < 2:
            notes.append("Transfer between kinds of text: the recording holds one kind.")
        if len(config.study.temperatures) < 2:
            notes.append("Transfer between temperatures: only one was studied.")
        if config.study.other_profile is None:
            notes.append("Transfer between machines: study.other_profile names no other one.")
    if "bound" in wanted and not study.more:
        notes.append("The informed bound: replay.traces does not hold the target's hidden states.")
    if not config.evaluation.prompts:
        notes.append("Live: evaluation.prompts is 0.")
    return ["## Not done\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []
