"""The report of an evaluation: one HTML page that needs nothing else, and one picture."""

import base64
import html
import io
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dispatch_rl import figures, report
from dispatch_rl.comparison import Comparison, Evaluation
from dispatch_rl.contestants import BEST_FIXED, LEARNED, THRESHOLD
from dispatch_rl.runs import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]

_HEADINGS = {"replay": "Replay", "live": "Live"}
_SECTION = re.compile(r'<section id="(\w+)">.*?</section>', re.DOTALL)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child, td:last-child, th:last-child { text-align: left }
tr.learned { font-weight: bold } tr.bound { color: #b04a00 }
figure { display: inline-block; margin: .5em 0; max-width: 100% } img { max-width: 100% }
""".strip()


def write(evaluation: Evaluation, name: str, page: Path, picture: Path, kept: Collection[str] = ()) -> dict[str, bytes]:
    """Write the page, with every figure that the evaluation has something for, and one picture of them all.

    Args:
        evaluation: What was measured.
        name: Name of the run.
        page: The HTML file.
        picture: The PNG file.
        kept: Modes whose sections stay as they are in the page that is there.

    Returns:
        Each figure as PNG, by title.
    """
    draws = _draws(evaluation)
    figures_png = {mode: {title: png([draw]) for title, draw in found.items()} for mode, found in draws.items()}
    sections = {mode: section for mode, section in _sections(page).items() if mode in kept}
    for comparison in (evaluation.replayed, evaluation.live):
        if comparison is not None:
            sections[comparison.mode] = _section(comparison, figures_png[comparison.mode])
    body = [f"<h1>dispatch-rl: {html.escape(name)}</h1>", *(sections[mode] for mode in _HEADINGS if mode in sections)]
    head = f'<meta charset="utf-8"><title>dispatch-rl: {html.escape(name)}</title><style>{_STYLE}</style>'
    write_atomically(page, f"<!doctype html><html lang=en><head>{head}</head><body>\n" + "\n".join(body) + "\n</body></html>\n")
    write_picture([draw for found in draws.values() for draw in found.values()], picture)
    return {title: image for found in figures_png.values() for title, image in found.items()}


def _sections(page: Path) -> dict[str, str]:
    """Return the sections of a page that is there, by mode."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    return {match[1]: match[0] for match in _SECTION.finditer(text)}


def _section(comparison: Comparison, images: Mapping[str, bytes]) -> str:
    """Return what there is to say about one comparison."""
    lines = [f'<section id="{comparison.mode}">', f"<h2>{_HEADINGS[comparison.mode]}</h2>"]
    lines += [f"<p>{html.escape(report.title(comparison))}</p>", _table(comparison)]
    lines += [f"<p>{html.escape(said)}</p>" for said in report.verdicts(comparison)]
    lines += [
        f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(image).decode()}"></figure>'
        for title, image in images.items()
    ]
    return "\n".join([*lines, f"<p><small>{datetime.now(UTC):%Y-%m-%d %H:%M} UTC</small></p>", "</section>"])


def write_picture(draws: list[Draw], path: Path) -> None:
    """Write some figures as one PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("unfinished-" + path.name)
    temporary.write_bytes(png(draws))
    temporary.replace(path)


def _draws(evaluation: Evaluation) -> dict[str, dict[str, Draw]]:
    """Return the figures by mode and title."""
    replayed, live, world = evaluation.replayed, evaluation.live, evaluation.world
    found: dict[str, dict[str, Draw]] = {}
    for comparison in (replayed, live):
        if comparison is not None:
            found[comparison.mode] = {f"latency, {comparison.mode}": lambda axes, c=comparison: figures.latency(axes, c)}  # type: ignore[misc]
    if replayed is not None and world is not None:
        found["replay"] |= {
            "gap closed": lambda axes: figures.gap_closed(axes, replayed),
            "acceptance by draft position": lambda axes: figures.acceptance_by_draft_place(axes, world),
            "acceptance by text position": lambda axes: figures.acceptance_by_text_place(axes, world),
        }
    first = replayed or live
    assert first is not None
    sees_entropy = world is None or "entropy" in world.traces.floats
    for policy in (LEARNED, THRESHOLD):
        if policy in first.results and sees_entropy:
            found[first.mode][f"arms of {policy}"] = lambda axes, p=policy: figures.arms_by_entropy(axes, first, p)  # type: ignore[misc]
    shown = [policy for policy in (LEARNED, BEST_FIXED, THRESHOLD) if policy in first.results]
    found[first.mode]["one text"] = lambda axes: figures.timeline(axes, first, shown, 0)
    if live is not None and live.prediction_errors():
        found["live"]["predicted and measured"] = lambda axes: figures.prediction(axes, live)
    return found


def png(draws: list[Draw]) -> bytes:
    """Draw side by side, three in a row, and return the picture."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(draws))
    rows = -(-len(draws) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(7 * columns, 4.4 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat[len(draws) :]:
        axes.set_visible(False)
    for axes, draw in zip(grid.flat, draws, strict=False):
        draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return buffer.getvalue()


def _table(comparison: Comparison) -> str:
    rows = comparison.rows()
    columns = report.used_columns(rows)
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(report.HEADER[i])}</th>" for i in columns) + "</tr>"]
    for row in rows:
        kind = "learned" if row["policy"] == LEARNED else "bound" if row["policy"] in comparison.bounds else ""
        cells = report.cells(row)
        lines.append(f'<tr class="{kind}">' + "".join(f"<td>{html.escape(cells[i])}</td>" for i in columns) + "</tr>")
    return "\n".join([*lines, "</table>"])
