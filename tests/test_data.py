from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gencond.data import LabeledImages, automatic_image_size, load_real, split_off
from gencond.errors import InputError

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    def make(
        classes: tuple[str, ...] = ("cat", "dog"), per_class: int = 4, mode: str = "RGB", root: str = "set"
    ) -> Path:
        rng = np.random.default_rng(0)
        for name in classes:
            folder = tmp_path / root / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                size = (40 + 7 * number, 50 - 3 * number)
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(folder / f"{number}.png")
        return tmp_path / root

    return make


def test_digits_are_all_there_and_always_split_alike() -> None:
    train, test = load_real("digits", test_fraction=0.25)
    again, _ = load_real("digits", test_fraction=0.25)
    assert len(train) + len(test) == 1797 and train.images.shape[1:] == (1, 8, 8)
    assert train.images.max() == 255 and train.class_names == tuple("0123456789")
    assert train.fingerprint == again.fingerprint != test.fingerprint
    shares = test.counts / (train.counts + test.counts)
    assert (shares - 0.25).abs().max() < 0.01


def test_a_folder_of_mixed_sizes_becomes_square_rgb(make_folder: MakeFolder) -> None:
    train, test = load_real(str(make_folder()))
    assert train.images.shape[1:] == test.images.shape[1:] == (3, 32, 32)
    assert train.class_names == ("cat", "dog") and len(train) == 6 and len(test) == 2


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_a_folder_of_grey_images_stays_grey(make_folder: MakeFolder, mode: str) -> None:
    root = make_folder(mode="L")
    for path in root.rglob("*.png"):
        grey = Image.open(path)
        if mode == "I;16":
            Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
        else:
            grey.convert(mode).save(path)
    train, _ = load_real(str(root))
    assert train.channels == 1 and 60 < train.images.float().mean() < 200  # the noise is grey on average


@pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA"])
def test_any_colour_mode_is_read(make_folder: MakeFolder, mode: str) -> None:
    root = make_folder()
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        image = Image.open(path).convert(mode)
        path.unlink()
        image.save(path.with_suffix(".tif" if mode == "CMYK" else ".png"))
        if number == 0:
            Image.open(path.with_suffix(".tif" if mode == "CMYK" else ".png")).convert("L").save(path)
    assert load_real(str(root))[0].channels == 3


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / name / f"{number}.png")
    assert (load_real(str(tmp_path))[0].images == 255).all()


def test_a_test_folder_is_taken_also_beside_the_classes(make_folder: MakeFolder) -> None:
    make_folder(root="set/train")
    root = make_folder(root="set/test", per_class=2).parent
    train, test = load_real(str(root))
    assert len(train) == 8 and len(test) == 4
    beside = make_folder(root="beside")
    make_folder(root="beside/val", per_class=3)
    train, test = load_real(str(beside))
    assert train.class_names == ("cat", "dog") and len(train) == 8 and len(test) == 6


def test_files_that_are_no_images_are_counted_hidden_ones_skipped_and_links_followed(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    root = make_folder()
    (root / "cat" / "notes.txt").touch()
    (root / "cat" / ".hidden").mkdir()
    (root / "cat" / ".hidden" / "0.png").write_bytes(b"")
    (root / "dog" / "1.png").rename(root / "dog" / "1.GIF")
    (root / "cat" / "more").symlink_to(root / "dog")
    train, test = load_real(str(root))
    assert (train.counts + test.counts).tolist() == [8, 4]
    assert "1 file(s)" in caplog.text and "notes.txt" in caplog.text
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(InputError, match="cat/gone.png"):
        load_real(str(root))


def test_capital_split_folders_are_splits_and_a_second_held_out_one_is_said(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    for split, count in (("Train", 4), ("Test", 2), ("val", 3)):
        root = make_folder(root=f"set/{split}", per_class=count).parent
    train, test = load_real(str(root))
    assert len(train) == 8 and len(test) == 4 and "val is left out" in caplog.text


def test_a_class_may_be_called_train_but_a_flat_test_folder_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder(classes=("bus", "train"))
    assert load_real(str(root))[0].class_names == ("bus", "train")
    (root / "test").mkdir()
    Image.new("RGB", (40, 40)).save(root / "test" / "0.png")
    with pytest.raises(InputError, match="test holds no class folders"):
        load_real(str(root))


@pytest.mark.parametrize(
    ("kind", "scale"), [(np.float32, 1.0), (np.float32, 255.0), (np.int32, 255), (np.int32, 65535)]
)
def test_wide_grey_values_are_scaled_by_their_range(tmp_path: Path, kind: type, scale: float) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            ramp = np.linspace(0, 1, 16)[None].repeat(16, 0) * scale
            Image.fromarray(ramp.astype(kind)).save(tmp_path / name / f"{number}.tif")
    images = load_real(str(tmp_path))[0].images
    assert images.max() == 255 and images.min() == 0 and 120 < images.float().mean() < 135


def test_the_split_of_an_image_does_not_depend_on_the_others(few_digits: LabeledImages) -> None:
    held = {image.numpy().tobytes() for image in split_off(few_digits, 0.25)[1].images}
    without = few_digits.subset(torch.arange(1, len(few_digits)))
    held_without = {image.numpy().tobytes() for image in split_off(without, 0.25)[1].images}
    assert len(held ^ held_without) <= 2


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))  # white above
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            image.save(tmp_path / name / f"{number}.jpg", exif=exif, quality=95)
    images = load_real(str(tmp_path))[0].images.float()
    assert images[:, :, :7].mean() < 20 and images[:, :, 9:].mean() > 235


