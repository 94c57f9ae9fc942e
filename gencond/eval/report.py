"""report.md and report.html from the rows of report.json: tables, pictures and plots of one run.

The HTML is one file that opens from disk without a network; it follows the reader's light or dark setting.
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gencond.data import LabeledImages
from gencond.eval.baselines import (
    BASELINES,
    CODEC_REAL,
    HERDING_REAL,
    K_CENTER_REAL,
    KMEANS_REAL,
    RANDOM_REAL,
    WHOLE_SET,
)
from gencond.eval.scoring import GENCOND, Row
from gencond.files import write_text, written_whole
from gencond.pictures import PICTURED_CLASSES, PICTURED_IMAGES, grid, new_figure, screen_scale, write_png
from gencond.ranges import as_bytes

NAMES = {
    GENCOND: "gencond (ours)",
    RANDOM_REAL: "random real",
    KMEANS_REAL: "k-means real",
    HERDING_REAL: "herding real",
    K_CENTER_REAL: "k-center real",
    CODEC_REAL: "AVIF real, same bytes",
    WHOLE_SET: "whole training set",
}
OURS_COLOR = "#e4572e"
COLORS = {
    RANDOM_REAL: "#4c8dd6", KMEANS_REAL: "#3aa76d", HERDING_REAL: "#8e6bbf", K_CENTER_REAL: "#c79a2b",
    CODEC_REAL: "#30a0a8", WHOLE_SET: "#888888",
}  # fmt: skip
RIVALS = (RANDOM_REAL, KMEANS_REAL, CODEC_REAL)
PAIRED_ROWS = 2
REAL_PICTURE, SYN_PICTURE, PAIRS_PICTURE = "real.png", "gencond.png", "grid.png"


def _kinds(rows: Sequence[Row]) -> dict[str, str]:
    """Kinds of images in a table -> their names for people; what was condensed comes first."""
    condensed = [row["images"] for row in rows if row["images"] not in BASELINES]
    return {images: NAMES.get(images, images) for images in dict.fromkeys([*condensed, *BASELINES])}


# --- words and tables ----------------------------------------------------------------------------------------------


def _percent(row: Row) -> str:
    return f"{100 * row['top1_mean']:.1f} ± {100 * row['top1_std']:.1f}"


def _size(*counts: int) -> str:
    """Bytes for people, several in the unit of the largest."""
    unit, digits, name = (1e6, 2, "MB") if max(counts) >= 1e6 else (1e3, 1, "kB")
    return " / ".join(f"{count / unit:.{digits}f}" for count in counts) + f" {name}"


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of top-1 per cent.

    One line for each kind of images, network and protocol; one column for each IPC, and "all" for the whole set.
    """
    ipcs = sorted({row["ipc"] for row in rows if row["ipc"]})
    header = ["trained on", "network", "protocol", *(f"IPC {ipc}" for ipc in ipcs), "all", "stored"]
    lines = []
    for network, protocol in dict.fromkeys((row["network"], row["protocol"]) for row in rows):
        for images, name in _kinds(rows).items():
            wanted = (images, network, protocol)
            own = {row["ipc"]: row for row in rows if (row["images"], row["network"], row["protocol"]) == wanted}
            if own:
                cells = [_percent(own[ipc]) if ipc in own else "" for ipc in [*ipcs, None]]
                sizes = sorted({row["bytes"] for row in own.values()})
                lines.append([name, network, protocol, *cells, _size(*sizes)])
    return header, lines


def summary_table(rows: Sequence[Row]) -> str:
    """The table for a terminal, with a sentence on what it says."""
    header, lines = table(rows)
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *lines]]
    text.insert(1, "  ".join("-" * width for width in widths))
    first = f"Top-1 accuracy (%) on real test images, mean ± std over {rows[0]['num_seeds']} seeds:"
    return "\n".join([first, "", *(line.rstrip() for line in text), "", *verdicts(rows)])


