"""Appending: an artefact grows by classes or images, and what is not learned again keeps its bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

import gencond
from gencond.cli import main
from gencond.common.errors import InputError
from gencond.condensing.append import growth
from gencond.condensing.checks import recipe_to_append_by
from gencond.data.foreign import read_foreign
from gencond.data.images import LabeledImages
from gencond.data.load import load_real
from gencond.data.select import subset_of_each_class
from gencond.generator.dataset import CondensedDataset
from gencond.generator.pixels import CondensedPixels


def write(file: Path, data: LabeledImages, digits: list[int]) -> str:
    """An npz of some digits, twelve images of each to learn from and twelve to test on; its path."""
    images, labels = [data.images[data.labels == digit] for digit in digits], np.arange(len(digits)).repeat(12)
    arrays = {
        name: torch.cat([one[part] for one in images]).permute(0, 2, 3, 1).numpy()
        for name, part in (("x_train", slice(0, 12)), ("x_test", slice(12, 24)))
    }
    names = [f"digit {digit}" for digit in digits]
    np.savez(file, **arrays, y_train=labels, y_test=labels, names=np.array(names))
    return str(file)


@pytest.fixture(scope="module")
def first(digits: tuple[LabeledImages, LabeledImages], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the digits 2, 5 and 8."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENCOND_CACHE", str(folder / "cache"))
        gencond.condense(write(folder / "old.npz", digits[0], [2, 5, 8]), folder / "run", "demo", overrides=TINY)
    return folder / "run"


def samples(artefact: Path | CondensedDataset, classes: list[str]) -> torch.Tensor:
    condensed = artefact if isinstance(artefact, CondensedDataset) else gencond.load(artefact)
    return condensed.sample(9, classes=classes)[0]  # four are learned


@pytest.mark.parametrize("kind", ["pool", "online"])
def test_images_of_old_classes_keep_their_bits_when_classes_are_appended(
    first: Path, digits: tuple[LabeledImages, LabeledImages], tmp_path: Path, kind: str
) -> None:
    """Learned and fresh ones, through the file too, though the new class's name comes before theirs."""
    changing = [] if kind == "pool" else ["features.kind=online", "real.kind=random", "objective.scale=sum"]
    changing += [] if kind == "pool" else ["condense.stream_probability=0", "objective.mean_weight=0"]
    changing += [] if kind == "pool" else ["codes.learnable_first=true", "codes.ranking_steps=20"]
    before = (first / "condensed" / "config.json").read_bytes()
    grown = gencond.append(first, write(tmp_path / "new.npz", digits[0], [0]), tmp_path / "grown", overrides=changing)
    old = ["digit 2", "digit 5", "digit 8"]
    assert grown.class_names == [*old, "digit 0"] and grown.config.class_groups == [3, 1]
    told = grown.config.provenance["appended"][0]
    assert told.get("num_asked") == (12 if kind == "online" else None) and told.get("num_known", 0) <= 12
    for artefact in (grown, tmp_path / "grown"):
        assert torch.equal(samples(artefact, old), samples(first, old))
    assert (first / "condensed" / "config.json").read_bytes() == before
    generator, own = gencond.load(first).generator.state_dict(), grown.generator.state_dict()
    for name, weight in generator.items():
        assert torch.equal(own[name][: len(weight)] if name == "class_embedding.weight" else own[name], weight)


def test_codes_of_an_appended_class_are_learned(
    first: Path, digits: tuple[LabeledImages, LabeledImages], tmp_path: Path
) -> None:
    """The first image is nearer to the class's mean than the one that its codes started from at random."""
    new = write(tmp_path / "new.npz", digits[0], [0])
    steps = ["codes.encode_steps=60", "condense.num_steps=20", "codes.encode_code_lr=0.05"]
    grown = gencond.append(first, new, tmp_path / "grown", overrides=steps)
    onto = gencond.load(first)
    assert isinstance(onto, CondensedDataset)
    zeros = digits[0].images[digits[0].labels == 0].float() / 255
    started = growth(onto, LabeledImages(digits[0].images[:2], torch.zeros(2).long(), ("zero",)), False).start(
        {"data": {}}
    )
    learned, random = (one.sample(4, classes=[3])[0].mean(0) for one in (grown, started))
    assert (learned - zeros.mean(0)).square().mean() < 0.8 * (random - zeros.mean(0)).square().mean()


def test_a_class_is_learned_again_from_more_images_and_the_others_keep_their_bits(
    first: Path, digits: tuple[LabeledImages, LabeledImages], tmp_path: Path
) -> None:
    more = write(tmp_path / "more.npz", digits[0], [3, 5])
    with pytest.raises(InputError, match="has class 'digit 5' already .1 of the new images' 2 classes.: --more-images"):
        gencond.append(first, more, tmp_path / "grown")
    assert not (tmp_path / "grown").exists()
    grown = gencond.append(first, more, tmp_path / "grown", more_images=True)
    assert torch.equal(samples(grown, ["digit 2", "digit 8"]), samples(first, ["digit 2", "digit 8"]))
    assert not torch.equal(samples(grown, ["digit 5"]), samples(first, ["digit 5"]))
    made = grown.config.provenance
    assert made["data"]["num_images"] == 36 and made["appended"][0]["data"]["num_images"] == 24
    assert made["appended"][0]["classes"] == ["digit 3", "digit 5"]


