"""report.md and report.html from the rows of report.json: tables, pictures and plots of one run.

The HTML is one file that opens from disk without a network; it follows the reader's light or dark setting.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gencond.common.files import write_text, written_whole
from gencond.eval.drawing import NEAREST_PICTURE, PAIRS_PICTURE, REAL_PICTURE, SYN_PICTURE
from gencond.eval.plots import plot_accuracy, plot_classes, plot_confusion, plot_losses, plot_scores, plot_storage
from gencond.eval.published import published_curves
from gencond.eval.results import Evaluation
from gencond.eval.wording import (
    about_answers,
    about_likeness,
    about_outside,
    facts,
    heading,
    markdown_results,
    markdown_table,
    outside_table,
    quality_table,
    table,
    verdicts,
)


def write_reports(out: Path, content: Evaluation, log: Sequence[Mapping[str, Any]]) -> None:
    """Writes `out/report.md` and `out/report.html`.

    Args:
        content: all that was measured.
        log: entries of log.jsonl, for the curves of losses and quick scores, and the cost.
    """
    rows, names = content.rows, content.class_names
    plots = {"losses": plot_losses(log), "scores": plot_scores(log)}
    if rows:
        of_rows = {"accuracy": plot_accuracy(rows), "storage": plot_storage(rows, published_curves(list(names)))}
        plots = {**of_rows, **plots, "classes": plot_classes(rows, names), "confusion": plot_confusion(rows, names)}
    for name, plot in plots.items():
        if plot is not None:
            with written_whole(out / "samples" / f"{name}.png") as temporary:
                temporary.write_bytes(plot[0])
    write_text(out / "report.md", _markdown(out, content, log, plots))
    write_text(out / "report.html", _html(out, content, log, plots))


def html_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself where the page is narrow."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


OUTSIDE = "What an outside judge says"
CAPTIONS = {
    PAIRS_PICTURE: "One class a column: real images above, condensed ones below.",
    REAL_PICTURE: "Real training images, one class a row.",
    SYN_PICTURE: "Condensed: the first samples of the same classes.",
    NEAREST_PICTURE: "The samples that lie nearest to a training image, and below them that image.",
}


def _sentences(content: Evaluation) -> list[str]:
    """What the table says, and what it does not."""
    return [*verdicts(content.rows), *content.notes, *about_answers(content.rows, content.class_names)]


def _markdown(
    out: Path,
    content: Evaluation,
    log: Sequence[Mapping[str, Any]],
    plots: Mapping[str, tuple[bytes, str] | None],
) -> str:
    parts = [f"# {content.title}", ""]
    if (out / "samples" / PAIRS_PICTURE).is_file():
        parts += [f"![{CAPTIONS[PAIRS_PICTURE]}](samples/{PAIRS_PICTURE})", "", CAPTIONS[PAIRS_PICTURE], ""]
    if results := markdown_results(content.rows):
        parts += [results, ""]
    parts += [f"- {sentence}" for sentence in _sentences(content)]
    parts += ["", *(f"![{name}](samples/{name}.png)" for name, plot in plots.items() if plot), ""]
    for picture in (REAL_PICTURE, SYN_PICTURE):
        if (out / "samples" / picture).is_file():
            parts += [CAPTIONS[picture], "", f"![{CAPTIONS[picture]}](samples/{picture})", ""]
    if entries := content.outside:
        parts += [f"## {OUTSIDE}", "", markdown_table(*outside_table(entries)), ""]
        parts += [*(f"- {sentence}" for sentence in about_outside(entries)), ""]
    if sentences := about_likeness(content):
        parts += ["## Likeness", ""]
        parts += [markdown_table(*quality_table(content.quality)), ""] if content.quality else []
        parts += [*(f"- {sentence}" for sentence in sentences), ""]
        parts += [f"![{CAPTIONS[NEAREST_PICTURE]}](samples/{NEAREST_PICTURE})", "", CAPTIONS[NEAREST_PICTURE], ""]
    return "\n".join([*parts, *markdown_facts(facts(content, log))])


def markdown_facts(sections: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """Lines of sections of names with their values."""
    lines = []
    for section, named in sections.items():
        lines += [f"## {section}", "", *(f"- {name}: {value}" for name, value in named), ""]
    return lines


STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; }
tbody tr:first-child td { font-weight: 600; }
img { max-width: 100%; height: auto; image-rendering: pixelated; }
svg { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } figcaption { opacity: .75; font-size: .9rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .2rem 1rem; margin: 0; }
dt { opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
code { background: var(--soft); padding: .1rem .3rem; border-radius: .2rem; }
"""


def _html(
    out: Path,
    content: Evaluation,
    log: Sequence[Mapping[str, Any]],
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

    sentences = "".join(f"<li>{html.escape(text)}</li>" for text in _sentences(content))
    shown = ""
    if content.rows:
        shown = f"<p>{html.escape(heading(content.rows))}:</p>{html_table(*table(content.rows))}"
    outside = ""
    if entries := content.outside:
        said = "".join(f"<li>{html.escape(text)}</li>" for text in about_outside(entries))
        outside = f"<h2>{OUTSIDE}</h2>{html_table(*outside_table(entries))}<ul>{said}</ul>"
    likeness = ""
    if said := about_likeness(content):
        likeness = "<h2>Likeness</h2>" + (html_table(*quality_table(content.quality)) if content.quality else "")
        likeness += f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in said)}</ul>{picture(NEAREST_PICTURE)}"
    drawn = "".join(f"<figure>{plot[1]}</figure>" for plot in plots.values() if plot)
    body = f"""{picture(PAIRS_PICTURE)}
{shown}
<ul>{sentences}</ul>
<div class="pair">{drawn}</div>
<div class="pair">{picture(REAL_PICTURE)}{picture(SYN_PICTURE)}</div>
{outside}
{likeness}
{html_facts(facts(content, log))}"""
    return html_page(content.title, body)


def html_facts(sections: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """Sections of names with their values."""
    return "".join(
        f"<h2>{html.escape(section)}</h2><dl>"
        + "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in named)
        + "</dl>"
        for section, named in sections.items()
    )


def html_page(title: str, body: str) -> str:
    """A whole page that needs nothing beside it, with its title above `body`, which is HTML."""
    title = html.escape(title)
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
{body}
</body>
</html>
"""