def _difference(row: Row, other: Row) -> str:
    """Of two rows' means in points, with its standard error where there is one."""
    gap = 100 * (row["top1_mean"] - other["top1_mean"])
    if min(row["num_seeds"], other["num_seeds"]) < 2:
        return f"{gap:+.1f}"
    error = 100 * math.sqrt(sum(one["top1_std"] ** 2 / one["num_seeds"] for one in (row, other)))
    return f"{gap:+.1f} ± {error:.1f}"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """One sentence for each IPC and network: how far above or below real images we are.

    With the standard error of the difference of two means over seeds.
    """
    sentences = []
    for row in rows:
        if row["images"] in BASELINES:
            continue
        rivals = {
            other["images"]: _difference(row, other)
            for other in rows
            if other["images"] in RIVALS and all(other[key] == row[key] for key in ("ipc", "network", "protocol"))
        }
        if rivals:
            gaps = "; ".join(f"{gap} points against {NAMES[name]}" for name, gap in rivals.items())
            sentences.append(f"IPC {row['ipc']}, {row['network']}, {row['protocol']}: {gaps}.")
    sizes = {row["images"]: row["bytes"] for row in rows}
    ours = max((size for images, size in sizes.items() if images not in BASELINES), default=0)
    if ours > sizes.get(WHOLE_SET, float("inf")):
        sentences.append(
            f"The condensed set ({_size(ours)}) is larger than the whole training set "
            f"({_size(sizes[WHOLE_SET])}): on this data it saves no storage."
        )
    return sentences


def _cut(images_per_slot: int) -> str:
    return "" if images_per_slot == 1 else f", each cut into {images_per_slot} images: IPC counts them before"


def _words(protocol: Mapping[str, Any]) -> str:
    """A protocol in one line."""
    shown = {name: value for name, value in protocol.items() if name != "name" and value not in (None, "", [], ())}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = f"| {' | '.join(header)} |\n|{'---|' * len(header)}"
    return "\n".join([head, *(f"| {' | '.join(line)} |" for line in lines)])


