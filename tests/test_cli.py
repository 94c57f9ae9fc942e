import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from PIL import Image

import gencond
from gencond.cli import main, run_cleanly
from gencond.common.errors import InputError
from gencond.common.progress import progress
from gencond.common.ranges import to_signed
from gencond.data.images import LabeledImages
from gencond.data.load import load_real
from gencond.data.select import random_subset
from gencond.eval.baselines import usual_baselines


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    main(["condense", "--recipe", "demo", "--data", "digits", "--out", str(out), *TINY])
    return out


def fails(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one line that a failing command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    lines = [line for line in re.split("[\\r\\n]", capsys.readouterr().err) if line.startswith("gencond:")]
    assert ended.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def test_condense_sample_evaluate_and_report_work_together(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main(["sample", str(run), "--ipc", "6", "--out", str(tmp_path / "images")])
    assert len(list((tmp_path / "images").rglob("*.png"))) == 60
    main(["sample", str(run), "--ipc", "1", "--out", str(tmp_path / "few"), "--format", "npz"])
    assert f"10 images of 10 classes in {tmp_path}/few.npz\n" in capsys.readouterr().out
    main(["evaluate", str(run), "--stream"])
    content = json.loads((run / "report.json").read_text())
    stream = [row for row in content["rows"] if row["mode"] == "stream"]
    assert [(row["images"], row["ipc"]) for row in stream] == [("gencond", None)]
    assert stream[0]["num_images"] == 10 * 20  # dm:10 looks ten times at two images of ten classes
    assert "200 images were seen, none of them twice" in (run / "report.md").read_text()
    card = [line.strip("| ").split(" | ") for line in (run / "condensed" / "README.md").read_text().splitlines()]
    (header,), (ours,) = ([line for line in card if line[0] == name] for name in ("trained on", "gencond (ours)"))
    assert ours[header.index("fresh")].startswith(f"{100 * stream[0]['top1_mean']:.1f}")
    content["rows"] = [row for row in content["rows"] if row["mode"] == "fixed"]
    assert {(row["images"], row["ipc"]) for row in content["rows"]} == {
        (images, ipc) for images in ("gencond", *usual_baselines(1)[:-1]) for ipc in (1, 2)
    } | {("whole_set", None)}
    assert "gencond (ours)" in capsys.readouterr().out
    assert "## Results" in (run / "condensed" / "README.md").read_text()
    (run / "report.html").unlink()
    main(["report", str(run)])
    assert "<svg" in (run / "report.html").read_text()


def test_a_run_ends_with_its_last_score_a_picture_and_three_commands_that_work(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "a run"
    main(["condense", "--recipe", "demo", "--data", "digits", "--out", str(out), *TINY, "condense.score_every_steps=4"])
    ready, look, *commands = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(
        rf"{re.escape(str(out))}/condensed is ready: a quick classifier on 4 images a class has [\d.]+ % of 120 "
        "held-out images right",
        ready,
    )
    assert look == f"Look at   {out}/samples/step_000006.png" and (out / "samples" / "step_000006.png").is_file()
    assert [command[:10].strip() for command in commands] == ["Evaluate", "Sample", "Use"]
    evaluate, sample, use = (shlex.split(command[10:]) for command in commands)
    assert evaluate == ["gencond", "evaluate", str(out)]
    main(sample[1:])
    assert len(list(Path(f"{out}-ipc10").rglob("*.png"))) == 100
    printed = subprocess.run([sys.executable, *use[1:]], capture_output=True, text=True, check=True).stdout
    assert printed == "torch.Size([100, 1, 8, 8])\n"


def test_one_command_condenses_judges_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["condense", "--recipe", "demo", "--data", "digits", "--out", str(tmp_path / "run"), "--evaluate", *TINY]
    asked += ["evaluate.ipc=[1]", "evaluate.num_seeds=1", "evaluate.protocol='dm:5'"]
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setattr("gencond.cli.SECONDS_OF_MAIN", 0)
        assert "condense --evaluate is done by one process" in fails(capsys, *asked)
    assert not (tmp_path / "run").exists()
    main(asked)
    table, _, end = capsys.readouterr().out.partition(f"{tmp_path}/run/condensed is ready\n")
    assert "gencond (ours)" in table and "whole training set" in table
    assert end.startswith(f"Look at   {tmp_path}/run/report.html and {tmp_path}/run/samples/grid.png\nSample ")
    assert end.endswith(f"Report    gencond report {tmp_path}/run\n")
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "run" / "samples" / "grid.png").is_file()


def test_a_teacher_is_trained_once_and_its_answers_teach_every_row(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ["--protocol", "soft:5", "--ipc", "2", "--baselines", "random_real", "--out", str(tmp_path)]
    main(["evaluate", str(run), *asked, "--teacher", "convnet2w8"])
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["teacher"]["name"] == "convnet2w8" and content["teacher"]["top1"] > 0.8
    assert (
        "--teacher convnet2w8" in content["command"] and [row["protocol"] for row in content["rows"]] == ["soft:5"] * 2
    )
    assert "are not counted in what is stored" in (tmp_path / "report.md").read_text()
    with caplog.at_level("INFO", logger="gencond"):
        main(["evaluate", str(run), *asked, "--teacher", "convnet2w8"])
    assert "teacher: taken from" in caplog.text and "2 of 2 rows were measured before" in caplog.text
    main(["evaluate", str(run), *asked, "--teacher", "convnet1w8", "--ipc", "1"])
    content = json.loads((tmp_path / "report.json").read_text())  # rows of the other teacher are gone with its name
    assert content["teacher"]["name"] == "convnet1w8" and {row["ipc"] for row in content["rows"]} == {1}
    assert "name one with --teacher" in fails(capsys, "evaluate", str(run), *asked)
    assert "leave --teacher out" in fails(capsys, "evaluate", str(run), "--teacher", "convnet2w8")
    assert "no such file" in fails(capsys, "evaluate", str(run), *asked, "--teacher", "convnet2w8=nowhere.pt")


def test_a_stored_artefact_is_judged_as_it_is_stored(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small, judged = tmp_path / "small", tmp_path / "judged"
    main(["store", str(run), "--as", "int8", "--out", str(small)])
    stored, original = gencond.load(small), gencond.load(run)
    assert f"{stored.num_bytes:,} bytes instead of {original.num_bytes:,}" in capsys.readouterr().out
    assert "in int8" in (small / "README.md").read_text()
    main(["evaluate", str(small), "--out", str(judged), "--ipc", "2", "--baselines", "codec_real"])
    rows = {row["images"]: row for row in json.loads((judged / "report.json").read_text())["rows"]}
    assert rows["gencond"]["bytes"] == stored.num_bytes >= rows["codec_real"]["bytes"]
    main(["store", str(run), "--as", "float16", "--out", str(tmp_path / "half")])
    main(["evaluate", str(tmp_path / "half"), "--out", str(judged), "--ipc", "2", "--baselines"])
    content, half = json.loads((judged / "report.json").read_text()), gencond.load(tmp_path / "half").num_bytes
    assert content["condensed"]["bytes"] == half != stored.num_bytes  # another storage's bytes are not kept
    assert [row["bytes"] for row in content["rows"]] == [half]
    assert "exists and is not empty" in fails(capsys, "store", str(run), "--as", "int8", "--out", str(small))
    assert "unknown storage 'int4'" in fails(capsys, "store", str(run), "--as", "int4", "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_second_evaluation_reuses_its_rows_and_says_so(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = ["--seeds", "3", "--baselines", "random_real", "kmeans_real", "whole_set"]
    main(["evaluate", str(run), "--ipc", "1", *few])
    caplog.set_level("INFO", logger="gencond")
    main(["evaluate", str(run), "--ipc", "1", "2", *few])
    assert "4 of 7 rows were measured before" in caplog.text


def test_rows_of_an_older_evaluator_leave_the_report_and_that_is_said(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = ["--out", str(tmp_path), "--seeds", "1", "--baselines"]
    main(["evaluate", str(run), "--ipc", "1", *few])
    content = json.loads((tmp_path / "report.json").read_text())
    content["rows"][0]["evaluator"] -= 1
    (tmp_path / "report.json").write_text(json.dumps(content))
    caplog.set_level("INFO", logger="gencond")
    main(["evaluate", str(run), "--ipc", "2", *few])
    assert f"1 rows of an older evaluator leave the report in {tmp_path}" in caplog.text
    assert [row["ipc"] for row in json.loads((tmp_path / "report.json").read_text())["rows"]] == [2]


def test_an_artefact_alone_is_judged_with_its_data_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    artefact, out = str(run / "condensed"), str(tmp_path / "judged")
    assert "--data" in fails(capsys, "evaluate", artefact)
    main(["evaluate", artefact, "--data", "digits", "--out", out, "--ipc", "1", "--seeds", "1"])
    assert (tmp_path / "judged" / "report.md").is_file()
    assert not (tmp_path / "judged" / "recipe.yaml").exists()


def test_a_folder_of_photographs_goes_all_the_way(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate(("beach", "forest", "city")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for image in range(5):
            pixels = rng.integers(0, 100, (60 + 9 * image, 90 - 7 * image, 3), dtype=np.uint8)
            pixels[..., number] += 120
            mode = ("RGB", "L", "P", "CMYK", "RGBA")[image]
            suffix = ".png" if mode in ("P", "RGBA") else ".jpg"
            Image.fromarray(pixels).convert(mode).save(tmp_path / "photos" / name / f"{image}{suffix}")
    out = tmp_path / "run"
    main([
        "condense", "--recipe", "gencond", "--data", str(tmp_path / "photos"), "--out", str(out), *TINY,
        "synthesizer.factor=1", "synthesizer.by_parts=false", "codes.start=prior", "features.compile=false",
        "features.precision=float32", "features.train_images=16", "real.batch_size=4",
        "generator.chunk_dim=4", "data.image_size=16", "generator.num_blocks=1",
    ])  # fmt: skip
    main(["evaluate", str(out), "--ipc", "1", "10"])
    content = json.loads((out / "report.json").read_text())
    # ours and the codec's at both IPC, the other four at one: a class has four training images
    assert any("IPC 10" in note for note in content["notes"]) and len(content["rows"]) == 2 + 2 + 4 + 1
    condensed = gencond.load(out)
    assert condensed.class_names == ["beach", "city", "forest"] and condensed.sample(2)[0].shape == (6, 3, 16, 16)


def test_pixels_with_a_factor_go_all_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    small = ["synthesizer.factor=2", "pixels.ipc=2", "condense.num_steps=2", "features.width=4", "real.batch_size=4"]
    judged = ["evaluate.networks=[convnet2w8]", "evaluate.num_seeds=1", "evaluate.protocol='dm:2'"]
    main(["condense", "--recipe", "dm:digits", "--data", "digits", "--out", str(out), *small, *judged])
    assert f"gencond sample {out} --ipc 2" in capsys.readouterr().out
    main(["evaluate", str(out)])
    content = json.loads((out / "report.json").read_text())
    row = content["rows"][0]
    assert (row["images"], row["ipc"], row["bytes"]) == ("dm:digits", 2, gencond.load(out).num_bytes)
    assert row["bytes"] > 10 * 2 * 64 * 4
    assert "each cut into 4 images" in (out / "report.md").read_text()
    assert "each cut into 4 images" in (out / "condensed" / "README.md").read_text()
    capsys.readouterr()
    main(["sample", str(out), "--ipc", "1", "--out", str(tmp_path / "images")])
    assert "40 images of 10 classes" in capsys.readouterr().out
    assert len(list((tmp_path / "images").rglob("*.png"))) == 40
    for arguments, message in (
        (["evaluate", str(out), "--ipc", "3"], "holds 2 images of each class"),
        (["pretrain", "--recipe", "dm", "--data", "digits", "--out", "x"], "only a generator is pretrained"),
        (["condense", "--recipe", "dm", "--data", "digits", "--out", "x", "--pretrained", "y"], "generator starts"),
        (["condense", "--recipe", "dm:digits", "--data", "digits", "--out", "x", "evaluate.ipc=[50]"], "pixels.ipc=10"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_anybodys_images_are_judged_beside_the_baselines(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train, test = load_real("digits", test_fraction=0.2)
    two = random_subset(train, 2, seed=0)
    torch.save((to_signed(two.images), two.labels), tmp_path / "theirs.pt")
    out = tmp_path / "judged"
    arguments = [
        "evaluate", str(tmp_path / "theirs.pt"), "--data", "digits", "--out", str(out), "--protocol", "dm:20",
        "--networks", "convnet2w8", "--seeds", "2", "--baselines", "random_real", "--augmentation", "crop",
    ]  # fmt: skip
    assert "--normalised-by MEAN STD (0.5 0.5 where" in fails(capsys, *arguments)
    main([*arguments, "--normalised-by", "0.5", "0.5"])
    content = json.loads((out / "report.json").read_text())
    assert [(row["images"], row["ipc"], row["bytes"]) for row in content["rows"]] == [
        ("theirs: theirs.pt", 2, 20 * 64 * 4), ("random_real", 2, 20 * 64),
    ]  # fmt: skip
    report = (out / "report.md").read_text()
    assert (
        "Images as float32" in report
        and "--normalised-by 0.5 0.5" in report
        and f"--out {out}" in report
        and "--augmentation crop" in report
    )
    stolen = LabeledImages(test.images[:200], test.labels[:200], test.class_names)
    torch.save((stolen.images, stolen.labels), tmp_path / "theirs.pt")
    assert "theirs.pt holds 130 test images, number 0 of the test set first" in fails(capsys, *arguments)
    assert "leave --normalised-by and --factor out" in fails(
        capsys, "evaluate", str(Path(__file__).parent.parent / "checkpoints" / "digits"), "--data", "digits", "--out",
        str(out), "--factor", "2",
    )  # fmt: skip


def test_test_images_among_the_training_images_are_counted_and_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train, test = load_real("digits", test_fraction=0.2)
    arrays = {
        "x_train": torch.cat([train.images, test.images[3:40]])[:, 0].numpy(),
        "y_train": torch.cat([train.labels, test.labels[3:40]]), "x_test": test.images[:, 0].numpy(),
        "y_test": test.labels,
    }  # fmt: skip
    np.savez(tmp_path / "d.npz", **arrays)
    two = random_subset(train, 2, seed=0)
    torch.save((two.images, two.labels), tmp_path / "theirs.pt")
    line = fails(
        capsys, "evaluate", str(tmp_path / "theirs.pt"), "--data", str(tmp_path / "d.npz"), "--out",
        str(tmp_path / "judged"),
    )  # fmt: skip
    assert f"37 of {len(test)} test images" in line and "remove them from the test set" in line
    name = test.class_names[int(test.labels[3])]
    assert f"first number 3 of class '{name}', which is training image number {len(train)} of class '{name}'" in line
    assert not (tmp_path / "judged").exists()


def test_dry_run_prints_the_whole_recipe_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["condense", "--recipe", "demo", "--dry-run", "condense.num_steps=7"])
    assert yaml.safe_load(capsys.readouterr().out)["condense"]["num_steps"] == 7
    assert not any(tmp_path.iterdir())


def test_a_recipe_is_printed_with_what_its_fields_mean_and_is_taken_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main(["recipe", "dm:digits", "pixels.ipc=7"])
    printed = capsys.readouterr().out
    assert "  # Images of each class.\n  # whole number from 1; default 10\n  ipc: 7\n" in printed
    (tmp_path / "own.yaml").write_text(printed)
    main(["condense", "--recipe", str(tmp_path / "own.yaml"), "--dry-run"])
    again = capsys.readouterr().out
    main(["condense", "--recipe", "dm:digits", "--dry-run", "pixels.ipc=7"])
    assert again == capsys.readouterr().out
    assert "no recipe 'nothing'" in fails(capsys, "recipe", "nothing")


def test_a_data_path_is_taken_letter_by_letter(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "no such data: 'my data #2'" in fails(
        capsys, "condense", "--data", "my data #2", "--out", str(tmp_path / "x")
    )
    assert "no such data: '1e5'" in fails(capsys, "condense", "--data", "1e5", "--out", str(tmp_path / "x"))


def test_a_judge_that_cannot_take_the_images_is_named_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "x"
    line = fails(
        capsys, "condense", "--recipe", "demo", "--data", "digits", "--out", str(out), "evaluate.networks=[convnet9]"
    )
    assert "9 blocks cannot halve 8 px" in line and not out.exists()


def test_rows_of_earlier_questions_stay_in_the_report(run: Path) -> None:
    main(["evaluate", str(run), "--ipc", "1"])
    before = json.loads((run / "report.json").read_text())["rows"]
    main(["evaluate", str(run), "--ipc", "3", "--seeds", "1"])
    after = json.loads((run / "report.json").read_text())["rows"]
    assert all(row in after for row in before if row["images"] != "whole_set") and len(after) > len(before)


def test_other_real_images_of_the_same_classes_are_marked(run: Path, tmp_path: Path) -> None:
    train, test = load_real("digits", test_fraction=0.5)
    arrays = [part.images[:, 0].numpy() for part in (train, test)]
    np.savez(
        tmp_path / "d.npz", x_train=arrays[0], y_train=train.labels, x_test=arrays[1], y_test=test.labels,
        names=list(train.class_names),
    )  # fmt: skip
    out = tmp_path / "judged"
    main(["evaluate", str(run), "--data", str(tmp_path / "d.npz"), "--out", str(out), "--ipc", "1", "--seeds", "1"])
    assert "test images may have been trained on" in (out / "report.md").read_text()


def test_pretrain_alone_leaves_what_condense_goes_on_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = ["--recipe", "demo", "--data", "digits", "--out", str(tmp_path / "run"), *TINY]
    main(["pretrain", *arguments])
    assert (tmp_path / "run" / "pretrained").is_dir() and not (tmp_path / "run" / "condensed").exists()
    caplog.set_level("INFO", logger="gencond")
    main(["condense", *arguments])
    assert "pretrain: reusing" in caplog.text and (tmp_path / "run" / "condensed").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["condense", "--data", "/nowhere", "--out", "{out}"], "no such data: '/nowhere'"),
        (["condense", "--data", "{empty}", "--out", "{out}"], "has no class folders"),
        (["condense", "--recipe", "nothing", "--data", "digits", "--out", "{out}"], "no recipe 'nothing'"),
        (["condense", "--recipe", "demo", "--data", "digits", "--out", "{out}", "codes.slots=3"], "unknown field"),
        (["condense", "--recipe", "demo", "--data", "digits", "--out", "{run}", "seed=9"], "another recipe (seed: 0"),
        (["condense", "--recipe", "demo", "--data", "digits", "--out", "{file}"], "is no run folder"),
        (["sample", "{run}", "--ipc", "0", "--out", "{out}"], "at least 1, not 0"),
        (["sample", "{run}", "--ipc", "-2", "--out", "{out}"], "at least 1, not -2"),
        (["sample", "{empty}", "--ipc", "1", "--out", "{out}"], "no config.json"),
        (["sample", "{run}", "--ipc", "1", "--out", "{out}", "--format", "gif"], "unknown format 'gif'"),
        (["sample", "{run}", "--ipc", "1", "--out", "{run}"], "not empty"),
        (["evaluate", "{run}", "--ipc", "0"], "at least 1"),
        (["evaluate", "{run}", "--protocol", "slow"], "unknown protocol"),
        (["evaluate", "{run}", "--networks", "convnot"], "unknown network"),
        (["evaluate", "{run}", "--data", "{photos}"], "has 10 classes"),
        (["evaluate", "{run}", "--out", "{file}"], "is a file"),
        (["evaluate", "{file}.pt", "--data", "digits", "--out", "{out}", "--normalised-by", "0.5", "nan"], "above 0"),
        (["evaluate", "{file}.pt", "--data", "digits", "--out", "{out}", "--normalised-by", "0.5", "1,0"], "above 0"),
        (["evaluate", "{file}.pt", "--data", "digits", "--out", "{out}", "--normalised-by", "0.5", "-1"], "above 0"),
        (["evaluate", "{file}.pt", "--data", "digits", "--out", "{out}", "--normalised-by", "inf", "1"], "finite"),
        (["evaluate", "{run}", "--out", "{file}/judged"], "judged cannot be written to"),
        (["evaluate", "{run}", "--seeds", "1000000000"], "--seeds must be in 1 .. 1000"),
        (["evaluate", "{run}", "--ipc", "1000000000"], "10,000,000,000 images at once take 2,560.0 GB"),
        (["sample", "{run}", "--ipc", "1", "--out", "{file}/x"], "file cannot be written to"),
        (["sample", "{run}", "--ipc", "1", "--out", "{file}/x", "--format", "npz"], "file cannot be written to"),
        (["sample", "{run}", "--ipc", "100000000000", "--out", "{out}"], "1,000,000,000,000 images take 67,000.0 GB"),
        (["sample", "{run}", "--ipc", "100000000000", "--out", "{out}", "--format", "npz"], "GB are free: lower ipc"),
        (["store", "{run}", "--as", "int8", "--out", "{file}/x"], "file cannot be written to"),
        (["search", "{run}", "--out", "{file}"], "is a file"),
        (["search", "{run}", "--out", "{out}", "--networks", "convnot"], "unknown network"),
        (["search", "{run}", "--out", "{run}", "--ipc", "1", "--widths", "8"], "is not empty and holds no search"),
        (["search", "{run}", "--out", "{out}", "--data", "{photos}"], "has 10 classes"),
        (["search", "{run}", "--out", "{file}/x"], "cannot be written to"),
        (["report", "{empty}"], "report.json is missing"),
        (["condense", "--recipe", "demo", "--data", "digits"], "--out is missing"),
        (["sample", "{run}", "--ipc", "60", "--seed", "-1", "--out", "{out}"], "seed must be in 0"),
        (["sample", "no/such", "--ipc", "1", "--out", "{out}"], "no/such cannot be loaded"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    places = {name: tmp_path / name for name in ("out", "empty", "file", "photos")}
    places["empty"].mkdir()
    places["file"].touch()
    for name in ("a", "b"):
        (places["photos"] / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), 40 * number).save(places["photos"] / name / f"{number}.png")
    before = sorted(path for path in run.rglob("*"))
    filled = [argument.format(run=run, **places) for argument in arguments]
    if "evaluate" in arguments and "--networks" in arguments:
        filled += ["--ipc", "1"]
    assert message in fails(capsys, *filled)
    assert not places["out"].exists() and sorted(path for path in run.rglob("*")) == before


def test_no_space_left_is_one_line(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture, run: Path) -> None:
    def full(*arguments) -> None:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr("gencond.generator.streaming.png_bytes", full)
    asked = ["sample", str(run), "--ipc", "1", "--out", str(tmp_path / "out")]
    assert fails(capsys, *asked) == "gencond: No space left on device: runs/x"
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    main(asked)  # once there is space, it goes on
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def ends(capsys: pytest.CaptureFixture, command: Callable[[], None]) -> tuple[int, list[str]]:
    """Status, and what was printed to stderr, of a command that ends early."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_cleanly(command)
    return ended.value.code, capsys.readouterr().err.splitlines()


def refused() -> None:
    raise InputError("no such data: remove it")


def test_signals_end_with_their_own_status(capsys: pytest.CaptureFixture, request: pytest.FixtureRequest) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    for number, status, word in ((signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")):
        found, said = ends(capsys, lambda number=number: os.kill(os.getpid(), number))
        assert (found, said) == (status, [f"gencond: {word}; the same command goes on from what is saved"])


def test_an_error_and_a_message_have_lines_of_their_own_beside_a_progress_bar(capsys: pytest.CaptureFixture) -> None:
    def command() -> None:
        for step in progress(range(3), description="condense"):
            if step == 1:
                logging.getLogger("gencond").info("a word")
                refused()

    status, said = ends(capsys, command)
    lines = [line.strip() for line in said]
    assert status == 2 and "a word" in lines and lines[-1] == "gencond: no such data: remove it"
    assert any("condense" in line and "0/3" in line for line in lines[:-1])


def test_a_torch_file_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    def command() -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # as a full disk
        try:
            torch.save(torch.zeros(10_000), tmp_path / "images.pt")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    resource = pytest.importorskip("resource")
    status, (line,) = ends(capsys, command)
    assert status == 2 and line.startswith("gencond: a file could not be written: ")


def test_of_several_processes_the_main_one_says_it_first(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a launcher that ends the others ends the silence
        waited.append(seconds)

    monkeypatch.setattr("gencond.cli.time.sleep", sleep)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, seconds in (("0", []), ("1", [5.0])):
        monkeypatch.setenv("RANK", rank)
        assert ends(capsys, refused) == (2, ["gencond: no such data: remove it"]) and waited == seconds
    assert ends(capsys, lambda: os.kill(os.getpid(), signal.SIGTERM)) == (143, [])


def test_two_evaluations_into_one_folder_do_not_meet(run: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    hold = "import sys, time; from pathlib import Path; from gencond.common.files import alone_in\nwith alone_in(Path(sys.argv[1]), '.report.lock'):\n    print('held', flush=True); time.sleep(60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        line = fails(capsys, "evaluate", str(run), "--ipc", "1", "--out", str(tmp_path))
        other.kill()
    assert line == f"gencond: another process works in {tmp_path}: wait for it or choose another --out"


def test_hub_load_from_another_working_directory(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).parent.parent
    model = torch.hub.load(str(root), "condensed", str(run), source="local")
    assert not model.training and torch.equal(model.sample(ipc=3)[0], gencond.load(run).sample(ipc=3)[0])


@pytest.mark.parametrize("command", [["demo"], ["evaluate", "somewhere", "--out", "out"]])
def test_what_one_process_does_is_refused_where_several_are_launched(
    command: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "is done by one process: start it without accelerate launch" in fails(capsys, *command)


def test_changes_to_a_recipe_may_stand_before_and_behind_options(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(["condense", "seed=3", "--recipe", "demo", "--dry-run", "codes.num_slots=7", "--data", "digits"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["seed"], shown["codes"]["num_slots"], shown["data"]["source"]) == (3, 7, "digits")
    digits = str(Path(__file__).parent.parent / "checkpoints" / "digits")
    said = fails(
        capsys,
        "append",
        digits,
        "--data",
        "digits",
        "--out",
        str(tmp_path / "out"),
        "--more-images",
        "codes.num_slots=3",
    )
    assert "codes.num_slots=3: what is appended to has" in said and not (tmp_path / "out").exists()
    for wrong in (["--what", "seed=3"], ["seed"]):
        with pytest.raises(SystemExit) as ended:
            main(["condense", "--recipe", "demo", "--dry-run", "--data", "digits", *wrong])
        assert ended.value.code == 2
