"""Pictures of samples and plots of a report, into a run's `samples` folder or as bytes."""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gencond.common.pictures import (
    PICTURED_CLASSES,
    PICTURED_IMAGES,
    grid,
    new_figure,
    screen_scale,
    write_figure,
    write_png,
)
from gencond.common.quick_scores import quick_scores
from gencond.common.ranges import as_bytes
from gencond.data.images import LabeledImages
from gencond.eval.baselines import CODEC_REAL, HERDING_REAL, K_CENTER_REAL, KMEANS_REAL, RANDOM_REAL, WHOLE_SET
from gencond.eval.memorization import Nearest
from gencond.eval.results import Row
from gencond.eval.wording import kinds

OUR_COLORS = ("#e4572e", "#b5489a", "#c79a2b", "#8e6bbf")  # of several artefacts in one plot
OURS_COLOR = OUR_COLORS[0]
COLORS = {
    RANDOM_REAL: "#4c8dd6", KMEANS_REAL: "#3aa76d", HERDING_REAL: "#8e6bbf", K_CENTER_REAL: "#c79a2b",
    CODEC_REAL: "#30a0a8", WHOLE_SET: "#888888",
}  # fmt: skip
PAIRED_ROWS = 2
NOT_LOSSES = ("stage", "step", "rates", "seconds", "memory", "wire_bytes")  # in an entry of the log
REAL_PICTURE, SYN_PICTURE, PAIRS_PICTURE, NEAREST_PICTURE = "real.png", "gencond.png", "grid.png", "nearest.png"
CLOSEST_PAIRS = 10
SMALLEST_SPAN = 10.0  # points of accuracy that a curve of quick scores shows: less is noise


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


def write_nearest(out: Path, samples: LabeledImages, train: LabeledImages, nearest: Nearest) -> None:
    """The samples that lie nearest to a training image, above it, into `out/samples`."""
    closest = nearest.distance.argsort()[:CLOSEST_PAIRS]
    pairs = torch.stack([as_bytes(samples.images[closest]), train.images[nearest.row[closest]]])
    write_png(out / "samples" / NEAREST_PICTURE, grid(pairs, screen_scale(train.image_size)))


def write_first_images(path: Path, rows: Mapping[str, Float[Tensor, "classes c h w"]]) -> None:
    """A picture whose rows are named: an image in [0, 1] of each class, of ten classes at most."""
    columns = min(PICTURED_CLASSES, *map(len, rows.values()))
    figure, panels = new_figure(len(rows), columns, (columns + 1.6, float(len(rows))))
    for line, (name, images) in zip(panels, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    write_figure(path, figure, dots_per_inch=80)


def drawn(
    draw: Callable[[np.ndarray], None], rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 3.4)
) -> tuple[bytes, str]:
    """(PNG, SVG) of rows x columns plots in colours that read on white and on black.

    Args:
        draw: called with the panels.
        size: of all of them, in inches.
    """
    import matplotlib

    grey = "#808080"
    with matplotlib.rc_context({
        "axes.edgecolor": grey, "axes.labelcolor": grey, "xtick.color": grey, "ytick.color": grey, "text.color": grey,
        "axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "svg.fonttype": "none",
        "svg.hashsalt": "gencond", "figure.dpi": 130,
    }):  # fmt: skip
        figure, panels = new_figure(rows, columns, size)
        draw(panels)
        for axes in panels.flat:
            axes.grid(alpha=0.25)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", facecolor="white")
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    text = svg.getvalue()
    return png.getvalue(), text[text.index("<svg") :]


def _figure(draw: Callable[[Any], None]) -> tuple[bytes, str]:
    """`drawn` with one panel."""
    return drawn(lambda panels: draw(panels[0, 0]))


def _curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Kind of images -> its rows of the first network and protocol, without streams, by IPC."""
    shown = rows[0].network, rows[0].protocol
    fixed = [row for row in rows if row.mode == "fixed" and (row.network, row.protocol) == shown]
    curves = {
        images: sorted((row for row in fixed if row.images == images), key=lambda row: row.ipc or 0)
        for images in kinds(rows)
    }
    return {images: own for images, own in curves.items() if own}


def _percents(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Means and sample deviations over seeds, times 100."""
    return [100 * row.top1.mean for row in rows], [100 * row.top1.std for row in rows]


def plot_accuracy(rows: Sequence[Row]) -> tuple[bytes, str]:
    """Top-1 over IPC with the standard deviation over seeds, for the first network and protocol."""
    names = kinds(rows)

    def draw(axes: Any) -> None:
        ticks = sorted({row.ipc for row in rows if row.ipc})
        for images, own in _curves(rows).items():
            means, stds = _percents(own)
            color, name = COLORS.get(images, OURS_COLOR), names[images]
            if images == WHOLE_SET:
                axes.axhline(means[0], color=color, linestyle="--", label=name)
            else:
                axes.errorbar([row.ipc for row in own], means, stds, color=color, marker="o", capsize=3, label=name)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(ipc) for ipc in ticks])
        axes.minorticks_off()
        axes.set_xlabel("images per class")
        axes.set_ylabel(f"top-1 %, {rows[0].network}")
        axes.legend(frameon=False)

    return _figure(draw)