def test_an_artefact_grows_again_and_again_and_is_sampled_exported_and_judged(
    first: Path, digits: tuple[LabeledImages, LabeledImages], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main(["append", str(first), "--data", write(tmp_path / "b.npz", digits[0], [9]), "--out", str(tmp_path / "b")])
    said = capsys.readouterr().out
    assert "b --data ALL\n" in said and "ALL holds images of all 4 classes" in said and "gencond sample" in said
    main(
        [
            "append",
            str(tmp_path / "b"),
            "--data",
            write(tmp_path / "c.npz", digits[0], [1, 4]),
            "--out",
            str(tmp_path / "c"),
        ]
    )
    grown = gencond.load(tmp_path / "c")
    assert grown.class_names == [f"digit {digit}" for digit in (2, 5, 8, 9, 1, 4)]
    assert torch.equal(samples(tmp_path / "c", ["digit 9"]), samples(tmp_path / "b", ["digit 9"]))
    grown.export(tmp_path / "images", 2)
    assert len(list((tmp_path / "images").rglob("*.png"))) == 12
    card = (tmp_path / "c" / "condensed" / "README.md").read_text()
    assert "12 images of b.npz" in card and "24 images of c.npz" in card and "digit 1, digit 4" in card
    everything = write(tmp_path / "all.npz", digits[0], [1, 2, 4, 5, 8, 9])
    with pytest.raises(InputError, match="was appended to: name images of all its 6 classes by --data"):
        gencond.evaluate(tmp_path / "c", ipc=1, baselines=[])
    judged = gencond.evaluate(tmp_path / "c", everything, ipc=1, baselines=[])
    assert judged.class_names == tuple(grown.class_names)
    exported = read_foreign(tmp_path / "images", load_real(everything)[0]).images
    sampled = gencond.load(tmp_path / "c").sample(2, classes=["digit 1"])[0]
    assert torch.equal(exported.images[exported.labels == 0], (sampled * 255).round().to(torch.uint8))
    smaller = grown.stored_as("int8")
    smaller.save_pretrained(tmp_path / "int8")
    assert gencond.load(tmp_path / "int8").class_groups == [3, 1, 2]


def test_a_killed_append_goes_on_to_the_same_bits_and_leaves_the_artefact_whole(
    first: Path, digits: tuple[LabeledImages, LabeledImages], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = write(tmp_path / "new.npz", digits[0], [0, 7])
    whole = gencond.append(first, new, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("gencond.condensing.run.write_artefact", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            gencond.append(first, new, tmp_path / "killed")
    assert not (tmp_path / "killed" / "condensed").exists() and gencond.load(first).num_classes == 3
    again = gencond.append(first, new, tmp_path / "killed")
    assert again.fingerprint == whole.fingerprint
    other = gencond.append(first, write(tmp_path / "b.npz", digits[0], [9]), tmp_path / "b")
    assert other.num_classes == 4
    with pytest.raises(InputError, match=r"was started with artefact weights \w+, and is now asked for with artefact"):
        gencond.append(tmp_path / "b", new, tmp_path / "killed")


def test_old_classes_stand_beside_the_new_images_as_often_as_these(
    first: Path, digits: tuple[LabeledImages, LabeledImages]
) -> None:
    onto = gencond.load(first)
    assert isinstance(onto, CondensedDataset)
    new = subset_of_each_class(digits[0], 20, lambda rows: torch.arange(20)).subset(torch.arange(40))
    named = LabeledImages(new.images, new.labels, ("digit 0", "digit 5"))
    both = growth(onto, named, True).beside_replay(named)
    assert both.class_names == ("digit 2", "digit 5", "digit 8", "digit 0")
    # Of a class that is learned again twelve images, as many as it had; of the others as many as new ones of a class.
    assert both.counts.tolist() == [20, 20 + 12, 20, 20]
    own = onto.sample(4, classes=["digit 8"])[0]
    assert torch.equal(both.images[both.labels == 2][:4].float() / 255, (own * 255).round() / 255)


def test_what_nothing_can_be_appended_to_is_refused(
    first: Path, few_digits: LabeledImages, digits: tuple[LabeledImages, LabeledImages], tmp_path: Path
) -> None:
    pixels = CondensedPixels(few_digits.class_names, 1, 8, 1)
    with pytest.raises(InputError, match="the artefact is pixels, which nothing can be appended to"):
        growth(pixels, few_digits, False)
    onto = gencond.load(first)
    with pytest.raises(InputError, match="codes.num_slots=9: what is appended to has 4, which stays"):
        recipe_to_append_by(onto, "digits", ["codes.num_slots=9"])
    colour = LabeledImages(few_digits.images.expand(-1, 3, -1, -1), few_digits.labels, few_digits.class_names)
    with pytest.raises(InputError, match="makes images of 1 channel.s. and 8 px, the new ones have 3 and 8 px"):
        growth(onto, colour, False)
    for out in (first, first / "condensed" / ".."):
        with pytest.raises(InputError, match="is what is appended to, which stays as it is"):
            gencond.append(first, write(tmp_path / "new.npz", digits[0], [0]), out)
    for change, message in (
        ("generator.width=16", "generator.width: 8 there, 16 here: the artefact's generator stays"),
        ("generator.backbone=biggan_deep", "generator.backbone: biggan there, biggan_deep here"),
        ("synthesizer.kind=pixels", "synthesizer.kind: generator there, pixels here"),
        ("codes.fresh=none", "codes.fresh=none: what is appended to has prior"),
    ):
        with pytest.raises(InputError, match=message):
            recipe_to_append_by(onto, "digits", [change])
    with pytest.raises(InputError, match="the artefact is pixels"):
        recipe_to_append_by(pixels, "digits", [])
    new = write(tmp_path / "one.npz", digits[0], [0])
    with pytest.raises(InputError, match="one class has no distance to others"):
        gencond.append(
            first,
            new,
            tmp_path / "out",
            overrides=["real.kind=random", "objective.mean_weight=0", "objective.scale=relative"],
        )
