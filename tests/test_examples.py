"""What users copy: every example runs, and says what its first lines promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_distributed import accelerate_launch

EXAMPLES = Path(__file__).parent.parent / "examples"
ELSEWHERE = {"continual.py", "search.py"}  # run beside the tests of what they show


def run(name: str, *arguments: str, launcher: tuple[str, ...] = ()) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / name), *arguments], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_short_and_is_run() -> None:
    source = Path(__file__).read_text()
    for file in EXAMPLES.glob("*.py"):
        assert len(file.read_text().splitlines()) < 60, file
        assert file.name in ELSEWHERE or f'"{file.name}"' in source, f"{file} is run by no test"


@pytest.mark.slow
def test_a_folder_becomes_a_generator_its_samples_and_a_report(tmp_path: Path) -> None:
    printed = run("own_folder.py", "", str(tmp_path / "out"))
    assert re.search(r"^gencond: [\d.]+ % of the test images right$", printed, re.MULTILINE)
    assert (tmp_path / "out" / "run" / "report.html").is_file()
    assert len(list((tmp_path / "out" / "samples").rglob("*.png"))) >= 100


def test_a_timm_classifier_learns_from_a_stream() -> None:
    printed = run("timm_on_a_stream.py", "30")
    assert "step 30: loss" in printed and re.search(r"[\d.]+ % of 599 real test images right", printed)


def test_a_network_of_ones_own_is_an_extractor(tmp_path: Path) -> None:
    printed = run("own_extractor.py", str(tmp_path / "out"))
    assert re.search(r"^dm:digits: [\d.]+ %", printed, re.MULTILINE) and "random_real" in printed


def test_a_term_of_ones_own_stands_beside_the_others(tmp_path: Path) -> None:
    printed = run("own_loss.py", str(tmp_path / "out"))
    assert re.search(r"^means: [\d.]+ %", printed, re.MULTILINE)
    assert re.search(r"^means_and_spreads: [\d.]+ %", printed, re.MULTILINE)
    assert '"own": ' in (tmp_path / "out" / "means_and_spreads" / "log.jsonl").read_text()


def test_datasets_reads_what_is_exported_and_what_it_saves_is_condensed(tmp_path: Path) -> None:
    printed = run("with_datasets.py", str(tmp_path / "out"))
    assert "200 rows, the first is of class 0" in printed and "10 classes, condensed to one image each" in printed


def test_a_training_script_draws_from_torch_hub_on_two_processes() -> None:
    printed = run("hub_in_training.py", "10", launcher=("-m", *accelerate_launch()))
    assert "on process 0 of 2" in printed and "% of 50 samples that it never saw right" in printed
