"""`gencond doctor` says what a run takes and what it lacks, and starts nothing."""

import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import gencond.data.decode
from gencond.cli import main
from gencond.common.progress import spoken_time
from gencond.condensing.forecast import Amount, Cost, _Rehearsal, cost_of, forecast
from gencond.config import load_recipe
from gencond.data.images import LabeledImages
from gencond.data.load import load_data
from gencond.data.overlap import notes_on_overlap
from gencond.doctor import Findings, check_weights
from gencond.generator.published import kept_file


def asked(capsys: pytest.CaptureFixture, *arguments: str, fails: bool = False) -> str:
    """What the doctor prints; with the line that ends it where it finds something."""
    capsys.readouterr()
    if not fails:
        main(["doctor", *arguments])
        return capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and len(re.findall("^gencond: ", err, re.M)) == 1
    return out + err


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cow"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
                tmp_path / "set" / name / f"{number}.png"
            )
    return tmp_path / "set"


def test_every_stage_of_the_demo_has_its_line_and_nothing_is_left_behind(
    capsys: pytest.CaptureFixture, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = asked(capsys, "--recipe", "demo", "--data", "digits", *TINY)
    assert "1,198 training and 599 test images, 10 classes, 1x8x8 px" in said
    for stage in ("reading images", "pretrain", "extractors", "statistics", "representatives", "encode", "condense"):
        assert re.search(rf"^{stage} .* (s|min)$", said, re.M), stage
    assert "nothing stands in the way" in said and re.search(r"memory +[\d.]+ GB; +disk", said)
    assert not list(tmp_path.iterdir()) and not list(own_cache.iterdir())


@pytest.mark.parametrize(
    "recipe",
    [
        "dm:digits",
        "dream:digits",
        "m3d:digits",
        "cached:digits",
        "generative",
        "gencond:digits",
        "gencond:digits:stream",
    ],
)
def test_every_kind_of_recipe_is_forecast(digits: tuple[LabeledImages, LabeledImages], recipe: str) -> None:
    overrides = ["features.width=4", "real.batch_size=4", "features.train_images=16", "generator.width=8"]
    small = [*overrides, "pretrain.num_steps=2", "pretrain.discriminator_width=8", "real.num_frequencies=12"]
    small += ["codes.num_slots=100"]  # of which a class has more images
    chosen = load_recipe(recipe, [*small, "features.compile=false"], "digits")
    sample = digits[0].subset(torch.arange(64))
    found = forecast(chosen, sample, Amount(1797, 1198, 120, 115008, False, 0.5, 0), torch.device("cpu"))
    assert found.stages[-1 - (chosen.real.kind == "representatives")].name == "condense" and found.seconds > 0.5
    makes = chosen.synthesizer.kind == "generator"
    tries, names = makes and chosen.codes.skip_easiest is not None, [stage.name for stage in found.stages]
    assert names.count("ranking") == (tries or (makes and chosen.codes.learnable_first))
    assert names.count("trying what to skip") == tries
    assert found.memory > 10**8 and found.out > 0 and found.gpu_memory == 0


@pytest.mark.parametrize("recipe", ["demo", "dm:digits"])
def test_quick_scores_are_a_line_of_the_forecast_where_images_are_held_out(
    digits: tuple[LabeledImages, LabeledImages], recipe: str
) -> None:
    small = TINY if recipe == "demo" else ["features.width=4", "real.batch_size=4"]
    chosen = load_recipe(recipe, [*small, "condense.num_steps=90", "condense.score_every_steps=40"], "digits")
    sample = digits[0].subset(torch.arange(64))
    for num_held_out in (0, 120):
        amount = Amount(1797, 1198 - num_held_out, 120, 115008, False, 0.5, 0, num_held_out)
        found = forecast(chosen, sample, amount, torch.device("cpu"))
        scores = [stage for stage in found.stages if stage.name == "quick scores"]
        assert [stage.amount for stage in scores] == ["3, of 100 steps"] * bool(num_held_out)
        assert all(stage.seconds > 0 for stage in scores)


def test_images_that_are_held_out_for_quick_scores_are_counted_apart(capsys: pytest.CaptureFixture) -> None:
    scored = [*TINY, "condense.score_every_steps=4"]
    main(["doctor", "--recipe", "demo", "--data", "digits", *scored])
    said = capsys.readouterr().out
    assert "1,078 training, 120 held out for quick scores and 599 test images" in said
    assert re.search(r"^quick scores +2, of 100 steps .* s$", said, re.M)


def test_more_images_take_the_pass_longer_and_more_disk_where_they_are_decoded(
    digits: tuple[LabeledImages, LabeledImages],
) -> None:
    recipe, sample = load_recipe("demo", TINY, "digits"), digits[0].subset(torch.arange(64))
    few, many = (
        forecast(
            recipe, sample, Amount(count, count, count // 10, 64 * count, True, 0.0, 64 * count), torch.device("cpu")
        )
        for count in (10**3, 10**6)
    )
    seconds = [{stage.name: stage.seconds for stage in one.stages}["statistics"] for one in (few, many)]
    assert 100 < seconds[1] / seconds[0] < 10_000
    assert many.cache - few.cache == 64 * (10**6 - 10**3) and abs(many.memory - few.memory) < 10**8


def test_of_a_long_step_a_small_one_is_timed(
    digits: tuple[LabeledImages, LabeledImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, sample = load_recipe("demo", TINY, "digits"), digits[0].subset(torch.arange(64))
    amount = Amount(1797, 1198, 120, 115008, False, 0.5, 0)
    assert not forecast(recipe, sample, amount, torch.device("cpu")).notes
    monkeypatch.setattr("gencond.condensing.forecast.LONGEST_STEP", 0.0)
    monkeypatch.setattr("gencond.condensing.forecast.TIMED_AT_ONCE", 4)
    found = forecast(recipe, sample, amount, torch.device("cpu"))
    assert "smaller ones were timed" in found.notes[0] and found.stages[-1].name == "condense"


@pytest.mark.parametrize("longest_step", [0.0, 1e9])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize(("fixed", "of_class", "of_slot"), [(60.0, 0.0, 0.001), (0.1, 0.5, 0.0), (2.0, 0.1, 0.02)])
def test_what_is_fixed_in_a_step_is_not_scaled_with_the_classes(
    longest_step: float, num_classes: int, fixed: float, of_class: float, of_slot: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("gencond.condensing.forecast.LONGEST_STEP", longest_step)
    lengths, probability, fresh = [1, 10, 10, 50], 0.25, 20
    recipe = load_recipe("gencond", [
        f"condense.prefix_lengths={lengths}", f"condense.stream_probability={probability}", "condense.num_steps=800",
        f"condense.stream_length={fresh}", "condense.classes_per_step=64",
        "condense.prefixes_at_once=false",
    ])  # fmt: skip
    timed = []

    def time_step(classes: int, slots: int) -> Cost:
        timed.append(classes)
        return Cost(fixed + classes * (of_class + of_slot * slots), 30.0)

    case = SimpleNamespace(
        parts=SimpleNamespace(condense=recipe.condense, data=SimpleNamespace(num_classes=num_classes)), notes=[]
    )
    found = _Rehearsal._cost_of_steps(case, time_step, 50)
    classes = min(num_classes, 64)
    slots = probability * fresh + (1 - probability) * sum(lengths) / 4
    assert found.each == pytest.approx(fixed + classes * (of_class + of_slot * slots))
    assert found.once == 4 * 30.0  # code is compiled for each length: 1, 10, 20, 50
    assert max(timed) == (4 if num_classes > 10 and not longest_step else classes)


def test_compiling_is_counted_once() -> None:
    steps = iter([100.0, 2.0, 2.0, 2.0, 2.0])
    assert cost_of(lambda count: sum(next(steps) for _ in range(count)), compiles=True) == Cost(2.0, 98.0)
    assert cost_of(lambda count: 100.0 * count) == Cost(100.0)  # not compiled: long enough to tell
    assert Cost(2.0, 98.0).of(800) == 1698.0


def test_a_folder_is_counted_and_only_some_of_it_is_read(
    photographs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setattr("gencond.examine.SAMPLE_IMAGES", 4)
    monkeypatch.setattr(gencond.data.decode, "MAPPED_ABOVE_BYTES", 0)
    (photographs / "ant" / "1.png").write_bytes(b"broken, but not among those that are read")
    said = asked(capsys, "--recipe", "demo", "--data", str(photographs), *TINY, "generator.num_blocks=null")
    assert "12 training and 6 test images, 3 classes, 3x20x20 px, 0.1 MB decoded once into the cache" in said
    assert not list(own_cache.glob("images/*"))


def test_what_is_missing_is_named_line_by_line_and_ends_with_status_2(
    photographs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gencond.doctor.can_compile", lambda: False)
    monkeypatch.setattr("gencond.examine.SAMPLE_IMAGES", 20)
    for path in list((photographs / "bee").iterdir())[1:]:
        path.unlink()
    said = asked(
        capsys, "--data", str(photographs), "features.compile=true", "features.network=mobilenetv3_small_050",
        f"features.weights={tmp_path / 'none.pth'}", "generator.width=8", "pretrain.num_steps=1", "features.resize=32",
        "features.num_trajectories=0", "features.num_random=1", "objective.classification_weight=0",
        "condense.num_steps=1", "evaluate.networks=[unheard]", "synthesizer.factor=1", "synthesizer.by_parts=false",
        fails=True,
    )  # fmt: skip
    missing = re.findall("^missing +(.*)$", said, re.M)
    assert [re.sub(r"[=:].*", "", line) for line in missing] == [
        "features.weights", "features.compile needs a C++ compiler (g++)",
        "class 'bee' has 1 image(s)", "unknown network 'unheard'",
    ]  # fmt: skip
    assert "gencond: this run would fail: features.weights" in said and "(and 3 more)" in said


@pytest.mark.parametrize("emulated", [True, False])
def test_a_recipe_in_bfloat16_is_advised_against_where_a_cpu_emulates_it(
    emulated: bool, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gencond.networks.extractor.emulates_bfloat16", lambda device: emulated)
    recipe = ["--recipe", "demo", "--data", "digits", *TINY]
    assert "bfloat16" not in asked(capsys, *recipe)
    for part in ("features", "generator"):
        assert (f"set {part}.precision=float32" in asked(capsys, *recipe, f"{part}.precision=bfloat16")) == emulated


def test_weights_of_the_hub_are_looked_for_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(cached: str | None, offline: str, network: str = "resnet18") -> Findings:
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *where: cached)
        found = Findings()
        recipe = load_recipe("demo", [f"features.network={network}", "features.weights=pretrained"], "digits")
        assert check_weights(recipe, found).features.weights is None  # what is timed needs none
        return found

    said = "the weights of resnet18 are not on this machine: the run downloads them (timm/resnet18"
    online, offline = weights(None, "0"), weights(None, "1")
    assert online.notes[0].startswith(said) and not online.blocks
    assert offline.blocks[0].startswith(said) and not offline.notes
    assert weights("model.safetensors", "1") == Findings()
    assert weights(None, "0", "test_resnet").blocks == [] and weights(None, "0", "unheard") == Findings()


def test_weights_of_generators_are_looked_for_on_this_machine(tmp_path: Path) -> None:
    def weights(source: str) -> tuple[Findings, str | None]:
        found = Findings()
        recipe = load_recipe("imagenet1k-128", ["features.weights=null", f"generator.weights={source}"], "digits")
        return found, check_weights(recipe, found).generator.weights

    found, timed = weights("imagenet1k")
    assert "the run downloads https://" in found.notes[0] and timed is None and not found.blocks
    url = found.notes[0].rpartition(" ")[2]
    kept_file(url).parent.mkdir(parents=True)
    kept_file(url).touch()
    assert weights("imagenet1k") == (Findings(), "imagenet1k")
    assert weights(str(tmp_path)) == (Findings(), str(tmp_path))
    assert "reads or downloads" in weights("owner/name")[0].notes[0]
    assert weights("/no/such/file.pth")[0].blocks == [
        "generator.weights=/no/such/file.pth: no such file, folder, URL or Hub id"
    ]


def test_too_little_space_is_said(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gencond.doctor.free_space", lambda path: 1000)
    memory = SimpleNamespace(total=10**8, available=10**8)
    monkeypatch.setattr("gencond.doctor.psutil.virtual_memory", lambda: memory)
    said = asked(capsys, "--recipe", "demo", "--data", "digits", *TINY, fails=True)
    assert "of memory are needed, the machine has 0.1 GB" in said
    assert "the cache needs" in said and "the run folder needs" in said and "choose another --out" in said


def test_missing_data_and_parts_without_meaning_are_said_together(capsys: pytest.CaptureFixture) -> None:
    said = asked(capsys, "--recipe", "dm", "--data", "/nowhere", "real.kind=statistics", fails=True)
    assert "missing  recipe dm: statistics cannot be kept" in said and "missing  no such data: '/nowhere'" in said


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (7.26, "7.3 s"), (88.0, "88 s"), (600.0, "10 min"), (7300.0, "2.0 h"), (3e5, "3.5 days")],
)
def test_times_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert spoken_time(seconds) == words


# --- what would be said too late


def with_a_test_set(photographs: Path, root: Path, copies: int) -> Path:
    """`train/` and `test/`; so many test images are training images of another class."""
    shutil.copytree(photographs, root / "train")
    rng = np.random.default_rng(1)
    for name in ("ant", "bee", "cow"):
        (root / "test" / name).mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "test" / name / f"{number:02d}.png")
    for number in range(copies):
        shutil.copy(root / "train" / "bee" / f"{number}.png", root / "test" / "cow" / f"{number:02d}.png")
    return root


SMALL = ("--recipe", "demo", *TINY, "generator.num_blocks=null")


def test_copies_among_train_and_test_are_named_by_class_and_file_before_a_run(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    one, many = (with_a_test_set(photographs, tmp_path / str(copies), copies) for copies in (1, 3))
    first = "first test/cow/00.png of class 'cow', which is training image train/bee/0.png of class 'bee'"
    said = asked(capsys, "--data", str(one), *SMALL, "data.image_size=20")
    assert re.search(f"^note +1 of 180 test images of {one} are training images too, {first}$", said, re.M)
    said = asked(capsys, "--data", str(many), *SMALL, "data.image_size=20", fails=True)
    assert re.search(f"^missing +3 of 180 test images .*{first}: remove them from the test set$", said, re.M)
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        main(["condense", "--data", str(many), "--out", str(out), *SMALL, "data.image_size=20"])
    assert ended.value.code == 2 and first in capsys.readouterr().err and not out.exists()
    assert notes_on_overlap(*load_data(part := load_recipe("demo", ["data.image_size=20"], str(one)).data), part)
    assert first in caplog.text


def test_copies_of_a_set_without_files_are_named_by_class_and_number(
    tmp_path: Path, capsys: pytest.CaptureFixture, digits: tuple[LabeledImages, LabeledImages]
) -> None:
    train, test = digits
    x, y = torch.cat([train.images, test.images[4:5]])[:, 0], torch.cat([train.labels, test.labels[4:5]])
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=test.images[:, 0], y_test=test.labels)
    said = asked(capsys, "--data", str(tmp_path / "d.npz"), "--recipe", "demo", *TINY)
    name = test.class_names[int(test.labels[4])]
    assert f"first number 4 of class '{name}', which is training image number {len(train)} of class '{name}'" in said


def test_a_place_for_the_run_that_cannot_be_written_to_is_missing_and_nothing_is_made(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    said = asked(capsys, "--recipe", "demo", "--data", "digits", "--out", str(tmp_path / "file/run"), *TINY, fails=True)
    assert re.search(r"^missing +\S+/file cannot be written to", said, re.M)
    asked(capsys, "--recipe", "demo", "--data", "digits", "--out", str(tmp_path / "new/run"), *TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_a_class_whose_name_is_not_utf8_is_said_by_doctor_and_before_anything_is_decoded(
    photographs: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    os.rename(photographs / "bee", os.fsencode(photographs) + b"/caf\xe9")
    said = asked(capsys, "--data", str(photographs), *SMALL, fails=True)
    assert "class 'caf\\udce9' is not UTF-8: rename it" in said
    with pytest.raises(SystemExit):
        main(["condense", "--data", str(photographs), "--out", str(tmp_path / "run"), *SMALL])
    assert "class 'caf\\udce9' is not UTF-8: rename it" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("condense.prefix_lengths=[1,5]", "prefix_lengths asks for 5 slots of codes.fresh=none and codes.num_slots=4"),
        ("evaluate.ipc=[1,5]", "evaluate.ipc asks for 5 images of codes.fresh=none and codes.num_slots=4"),
    ],
)
def test_more_slots_than_there_are_is_said_by_doctor_and_condense(
    override: str, message: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    chosen = [*TINY, "codes.fresh=none", "condense.stream_probability=0", override]
    assert message in asked(capsys, "--recipe", "demo", "--data", "digits", *chosen, fails=True)
    with pytest.raises(SystemExit):
        main(["condense", "--recipe", "demo", "--data", "digits", "--out", str(tmp_path / "run"), *chosen])
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
