"""Write the tables, commands and plots of the pages from the measurements in results/*.json.

    python scripts/results.py           # rewrite what stands between the markers
    python scripts/results.py --check   # write nothing; one line and status 2 where a page is not current
    python scripts/results.py --plots   # redraw docs/images too

A page holds `<!-- results: NAME -->` before the table of results/NAME.json and `<!-- /results -->` after it;
`<!-- results: NAME command -->` stands before the commands that measured it. results/README.md explains the files.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gencond.cli import run_cleanly
from gencond.common.errors import InputError
from gencond.common.files import write_text, written_whole
from gencond.eval import results as measured
from gencond.eval.baselines import CODEC_REAL
from gencond.eval.plots import plot_accuracy, plot_any_number
from gencond.eval.published import PUBLISHED
from gencond.eval.records import Scores
from gencond.eval.wording import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/results.md")
BLOCK = re.compile(r"(<!-- results: (\S+)( command)? -->\n)(.*?)(<!-- /results -->)", re.DOTALL)
Name = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """A part of a file, in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Score(Part):
    """Top-1 per cent: the mean of `n` values and their standard deviation, which a single value has not."""

    mean: float = Field(ge=0, le=100)
    std: float | None = Field(default=None, ge=0)
    n: int | None = Field(ge=1)  # None: published without it


class Machine(Part):
    """What is known of the machine; null is unknown."""

    cpu: str | None
    cores: int | None
    threads: int | None
    versions: dict[str, str]
    load: str | None


class Recorded(Part):
    """The commit that first printed these figures, and its day."""

    commit: str
    date: str


class Run(Part):
    """How the rows that name this run were measured; null is unknown."""

    command: list[str] | None  # lines
    commit: str | None  # of the code
    date: str | None
    recorded: Recorded | None
    machine: Machine
    condensing_runs: int | None
    seeds: int | None


class Published(Part):
    """Where a figure of others was read."""

    paper: Name
    arxiv: str | None
    read_from: Name


class Column(Part):
    """A column: its title, the unit of its plain numbers, and whether its best value is printed bold."""

    key: Name
    title: Name
    unit: Literal["bits", "kB"] | None = None
    digits: int | None = None  # of plain numbers; None prints them as they stand in the file
    best: Literal["max", "min"] | None = None
    ipc: int | None = None  # what a plot calls it


class Row(Part):
    """A line of the table: what it is called, how it was measured or where it was read, and its values."""

    name: str  # in Markdown
    run: str | None = None  # a key of `runs`, where it was measured here
    published: Published | None = None
    images: str | None = None  # a kind of images, which gives a plot its colour
    group: str | None = None  # where rows have groups, the best is the best of its group
    marked: list[str] = []  # columns that are printed bold besides
    values: dict[str, Score | float | list[float] | str]

    @model_validator(mode="after")
    def _has_one_origin(self) -> "Row":
        if (self.run is None) == (self.published is None):
            raise ValueError(f"row {self.name!r} needs either `run` or `published`")
        return self


class Plot(Part):
    """A picture of the rows that have `images`."""

    file: Name
    kind: Literal["accuracy", "storage"]
    published: str | None = None  # whose published curves stand behind it
    lines: dict[str, str] = {}  # of a picture of storage: kind of images -> what the legend calls it, ours first


class Table(Part):
    """The content of one file."""

    title: Name
    question: Name
    data: str
    network: str | None
    protocols: list[str]
    judged_on: str | None
    deviation: str | None  # what a standard deviation is over
    first_column: str
    columns: list[Column] = Field(min_length=1)
    runs: dict[str, Run]
    rows: list[Row] = Field(min_length=1)
    plot: Plot | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "Table":
        keys = {column.key for column in self.columns}
        for row in self.rows:
            if row.run is not None and row.run not in self.runs:
                raise ValueError(f"row {row.name!r} names the run {row.run!r}, which is not in `runs`")
            if unknown := sorted({*row.values, *row.marked} - keys):
                raise ValueError(f"row {row.name!r} has values of unknown columns: {', '.join(unknown)}")
        drawn = {row.images for row in self.rows}
        if self.plot and (missing := sorted(set(self.plot.lines) - drawn)):
            raise ValueError(f"the plot has a line for {missing[0]!r}, which no row has as `images`")
        if unused := sorted(set(self.runs) - {row.run for row in self.rows}):
            raise ValueError(f"no row names the run {unused[0]!r}")
        return self


def read_table(name: str, root: Path) -> Table:
    """results/NAME.json, checked. Raises InputError."""
    file = root / "results" / f"{name}.json"
    if not file.is_file():
        raise InputError(f"there is no {file}: a marker names it")
    try:
        return Table.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: {where + ': ' if where else ''}{first['msg']}") from None


def bits(count: float) -> str:
    """Three digits, in the unit that people would say."""
    number, unit = (count / 1e6, "Mbit") if count >= 1e6 else (count / 1e3, "kbit")
    return f"{number:,.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"


def cell(value: Score | float | list[float] | str, column: Column) -> str:
    """A value as the page prints it."""
    if isinstance(value, Score):
        return f"{value.mean:.1f}" + ("" if value.std is None else f" ± {value.std:.1f}")
    if isinstance(value, str):
        return value
    if column.unit == "bits":
        return bits(value)
    numbers = [value] if isinstance(value, int | float) else value
    text = " / ".join(_plain(number, column.digits) for number in numbers)
    return f"{text} kB" if column.unit == "kB" else text


