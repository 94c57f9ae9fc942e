"""The pages print what results/*.json says, and the files say where each figure comes from."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gencond.common.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("results")


@pytest.fixture
def copy(tmp_path: Path, results: ModuleType) -> Path:
    """A root with the pages and the files of this one."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    for page in results.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    return tmp_path


def change(root: Path, name: str, edit: Any) -> None:
    """Applies `edit` to the content of results/NAME.json."""
    file = root / "results" / f"{name}.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_the_pages_are_current(results: ModuleType) -> None:
    assert [page for page, _ in results.outdated(ROOT)] == [], "run python scripts/results.py"


def test_every_file_is_valid_and_printed(results: ModuleType) -> None:
    text = "".join((ROOT / page).read_text() for page in results.PAGES)
    names = results.table_names(ROOT)
    for name in names:
        results.read_table(name, ROOT)
        assert f"<!-- results: {name} -->" in text, name
    assert len(names) > 20 and "<!-- results: digits -->" in (ROOT / "README.md").read_text()


def test_every_measured_row_says_when_it_was_recorded_and_the_whole_schema_is_explained(results: ModuleType) -> None:
    explained = (ROOT / "results" / "README.md").read_text()
    for part in (results.Table, results.Row, results.Run, results.Column, results.Plot, results.Published):
        assert all(f"`{key}`" in explained for key in part.model_fields), part
    for name in results.table_names(ROOT):
        for run in results.read_table(name, ROOT).runs.values():
            assert run.recorded or run.date, name


def test_check_fails_in_one_line_and_a_run_mends_it(
    results: ModuleType, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "ROOT", copy)
    monkeypatch.setattr(sys, "argv", ["results.py", "--check"])
    results.main()
    change(copy, "digits", lambda content: content["rows"][0]["values"]["ipc_1"].update(mean=12.3, std=0.2))
    with pytest.raises(InputError, match=r"^README.md and docs/results.md: not what results/\*.json says; run .*$"):
        results.main()
    assert "12.3" not in (copy / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["results.py"])
    results.main()
    assert all("| 12.3 ± 0.2 |" in (copy / page).read_text() for page in results.PAGES)
    monkeypatch.setattr(sys, "argv", ["results.py", "--check"])
    results.main()


def test_a_wrong_file_or_marker_is_named_in_one_line(results: ModuleType, copy: Path) -> None:
    wrong = {
        "nobody": lambda content: content["rows"][0].update(run="nobody"),
        "unknown columns: ipc_7": lambda content: content["rows"][0]["values"].update(ipc_7=1.0),
        "either `run` or `published`": lambda content: content["rows"][0].pop("run"),
        "runs.main.day": lambda content: content["runs"]["main"].update(day="today"),
        "no row names the run 'other'": lambda content: content["runs"].update(other=content["runs"]["main"]),
        "mean": lambda content: content["rows"][0]["values"]["ipc_1"].update(mean=101),
        "judged_on": lambda content: content.pop("judged_on"),
        "which no row has": lambda content: content["plot"].update(lines={"dogs": "dogs"}),
    }
    for message, edit in wrong.items():
        shutil.copy(ROOT / "results" / "digits.json", copy / "results")
        change(copy, "digits", edit)
        with pytest.raises(InputError) as caught:
            results.read_table("digits", copy)
        assert message in str(caught.value) and "digits.json" in str(caught.value) and "\n" not in str(caught.value)
    for marker, message in (("no-such", "no-such.json"), ("step_cost -->\n<!-- results: digits", "needs its")):
        with pytest.raises(InputError, match=message):
            results.page_text(f"<!-- results: {marker} -->\n<!-- /results -->", ROOT)
    with pytest.raises(InputError, match="no run of .* has a command"):
        results.page_text("<!-- results: fashion_mnist_seconds command -->\n<!-- /results -->", ROOT)


def table(results: ModuleType, rows: list[dict], **column: Any) -> str:
    """The text of a table of one column `top1`."""
    run = {
        "command": None, "commit": None, "date": "2026-01-01", "recorded": None, "condensing_runs": None, "seeds": None,
        "machine": {"cpu": None, "cores": None, "threads": None, "versions": {}, "load": None},
    }  # fmt: skip
    content = {
        "title": "t", "question": "q", "data": "d", "network": None, "protocols": [], "judged_on": None,
        "deviation": None, "first_column": "", "columns": [{"key": "top1", "title": "top-1", **column}],
        "runs": {"main": run}, "rows": [{"run": "main", **row} for row in rows],
    }  # fmt: skip
    return results.table_text(results.Table.model_validate(content))


def test_the_best_is_bold_and_published_figures_are_in_italics(results: ModuleType) -> None:
    def score(mean: float, **more: Any) -> dict:
        return {"name": "x", "values": {"top1": {"mean": mean, "n": 1}}, **more}

    published = {"run": None, "published": {"paper": "p", "arxiv": None, "read_from": "a table"}}
    text = table(results, [score(50), score(60), score(60), score(90, **published)], best="max")
    assert text == "| | top-1 |\n|---|---|\n| x | 50.0 |\n| x | **60.0** |\n| x | **60.0** |\n| x | *90.0* |\n"
    grouped = [score(50, group="a"), score(40, group="a"), score(30, group="b"), score(70)]
    assert table(results, grouped, best="max").count("**") == 4
    assert "**70.0**" not in table(results, grouped, best="max") and "**" not in table(results, grouped)
    assert "**40.0**" in table(results, [score(50), score(40, marked=["top1"])])
    assert "**40.0**" in table(results, [{"name": "x", "values": {"top1": 40.04}}, score(40)], best="min")


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        ({"mean": 8.25, "std": 0.0, "n": 3}, {}, "8.2 ± 0.0"),
        (107_000, {"unit": "bits"}, "107 kbit"),
        (4_940_000, {"unit": "bits"}, "4.94 Mbit"),
        ([0.6, 6.4, 32], {"unit": "kB"}, "0.6 / 6.4 / 32 kB"),
        (1, {"digits": 2}, "1.00"),
        (5000, {}, "5000"),
        (-0.0005, {}, "-0.0005"),
        ("as `dm`", {}, "as `dm`"),
    ],
)
def test_values_are_printed_in_their_units(results: ModuleType, value: Any, column: dict, text: str) -> None:
    assert f"| x | {text} |" in table(results, [{"name": "x", "values": {"top1": value}}], **column)


def test_plots_are_drawn_from_the_files(results: ModuleType, copy: Path) -> None:
    drawn = [
        results.draw(one, copy) for name in results.table_names(copy) if (one := results.read_table(name, copy)).plot
    ]
    assert {file.name for file in drawn} == {"digits_accuracy.png", "storage_cifar10.png"}
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in drawn)
    digits = results.drawn_rows(results.read_table("digits", copy))
    assert [row.ipc for row in digits if row.images == "codec_real"] == [1, 10, 50]
    assert [row.ipc for row in digits if row.images == "whole_set"] == [None]
