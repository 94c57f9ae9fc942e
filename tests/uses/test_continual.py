"""Continual learning: memories side by side, filled a few classes at a time."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

import gencond
from gencond.cli import main
from gencond.common.errors import InputError, require_count
from gencond.data.images import LabeledImages
from gencond.eval.records import Scores
from gencond.uses.continual import AfterStep, Continual
from gencond.uses.continual_report import memory_table, write_continual_report
from gencond.uses.memories import in_their_order, of_classes

ROOT = Path(__file__).parents[2]
ROWS = ["random_real", "kmeans_real", "herding_real", "gencond", "gencond_grown", "codec_real", "whole_set"]
SMALL = {
    "recipe": "demo", "overrides": [*TINY, "data.test_fraction=0.3"], "steps": 2, "ipc": 2, "orders": 2,
    "protocol": "dm:2",
}  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Continual]:
    """(folder, what it returned) of one comparison of all kinds of rows on digits."""
    out = tmp_path_factory.mktemp("continual") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENCOND_CACHE", str(out.with_name("cache")))
        patch.setattr("gencond.eval.baselines.QUALITIES", (40,))
        return out, gencond.continual("digits", out, rows=ROWS, **SMALL)


def test_each_row_has_a_score_after_each_step_and_its_images_and_bytes(compared: tuple[Path, Continual]) -> None:
    out, found = compared
    for row in ROWS:
        for step, seen in ((0, 5), (1, 10)):
            scores = found.of(row, step)
            assert [one.order for one in scores] == [0, 1] and {one.classes_seen for one in scores} == {seen}
            assert all(0 <= one.top1.mean <= 1 for one in scores)
    by_number = {row: found.of(row, 1)[0] for row in ROWS}
    for row in ("random_real", "kmeans_real", "herding_real", "gencond", "gencond_grown"):
        assert by_number[row].num_images == 2 * 10
    assert by_number["random_real"].num_bytes == 2 * 10 * 64  # 8 x 8 grey pixels
    # Two generators of five classes each, and one that has grown to ten.
    assert by_number["gencond_grown"].num_bytes < by_number["gencond"].num_bytes
    assert 0 < by_number["codec_real"].num_bytes <= by_number["gencond"].num_bytes
    assert by_number["whole_set"].num_images > 900


def test_classes_come_in_the_orders_of_the_released_code(compared: tuple[Path, Continual]) -> None:
    """Numpy's permutation of ten under the seeds 0 and 1, as numbers that were taken down."""
    _, found = compared
    assert [int(name) for name in found.class_orders[0]] == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert [int(name) for name in found.class_orders[1]] == [2, 9, 6, 4, 0, 3, 1, 7, 8, 5]


def test_the_grown_generator_keeps_the_images_of_the_first_step(compared: tuple[Path, Continual]) -> None:
    out, found = compared
    first, last = (gencond.load(out / "order_0" / f"step_{step}" / "gencond_grown") for step in (0, 1))
    names = sorted(found.class_orders[0][:5])
    assert first.class_names == names and last.class_names[:5] == names
    assert torch.equal(last.sample(6, classes=names)[0], first.sample(6, classes=names)[0])


