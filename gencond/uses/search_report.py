"""What a search found, for people: a table for the terminal, search.md, search.html and search.png."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gencond.common.progress import spoken_time
from gencond.eval.plots import COLORS, OURS_COLOR, drawn
from gencond.eval.report import html_facts, html_page, html_table, markdown_facts
from gencond.eval.wording import NAMES, markdown_table, percent, words_of
from gencond.uses.ranking import EARLY_STOPPING, NUM_PARAMETERS, Agreement, Ranking, Search
from gencond.uses.result_folder import to_reproduce, write_pages

PROXY_NAMES = {**NAMES, EARLY_STOPPING: "early stopping", NUM_PARAMETERS: "number of parameters"}
PROXY_COLORS = {**COLORS, EARLY_STOPPING: "#888888", NUM_PARAMETERS: "#888888"}
SEARCH = "search"
PICTURE = f"{SEARCH}.png"
COLUMNS = 3  # of panels
OF_UNION = "Networks that were trained on the whole set"


def write_search_report(out: Path, found: Search) -> None:
    """Writes `out/search.md`, `out/search.html` and `out/search.png`."""
    png, svg = plot_rankings(found)
    write_pages(out, SEARCH, png, _markdown(found), _html(found, svg))


def summary(found: Search) -> str:
    """The table, and what to know of it, for a terminal."""
    return "\n".join([markdown_table(*verdict_table(found)), "", *_sentences(found)])


def name_of(ranking: Ranking) -> str:
    """Of a proxy, for people."""
    name = PROXY_NAMES.get(ranking.images, ranking.images)
    return name if ranking.ipc is None else f"{name}, IPC {ranking.ipc}"


def verdict_table(found: Search) -> tuple[list[str], list[list[str]]]:
    """(header, lines): one line for each proxy."""
    header = [
        "ranked by", "picks", "on the whole set, %", "from the best", f"ρ / τ of all {len(found.whole)}",
        f"ρ / τ of its top {found.top}", "images stored", "images seen", "seconds", "cost",
    ]  # fmt: skip
    lines = []
    for ranking, verdict in zip(found.rankings, found.verdicts, strict=True):
        tied = f" (one of {verdict.num_first} that tie)" if verdict.num_first > 1 else ""
        lines.append([
            name_of(ranking), f"{verdict.picked}{tied}", percent(found.whole[verdict.picked]),
            f"{100 * verdict.distance:.1f}", _spoken(verdict.over_union), _spoken(verdict.over_top),
            f"{ranking.num_stored:,}", f"{ranking.num_seen:,}", f"{ranking.seconds:.1f}", _share(verdict.cost),
        ])  # fmt: skip
    return header, lines


def _spoken(agreement: Agreement) -> str:
    """Spearman's and Kendall's coefficient."""
    if agreement.spearman is None or agreement.kendall is None:
        return "- (all tie)"
    return f"{agreement.spearman:.2f} / {agreement.kendall:.2f}"


def _share(share: float) -> str:
    """In per cent, small ones too."""
    percents = 100 * share
    return f"{percents:.0f} %" if percents >= 10 else f"{percents:.2g} %"


def union_table(found: Search) -> tuple[list[str], list[list[str]]]:
    """(header, lines): each network that was trained on the whole set, the best first, with what every proxy says."""
    means = found.whole_means
    header = ["network", "parameters", "whole set, %", *(f"{name_of(one)}, %" for one in found.rankings[:-1])]
    lines = [
        [
            network, f"{found.networks[network]:,}", percent(found.whole[network]),
            *(f"{100 * one.means[network]:.1f}" for one in found.rankings[:-1]),
        ]
        for network in sorted(means, key=lambda network: -means[network])
    ]  # fmt: skip
    return header, lines


def _sentences(found: Search) -> list[str]:
    """What the tables mean, and what to know of them."""
    k, num_union = found.top, len(found.whole)
    seeds = "one seed" if found.num_seeds == 1 else f"means over {found.num_seeds} seeds"
    left_out = (
        [f"{len(found.left_out)} networks do not take the images and are left out."] if found.left_out else []
    )  # fmt: skip
    return [
        f"{len(found.networks)} networks are ranked by accuracy on {found.num_held_out:,} held-out training images, "
        f"{seeds}; the number of parameters needs no training. Of networks that tie, the first of the space is taken.",
        *left_out,
        f"The {num_union} networks among the top {k} of any ranking were trained on all {found.num_train_images:,} "
        f"training images and tested on {found.num_test_images:,} images of the {found.judged_on} set. The best of "
        f"them, by these test images, is {found.best} with {percent(found.whole[found.best])} %.",
        f"ρ is Spearman's rank correlation and τ Kendall's tau-b between the scores of a proxy and those of the whole "
        f"set: over all {num_union} networks that were trained on it, and over the proxy's own top {k}. Ties are "
        "allowed for; - means that all tie.",
        f"Seconds are of training and testing all {len(found.networks)} networks, without making or choosing the "
        f"images. Cost is their share of training all networks on the whole set, which {_whole_cost(found)}.",
        *found.notes,
    ]


def _whole_cost(found: Search) -> str:
    return (
        f"would take {spoken_time(found.whole_seconds_of_all)}, extrapolated from the {found.whole_seconds:.1f} s of "
        f"the {len(found.whole)} that were so trained"
    )


def _facts(found: Search) -> dict[str, list[tuple[str, str]]]:
    """What the numbers rest on: section -> (name, value)."""
    return {
        "How it was done": [
            (f"Proxies, protocol {found.protocol['name']}", words_of(found.protocol)),
            (f"Whole set, protocol {found.whole_protocol['name']}", words_of(found.whole_protocol)),
            ("Augmentation", found.augmentation),
            ("Seeds", f"{found.num_seeds}; random and k-means real images are drawn anew for each"),
            ("Selection", "none but by the rankings: the last iterate of every training"),
        ],
        "To reproduce": [*to_reproduce(found.command, found.commit, found.versions)],
    }


def _markdown(found: Search) -> str:
    parts = [f"# {found.title}", "", markdown_table(*verdict_table(found)), ""]
    parts += [*(f"- {sentence}" for sentence in _sentences(found)), "", f"![{_caption(found)}]({PICTURE})", ""]
    parts += [_caption(found), "", f"## {OF_UNION}", "", markdown_table(*union_table(found)), ""]
    return "\n".join([*parts, *markdown_facts(_facts(found))])


def _html(found: Search, svg: str) -> str:
    sentences = "".join(f"<li>{html.escape(text)}</li>" for text in _sentences(found))
    body = f"""{html_table(*verdict_table(found))}
