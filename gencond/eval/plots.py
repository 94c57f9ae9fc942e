"""Plots of a report, as bytes."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from gencond.common.pictures import new_figure
from gencond.common.quick_scores import SCORE_EVENT, quick_scores
from gencond.eval.baselines import (
    CODEC_REAL,
    HERDING_REAL,
    K_CENTER_REAL,
    KMEANS_KNOWN,
    KMEANS_KNOWN_PACKED,
    KMEANS_PACKED,
    KMEANS_REAL,
    PACKED,
    RANDOM_PACKED,
    RANDOM_REAL,
    WHOLE_SET,
)
from gencond.eval.records import Answered
from gencond.eval.results import Row
from gencond.eval.wording import kinds

OUR_COLORS = ("#e4572e", "#b5489a", "#c79a2b", "#8e6bbf")  # of several artefacts in one plot
OURS_COLOR = OUR_COLORS[0]
COLORS = {
    RANDOM_REAL: "#4c8dd6", KMEANS_REAL: "#3aa76d", HERDING_REAL: "#8e6bbf", K_CENTER_REAL: "#c79a2b",
    CODEC_REAL: "#30a0a8", WHOLE_SET: "#888888", RANDOM_PACKED: "#9cc3f0", KMEANS_PACKED: "#8fd6b0",
    KMEANS_KNOWN: "#8c564b", KMEANS_KNOWN_PACKED: "#c9a59c",
}  # fmt: skip
NOT_LOSSES = ("stage", "step", "rates", "seconds", "memory", "wire_bytes")  # in an entry of the log
SMALLEST_SPAN = 10.0  # points of accuracy that a curve of quick scores shows: less is noise
NAMED_STAGE = 0.11  # of a run's time: a shorter stage has no room for its name
READABLE_CLASSES = 30  # of more, a plot names those that matter most
SHOWN_MISTAKES = 15
LONGEST_NAME = 24  # characters
DEEP_PERCENT, FULL_PERCENT = 40, 60  # of the matrix: cells too deep in colour for grey numbers, in full colour


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
    with warnings.catch_warnings(), matplotlib.rc_context({
        "axes.edgecolor": grey, "axes.labelcolor": grey, "xtick.color": grey, "ytick.color": grey, "text.color": grey,
        "axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "svg.fonttype": "none",
        "svg.hashsalt": "gencond", "figure.dpi": 130,
    }):  # fmt: skip
        # Of classes' names; a page shows them by the reader's fonts.
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        figure, panels = new_figure(rows, columns, size)
        for axes in panels.flat:
            axes.grid(alpha=0.25)
        draw(panels)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", facecolor="white")
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    text = svg.getvalue()
    return png.getvalue(), text[text.index("<svg") :]


def _figure(draw: Callable[[Any], None], size: tuple[float, float] = (6.4, 3.4)) -> tuple[bytes, str]:
    """`drawn` with one panel."""
    return drawn(lambda panels: draw(panels[0, 0]), size=size)


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
    """The quick scores over the minutes that a run has taken, with its stages above; None without scores."""
    scores = quick_scores(log)
    if not scores:
        return None
    passed = [seconds / 60 for seconds in accumulate(entry.get("seconds", 0.0) for entry in log)]
    spent = [minutes for entry, minutes in zip(log, passed, strict=True) if entry.get("event") == SCORE_EVENT]
    ends = {entry["stage"]: minutes for entry, minutes in zip(log, passed, strict=True) if "stage" in entry}
    percents = [100 * score["top1"] for score in scores]

    def draw(axes: Any) -> None:
        axes.plot(spent, percents, color=OURS_COLOR, marker="o")
        axes.annotate(
            f"{percents[-1]:.1f}", (spent[-1], percents[-1]), xytext=(0, 6), textcoords="offset points", ha="center"
        )
        middle, span = (max(percents) + min(percents)) / 2, max(percents) - min(percents)
        axes.set_ylim(middle - max(span, SMALLEST_SPAN) * 0.65, middle + max(span, SMALLEST_SPAN) * 0.65)
        axes.set_xlim(0, passed[-1] * 1.05)
        axes.set_xlabel("minutes spent")
        axes.set_ylabel(f"quick top-1 %, {scores[-1]['num_images']} held-out images")
        above, begun = axes.secondary_xaxis("top"), 0.0
        named = []
        for stage, end in sorted(ends.items(), key=lambda entry: entry[1]):
            axes.axvline(end, color="#808080", linewidth=0.8, linestyle=":")
            if end - begun >= NAMED_STAGE * passed[-1]:
                named.append(((begun + end) / 2, stage))
            begun = end
        above.set_xticks([middle for middle, _ in named], [stage for _, stage in named])
        above.tick_params(length=0, labelsize=8)

    return _figure(draw)


def plot_classes(rows: Sequence[Row], class_names: Sequence[str]) -> tuple[bytes, str] | None:
    """What ours and real images reach in each class, at the largest IPC of the first network and protocol.

    The classes are in the order of ours; of more than `READABLE_CLASSES`, half as many from each end are drawn. None
    where no row of ours says how it answered.
    """
    found, curves = _best_that_tells(rows), _curves(rows)
    if found is None:
        return None
    (best, answered), names, half, left_out = found, kinds(rows), READABLE_CLASSES // 2, ""
    tested = [label for label, asked in enumerate(answered.asked) if asked]
    order = sorted(tested, key=lambda label: answered.shares[label])
    if len(order) > READABLE_CLASSES:
        order, left_out = [*order[:half], *order[-half:]], f", the {half} best and worst of {len(order)}"
    at_best = {images: [row for row in own if row.ipc in (best.ipc, None)] for images, own in curves.items()}
    rivals = PACKED if any(at_best.get(images) for images in PACKED) else (RANDOM_REAL, KMEANS_REAL)
    beside = [row for images in (*rivals, WHOLE_SET) for row in at_best.get(images, ())]

    def draw(axes: Any) -> None:
        places = np.arange(len(order))
        for row in [*beside, best]:
            if row.answered is not None:
                percents = [100 * row.answered.shares[label] for label in order]
                ours = row is best
                color, marker = (OURS_COLOR, "D") if ours else (COLORS[row.images], "o")
                axes.plot(
                    percents, places, linestyle="none", marker=marker, color=color, label=names[row.images],
                    alpha=1.0 if ours else 0.8,
                )  # fmt: skip
        axes.set_yticks(places, [_short(class_names[label]) for label in order])
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_xlabel(f"top-1 % in each class, {_of(best)}{left_out}", loc="right")
        axes.legend(frameon=False, ncols=2, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return _figure(draw, (6.4, 1.4 + 0.25 * len(order)))


def plot_confusion(rows: Sequence[Row], class_names: Sequence[str]) -> tuple[bytes, str] | None:
    """Which classes are taken for which by classifiers of ours, in per cent of a class, at the largest IPC.

    A matrix, or of more than `READABLE_CLASSES` the most frequent mistakes. None where no row says how it answered.
    """
    found = _best_that_tells(rows)
    if found is None:
        return None
    best, answered = found
    mistakes = [(label, other, 100 * times / answered.asked[label]) for label, other, times in answered.mistakes]
    said = f"% of a class, {_of(best)}"

    def draw_matrix(axes: Any) -> None:
        axes.grid(False)
        percents = np.diag([100 * share for share in answered.shares])
        for label, other, percent in mistakes:
            percents[label, other] = percent
        axes.pcolormesh(percents, cmap=_from_nothing_to(OURS_COLOR), vmin=0, vmax=FULL_PERCENT)
        for (label, other), percent in np.ndenumerate(percents):
            if percent >= 0.5:
                deep: dict[str, Any] = {"color": "white", "weight": "bold"} if percent >= DEEP_PERCENT else {}
                axes.text(other + 0.5, label + 0.5, f"{percent:.0f}", ha="center", va="center", fontsize=7, **deep)
        middles = np.arange(len(class_names)) + 0.5
        named = list(map(_short, class_names))
        axes.set_xticks(middles, named, rotation=45, ha="right")
        axes.set_yticks(middles, named)
        axes.invert_yaxis()
        axes.set_xlabel(f"taken for ({said})", loc="right")
        axes.set_ylabel("real class")

    def draw_mistakes(axes: Any) -> None:
        worst = sorted(mistakes, key=lambda mistake: mistake[2])[-SHOWN_MISTAKES:]
        texts = [f"{_short(class_names[label])} as {_short(class_names[other])}" for label, other, _ in worst]
        places = np.arange(len(worst))
        axes.barh(places, [percent for *_, percent in worst], color=OURS_COLOR)
        axes.set_yticks(places, texts)
        axes.set_xlabel(f"most frequent mistakes ({said})", loc="right")

    if len(class_names) > READABLE_CLASSES:
        return _figure(draw_mistakes, (6.4, 1.2 + 0.25 * SHOWN_MISTAKES)) if mistakes else None
    side = 2.0 + 0.34 * len(class_names)
    return _figure(draw_matrix, (max(6.4, side + 1.0), side))


def _from_nothing_to(color: str) -> Any:
    """A colour map that begins transparent, so that it reads on white and on black."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    return LinearSegmentedColormap.from_list("gencond", [to_rgba(color, 0.0), to_rgba(color, 0.9)])


def _best_that_tells(rows: Sequence[Row]) -> tuple[Row, Answered] | None:
    """Of ours, that of the largest IPC for the first network and protocol, where it says how it answered."""
    by_ipc = _curves(rows).get(next(iter(kinds(rows))), ())
    return next(((row, row.answered) for row in reversed(by_ipc) if row.answered), None)


def _of(row: Row) -> str:
    return f"IPC {row.ipc}, {row.network}, {row.protocol}"


def _short(name: str) -> str:
    """A class's name that leaves room for the plot, with dollars that begin no formula."""
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return short.replace("$", r"\$")
