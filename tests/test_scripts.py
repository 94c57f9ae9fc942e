"""The scripts run from the command line, at a size of seconds."""

import importlib
import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_recipe
from PIL import Image

import gencond
from gencond.common.ranges import to_signed
from gencond.condensing.run import condense
from gencond.data.images import LabeledImages
from gencond.eval.protocols import PROTOCOLS, Protocol
from gencond.generator.pixels import CondensedPixels

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


def test_scores_of_another_evaluator_or_of_other_images_are_measured_again(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    compare = importlib.import_module("compare")
    asked: list[Protocol] = []
    condensed = [gencond.load(artefact)]
    monkeypatch.setattr(compare, "train_and_test", lambda *sets, protocol, **_: asked.append(protocol) or (0.5,))
    monkeypatch.setattr(compare, "condense", lambda *_: condensed[0])
    monkeypatch.setattr(compare, "draw_first_images", lambda *_: None)
    command = ["compare.py", "demo", "random_real", "--data", "digits", "--out", str(tmp_path), "--ipc", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--seeds", "1", "--protocols", "dm:3", "--network", "convnet2w8"])

    def measured() -> tuple[int, int]:
        """(trainings, lines that say why)."""
        asked.clear()
        compare.main()
        return len(asked), capsys.readouterr().out.count("measured again")

    assert measured() == (2, 0) and measured() == (0, 0)
    for file in (tmp_path / "scores").iterdir():  # as they were kept before a score said what it depends on
        content = json.loads(file.read_text())
        assert content["depends_on"]["protocol"]["epochs"] == 3
        file.write_text(json.dumps({"row": content["row"], "top1": 0.9}))
    assert measured() == (2, 2)
    monkeypatch.setattr(compare, "evaluator_of", lambda images: -1)
    assert measured() == (2, 2) and measured() == (0, 0)
    with torch.no_grad():
        condensed[0].codes.learned += 1
    assert measured() == (1, 1)
    monkeypatch.setitem(PROTOCOLS, "dm", replace(PROTOCOLS["dm"], weight_decay=0.0))
    assert measured() == (2, 2)


def test_points_of_another_evaluator_or_protocol_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS / "bench"))
    race = importlib.import_module("accuracy")
    raced: list[str] = []

    def measure(name: str, *case: object) -> list[dict]:
        raced.append(name)
        return [{"line": name, "key": race.depends_on(*case[:-1]), "steps": 0, "seconds": 1.0, "top1": [0.5]}]

    monkeypatch.setattr(race, "measure", measure)
    monkeypatch.setattr(race, "plot", lambda *_: None)
    command = ["accuracy.py", "dm:digits", "few=dm:digits condense.num_steps=3", "--data", "digits"]

    def measured(*others: str) -> tuple[list[str], int]:
        """(lines that were raced, lines that say why again)."""
        raced.clear()
        monkeypatch.setattr(
            sys, "argv", [*command, "--out", str(tmp_path), "--ipc", "1", "--protocol", "dm:3", *others]
        )
        race.main()
        return raced.copy(), capsys.readouterr().out.count("measured again")

    both = ["dm:digits", "few"]
    assert measured() == (both, 0) and measured() == ([], 0)
    assert measured("--network", "convnet2w8") == (both, 2)
    monkeypatch.setattr(race, "EVALUATOR", -1)
    assert measured("--network", "convnet2w8") == (both, 2)
    monkeypatch.setitem(PROTOCOLS, "dm", replace(PROTOCOLS["dm"], weight_decay=0.0))
    assert measured("--network", "convnet2w8") == (both, 2)