def _html_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _facts(content: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """What the numbers rest on: section -> (name, value)."""
    made, rows = content["condensed"], content["rows"]
    data = made.get("data", {})
    seconds: dict[str, float] = {}
    for entry in log:
        if "seconds" in entry:
            seconds[entry["stage"]] = seconds.get(entry["stage"], 0.0) + entry["seconds"]
    return {
        "How it was judged": [
            (
                "Judged on",
                f"{content['num_test_images']} real images of the {content['judged_on']} set"
                + (", which chose nothing" if content["judged_on"] == "test" else ": settings may be chosen by it"),
            ),
            ("Selection", "none: the last iterate of every training"),
            ("Mode", "fixed: k images of each class drawn once"),
            ("Seeds", f"{rows[0]['num_seeds']}; random real images are drawn anew for each"),
            *((f"Protocol {row['name']}", _words(row)) for row in content["protocols"]),
            ("Augmentation", content["augmentation"]),
        ],
        "What was condensed": [
            ("Training images", f"{data.get('num_images', '?')} of {data.get('source', '?')}"),
            ("Fingerprint", str(data.get("fingerprint", "?"))),
            (
                made.get("stored", "learned codes").capitalize(),
                f"{made['num_slots']} per class" + _cut(made.get("images_per_slot", 1)),
            ),
            (
                "Stored",
                f"{made['bytes']:,} bytes, {8 * made['bytes'] / len(content['class_names']) / 1e6:.3f} Mbit per class",
            ),
            ("Recipe", f"{made.get('recipe', {}).get('name', '?')}, in full in recipe.yaml"),
        ],
        "Cost": [
            *((stage, f"{value:.1f} s") for stage, value in seconds.items()),
            ("evaluation", f"{content['evaluation_seconds']:.1f} s, all rows"),
        ],
        "To reproduce": [
            ("Command", content["command"]),
            ("Commit", str(content["commit"] or "unknown")),
            ("Versions", ", ".join(f"{name} {number}" for name, number in content["versions"].items())),
        ],
    }


# --- pictures and plots --------------------------------------------------------------------------------------------


def write_pictures(out: Path, train: LabeledImages, condensed: LabeledImages) -> None:
    """Real and synthetic images of the same classes, into `out/samples`.

    Args:
        condensed: class-major samples.
    """
    classes = range(min(train.num_classes, PICTURED_CLASSES))
    count = min(PICTURED_IMAGES, *(int(counts.min()) for counts in (train.counts, condensed.counts)))
    real, syn = (
        torch.stack([as_bytes(part.images[part.rows_of(label)[:count]]) for label in classes])
        for part in (train, condensed)
    )
    scale = screen_scale(train.image_size)
    write_png(out / "samples" / REAL_PICTURE, grid(real, scale))
    write_png(out / "samples" / SYN_PICTURE, grid(syn, scale))
    shown = min(PAIRED_ROWS, count)  # one class a column, real images above ours
    blocks = [grid(images[:, :shown].transpose(0, 1), scale) for images in (real, syn)]
    between = np.full((6, *blocks[0].shape[1:]), 255, dtype=np.uint8)
    write_png(out / "samples" / PAIRS_PICTURE, np.concatenate([blocks[0], between, blocks[1]]))


def _figure(draw: Any, width: float = 6.4) -> tuple[bytes, str]:
    """(PNG, SVG) of a plot in colours that read on white and on black."""
    import matplotlib

    grey = "#808080"
    style = {
        "axes.edgecolor": grey, "axes.labelcolor": grey, "xtick.color": grey, "ytick.color": grey, "text.color": grey,
        "axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "svg.fonttype": "none",
        "svg.hashsalt": "gencond", "figure.dpi": 130,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure, panels = new_figure(1, 1, (width, 3.4))
        draw(panels[0, 0])
        panels[0, 0].grid(alpha=0.25)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", facecolor="white")
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    text = svg.getvalue()
    return png.getvalue(), text[text.index("<svg") :]


def plot_accuracy(rows: Sequence[Row]) -> tuple[bytes, str]:
    """Top-1 over IPC with the standard deviation over seeds, for the first network and protocol."""
    shown = rows[0]["network"], rows[0]["protocol"]

    def draw(axes: Any) -> None:
        ticks = sorted({row["ipc"] for row in rows if row["ipc"]})
        for images, name in _kinds(rows).items():
            own = sorted(
                (row for row in rows if (row["images"], row["network"], row["protocol"]) == (images, *shown)),
                key=lambda row: row["ipc"] or 0,
            )
            means, stds = ([100 * row[key] for row in own] for key in ("top1_mean", "top1_std"))
            if images == WHOLE_SET and own:
                axes.axhline(means[0], color=COLORS[images], linestyle="--", label=name)
            elif own:
                x = [row["ipc"] for row in own]
                axes.errorbar(x, means, stds, color=COLORS.get(images, OURS_COLOR), marker="o", capsize=3, label=name)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(ipc) for ipc in ticks])
        axes.minorticks_off()
        axes.set_xlabel("images per class")
        axes.set_ylabel(f"top-1 %, {shown[0]}")
        axes.legend(frameon=False)

    return _figure(draw)


