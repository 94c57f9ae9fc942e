"""The scripts run from the command line, at a size of seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

SCRIPTS = Path(__file__).parent.parent / "scripts"
SMALL = ["features.width=4", "features.train_images=16", "real.batch_size=4", "condense.num_steps=4"]


def run(name: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPTS / f"{name}.py"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_comparing_recipes_keeps_what_was_measured(tmp_path: Path) -> None:
    arguments = (
        "dm:digits", "random_real", "--data", "digits", "--out", str(tmp_path), "--ipc", "1", "2", "--seeds", "2",
        "--protocols", "dm:3", "idc:2", "--network", "convnet2w8", "--set", *SMALL,
    )  # fmt: skip
    table = run("compare", *arguments)
    assert "| trained on | dm:3, IPC 1 | dm:3, IPC 2 | idc:2, IPC 1 | idc:2, IPC 2 |" in table
    assert table.count("±") == 9 and table.count("seed ") == 16  # the header says it too
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").iterdir()}
    assert len(kept) == 16 and run("compare", *arguments).splitlines()[-6:] == table.splitlines()[-6:]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").iterdir()} == kept
    assert (tmp_path / "first_images.png").is_file()


@pytest.mark.slow
def test_a_race_is_written_as_json_and_drawn(tmp_path: Path) -> None:
    table = run(
        "bench_accuracy", "dm:digits", "fast=cached:digits features.num_trajectories=1", "--data", "digits", "--out",
        str(tmp_path), "--ipc", "1", "--at", "0", "2", "4", "--protocol", "dm:3", "--network", "convnet2w8", "--set",
        *SMALL,
    )  # fmt: skip
    assert "the best of dm:digits" in table
    points = json.loads((tmp_path / "bench_accuracy.json").read_text())["points"]
    assert [(point["line"], point["steps"]) for point in points] == [
        ("dm:digits", 0), ("dm:digits", 2), ("dm:digits", 4), ("fast", 0), ("fast", 2), ("fast", 4),
    ]  # fmt: skip
    assert all(a["seconds"] < b["seconds"] for a, b in zip(points[:2], points[1:3], strict=True))
    assert (tmp_path / "bench_accuracy.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_step_bench_ends_with_one_line_of_json() -> None:
    lines = run(
        "bench_step", "--json", "--width", "4", "--steps", "1", "--ipc", "1", "2", "--real", "20", "--set",
        "features.compile=false", "features.train_images=16", "real.batch_size=4",
    ).splitlines()  # fmt: skip
    seconds = json.loads(lines[-1])
    for name in ("dm", "m3d", "dream", "cached"):
        assert 0 < seconds[f"{name}_seconds_per_step"] < 60
    assert len(seconds["rows"]) == 8 and len(lines) == 10


@pytest.mark.slow
def test_an_ablation_prints_a_line_for_each_variant(tmp_path: Path) -> None:
    lines = run(
        "ablate", "base:", "mean: objective.mmd_weight=0", "--recipe", "demo", "--data", "digits", "--out",
        str(tmp_path), "--seeds", "1", "--set", *TINY,
    ).splitlines()  # fmt: skip
    assert [line.split()[0] for line in lines] == ["base", "mean"] and all("IPC fresh" in line for line in lines)


@pytest.mark.slow
def test_the_bench_of_seeds_prints_a_ratio_for_each_ipc() -> None:
    lines = run(
        "bench_seeds", "--network", "convnet2w8", "--side", "8", "--channels", "1", "--seeds", "2", "--steps", "1",
    ).splitlines()  # fmt: skip
    assert [line.split()[0] for line in lines] == ["IPC", "1", "10"] and all(line.endswith("x") for line in lines[1:])
    assert "side by side" in lines[1]


@pytest.mark.slow
def test_the_bench_of_the_pass_shows_that_memory_stays_flat_in_a_file() -> None:
    lines = run(
        "bench_statistics", "--images", "3000", "--times", "1", "4", "--side", "64", "--width", "4"
    ).splitlines()
    rows = [line.split() for line in lines[-4:]]
    assert [row[:2] for row in rows] == [["3000", "file"], ["3000", "memory"], ["12000", "file"], ["12000", "memory"]]
    peaks = {(int(row[0]), row[1]): int(row[-1]) for row in rows}
    assert peaks[12000, "file"] - peaks[3000, "file"] < 50  # MB, of a process of 400; there are 110 MB more of pixels