@pytest.mark.slow
def test_a_recipe_that_does_not_fit_ends_a_comparison_before_anything_is_measured(tmp_path: Path) -> None:
    arguments = ("random_real", "dm:digits", "--data", "digits", "--out", str(tmp_path), "--ipc", "1", "500")
    done = subprocess.run([sys.executable, str(SCRIPTS / "compare.py"), *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "pixels.ipc=500 starts from 500 real images a class" in done.stderr
    assert done.stdout == "" and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_race_is_written_as_json_and_drawn(tmp_path: Path) -> None:
    table = run(
        "bench/accuracy", "dm:digits", "fast=cached:digits features.num_trajectories=1", "--data", "digits", "--out",
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
        "bench/step", "--json", "--width", "4", "--steps", "1", "--ipc", "1", "2", "--real", "20", "--set",
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
        str(tmp_path), "--seeds", "1", "--likeness", "--set", *TINY,
    ).splitlines()  # fmt: skip
    assert [line.split()[0] for line in lines] == ["base", "mean"]
    for line in lines:
        assert all(word in line for word in ("IPC fresh", "fresh spread: ", "fresh recall: ", "fresh coverage: "))


@pytest.mark.slow
def test_the_bench_of_seeds_prints_a_ratio_for_each_ipc() -> None:
    lines = run(
        "bench/seeds", "--network", "convnet2w8", "--side", "8", "--channels", "1", "--seeds", "2", "--steps", "1",
    ).splitlines()  # fmt: skip
    assert [line.split()[0] for line in lines] == ["IPC", "1", "10"] and all(line.endswith("x") for line in lines[1:])
    assert "side by side" in lines[1]


@pytest.mark.slow
def test_the_bench_of_the_pass_shows_that_memory_stays_flat_in_a_file() -> None:
    lines = run("bench/set_size", "--images", "3000", "--times", "1", "4", "--side", "64", "--width", "4").splitlines()
    rows = [line.split() for line in lines[-4:]]
    assert [row[:2] for row in rows] == [["3000", "file"], ["3000", "memory"], ["12000", "file"], ["12000", "memory"]]
    peaks = {(int(row[0]), row[1]): int(row[-1]) for row in rows}
    in_file, in_memory = (peaks[12000, kept] - peaks[3000, kept] for kept in ("file", "memory"))
    assert in_file < in_memory / 2  # 10 to 60 MB, as the allocator keeps them, of 110 MB more of pixels and a copy


@pytest.mark.slow
def test_old_code_and_new_are_measured_in_turn_and_both_tables_are_printed() -> None:
    """This checkout against itself."""
    said = run("bench/against", str(SCRIPTS.parent), "--images", "20", "--repeats", "2", "--set", *TINY)
    lines = said.splitlines()
    runs = [line.split(":")[0] for line in lines[:8]]
    assert runs == [*["statistics, old", "statistics, new"] * 2, *["demo, old", "demo, new"] * 2]
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert rows[0] == ["measured", "old", "new", "times as fast"]
    assert [row[0] for row in rows[2:4]] == ["statistics", "demo"] and all(float(row[3]) > 0 for row in rows[2:4])
    judged = {row[0]: row[1:] for row in rows[6:]}
    assert {"gencond, IPC 1", "gencond, IPC 2", "random_real, IPC 1", "whole_set, IPC all"} <= set(judged)
    assert all(old == new for old, new in judged.values())  # the same code, the same bits


@pytest.mark.slow
def test_a_road_is_an_old_recipe_beside_the_default_method_and_both_are_judged() -> None:
    """This checkout against itself; a minute is the least that is planned for."""
    changes = (change for change in TINY if change.partition(".")[0] != "evaluate")
    said = run(
        "bench/against", str(SCRIPTS.parent), "--only", "road", "--recipe", "demo", "--minutes", "1", "--seeds", "1",
        "--network", "convnet2w8", "--repeats", "1", "--set", *changes,
    )  # fmt: skip
    assert [line.split(":")[0] for line in said.splitlines()[:2]] == ["road, old", "road, new"]
    judged = {line.strip("| ").split(" | ")[0]: line for line in said.splitlines() if "IPC" in line}
    assert set(judged) == {"gencond, IPC 1", "gencond, IPC 10", "gencond, IPC 50"}
    assert all(0 < float(top1) <= 100 for line in judged.values() for top1 in line.strip("| ").split(" | ")[1:])


def test_old_code_has_to_be_a_checkout(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "bench" / "against.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.strip().endswith(f"{tmp_path} is no checkout of gencond")


@pytest.mark.slow
def test_the_bench_of_decoding_prints_how_far_fractions_are_off(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64))
        pixels.save(tmp_path / f"{number}.jpg")
    for arguments, count in (([], 12), (["--height", "120"], 2)):  # of 120 x 160 px, six photographs each
        lines = run("bench/decoding", str(tmp_path), *arguments).splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines[4:]]
        assert lines[0] == f"{count} JPEGs" and [row[0] for row in rows] == ["8", "16", "32", "64", "128"]
        assert all(float(row[1]) < 2 for row in rows)  # levels: noise is sharper than photographs
        assert rows[-1][1:3] == ["0.00", "0"]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory, digits: tuple[LabeledImages, LabeledImages]) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    condense(tiny_recipe(), digits[0], out)
    return out


