"""DD-Ranking is asked in its own environment; here a small stand-in for it answers, and once the package itself."""

import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

import gencond.data.decode
from gencond.cli import main
from gencond.common.errors import InputError
from gencond.common.ranges import to_signed, to_unit
from gencond.data.images import LabeledImages
from gencond.data.load import load_real
from gencond.data.mapped import MappedImages
from gencond.eval.outside import environment
from gencond.eval.outside.environment import made_python
from gencond.eval.outside.lrs import (
    VERSION,
    Settings,
    ddranking_python,
    label_robust_score,
    require_known,
    score_by_ddranking,
)
from gencond.eval.outside.runner import without_checksums, write_cifar
from gencond.generator.exporting import normalised_for_ddranking

NAMES = tuple(f"class{label}" for label in range(10))


def real_images(per_class: int, seed: int) -> LabeledImages:
    """Each class has a colour of its own under noise."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat_interleave(per_class)
    colours = torch.randint(60, 196, (10, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    noise = torch.randint(-60, 60, (len(labels), 3, 32, 32), generator=rng)
    return LabeledImages((colours[labels] + noise).to(torch.uint8), labels, NAMES)


STAND_IN = """
import os
import numpy as np
from torchvision import datasets

def save_results(results, path):
    raise ValueError("All arrays must be of the same length")

