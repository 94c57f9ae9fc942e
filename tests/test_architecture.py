"""Imports run one way: a room imports only the rooms below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gencond"
ALLOWED = {
    "common": set(),
    "config": {"common"},
    "losses": {"common"},
    "generator": {"common"},
    "data": {"common", "config", "generator"},  # of the generator only how packed images are cut and exports named
    "networks": {"common", "data"},
    "condensing": {"common", "config", "losses", "generator", "data", "networks"},
    "eval": {"common", "config", "generator", "data", "networks"},
    "uses": {"common", "config", "generator", "data", "networks", "condensing", "eval"},
}
GLUE = {"api", "cli", "doctor", "examine", "plan", "publish", "__init__"}


def rooms() -> list[str]:
    return sorted(p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file())


def imported_rooms(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found |= {name.split(".")[1] for name in names if name.startswith("gencond.")}
    return found


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    if room in GLUE:
        return
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").is_file() else list((PACKAGE / room).rglob("*.py"))
    for file in files:
        assert imported_rooms(file) <= ALLOWED[room] | {room}, file


def test_what_scores_knows_of_the_generator_only_how_packed_images_are_cut() -> None:
    """Random real images, ours and anybody's go through the same door: `subject` alone tells them apart."""
    for file in {*(PACKAGE / "eval").rglob("*.py")} - {
        PACKAGE / "eval" / name for name in ("subject.py", "judge.py", "outside/lrs.py")
    }:
        imported = [node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        of_generator = {name for name in imported if name and name.startswith("gencond.generator")}
        assert of_generator <= {"gencond.generator.packing"}, file


WITH_A_RECIPE = {"build.py", "checks.py", "forecast.py", "run.py", "run_folder.py"}


def test_below_the_building_of_parts_no_signature_takes_a_recipe() -> None:
    rooms_below = ("common", "data", "losses", "generator", "networks")
    files = [file for room in rooms_below for file in (PACKAGE / room).rglob("*.py")]
    files += [file for file in (PACKAGE / "condensing").glob("*.py") if file.name not in WITH_A_RECIPE]
    for file in files:
        names = {
            node.id if isinstance(node, ast.Name) else node.name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Name | ast.alias)
        }
        assert "Recipe" not in names, file


def test_what_runs_in_another_judges_environment_needs_nothing_of_ours() -> None:
    assert "gencond" not in {
        name.split(".")[0]
        for node in ast.walk(ast.parse((PACKAGE / "eval" / "outside" / "runner.py").read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