def storage_curve(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Runs the script in this process."""
    monkeypatch.setattr(sys, "argv", ["storage_curve.py", *map(str, arguments)])
    runpy.run_path(str(SCRIPTS / "storage_curve.py"), run_name="__main__")


def table_of(printed: str) -> list[list[str]]:
    """The cells of the table's lines, without its header."""
    return [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")][1:]


CURVE = ["--data", "digits", "--network", "convnet2w8", "--protocol", "idc", "--images-seen", 330, "--seeds", 2]


def test_a_storage_curve_is_of_one_budget_and_no_rival_takes_more_bytes(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = [artefact, f"{artefact}@int8", *CURVE, "--out", tmp_path, "--codec-bits", 0.002, 0.004]
    storage_curve(monkeypatch, *arguments)
    first = capsys.readouterr()
    assert "mean ± std over 2 seeds; each row after 320 images seen, in 5 batches of 64 under protocol idc" in first.out
    scores = {file: json.loads(file.read_text()) for file in (tmp_path / "scores").iterdir()}
    assert {(score["images_seen"], score["steps"]) for score in scores.values()} == {(320, 5)}

    condensed = gencond.load(artefact)
    sizes = sorted({(score["bytes"], score["row"]) for score in scores.values()})
    ours = [size for size, row in sizes if row.startswith(str(artefact))]
    assert ours == [condensed.stored_as("int8").num_bytes, condensed.num_bytes]
    photographs = [size for size, row in sizes if row.startswith("real")]
    caps = sorted([2500, 5000, *ours])  # 0.002 Mbit are 250 bytes, of each of ten classes
    assert all(size <= cap for size, cap in zip(photographs, caps, strict=True))

    cells = table_of(first.out)
    assert len(cells) == len(sizes) == len(scores) / 2
    assert [row[0] for row in cells[:2]] == ["real photographs in AVIF"] * 2 and cells[0][2].endswith("kbit")
    stored = {row[0]: row[1] for row in cells}
    assert stored[f"{artefact}, int8"] == stored[f"{artefact}, float32"] == "any"
    assert stored["whole training set"] == "116 to 122"
    for picture in ("storage_curve.png", "first_images.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"

    times = {file: file.stat().st_mtime_ns for file in scores}
    lost = min(file for file, score in scores.items() if score["row"].startswith("real"))
    lost.unlink()
    storage_curve(monkeypatch, *arguments)
    second = capsys.readouterr()
    assert table_of(second.out) == cells and json.loads(lost.read_text()) == scores[lost]
    assert "training" in second.err.replace("training and", "")  # a bar, of what was lost
    storage_curve(monkeypatch, *arguments)
    third = capsys.readouterr()
    assert table_of(third.out) == cells and "training" not in third.err.replace("training and", "")
    assert [file for file in scores if file.stat().st_mtime_ns != times[file]] == [lost]


def test_a_storage_curve_takes_the_quality_that_teaches_best_and_says_which(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    storage_curve(monkeypatch, f"{artefact}@int8", *CURVE, "--out", tmp_path / "two", "--codec-quality", 10, 90)
    printed = capsys.readouterr().out
    (row,) = [row for row in table_of(printed) if row[0].startswith("real")]
    (kept,) = {
        json.dumps(score["codec"])
        for score in (json.loads(file.read_text()) for file in (tmp_path / "two" / "scores").iterdir())
        if score["row"].startswith("real")
    }
    codec = json.loads(kept)
    assert set(codec["held_out_top1"]) == {"10", "90"}
    assert codec["held_out_top1"][str(codec["chosen"])] == max(codec["held_out_top1"].values())
    assert f"({codec['chosen']} was best on held-out training images" in printed and "libavif" in printed
    storage_curve(
        monkeypatch, f"{artefact}@int8", *CURVE, "--out", tmp_path / "one", "--codec-quality", codec["chosen"]
    )
    assert [again for again in table_of(capsys.readouterr().out) if again[0].startswith("real")] == [row]


def test_images_that_two_storages_make_alike_are_judged_once(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    condensed, sparse = gencond.load(artefact), tmp_path / "sparse"
    with torch.no_grad():  # so that entropy coding pays
        max(condensed.parameters(), key=torch.Tensor.numel)[:, 1:] = 0
    condensed.save_pretrained(sparse)
    storage_curve(monkeypatch, f"{sparse}@int8", f"{sparse}@coded", *CURVE, "--out", tmp_path / "out")
    rows = {row[0]: row[2:] for row in table_of(capsys.readouterr().out)}
    (int8_bits, int8_top1), (coded_bits, coded_top1) = (rows[f"{sparse}, {name}"] for name in ("int8", "coded"))
    assert int8_top1 == coded_top1 and int8_bits != coded_bits
    scores = [json.loads(file.read_text()) for file in (tmp_path / "out" / "scores").iterdir()]
    assert sum(score["row"].startswith(str(sparse)) for score in scores) == 2  # seeds


def test_a_bank_of_pixels_is_seen_again_and_again_in_the_same_budget(
    artefact: Path,
    few_digits: LabeledImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    bank = CondensedPixels(few_digits.class_names, 2, 8, 1)
    bank.fill_(to_signed(few_digits.subset(torch.arange(120)[torch.arange(120) % 12 < 2]).images))
    bank.save_pretrained(tmp_path / "bank")
    with pytest.raises(SystemExit, match="2"):
        storage_curve(monkeypatch, artefact, tmp_path / "bank", *CURVE, "--out", tmp_path / "out")
    assert "differ in data.test_fraction" in capsys.readouterr().err
    storage_curve(
        monkeypatch, f"{tmp_path / 'bank'}@float16", *CURVE, "--out", tmp_path / "out",
        "--set", "data.augmentation=crop", "data.test_fraction=0.3333",
    )  # fmt: skip
    printed = capsys.readouterr().out
    (row,) = [row for row in table_of(printed) if row[0].endswith("bank, float16")]
    of_file = 8 * gencond.load(tmp_path / "bank").stored_as("float16").num_bytes / 10 / 1e3
    assert row[1] == "2" and of_file > 2.05  # two images of 64 half floats, and the file around them
    assert row[2] == f"{of_file:.2f} kbit"
    scores = [json.loads(file.read_text()) for file in (tmp_path / "out" / "scores").iterdir()]
    assert len(scores) == 6 and {score["images_seen"] for score in scores} == {320}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["@int4"], "unknown storage 'int4'; known: float32, float16, int8"),
        (["-nowhere"], "expected a run folder, an artefact folder or a Hub id"),
        (["", "--images-seen", "63"], "--images-seen 63 is less than a batch of idc: 64 images"),
        (["", "--seeds", "0"], "--seeds must be at least 1"),
        (["", "--codec-bits", "-1"], "above 0, not -1.0"),
        (["", "--codec-quality", "30", "101"], "--codec-quality is 0 to 100, not 101"),
        (["", "--protocol", "idc:30"], "leave the epochs out"),
        (["", "--protocol", "soft"], "choose one that learns from labels"),
        (["", "--network", "convnet9000"], "convnet9000"),
        (["", "--published", "cifar10"], "cifar10 has 10 classes and 3x32 px images, these are 10 and 1x8"),
        (["", "--published", "best"], "nothing published is known of 'best'; known: cifar10"),
    ],
)
def test_bad_input_to_the_storage_curve_is_told_before_any_training(
    artefact: Path,
    changes: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    with pytest.raises(SystemExit) as ended:
        storage_curve(monkeypatch, f"{artefact}{changes[0]}", *CURVE, "--out", tmp_path / "out", *changes[1:])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gencond:")]
    assert ended.value.code == 2 and len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_smallest_side_of_a_timm_network_is_found() -> None:
    assert run("timm_sizes", "resnet10t", "vit_tiny_patch16_224", "levit_128s").splitlines()[-3:] == [
        "| `resnet10t` | 8 |", "| `vit_tiny_patch16_224` | 16 |", "| `levit_128s` | over 128 |",
    ]  # fmt: skip
