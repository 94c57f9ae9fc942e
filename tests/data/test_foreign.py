"""Anybody's condensed set is read as it was stored, or refused in one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.ranges import to_signed, to_unit
from gencond.data.foreign import is_foreign, read_foreign, side_of
from gencond.data.images import LabeledImages
from gencond.data.select import random_subset
from gencond.generator.packing import decode
from gencond.generator.pixels import CondensedPixels


@pytest.fixture
def condensed(few_digits: LabeledImages) -> LabeledImages:
    """Two images of each class, in an order of their own."""
    two = random_subset(few_digits, 2, seed=0)
    return two.subset(torch.randperm(20, generator=torch.Generator().manual_seed(1)))


def floats(data: LabeledImages) -> Tensor:
    return to_unit(to_signed(data.images))


WRITERS: dict[str, Callable[[LabeledImages, Path], None]] = {
    "pair.pt": lambda data, path: torch.save((floats(data), data.labels), path),
    "names.pt": lambda data, path: torch.save({"images": floats(data), "labels": data.labels}, path),
    "dc.pt": lambda data, path: torch.save(
        {"data": [[floats(data), data.labels]], "accs_all_exps": {"C": [np.float64(0.5)]}}, path
    ),
    "t.safetensors": lambda data, path: save_file({"x_train": floats(data), "y_train": data.labels}, path),
    "t.npz": lambda data, path: np.savez(path, images=floats(data).permute(0, 2, 3, 1).numpy(), labels=data.labels),
}


@pytest.mark.parametrize("name", WRITERS)
def test_tensor_files_of_all_kinds_give_the_same_class_major_images(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path, name: str
) -> None:
    WRITERS[name](condensed, tmp_path / name)
    assert is_foreign(tmp_path / name)
    found = read_foreign(tmp_path / name, few_digits)
    assert found.ipc == 2 and found.stored == "images as float32"
    assert found.num_bytes(1) == 10 * 64 * 4 and found.num_bytes(2) == 20 * 64 * 4
    order = condensed.labels.argsort(stable=True)
    two = found.sample(2)
    assert two.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert two.class_names == few_digits.class_names
    torch.testing.assert_close(two.images, to_signed(condensed.images[order]))
    assert torch.equal(found.sample(1).images, two.images[::2])


def test_bytes_and_half_precision_are_counted_as_stored(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path
) -> None:
    torch.save((condensed.images, condensed.labels), tmp_path / "bytes.pt")
    torch.save((floats(condensed).half(), condensed.labels), tmp_path / "half.pt")
    assert read_foreign(tmp_path / "bytes.pt", few_digits).num_bytes(2) == 20 * 64
    assert read_foreign(tmp_path / "half.pt", few_digits).num_bytes(2) == 20 * 64 * 2


def test_a_folder_of_images_counts_the_bytes_of_its_files(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path
) -> None:
    for number, (image, label) in enumerate(zip(condensed.images, condensed.labels.tolist(), strict=True)):
        folder = tmp_path / "set" / few_digits.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{number:02d}.png")
    found = read_foreign(tmp_path / "set", few_digits)
    assert is_foreign(tmp_path / "set") and found.ipc == 2
    assert found.num_bytes(2) == sum(path.stat().st_size for path in (tmp_path / "set").rglob("*.png"))
    assert torch.equal(found.sample(2).images, condensed.images[condensed.labels.argsort(stable=True)])
    (tmp_path / "set" / "9").rename(tmp_path / "set" / "nine")
    with pytest.raises(InputError, match="10 class folders, the real images 10 classes; '9' is in one of them only"):
        read_foreign(tmp_path / "set", few_digits)


def test_normalised_floats_are_brought_back_and_not_clamped(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path
) -> None:
    images = floats(condensed)
    images[0, 0, 0, 0] = 1.5  # DM leaves the range of images
    torch.save(((images - 0.3) / 0.2, condensed.labels), tmp_path / "n.pt")
    with pytest.raises(InputError, match=r"floats from -1\.50 to 6\.00, not in \[0, 1\]: say what .* --normalised-by"):
        read_foreign(tmp_path / "n.pt", few_digits)
    found = read_foreign(tmp_path / "n.pt", few_digits, normalised_by=([0.3], [0.2])).sample(2)
    order = condensed.labels.argsort(stable=True)
    torch.testing.assert_close(found.images, images[order] * 2 - 1)
    assert float(found.images.max()) == pytest.approx(2.0)


def test_factor_cuts_every_image_where_it_is_used(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path
) -> None:
    torch.save((condensed.images, condensed.labels), tmp_path / "p.pt")
    found = read_foreign(tmp_path / "p.pt", few_digits, factor=2)
    cut, whole = found.sample(1), read_foreign(tmp_path / "p.pt", few_digits).sample(1)
    assert cut.labels.tolist() == [label for label in range(10) for _ in range(4)]
    torch.testing.assert_close(cut.images, decode(to_signed(whole.images), 2))
    assert found.num_bytes(1) == 640  # what is stored, before it is cut


def _images(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda images, labels: (change(images), labels)


def _labels(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda images, labels: (images, change(labels))


def _nan(images: Tensor) -> Tensor:
    images[3, 0, 0, 0] = torch.nan
    return images


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_images(_nan), "1 images hold NaN or infinity, the first is number 3"),
        (_images(lambda x: x.expand(-1, 3, -1, -1)), r"images of shape \[20, 3, 8, 8\], the real ones are \[1, 8, 8\]"),
        (_images(lambda x: x[..., :7]), r"images of shape \[20, 1, 8, 7\]"),
        (_images(lambda x: x.long()), "images of type torch.int64: expected bytes"),
        (_images(lambda x: x[:19]), r"19 images and labels of shape \[20\]"),
        (_labels(lambda y: y + 1), r"has label 10; the real classes are 0 \.\. 9: subtract 1 where labels start at 1"),
        (_images(lambda x: x / 0.0), "20 images hold NaN or infinity"),
        (_images(lambda x: x.half() * 1e6), "images hold NaN or infinity"),
        (_labels(lambda y: y - 1), "has label -1"),
        (_labels(lambda y: y.clamp_max(8)), r"has no image of class '9' \(1 classes lack any\)"),
        (lambda x, y: (x[:0], y[:0]), r"images of shape \[0, 1, 8, 8\]"),
        (_labels(lambda y: torch.eye(10)[y]), r"labels of shape \[20, 10\] .*soft labels are not"),
        (lambda x, y: (x.repeat(7, 1, 1, 1), y.repeat(7)), "14 images of each class, more than the 120 real ones"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path, spoil: Callable, message: str
) -> None:
    torch.save(spoil(floats(condensed), condensed.labels), tmp_path / "set.pt")
    with pytest.raises(InputError, match=message) as caught:
        read_foreign(tmp_path / "set.pt", few_digits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1)}, "holds a; expected images and labels"),
        (torch.zeros(3), "does not hold a pair of tensors"),
        ((torch.zeros(20, 1, 8, 8), [0] * 20), "does not hold a pair of tensors"),
        ({"data": [], "labels": 1}, "does not hold a pair"),
        ((Path("x"), 1), "cannot be read as tensors .* save images and labels alone"),
    ],
)
def test_files_that_hold_something_else_say_what_they_should_hold(
    few_digits: LabeledImages, tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "set.pt")
    with pytest.raises(InputError, match=message):
        read_foreign(tmp_path / "set.pt", few_digits)
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match="broken.npz cannot be read as tensors"):
        read_foreign(tmp_path / "broken.npz", few_digits)


def test_a_run_folder_is_no_foreign_set(tmp_path: Path) -> None:
    (tmp_path / "condensed").mkdir()
    assert not is_foreign(tmp_path) and not is_foreign(tmp_path / "nothing")


@pytest.mark.parametrize("factor", [0, -1, 5])
def test_a_factor_that_cuts_nothing_is_refused(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path, factor: int
) -> None:
    torch.save((condensed.images, condensed.labels), tmp_path / "set.pt")
    with pytest.raises(InputError, match=f"--factor {factor} does not cut 8 px images"):
        read_foreign(tmp_path / "set.pt", few_digits, factor=factor)


def test_labels_follow_the_order_of_the_real_sets_source_or_the_names_of_the_file(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path
) -> None:
    """The source calls its classes 9, 8, .. 0, as FashionMNIST numbers its classes in an order that is not sorted."""
    real = replace(few_digits, class_of=tuple(range(9, -1, -1)))
    torch.save((condensed.images, (9 - condensed.labels).int()), tmp_path / "set.pt")
    np.savez(tmp_path / "set.npz", images=condensed.images, labels=9 - condensed.labels, names=list("9876543210"))
    order = condensed.labels.argsort(stable=True)
    for name, asked in (("set.pt", real), ("set.npz", real), ("set.npz", few_digits)):
        assert torch.equal(read_foreign(tmp_path / name, asked).sample(2).images, condensed.images[order])
    np.savez(tmp_path / "other.npz", images=condensed.images, labels=condensed.labels, names=list("abcdefghij"))
    with pytest.raises(InputError, match="names other classes than the real images have: '0'"):
        read_foreign(tmp_path / "other.npz", few_digits)


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        (sorted(map(str, range(1, 11))), "is label 1 class '10' .names sorted as text. or '2' .as numbers."),
        ([f"c{name}" for name in sorted(map(str, range(5, 15)))], "is label 0 class 'c10' .* or 'c5'"),
    ],
)
def test_labels_are_not_guessed_where_text_and_numbers_have_another_order(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path, class_names: list[str], message: str
) -> None:
    real = replace(few_digits, class_names=tuple(class_names))
    torch.save((condensed.images, condensed.labels), tmp_path / "set.pt")
    with pytest.raises(InputError, match=f"{message}.* List the classes .* one a line, in .*classes.txt") as caught:
        read_foreign(tmp_path / "set.pt", real)
    assert "\n" not in str(caught.value)
    order = condensed.labels.argsort(stable=True)
    (tmp_path / "classes.txt").write_text("\ufeff" + "\r\n".join(class_names) + "\r\n\r\n")  # an editor of Windows
    assert torch.equal(read_foreign(tmp_path / "set.pt", real).sample(2).images, condensed.images[order])
    (tmp_path / "classes.txt").write_text("\n".join(class_names[::-1]))
    backwards = (9 - condensed.labels).argsort(stable=True)
    assert torch.equal(read_foreign(tmp_path / "set.pt", real).sample(2).images, condensed.images[backwards])
    numbered = replace(real, class_of=tuple(range(10)))  # a source that numbers its classes leaves nothing to ask
    (tmp_path / "classes.txt").unlink()
    assert torch.equal(read_foreign(tmp_path / "set.pt", numbered).sample(2).images, condensed.images[order])


@pytest.mark.parametrize(
    "write",
    [
        lambda path, content: torch.save(content | {"names": [str(name) for name in content["names"]]}, path / "s.pt"),
        lambda path, content: torch.save(content | {"names": torch.tensor(content["names"])}, path / "s.pt"),
        lambda path, content: torch.save(
            content | {"names": [b"%d" % name for name in content["names"]]}, path / "s.pt"
        ),
        lambda path, content: save_file(content | {"names": torch.tensor(content["names"])}, path / "s.safetensors"),
        lambda path, content: np.savez(path / "s.npz", **content | {"names": np.array(content["names"])}),
        lambda path, content: np.savez(path / "s.npz", **content | {"names": np.array(content["names"]).astype("S")}),
        lambda path, content: np.savez(path / "s.npz", **content | {"names": np.array(content["names"]).astype("U")}),
    ],
)
def test_names_in_a_file_are_text_bytes_or_numbers(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path, write: Callable
) -> None:
    real = replace(few_digits, class_names=tuple(sorted(map(str, range(1, 11)))))
    write(tmp_path, {"images": condensed.images, "labels": condensed.labels, "names": list(range(1, 11))})
    # label 9 is class "10", the second one
    place = torch.tensor([0, 2, 3, 4, 5, 6, 7, 8, 9, 1])[condensed.labels]
    found = read_foreign(next(tmp_path.iterdir()), real)
    assert torch.equal(found.sample(2).images, condensed.images[place.argsort(stable=True)])


def test_classes_of_one_name_stay_apart(few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path) -> None:
    """ImageNet has two cranes: a bird and a machine."""
    names = ("ant", "crane", "crane (2)", *(f"d{number}" for number in range(7)))  # as real images are read
    real, order = replace(few_digits, class_names=names), condensed.labels.argsort(stable=True)
    twice = [name.removesuffix(" (2)") for name in names]
    np.savez(tmp_path / "set.npz", images=condensed.images, labels=condensed.labels, names=twice)
    found = read_foreign(tmp_path / "set.npz", real)
    assert found.ipc == 2 and torch.equal(found.sample(2).images, condensed.images[order])
    bank = CondensedPixels(names, num_slots=2, image_size=8, channels=1)
    bank.fill_(to_signed(condensed.images[order]))
    for format in ("npz", "imagefolder"):
        found = read_foreign(bank.export(tmp_path / format, ipc=2, format=format), real)
        assert found.ipc == 2 and torch.equal(found.sample(2).images, condensed.images[order])


@pytest.mark.parametrize("stem", ["images_best", "images_5000"])
def test_images_with_labels_in_a_file_beside_are_one_set(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path, stem: str
) -> None:
    """As the code of MTT writes them, and what came from it: TESLA, FTD, DATM."""
    torch.save(floats(condensed), tmp_path / f"{stem}.pt")
    with pytest.raises(
        InputError, match=f"not hold a pair of tensors.* no {stem.replace('image', 'label')}.pt is beside it"
    ):
        read_foreign(tmp_path / f"{stem}.pt", few_digits)
    torch.save(condensed.labels, tmp_path / f"{stem.replace('image', 'label')}.pt")
    torch.save(0.02, tmp_path / "lr_best.pt")
    for path in (tmp_path, tmp_path / f"{stem}.pt"):
        found = read_foreign(path, few_digits)
        assert is_foreign(path) and side_of(path) == 8 and found.num_bytes(1) == 10 * 64 * 4
        torch.testing.assert_close(
            found.sample(2).images, to_signed(condensed.images[condensed.labels.argsort(stable=True)])
        )


def test_of_several_pairs_the_best_is_taken_or_one_has_to_be_named(
    few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path
) -> None:
    for number in (0, 1000):
        torch.save(condensed.images + number // 1000, tmp_path / f"images_{number}.pt")
        torch.save(condensed.labels, tmp_path / f"labels_{number}.pt")
    with pytest.raises(InputError, match="holds images_0.pt, images_1000.pt and labels of each: name the file"):
        read_foreign(tmp_path, few_digits)
    assert read_foreign(tmp_path / "images_0.pt", few_digits).ipc == 2
    torch.save(condensed.images[:10] * 0, tmp_path / "images_best.pt")
    torch.save(torch.arange(10), tmp_path / "labels_best.pt")
    assert read_foreign(tmp_path, few_digits).ipc == 1


def test_soft_labels_of_a_pair_are_refused(few_digits: LabeledImages, condensed: LabeledImages, tmp_path: Path) -> None:
    torch.save(floats(condensed), tmp_path / "images_best.pt")
    torch.save(torch.rand(20, 10), tmp_path / "labels_best.pt")
    with pytest.raises(InputError, match="soft labels are not read"):
        read_foreign(tmp_path, few_digits)


@pytest.mark.parametrize("format", ["imagefolder", "webdataset", "parquet", "npz"])
def test_our_own_exports_are_read_back_whatever_the_classes_are_called(
    tmp_path: Path, few_digits: LabeledImages, format: str
) -> None:
    names = ("T-shirt/top", "train", *(f"z{number}" for number in range(8)))
    real = replace(few_digits, class_names=names)
    two = random_subset(real, 2, seed=0)
    bank = CondensedPixels(names, num_slots=2, image_size=8, channels=1)
    bank.fill_(to_signed(two.images))
    out = bank.export(tmp_path / "set", ipc=2, format=format)
    found = read_foreign(out, real)
    assert is_foreign(out) and side_of(out) == 8 and found.ipc == 2
    assert torch.equal(found.sample(2).images, two.images)
    if format == "parquet":
        assert torch.equal(read_foreign(next(out.iterdir()), real).sample(2).images, two.images)
    if format == "imagefolder":
        assert found.num_bytes(2) == sum(path.stat().st_size for path in out.rglob("*.png"))


def test_shards_count_the_bytes_of_the_images_in_them(tmp_path: Path, few_digits: LabeledImages) -> None:
    bank = CondensedPixels(few_digits.class_names, num_slots=1, image_size=8, channels=1)
    bank.fill_(to_signed(random_subset(few_digits, 1, seed=0).images))
    shards = bank.export(tmp_path / "shards", ipc=1, format="webdataset")
    folder = bank.export(tmp_path / "folder", ipc=1)
    assert read_foreign(shards, few_digits).num_bytes(1) == read_foreign(folder, few_digits).num_bytes(1)
    (shards / "classes.txt").unlink()
    named = replace(few_digits, class_names=tuple("abcdefghij"))
    with pytest.raises(InputError, match="10 classes; .* list these in the order of the class indices, .*classes.txt"):
        read_foreign(shards, named)
