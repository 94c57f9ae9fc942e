"""What memories were worth, for people: a table for the terminal, continual.md, continual.html and continual.png."""

import html
from pathlib import Path
from typing import Any

import numpy as np

from gencond.eval.baselines import WHOLE_SET
from gencond.eval.plots import COLORS, OUR_COLORS, drawn
from gencond.eval.records import Scores
from gencond.eval.report import html_facts, html_page, html_table, markdown_facts
from gencond.eval.results import GENCOND
from gencond.eval.wording import NAMES, markdown_table, percent, words_of
from gencond.uses.continual import COMPARISON, GROWN, Continual
from gencond.uses.result_folder import to_reproduce, write_pages

ROW_NAMES = {
    **NAMES, GENCOND: "gencond, each step alone", GROWN: "gencond, one generator that grows",
    WHOLE_SET: "all images of the classes seen",
}  # fmt: skip
PICTURE = f"{COMPARISON}.png"


def write_continual_report(out: Path, found: Continual) -> None:
    """Writes `out/continual.md`, `out/continual.html` and `out/continual.png`."""
    png, svg = plot_memories(found)
    write_pages(out, COMPARISON, png, _markdown(found), _html(found, svg))


def name_of(row: str) -> str:
    """Of a row, for people."""
    return ROW_NAMES.get(row, row)


def memory_table(found: Continual) -> tuple[list[str], list[list[str]]]:
    """(header, lines): one line a row; accuracy after each step, then what the last memory holds, a class."""
    seen = [found.of(found.rows[0], step)[0].classes_seen for step in range(found.steps)]
    header = ["memory", *(f"{count} classes" for count in seen), "images a class", "kbit a class"]
    lines = []
    for row in found.rows:
        last, accuracies = found.of(row, found.steps - 1), _accuracies(found, row)
        images = sum(one.num_images for one in last) / len(last) / seen[-1]
        lines.append([
            name_of(row), *map(percent, accuracies), f"{images:,.4g}", f"{_kbit(found, row):,.0f}",
        ])  # fmt: skip
    return header, lines


def _accuracies(found: Continual, row: str) -> list[Scores]:
    return [found.accuracy(row, step) for step in range(found.steps)]


def _kbit(found: Continual, row: str) -> float:
    """That the last memory takes for each class, on average over the orders."""
    last = found.of(row, found.steps - 1)
    return sum(8 * one.num_bytes / one.classes_seen for one in last) / len(last) / 1000


def summary(found: Continual) -> str:
    """The table, and what to know of it, for a terminal."""
    return "\n".join([f"{_heading(found)}:", "", markdown_table(*memory_table(found)), "", *_sentences(found)])


def _heading(found: Continual) -> str:
    orders = len({one.order for one in found.scores})
    over = f"mean ± std over {orders} orders of the classes" if orders > 1 else "one order of the classes"
    return (
        f"Top-1 accuracy (%) of {found.network} under protocol {found.protocol['name']} on the {found.judged_on} "
        f"images of the classes seen, {over}"
    )


def _sentences(found: Continual) -> list[str]:
    """What the table means, and what to know of it."""
    classifiers = "one classifier" if found.num_seeds == 1 else f"{found.num_seeds} classifiers"
    said = [
        f"After each step {classifiers} of all classes learned from the memory alone, from scratch. Memories of a "
        f"number hold {found.ipc} images of each class; those that a recipe cuts in four count before they are cut.",
        "Bytes are those of pixels in 8 bits, of files of the codec, and of generators in int8 or coded, all of the "
        "file.",
        *found.notes,
    ]
    if GROWN in found.rows:
        said.insert(1, "In the generator that grows old classes keep their images bit for bit; it is stored once.")
    return said


def _facts(found: Continual) -> dict[str, list[tuple[str, str]]]:
    """What the numbers rest on: section -> (name, value)."""
    orders = [", ".join(order) for order in found.class_orders]
    return {
        "How it was done": [
            (f"Protocol {found.protocol['name']}", words_of(found.protocol)),
            ("Augmentation", found.augmentation),
            ("Recipe", found.recipe),
            ("Selection", "none: the last iterate of every training; the codec's quality on held-out images"),
            *((f"Order {number}", order) for number, order in enumerate(orders)),
        ],
        "To reproduce": [*to_reproduce(found.command, found.commit, found.versions)],
    }


def _markdown(found: Continual) -> str:
    parts = [f"# {found.title}", "", f"{_heading(found)}:", "", markdown_table(*memory_table(found)), ""]
    parts += [*(f"- {sentence}" for sentence in _sentences(found)), "", f"![{CAPTION}]({PICTURE})", "", CAPTION, ""]
    return "\n".join([*parts, *markdown_facts(_facts(found))])


CAPTION = "Left: accuracy over the classes seen so far. Right: after the last step, over what the memory takes."


def _html(found: Continual, svg: str) -> str:
    sentences = "".join(f"<li>{html.escape(text)}</li>" for text in _sentences(found))
    body = f"""<p>{html.escape(_heading(found))}:</p>
{html_table(*memory_table(found))}
<ul>{sentences}</ul>
<figure>{svg}<figcaption>{html.escape(CAPTION)}</figcaption></figure>
{html_facts(_facts(found))}"""
    return html_page(found.title, body)


def plot_memories(found: Continual) -> tuple[bytes, str]:
    """(PNG, SVG): accuracy over classes seen, and after the last step over bits a class."""
    ours = [row for row in found.rows if row not in COLORS]
    colors = {**COLORS, **{row: OUR_COLORS[number % len(OUR_COLORS)] for number, row in enumerate(ours)}}

    def draw(panels: np.ndarray) -> None:
        over_classes, over_bits = panels[0]
        for row in found.rows:
            accuracies = _accuracies(found, row)
            seen = [found.of(row, step)[0].classes_seen for step in range(found.steps)]
            means, stds = ([100 * getattr(one, part) for one in accuracies] for part in ("mean", "std"))
            style: dict[str, Any] = {"color": colors[row], "marker": "o", "capsize": 3, "label": name_of(row)}
            over_classes.errorbar(seen, means, stds, linestyle="--" if row == WHOLE_SET else "-", **style)
            over_bits.errorbar([_kbit(found, row)], means[-1:], stds[-1:], **style)
        over_classes.set_xlabel("classes seen")
        over_classes.set_ylabel(f"top-1 %, {found.network}")
        over_bits.set_xscale("log")
        over_bits.set_xlabel("kbit a class")
        over_bits.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return drawn(draw, 1, 2, size=(11.0, 3.8))