def plot_storage(rows: Sequence[Row], published: Mapping[str, Mapping[float, float]]) -> tuple[bytes, str]:
    """Top-1 over what must be stored, in bits a class, for the first network and protocol.

    Args:
        published: method -> megabits a class -> top-1 %, drawn faintly behind: other protocols.
    """
    names = kinds(rows)

    def draw(axes: Any) -> None:
        _draw_published(axes, published, "published, other protocols")
        for images, own in _curves(rows).items():
            _draw_over_bits(axes, own, COLORS.get(images, OURS_COLOR), names[images])
        _name_axes_of_storage(axes, rows)

    return _figure(draw)


def plot_any_number(
    rows: Sequence[Row], names: Mapping[str, str], published: Mapping[str, Mapping[float, float]]
) -> tuple[bytes, str]:
    """Top-1 over what must be stored, for rows that all saw as many images, whatever is stored.

    Args:
        names: kind of images -> what the legend calls it; the whole set is a level, and any other kind a line.
        published: as of `plot_storage`, with other budgets too.
    """

    def draw(axes: Any) -> None:
        _draw_published(axes, published, "published, other budgets")
        ours = [images for images in names if images not in COLORS]
        for images, name in names.items():
            own = [row for row in rows if row.images == images]
            if own and images == WHOLE_SET:
                axes.axhline(100 * own[0].top1.mean, color=COLORS[images], linestyle="--", label=name)
            elif own:
                number = ours.index(images) if images in ours else 0
                _draw_over_bits(axes, own, COLORS.get(images, OUR_COLORS[number % len(OUR_COLORS)]), name)
        _name_axes_of_storage(axes, rows)

    return _figure(draw)


def _draw_published(axes: Any, published: Mapping[str, Mapping[float, float]], label: str) -> None:
    """Others' curves, faintly."""
    for number, (method, curve) in enumerate(published.items()):
        told = None if number else label
        axes.plot(
            list(curve), list(curve.values()), color="#808080", alpha=0.35, linewidth=1, marker=".", markersize=3,
            label=told,
        )  # fmt: skip
        axes.annotate(
            method, (max(curve), curve[max(curve)]), color="#808080", alpha=0.7, fontsize=6, xytext=(3, -2),
            textcoords="offset points",
        )  # fmt: skip


def _draw_over_bits(axes: Any, rows: Sequence[Row], color: str, label: str) -> None:
    """A line through what one kind of images reaches in more and more bits."""
    rows = sorted(rows, key=lambda row: row.bits_per_class)
    means, stds = _percents(rows)
    megabits = [row.bits_per_class / 1e6 for row in rows]
    axes.errorbar(megabits, means, stds, color=color, marker="o", capsize=3, label=label)


def _name_axes_of_storage(axes: Any, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")  # 0.2, where the default writes 2 x 10^-1
    axes.minorticks_off()
    axes.set_xlabel("megabits a class that must be stored")
    axes.set_ylabel(f"top-1 %, {rows[0].network}")
    axes.legend(frameon=False, fontsize=8)


def plot_losses(log: Sequence[Mapping[str, Any]]) -> tuple[bytes, str] | None:
    """The unweighted parts of the objective over condensing steps; None without a log."""
    entries = [entry for entry in log if entry.get("stage") == "condense" and "loss" in entry]
    if not entries:
        return None
    names = dict.fromkeys(key for entry in entries for key in entry if key not in NOT_LOSSES)

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


def plot_scores(log: Sequence[Mapping[str, Any]]) -> tuple[bytes, str] | None:
    """The quick scores over condensing steps, with the minutes of the run until then above; None without scores."""
    scores = quick_scores(log)
    if not scores:
        return None
    steps, percents = [score["step"] for score in scores], [100 * score["top1"] for score in scores]
    passed = list(accumulate(entry.get("seconds", 0.0) for entry in log))
    minutes = [seconds / 60 for entry, seconds in zip(log, passed, strict=True) if entry in scores]

    def draw(axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.plot(steps, percents, color=OURS_COLOR, marker="o")
        axes.annotate(
            f"{percents[-1]:.1f}", (steps[-1], percents[-1]), xytext=(0, 6), textcoords="offset points", ha="center"
        )
        axes.margins(x=0.08)
        middle, span = (max(percents) + min(percents)) / 2, max(percents) - min(percents)
        axes.set_ylim(middle - max(span, SMALLEST_SPAN) * 0.65, middle + max(span, SMALLEST_SPAN) * 0.65)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("condensing step")
        axes.set_ylabel(f"quick top-1 %, {scores[-1]['num_images']} held-out images")
        above = axes.secondary_xaxis("top")
        shown = range(len(steps) - 1, -1, -(len(steps) // 6 + 1))
        above.set_xticks([steps[at] for at in shown], [f"{minutes[at]:.{int(minutes[at] < 10)}f}" for at in shown])
        above.set_xlabel("minutes since the start")

    return _figure(draw)