<ul>{sentences}</ul>
<figure>{svg}<figcaption>{html.escape(_caption(found))}</figcaption></figure>
<h2>{OF_UNION}</h2>{html_table(*union_table(found))}
{html_facts(_facts(found))}"""
    return html_page(found.title, body)


def _caption(found: Search) -> str:
    return (
        "Each network that was trained on the whole set: what a proxy says of it, and what it reaches. Filled: the "
        f"proxy's own top {found.top}."
    )


def plot_rankings(found: Search) -> tuple[bytes, str]:
    """(PNG, SVG): a panel for each proxy, its accuracy against that of training on the whole set."""
    means, verdicts = found.whole_means, found.verdicts
    columns = min(COLUMNS, len(found.rankings))
    rows = -(-len(found.rankings) // columns)

    def draw(panels: np.ndarray) -> None:
        for number, axes in enumerate(panels.flat):
            if number >= len(found.rankings):
                axes.set_axis_off()
                continue
            ranking, rho = found.rankings[number], verdicts[number].over_union.spearman
            _draw_ranking(axes, ranking, means, ranking.top(found.top))
            axes.set_title(f"{name_of(ranking)}: " + ("all tie" if rho is None else f"ρ {rho:.2f}"), fontsize=9)
            if number % columns == 0:
                axes.set_ylabel("whole set, top-1 %")

    return drawn(draw, rows, columns, (3.2 * columns, 2.9 * rows))


def _draw_ranking(axes: Any, ranking: Ranking, whole: Mapping[str, float], top: tuple[str, ...]) -> None:
    own, color = ranking.means, PROXY_COLORS.get(ranking.images, OURS_COLOR)
    is_count = ranking.images == NUM_PARAMETERS
    for filled in (False, True):
        networks = [network for network in whole if (network in top) == filled]
        axes.scatter(
            [own[network] * (1e-3 if is_count else 100) for network in networks],
            [100 * whole[network] for network in networks],
            s=18, edgecolors=color, facecolors=color if filled else "none", linewidths=1,
        )  # fmt: skip
    if is_count:
        from matplotlib.ticker import LogLocator

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.set_xlabel("thousand parameters" if is_count else "held-out top-1 %")