def plot_losses(log: Sequence[Mapping[str, Any]]) -> tuple[bytes, str] | None:
    """The unweighted parts of the objective over condensing steps; None without a log."""
    entries = [entry for entry in log if entry.get("stage") == "condense" and "loss" in entry]
    if not entries:
        return None
    names = dict.fromkeys(key for entry in entries for key in entry if key not in ("stage", "step", "seconds"))

    def draw(axes: Any) -> None:
        for name in names:
            own = [entry for entry in entries if name in entry]  # a term may be left out of some steps
            window = max(1, len(own) // 8)
            smooth = torch.tensor([float(entry[name]) for entry in own]).unfold(0, window, 1).mean(1)
            steps = [entry["step"] for entry in own][window - 1 :]
            axes.plot(steps, smooth, label=name, linewidth=2 if name == "loss" else 1.2)
        axes.set_yscale("log")
        axes.set_xlabel("condensing step")
        axes.set_ylabel("unweighted parts (moving mean)")
        axes.legend(frameon=False, ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return _figure(draw)


# --- the two reports -----------------------------------------------------------------------------------------------


def write_reports(out: Path, content: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> None:
    """Writes `out/report.md` and `out/report.html`.

    Args:
        content: of report.json.
        log: entries of log.jsonl, for the loss curves and the cost.
    """
    rows = content["rows"]
    header, lines = table(rows)
    plots = {"accuracy": plot_accuracy(rows), "losses": plot_losses(log)}
    for name, plot in plots.items():
        if plot is not None:
            with written_whole(out / "samples" / f"{name}.png") as temporary:
                temporary.write_bytes(plot[0])
    write_text(out / "report.md", _markdown(out, content, log, header, lines, plots))
    write_text(out / "report.html", _html(out, content, log, header, lines, plots))


CAPTIONS = {
    PAIRS_PICTURE: "One class a column: real images above, condensed ones below.",
    REAL_PICTURE: "Real training images, one class a row.",
    SYN_PICTURE: "Condensed: the first samples of the same classes.",
}


def _markdown(
    out: Path,
    content: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    header: list[str],
    lines: list[list[str]],
    plots: Mapping[str, tuple[bytes, str] | None],
) -> str:
    parts = [f"# {content['title']}", ""]
    if (out / "samples" / PAIRS_PICTURE).is_file():
        parts += [f"![{CAPTIONS[PAIRS_PICTURE]}](samples/{PAIRS_PICTURE})", "", CAPTIONS[PAIRS_PICTURE], ""]
    parts += ["Top-1 accuracy on real test images, %:", "", _markdown_table(header, lines), ""]
    parts += [f"- {sentence}" for sentence in verdicts(content["rows"])]
    parts += [f"- {note}" for note in content["notes"]]
    parts += ["", *(f"![{name}](samples/{name}.png)" for name, plot in plots.items() if plot), ""]
    for picture in (REAL_PICTURE, SYN_PICTURE):
        if (out / "samples" / picture).is_file():
            parts += [CAPTIONS[picture], "", f"![{CAPTIONS[picture]}](samples/{picture})", ""]
    for section, facts in _facts(content, log).items():
        parts += [f"## {section}", "", *(f"- {name}: {value}" for name, value in facts), ""]
    return "\n".join(parts)


STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); }
td:last-child { white-space: normal; }
td { font-variant-numeric: tabular-nums; }
tbody tr:first-child td { font-weight: 600; }
img { max-width: 100%; height: auto; image-rendering: pixelated; }
svg { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } figcaption { opacity: .75; font-size: .9rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 1.5rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .2rem 1rem; margin: 0; }
dt { opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
code { background: var(--soft); padding: .1rem .3rem; border-radius: .2rem; }
"""


def _html(
    out: Path,
    content: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    header: list[str],
    lines: list[list[str]],
    plots: Mapping[str, tuple[bytes, str] | None],
) -> str:
    def picture(name: str) -> str:
        file = out / "samples" / name
        if not file.is_file():
            return ""
        data = base64.b64encode(file.read_bytes()).decode()
        caption = html.escape(CAPTIONS[name])
        return (
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption>'
            "</figure>"
        )

    sentences = "".join(f"<li>{html.escape(text)}</li>" for text in [*verdicts(content["rows"]), *content["notes"]])
    sections = "".join(
        f"<h2>{html.escape(section)}</h2><dl>"
        + "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts)
        + "</dl>"
        for section, facts in _facts(content, log).items()
    )
    drawn = "".join(f"<figure>{plot[1]}</figure>" for plot in plots.values() if plot)
    title = html.escape(content["title"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
{picture(PAIRS_PICTURE)}
<p>Top-1 accuracy (%) on real test images, mean ± standard deviation over {content["rows"][0]["num_seeds"]} seeds:</p>
{_html_table(header, lines)}
<ul>{sentences}</ul>
<div class="pair">{drawn}</div>
<div class="pair">{picture(REAL_PICTURE)}{picture(SYN_PICTURE)}</div>
{sections}
</body>
</html>
"""