def test_unreadable_and_truncated_images_are_named_and_counted(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "cat" / "0.png").write_bytes(b"not an image")
    whole = (root / "dog" / "1.png").read_bytes()
    (root / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError) as error:
        load_real(str(root))
    assert "2 of 8 images" in str(error.value) and "cat/0.png" in str(error.value) and "dog/1.png" in str(error.value)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: [path.unlink() for path in (root / "cat").iterdir()], "class 'cat' of .* has no images"),
        (lambda root: [p.unlink() for p in list((root / "cat").iterdir())[1:]], "class 'cat' has 1 image"),
        (lambda root: (root / "cat").rename(root.parent / "elsewhere"), "one class, 'dog'"),
    ],
)
def test_what_a_folder_lacks_is_said(make_folder: MakeFolder, break_it: Callable, message: str) -> None:
    root = make_folder()
    break_it(root)
    with pytest.raises(InputError, match=message):
        load_real(str(root))


def test_missing_empty_and_strange_sources_are_said(tmp_path: Path, make_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match="no such data: '/nowhere'"):
        load_real("/nowhere")
    with pytest.raises(InputError, match="no class folders"):
        load_real(str(tmp_path))
    (tmp_path / "file.txt").touch()
    with pytest.raises(InputError, match="file.txt is no data"):
        load_real(str(tmp_path / "file.txt"))
    make_folder(root="set/train")
    root = make_folder(root="set/test", classes=("cat", "horse")).parent
    with pytest.raises(InputError, match="has class 'horse'"):
        load_real(str(root))


def test_npz_with_names_is_renumbered_in_the_order_of_the_names(tmp_path: Path) -> None:
    images = np.arange(8 * 16 * 16, dtype=np.uint8).reshape(8, 16, 16)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    np.savez(tmp_path / "s.npz", x_train=images, y_train=labels, x_test=images, y_test=labels, names=["b", "c", "a"])
    train, test = load_real(str(tmp_path / "s.npz"))
    assert train.class_names == ("a", "b", "c") and train.labels.tolist() == [1, 2, 0, 1, 2, 0, 1, 2]
    assert torch.equal(test.images[:, 0], torch.from_numpy(images))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.zeros((2, 8, 8), np.uint8)}, "lacks y_train"),
        ({"x_train": np.zeros((2, 8, 8), np.float32), "y_train": np.array([0, 1])}, "float32"),
        ({"x_train": np.zeros((2, 8, 8), np.uint8), "y_train": np.array([0, -1])}, "class indices"),
        ({"x_train": np.zeros((2, 8, 8), np.uint8), "y_train": np.array([0, 1, 1])}, "2 images but 3 labels"),
        ({"x_train": np.zeros((3, 8, 8), np.uint8), "y_train": np.array([0, 2, 2])}, "class '1' .* has no images"),
        ({"x_train": np.zeros((2, 8, 8), np.uint8), "y_train": np.array([0, 10**9])}, "labels from 0 to 1000000000"),
        ({"x_train": np.zeros((2, 8, 8), np.uint8), "y_train": np.array(["a", "b"])}, "labels as <U1"),
        (
            {"x_train": np.zeros((2, 8, 8), np.uint8), "y_train": np.array([0, 1]), "x_test": np.zeros((2, 8, 8))},
            "has x_test alone",
        ),
        ({"x_train": np.zeros((2, 0, 8), np.uint8), "y_train": np.array([0, 1])}, "expected uint8"),
        (
            {"x_train": np.zeros((2, 8, 8), np.uint8), "y_train": np.array([0, 1]), "names": np.zeros((2, 2))},
            "names is float64",
        ),
    ],
)
def test_a_wrong_npz_is_explained(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_real(str(tmp_path / "s.npz"))


def test_a_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", x_train=np.zeros((2, 8, 8), np.uint8), y_train=np.array([0, 1]))
    np.save(tmp_path / "array.npy", np.zeros(3))
    contents = (
        b"PK but not really",
        (tmp_path / "whole.npz").read_bytes()[:-40],
        (tmp_path / "array.npy").read_bytes(),
    )
    for content in contents:
        (tmp_path / "s.npz").write_bytes(content)
        with pytest.raises(InputError, match="s.npz cannot be read"):
            load_real(str(tmp_path / "s.npz"))


@pytest.mark.parametrize(("short_side", "size"), [(8, 8), (28, 28), (32, 32), (30, 28), (400, 32), (5, 8), (17, 16)])
def test_the_automatic_size_is_one_a_generator_can_have(short_side: int, size: int) -> None:
    assert automatic_image_size([short_side]) == size


def test_splitting_keeps_every_image_once_and_every_class_on_both_sides(few_digits: LabeledImages) -> None:
    rest, held = split_off(few_digits, 0.1)
    assert len(rest) + len(held) == len(few_digits)
    assert (held.counts == 1).all() and (rest.counts == 11).all()