def test_what_was_measured_is_not_measured_again_and_a_new_row_is_added_alone(
    compared: tuple[Path, Continual], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out, found = compared
    trained = []

    def counted(images: list[LabeledImages], *_: object, **options: object) -> list[float]:
        trained.append(options["seeds"])
        return [0.5]

    monkeypatch.setattr("gencond.uses.continual.train_and_test", counted)
    again = gencond.continual("digits", out, rows=["gencond_grown", "random_real"], **SMALL)
    assert not trained and again.of("random_real", 1) == found.of("random_real", 1)
    shown = capsys.readouterr().out
    assert "gencond, one generator that grows" in shown and "kbit a class" in shown
    gencond.continual("digits", out, rows=["random_real"], **{**SMALL, "orders": 3})
    assert trained == [[2], [2]]  # two steps of the third order


def test_table_page_and_plot_are_written(compared: tuple[Path, Continual]) -> None:
    out, found = compared
    write_continual_report(out, found)
    header, lines = memory_table(found)
    assert header == ["memory", "5 classes", "10 classes", "images a class", "kbit a class"] and len(lines) == 7
    page, text = (out / "continual.html").read_text(), (out / "continual.md").read_text()
    for word in ("herding real", "one generator that grows", "Order 1", "gencond continual --data digits"):
        assert word in page and word in text
    assert (out / "continual.png").read_bytes()[:4] == b"\x89PNG" and "<svg" in page


def test_means_are_over_orders_and_deviations_those_of_a_sample(compared: tuple[Path, Continual]) -> None:
    _, found = compared
    scores = [
        AfterStep("random_real", order, 0, 5, 1, 1, Scores.of([top1, top1])) for order, top1 in ((0, 0.2), (1, 0.4))
    ]
    accuracy = replace(found, scores=tuple(scores)).accuracy("random_real", 0)
    assert accuracy.mean == pytest.approx(0.3) and accuracy.std == pytest.approx(0.1 * 2**0.5)


def test_steps_are_as_even_as_they_can_be() -> None:
    assert in_their_order([4, 2, 0, 3, 1], 2) == [[0, 2, 4], [1, 3]]
    with pytest.raises(InputError, match="--steps 6 of 5 classes"):
        in_their_order(range(5), 6)


def test_the_images_of_some_classes_are_numbered_among_these(few_digits: LabeledImages) -> None:
    part = of_classes(few_digits, [3, 7])
    assert part.class_names == ("3", "7") and part.counts.tolist() == [12, 12]
    expected = few_digits.images[torch.isin(few_digits.labels, torch.tensor([3, 7]))]
    assert torch.equal(part.images, expected)
    back = part.among(few_digits.class_names)
    assert set(back.labels.tolist()) == {3, 7} and np.array_equal(part.images, back.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 11}, "--steps 11 of 10 classes"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"ipc": 900}, "--ipc 900 is more than class '8' has"),
        ({"rows": []}, "--rows is empty"),
        ({"rows": ["gencond", "gencond"]}, "names a row twice"),
        ({"rows": ["codec_real"]}, "gets the bytes of a condensed row"),
        ({"rows": ["codec_real", "gencond_grown"]}, "add the row gencond"),
        ({"rows": ["gencond"], "steps": 7}, "gencond: one class cannot be condensed alone, lower --steps 7"),
        ({"rows": ["gencond_grown"], "steps": 10}, "gencond_grown: one class cannot be condensed alone"),
        (
            {"rows": ["gencond_grown"], "recipe": "dm:digits", "overrides": ()},
            "nothing can be appended to what recipe dm",
        ),
        ({"rows": ["nothing"]}, "no recipe .nothing."),
        ({"protocol": "soft"}, "teacher"),
        ({"minutes": 3}, "leave the recipe out"),
        ({"network": "convnet9w8"}, "network convnet9w8"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        gencond.continual("digits", tmp_path / "out", **{**SMALL, "rows": ["random_real"], **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["2", 1.5, float("nan"), True, None])
def test_what_is_no_whole_number_is_refused(given: object) -> None:
    with pytest.raises(InputError, match="steps is .*: expected a whole number"):
        require_count(given, "steps")
    assert require_count(np.int64(3), "steps") == 3


def test_changes_to_the_recipe_may_stand_behind_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["continual", "--data", "digits", "--out", str(tmp_path / "out"), "--recipe", "demo", "--steps", "2"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--rows", "random_real", "gencond_grown", "seed=-1"])
    assert ended.value.code == 2 and "seed = -1" in capsys.readouterr().err


def test_another_comparison_in_the_folder_is_refused(compared: tuple[Path, Continual], tmp_path: Path) -> None:
    out, _ = compared
    with pytest.raises(InputError, match="holds a comparison with other steps"):
        gencond.continual("digits", out, rows=ROWS, **{**SMALL, "steps": 5})
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no comparison"):
        gencond.continual("digits", tmp_path, rows=["random_real"], **SMALL)
    with pytest.raises(SystemExit) as ended:
        main(["continual", "--data", "digits", "--out", str(tmp_path / "x"), "--recipe", "demo", "--steps", "11"])
    assert ended.value.code == 2 and not (tmp_path / "x" / "order_0").exists()


@pytest.mark.slow
def test_the_example_runs_and_prints_a_line_for_each_memory(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "continual.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-2:]
    assert [line.split(":")[0] for line in last] == ["random_real", "gencond_grown"]
    assert (tmp_path / "out" / "continual.html").is_file()