def _plain(number: float, digits: int | None) -> str:
    if digits is not None:
        return f"{number:.{digits}f}"
    return str(int(number)) if number == int(number) else f"{number:.15g}"


def best_cells(table: Table) -> set[tuple[int, str]]:
    """(row, column key) of what is printed bold: the measured best of a column or of a group, ties alike."""
    grouped = any(row.group is not None for row in table.rows)
    found = {(number, key) for number, row in enumerate(table.rows) for key in row.marked}
    for column in table.columns:
        groups: dict[str | None, dict[int, float]] = {}
        for number, row in enumerate(table.rows):
            value = row.values.get(column.key)
            value = value.mean if isinstance(value, Score) else value
            if column.best and isinstance(value, int | float) and not row.published and (row.group or not grouped):
                groups.setdefault(row.group, {})[number] = value
        for values in groups.values():
            best = max(values.values()) if column.best == "max" else min(values.values())
            found |= {(number, column.key) for number, value in values.items() if value == best}
    return found


def table_text(table: Table) -> str:
    """The table in Markdown: the best is bold, and what others published is in italics."""
    bold, lines = best_cells(table), []
    for number, row in enumerate(table.rows):
        line = [row.name]
        for column in table.columns:
            text = cell(row.values[column.key], column) if column.key in row.values else ""
            mark = "**" if (number, column.key) in bold else "*" if row.published and text else ""
            line.append(f"{mark}{text}{mark}")
        lines.append(line)
    rows = markdown_table([table.first_column, *(column.title for column in table.columns)], lines).splitlines()
    return "".join(re.sub(r" {2,}\|", " |", line) + "\n" for line in rows).replace("|  |", "| |")


def command_text(table: Table) -> str:
    """The commands of all runs, as a block of code. Raises InputError where none is known."""
    lines = [line for run in table.runs.values() for line in run.command or []]
    if not lines:
        raise InputError(f"no run of {table.title!r} has a command: remove the marker that asks for it")
    return "\n".join(["```", *lines, "```", ""])


def page_text(text: str, root: Path) -> str:
    """A page with every block between markers written anew. Raises InputError for a marker that means nothing."""
    if text.count("<!-- results: ") != text.count("<!-- /results -->"):
        raise InputError("every <!-- results: NAME --> needs its <!-- /results -->")

    def written(match: re.Match) -> str:
        begin, name, command, _, end = match.groups()
        table = read_table(name, root)
        return begin + (command_text(table) if command else table_text(table)) + end

    return BLOCK.sub(written, text)


def outdated(root: Path) -> Iterator[tuple[Path, str]]:
    """(page, its text as it should be) of every page that is not current. Raises InputError."""
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        try:
            new = page_text(text, root)
        except InputError as error:
            raise InputError(f"{page}: {error}") from None
        if new != text:
            yield root / page, new


def drawn_rows(table: Table) -> list[measured.Row]:
    """Rows as `eval.plots` takes them: one for each score of a row that has `images`."""
    rows: list[measured.Row] = []
    ipcs = [column.ipc for column in table.columns if column.ipc]
    for row in table.rows:
        bits = row.values.get("bits")
        for column in table.columns:
            score = row.values.get(column.key)
            if row.images is None or not isinstance(score, Score):
                continue
            everywhere = row.images == CODEC_REAL and column.ipc is None and ipcs  # one set, beside every IPC
            for ipc in ipcs if everywhere else [column.ipc]:
                rows.append(
                    measured.Row(
                        images=row.images,
                        mode="fixed",
                        ipc=ipc,
                        network=table.network,
                        protocol=table.protocols[0],
                        num_seeds=score.n or 1,
                        num_bytes=0,  # no picture asks for them
                        top1=Scores((), score.mean / 100, (score.std or 0) / 100),
                        bits_per_class=float(bits) if isinstance(bits, int | float) else 0.0,
                    )
                )
    return rows


def draw(table: Table, root: Path) -> Path:
    """Draws the picture of a table into docs/images and returns its path."""
    assert table.plot is not None
    rows = drawn_rows(table)
    if table.plot.kind == "accuracy":
        png, _ = plot_accuracy(rows)
    else:
        published = PUBLISHED[table.plot.published][0] if table.plot.published else {}
        png, _ = plot_any_number(rows, table.plot.lines, published)
    with written_whole(root / "docs" / "images" / table.plot.file) as temporary:
        temporary.write_bytes(png)
    return root / "docs" / "images" / table.plot.file


def table_names(root: Path) -> list[str]:
    """The names of all files in results/."""
    return sorted(file.stem for file in (root / "results").glob("*.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--check", action="store_true", help="write nothing, fail where a page is not current")
    chosen.add_argument("--plots", action="store_true", help="redraw the plots too")
    args = parser.parse_args()
    tables = [read_table(name, ROOT) for name in table_names(ROOT)]
    pages = list(outdated(ROOT))
    if args.check and pages:
        names = " and ".join(str(page.relative_to(ROOT)) for page, _ in pages)
        raise InputError(f"{names}: not what results/*.json says; run python scripts/results.py")
    for page, text in pages:
        write_text(page, text)
        print(f"{page.relative_to(ROOT)} is written")
    if args.plots:
        for table in tables:
            if table.plot:
                print(f"{draw(table, ROOT).relative_to(ROOT)} is drawn")


if __name__ == "__main__":
    run_cleanly(main)