class LabelRobustScoreHard:
    def __init__(self, dataset, real_data_path, device, ipc, model_name, num_epochs, num_eval, data_aug_func,
                 aug_params, optimizer, momentum, weight_decay, lr_scheduler, step_size, real_batch_size,
                 syn_batch_size, im_size, num_workers, eval_full_data):
        keys = ["brightness", "contrast", "crop", "cutout", "flip", "rotate", "saturation", "scale"]
        assert sorted(aug_params) == keys and eval_full_data
        known = getattr(datasets, dataset)
        self.real = [known(real_data_path, train=train, download=True) for train in (True, False)]
        self.num_eval, self.num_epochs, self.ipc = num_eval, num_epochs, ipc

    def _compute_hard_label_metrics_helper(self, image_tensor, image_path, hard_labels, lr, mode, hyper_param_search):
        for _ in range(self.num_epochs // 10):
            print("Test Acc@1 50.000 Acc@5 90.000")
        return {"real": 80.0, "syn": 60.0, "random": 48.0}[mode], 0.05 if hyper_param_search else lr

    def compute_metrics(self, image_tensor, hard_labels, syn_lr):
        train, test = self.real
        np.savez(os.environ["SEEN"], images=image_tensor.numpy(), labels=hard_labels.numpy(), x_train=train.data,
                 y_train=train.targets, x_test=test.data, y_test=test.targets, names=train.classes, ipc=self.ipc)
        hlr, ior = [], []
        for _ in range(self.num_eval):
            syn, real, random = (
                self._compute_hard_label_metrics_helper(
                    image_tensor=None, image_path=None, hard_labels=None, lr=syn_lr, mode=mode,
                    hyper_param_search=syn_lr is None,
                )[0]
                for mode in ("syn", "real", "random")
            )
            hlr.append(real - syn)
            ior.append(syn - random)
        save_results({"hard_label_recovery": hlr, "improvement_over_random": ior, "lrs": [0] * 4}, "scores.csv")
"""


def program(place: Path, lines: str) -> str:
    """A program in the place of an environment's Python."""
    place.write_text(f"#!/bin/sh\n{lines}\n")
    place.chmod(0o755)
    return str(place)


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """A Python that has the stand-in for DD-Ranking."""
    packages = tmp_path / "packages"
    (packages / "ddranking" / "metrics").mkdir(parents=True)
    for folder in (packages / "ddranking", packages / "ddranking" / "metrics"):
        (folder / "__init__.py").touch()
    (packages / "ddranking" / "metrics" / "hard_label.py").write_text(STAND_IN)
    (packages / f"ddranking-{VERSION}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: ddranking\nVersion: {VERSION}\n"
    (packages / f"ddranking-{VERSION}.dist-info" / "METADATA").write_text(metadata)
    lines = 'test -z "$PYTHONPATH" || exit 9\n'  # packages of ours would be taken for the environment's
    lines += f'export PYTHONPATH="{packages}" SEEN="{tmp_path}/seen.npz"\nexec "{sys.executable}" "$@"'
    return program(tmp_path / "python", lines)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    train, test = real_images(6, 1), real_images(3, 2)
    path = tmp_path / "real.npz"
    arrays = {
        f"{axis}_{split}": value.numpy()
        for split, part in (("train", train), ("test", test))
        for axis, value in (("x", part.images.permute(0, 2, 3, 1)), ("y", part.labels))
    }
    np.savez(path, names=np.array(NAMES), **arrays)
    two = real_images(2, 3)
    torch.save((two.images, two.labels), tmp_path / "theirs.pt")
    return path


# --- the score


def test_the_score_of_fractions_is_the_leaderboards() -> None:
    """DM, DC and MTT on CIFAR-10 at IPC 10, from the HLR and IOR of the leaderboard."""
    for hlr, ior, score in ((39.37, 16.12, 22.2), (36.70, 18.54, 23.2), (23.73, 30.90, 28.4)):
        assert 100 * label_robust_score(hlr / 100, ior / 100) == pytest.approx(score, abs=0.05)


def test_the_score_is_one_for_the_best_and_zero_for_the_worst() -> None:
    assert label_robust_score(-1.0, 1.0) == pytest.approx(1) and label_robust_score(1.0, -1.0) == pytest.approx(0)
    assert label_robust_score(0.0, 0.0) == pytest.approx((1 - math.exp(-1)) / (math.e - math.exp(-1)))
    assert label_robust_score(0.9, 0.5, weight=1.0) == label_robust_score(0.1, 0.5, weight=1.0)


# --- the real images


@pytest.mark.parametrize(("name", "num_classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
def test_real_images_are_read_back_by_torchvision(tmp_path: Path, name: str, num_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(2 * num_classes) % num_classes)
    arrays = {
        "y_train": labels,
        "y_test": labels[::-1].copy(),
        "names": np.array([f"c{n}" for n in range(num_classes)]),
    }
    for split in ("train", "test"):
        arrays[f"x_{split}"] = rng.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    write_cifar(tmp_path, name, arrays)
    known = type(name, (getattr(datasets, name),), {})  # of its own, so that other tests keep the checksums
    with pytest.raises(RuntimeError, match="corrupted"):
        known(tmp_path)
    without_checksums(known)
    for split in ("train", "test"):
        read = known(tmp_path, train=split == "train", download=True)
        assert np.array_equal(read.data, arrays[f"x_{split}"].transpose(0, 2, 3, 1))
        assert read.targets == arrays[f"y_{split}"].tolist() and read.classes == arrays["names"].tolist()


@pytest.mark.parametrize(
    ("images", "ipcs", "message"),
    [
        (torch.zeros(20, 1, 32, 32), [1], "these are 10 classes of 1x32x32 px"),
        (torch.zeros(20, 3, 64, 64), [1], "these are 10 classes of 3x64x64 px"),
        (torch.zeros(20, 3, 32, 32), [1, 3], "class 'class0' has only 2 training images: lower --ipc 3"),
    ],
)
def test_real_images_that_it_does_not_know_are_named(images: torch.Tensor, ipcs: list[int], message: str) -> None:
    real = LabeledImages(images.to(torch.uint8), torch.arange(20) % 10, NAMES)
    with pytest.raises(InputError, match=re.escape(message)):
        require_known(real, ipcs)


# --- the other process


def test_a_set_is_judged_from_the_command_to_the_report(
    tmp_path: Path, data: Path, stand_in: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "judged"
    arguments = ["evaluate", str(tmp_path / "theirs.pt"), "--data", str(data), "--out", str(out)]
    main([*arguments, "--judge", "ddranking:20", "--judge-python", stand_in, "--seeds", "2", "--ipc", "1", "2"])
    printed = capsys.readouterr().out
    # a = (0.12 - 0.20) / 2
    expected = "searched       2    20.0 ± 0.0  12.0 ± 0.0  25.2 ± 0.0  60.0 ± 0.0  48.0 ± 0.0   80.0 ± 0.0"
    assert expected in printed and "The judge is patched: its saving of results" in printed
    with np.load(tmp_path / "seen.npz") as seen:
        two, train, test = real_images(2, 3), real_images(6, 1), real_images(3, 2)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
        torch.testing.assert_close(torch.from_numpy(seen["images"]), (two.images / 255 - mean) / std)
        assert seen["labels"].tolist() == two.labels.tolist() and seen["ipc"] == 2
        for part, split in ((train, "train"), (test, "test")):
            assert np.array_equal(seen[f"x_{split}"], part.images.permute(0, 2, 3, 1)), split
            assert seen[f"y_{split}"].tolist() == part.labels.tolist()
        assert seen["names"].tolist() == list(NAMES)
    entries = json.loads((out / "report.json").read_text())["outside"]
    assert [entry["ipc"] for entry in entries] == [1, 2] and entries[0]["hlr"]["each"] == pytest.approx([0.2, 0.2])
    assert entries[0]["learning_rates"] == [[0.05] * 3] * 2 and entries[0]["versions"]["ddranking"] == VERSION
    assert (out / "ddranking_ipc2.log").read_text().count("Test Acc@1") == 2 * 3 * 2
    for name in ("report.md", "report.html"):
        report = (out / name).read_text()
        for text in (
            "25.2 ± 0.0",
            "The judge is patched",
            "searched on the test set",
            "--judge ddranking:20",
            "epochs 20",
        ):
            assert text in report, (name, text)
    main(["report", str(out)])
    own = ["--protocol", "dm:1", "--networks", "convnet2w8", "--seeds", "1", "--ipc", "1", "--baselines", "random_real"]
    main([*arguments, *own])
    report = (out / "report.md").read_text()
    assert "random real" in report and "25.2 ± 0.0" in report
    main([*arguments, "--judge", "ddranking:20", "--judge-python", stand_in, "--seeds", "1", "--ipc", "2"])
    content = json.loads((out / "report.json").read_text())
    assert len(content["rows"]) == 2 and [entry["num_eval"] for entry in content["outside"]] == [2, 1]


def test_random_images_are_as_many_as_those_stored_and_the_report_says_so(
    tmp_path: Path, data: Path, stand_in: str, capsys: pytest.CaptureFixture
) -> None:
    """Where each stored image is cut into four, the condensed set has four times as many."""
    main([
        "evaluate", str(tmp_path / "theirs.pt"), "--data", str(data), "--out", str(tmp_path / "judged"), "--seeds", "1",
        "--factor", "2", "--judge", "ddranking:10", "--judge-python", stand_in, "--judge-lr", "0.02",
    ])  # fmt: skip
    with np.load(tmp_path / "seen.npz") as seen:
        assert seen["images"].shape == (10 * 2 * 4, 3, 32, 32) and seen["ipc"] == 2
        assert seen["labels"].tolist() == [label for label in range(10) for _ in range(8)]
    printed = capsys.readouterr().out
    assert "Each stored image is cut into 4; random real images are as many as those stored" in printed
    assert "--judge-lr 0.02" in printed and "--factor 2" in printed


def test_a_set_that_is_kept_in_a_file_is_handed_over(
    tmp_path: Path, stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gencond.data.decode, "MAPPED_ABOVE_BYTES", 0)
    pictures = real_images(4, 1)
    for number, (image, label) in enumerate(zip(pictures.images, pictures.labels.tolist(), strict=True)):
        folder = tmp_path / "set" / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    train, test = load_real(str(tmp_path / "set"), 32)
    syn = train.subset(torch.stack([train.rows_of(label)[0] for label in range(10)]))
    assert all(isinstance(part.images, MappedImages) for part in (syn, train, test))
    score_by_ddranking(syn, 1, train, test, Settings(epochs=10, num_eval=1), stand_in, tmp_path / "log")
    with np.load(tmp_path / "seen.npz") as seen:
        for part, split in ((train, "train"), (test, "test")):
            assert np.array_equal(seen[f"x_{split}"], part.images[:].permute(0, 2, 3, 1)), split
            assert seen[f"y_{split}"].tolist() == part.labels.tolist()
        expected = normalised_for_ddranking(to_unit(to_signed(syn.images[:])))
        assert np.array_equal(seen["images"], expected) and seen["labels"].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "fid"], "unknown judge 'fid'; known: ddranking"),
        (["--judge", "ddranking:many"], "after the colon stands the number of epochs"),
        (["--judge", "ddranking:5"], "tests every 10 epochs: 5 are too few"),
        (["--judge", "ddranking", "--networks", "resnet18"], "known: ConvNet-3, ConvNet-3-BN"),
        (["--judge", "ddranking", "--networks", "ConvNet-3", "ConvNet-3-BN"], "takes one network"),
        (["--judge", "ddranking", "--protocol", "dm"], "--protocol is of gencond's own evaluation"),
        (["--judge", "ddranking", "--stream"], "--stream is of gencond's own evaluation"),
        (["--judge", "ddranking", "--seeds", "0"], "--seeds must be at least 1"),
        (["--judge", "ddranking", "--ipc", "0"], "must be at least 1"),
        (["--judge", "ddranking", "--ipc", "3"], "holds 2 images of each class"),
        (["--judge", "ddranking", "--judge-lr", "0"], "--judge-lr must be above 0"),
        (["--judge", "ddranking", "--judge-lr", "nan"], "--judge-lr must be above 0"),
        (["--judge", "ddranking", "--judge-python", "/no/python"], "/no/python is no program"),
        (["--judge-lr", "0.1"], "name it with --judge ddranking"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    out = tmp_path / "judged"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(tmp_path / "theirs.pt"), "--data", str(data), "--out", str(out), *arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gencond:")]
    assert ended.value.code == 2 and len(lines) == 1 and message in lines[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("echo one >&2; echo the last words >&2; exit 3", "the last words"),
        ("kill -9 $$", "killed by signal 9"),
        (f'export PYTHONPATH=""; exec "{sys.executable}" "$@"', "No package metadata was found for ddranking"),
    ],
)
def test_a_failure_over_there_is_one_line_and_its_log_is_kept(tmp_path: Path, lines: str, message: str) -> None:
    python, log = program(tmp_path / "python", lines), tmp_path / "out" / "ddranking.log"
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        score_by_ddranking(real_images(1, 3), 1, real_images(2, 1), real_images(1, 2), Settings(), python, log)
    assert str(log) in str(raised.value) and log.is_file()


def test_another_version_is_refused(tmp_path: Path, stand_in: str) -> None:
    metadata = tmp_path / "packages" / f"ddranking-{VERSION}.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace(VERSION, "0.3.0"))
    with pytest.raises(InputError, match="ddranking 0.3.0 is installed, 0.2.0 is what was tried"):
        score_by_ddranking(
            real_images(1, 3), 1, real_images(2, 1), real_images(1, 2), Settings(), stand_in, tmp_path / "log"
        )


def test_an_environment_is_made_once_and_whole(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(what: str, command: list[str], log: Path) -> None:
        commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            place = Path(command[3]).joinpath(*environment.BIN)
            place.parent.mkdir(parents=True)
            place.touch()
        elif len(commands) == 2:
            raise InputError("pip failed")

    monkeypatch.setattr(environment, "run_logged", run)
    with pytest.raises(InputError, match="pip failed"):
        made_python("judge", ["judge==1"], sys.version_info.minor)
    assert not (own_cache / "environments" / "judge").exists()
    python = made_python("judge", ["judge==1"], sys.version_info.minor)
    assert made_python("judge", ["judge==1"], sys.version_info.minor) == python and Path(python).is_file()
    assert len(commands) == 4 and commands[3][-2:] == ["install", "judge==1"]
    with pytest.raises(InputError, match="name it with --judge-python"):
        made_python("other", ["judge==1"], sys.version_info.minor - 1)


@pytest.mark.slow
def test_the_package_itself_scores_a_small_set(tmp_path: Path) -> None:
    python = os.environ.get("GENCOND_DDRANKING_PYTHON")
    if python is None:
        pytest.skip(f"GENCOND_DDRANKING_PYTHON names no Python that has ddranking=={VERSION}")
    train, test = real_images(20, 1), real_images(10, 2)
    syn = train.subset(torch.cat([train.rows_of(label)[:2] for label in range(10)]))
    settings = Settings(epochs=10, num_eval=1, learning_rate=0.05)
    found = score_by_ddranking(syn, 2, train, test, settings, ddranking_python(python), tmp_path / "log")
    means = {name: getattr(found, name).mean for name in ("condensed", "random_real", "whole_set", "hlr", "ior", "lrs")}
    assert means["hlr"] == pytest.approx(means["whole_set"] - means["condensed"])
    assert means["ior"] == pytest.approx(means["condensed"] - means["random_real"])
    assert means["lrs"] == pytest.approx(label_robust_score(means["hlr"], means["ior"]))
    assert means["whole_set"] > 0.3  # colours are learned; a wrong order of the labels would leave one in ten
