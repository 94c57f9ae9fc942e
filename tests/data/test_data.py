import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from gencond.common.errors import InputError
from gencond.data.decode import read_image, read_into_memory
from gencond.data.find import find_images
from gencond.data.images import LabeledImages, automatic_image_size, split_off
from gencond.data.load import load_real

MakeFolder = Callable[..., Path]
PUBLISHED_DIGITS = (
    "8d762dddca8ccb9b",
    "ecb3d2485c677b20",
)  # fingerprints of both parts, by the rule of rank, before there was one of thresholds


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
    os.mkfifo(tmp_path / "pipe.npz")  # nobody writes into it: opened, it would wait for ever
    with pytest.raises(InputError, match="pipe.npz is no data"):
        load_real(str(tmp_path / "pipe.npz"))
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


def test_images_that_are_brought_to_another_size_unasked_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name in ("a", "b"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((40, 50, 3), 20 * number + 60 * (name == "b"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "folder" / name / f"{number}.png")
    np.savez(tmp_path / "s.npz", x_train=np.arange(4 * 81, dtype=np.uint8).reshape(4, 9, 9), y_train=np.arange(4) % 2)
    for source, words in (("folder", "of 40 px"), ("s.npz", "of 9 px")):
        for _ in range(2):  # a plan reads them before a run does
            train, _ = load_real(str(tmp_path / source))
        said = [line for line in caplog.messages if words in line]
        assert len(said) == 1 and f"brought to {train.image_size} px; data.image_size takes them larger" in said[0]
    caplog.clear()
    load_real(str(tmp_path / "folder"), image_size=16)
    load_real("digits")
    assert not any("brought to" in line for line in caplog.messages)


def test_splitting_keeps_every_image_once_and_every_class_on_both_sides(few_digits: LabeledImages) -> None:
    rest, held = split_off(few_digits, 0.1)
    assert len(rest) + len(held) == len(few_digits)
    assert (held.counts == 1).all() and (rest.counts == 11).all()


# --- what lies in a folder and is not read -----------------------------------------------------------------------


def touch(root: Path, *names: str) -> Path:
    """Makes files below a folder: tiny pictures, each of another colour, or empty files of other kinds."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            Image.new("RGB", (8, 8), (number * 40 % 256, number, 99)).save(path)
        else:
            path.touch()
    return root


def test_a_link_back_to_a_folder_above_is_not_followed_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    root = touch(tmp_path / "set", *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(6)))
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "here").symlink_to(root / "dog")
    (root / "dog" / "far").symlink_to(tmp_path)
    (root / "all").symlink_to(root)
    assert sorted(find_images(root).names) == sorted(f"{name}/{n}.png" for name in ("cat", "dog") for n in range(6))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "4 link(s) to a folder that is read already (all first)" in line


def test_a_folder_that_two_links_of_a_class_lead_to_is_read_once(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "cat/0.png", "dog/0.png")
    more = touch(tmp_path / "more", "1.png")
    for name in ("one", "two"):
        (root / "cat" / name).symlink_to(more)
    assert find_images(root).names == ["cat/0.png", "cat/one/1.png", "dog/0.png"]


def test_names_that_begin_with_underscores_are_ordinary_names(tmp_path: Path) -> None:
    root = touch(tmp_path, "__background__/__0.png", "__background__/__more/1.png", "dog/0.png")
    found = find_images(root)
    assert found.class_names == ("__background__", "dog")
    assert found.names == ["__background__/__0.png", "__background__/__more/1.png", "dog/0.png"]


def test_what_file_systems_and_archives_leave_is_no_image_and_counted_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    system = ("@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", ".ipynb_checkpoints")
    root = touch(
        tmp_path, "cat/0.png", "dog/0.png", "loose.png", "README.md", "cat/Thumbs.db", "cat/._0.png", "cat/notes.txt",
        *(f"{name}/{number}.png" for name in system for number in range(2)), *(f"cat/{name}/0.png" for name in system),
    )  # fmt: skip
    os.mkfifo(root / "dog" / "1.png")
    assert find_images(root).names == ["cat/0.png", "dog/0.png"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"{2 * len(system) + 2} hidden or system file(s) ($RECYCLE.BIN first)" in line  # and Thumbs.db, ._0.png
    for said in ("1 image(s) that lie in no class folder (loose.png", "1 file(s) that are no images (cat/notes.txt"):
        assert said in line
    assert "1 pipe(s) and devices (dog/1.png first)" in line


def test_a_class_that_is_a_link_to_nothing_or_to_another_or_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = touch(tmp_path / "set", "cat/0.png", "dog/0.png")
    (root / "elk").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="elk is a link to nothing"):
        find_images(root)
    (root / "elk").unlink()
    (root / "elk").symlink_to(root / "cat")
    with pytest.raises(InputError, match="elk and .*cat are one folder"):
        find_images(root)
    (root / "elk").unlink()
    listed = os.scandir

    def forbidden(folder: str | Path) -> object:
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr("gencond.data.find.os.scandir", forbidden)
    with pytest.raises(InputError, match=r"dog cannot be read \(Permission denied\)"):
        find_images(root)


@pytest.mark.parametrize(
    "files",
    [
        ("recipe.yaml", "data.json", "samples/0.png"),
        ("config.json", "diffusion_pytorch_model.safetensors", "0.png"),
        ("report.json", "report.md", "images/0.png"),
        ("demo/recipe.yaml", "demo/data.json", "demo/samples/0.png"),  # a folder of runs
    ],
)
def test_runs_and_artefacts_in_a_data_folder_are_no_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, files: tuple[str, ...]
) -> None:
    caplog.set_level("INFO", logger="gencond")
    root = touch(tmp_path, "cat/0.png", "dog/0.png", *(f"out/{name}" for name in files))
    touch(root, *(f"cat/out/{name}" for name in files))
    found = find_images(root)
    assert found.class_names == ("cat", "dog") and len(found) == 2
    assert "2 folder(s) of gencond (out first)" in caplog.text


def test_a_folder_that_holds_the_classes_again_is_no_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gencond")
    found = find_images(touch(tmp_path, "cat/0.png", "dog/0.png", "exported/cat/0.png", "exported/dog/0.png"))
    assert found.class_names == ("cat", "dog") and "1 folder(s) that hold the classes again (exported" in caplog.text


def test_a_folder_called_as_a_named_set_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "digits/a/0.png")
    assert load_real("digits")[0].num_classes == 10 and "of that name is ./digits" in caplog.text


# --- splits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("train", "valid"),
        ("TRAIN", "validation"),
        ("training_set", "test_set"),
        ("train", "eval"),
    ],
)
def test_splits_are_known_by_many_names(tmp_path: Path, train: str, test: str) -> None:
    root = touch(tmp_path, *(f"{split}/{name}/0.png" for split in (train, test) for name in ("cat", "dog")))
    found = find_images(root)
    assert found.class_names == ("cat", "dog") and found.num_train == 2 and found.has_test
    assert found.names[0] == f"{train}/cat/0.png" and found.names[2] == f"{test}/cat/0.png"


def test_classes_beside_a_training_folder_are_refused_and_other_folders_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    root = touch(tmp_path, "train/steam/0.png", "train/ice/0.png", "bus/0.png")
    with pytest.raises(InputError, match="bus holds images and lies beside .*train"):
        find_images(root)
    touch(root, "test/ice/0.png", "unlabelled/0.png", "train/loose.png")  # now it can be nothing else than a split
    assert find_images(root).class_names == ("ice", "steam")
    assert "2 folder(s) beside train (bus first)" in caplog.text and "train/loose.png" in caplog.text


def test_a_test_folder_without_classes_beside_a_training_folder_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    root = touch(tmp_path, "train/cat/0.png", "train/dog/0.png", "val/cat/0.png", "test/0.png", "a.tar", "train/b.tar")
    assert find_images(root).names == ["train/cat/0.png", "train/dog/0.png", "val/cat/0.png"]
    assert "1 folder(s) beside train (test first)" in caplog.text and "2 shard(s) beside folders (a.tar" in caplog.text
    caplog.clear()
    root = touch(tmp_path / "unlabelled", "train/cat/0.png", "train/dog/0.png", "test/0.png")  # as for a competition
    assert not find_images(root).has_test and "1 folder(s) beside train (test first)" in caplog.text


def test_two_training_folders_are_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/cat/0.png", "Training/cat/0.png")
    with pytest.raises(InputError, match="both look like training images"):
        find_images(root)


def test_splits_under_unknown_names_are_suspected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = touch(tmp_path, *(f"{split}/{name}/0.png" for split in ("seg_a", "seg_b") for name in ("cat", "dog")))
    assert find_images(root).class_names == ("seg_a", "seg_b")
    assert "seg_a and the other classes all hold cat, dog" in caplog.text


# --- pixels --------------------------------------------------------------------------------------------------------


def save_of_each(root: Path, images: dict[str, Image.Image], **options: object) -> Path:
    """The same images as two classes."""
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for name, image in images.items():
            image.save(root / label / name, **options)
    return root


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", ".jpg"), ("RGBA", ".png"), ("LA", ".png"), ("L", ".png"), ("I;16", ".png"), ("P", ".png"), ("RGB", ".tif"),
     ("RGBA", ".webp"), ("CMYK", ".jpg"), ("I;16", ".tif"), ("RGB", ".avif")],
)  # fmt: skip
@pytest.mark.parametrize("orientation", [3, 6])
def test_any_image_is_turned_as_exif_says(tmp_path: Path, mode: str, suffix: str, orientation: int) -> None:
    upright = np.zeros((16, 16), np.uint8)
    upright[:8, :8] = 255  # the corner above, left
    stored = np.rot90(upright, {3: 2, 6: 1}[orientation])  # EXIF: 6 is to be turned clockwise
    image = Image.fromarray(stored)
    image = Image.fromarray(stored.astype(np.uint16) * 257) if mode == "I;16" else image.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if suffix in (".jpg", ".avif") else {}
    root = save_of_each(tmp_path, {f"0{suffix}": image, f"1{suffix}": image}, exif=exif.tobytes(), **options)
    image = load_real(str(root), 16)[0].images[0].float()
    assert image[:, :7, :7].mean() > 235 and image[:, 9:].mean() < 20 and image[:, :, 9:].mean() < 20


def ramp(high: float, kind: type) -> Image.Image:
    return Image.fromarray((np.linspace(0, 1, 16)[None].repeat(16, 0) * high).astype(kind))


@pytest.mark.parametrize(
    ("kind", "high", "white"),
    [(np.uint16, 4095, 4095), (np.uint16, 3000, 4095), (np.uint16, 60000, 65535), (np.uint16, 200, 255),
     (np.float32, 1.004, 1), (np.float32, 255, 255), (np.int32, 1000, 1023)],
)  # fmt: skip
def test_the_grey_range_is_one_of_the_set_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type, high: float, white: int
) -> None:
    caplog.set_level("INFO", logger="gencond")
    root = save_of_each(tmp_path, {"dark.tif": ramp(high / 8, kind), "light.tif": ramp(high, kind)})
    source = find_images(root)
    images = read_into_memory(source, 16)
    for image, name in zip(images, source.names, strict=True):
        expected = np.asarray(ramp(high / 8 if "dark" in name else high, kind)).astype(np.float64) * 255 / white
        assert np.abs(image[0].numpy() - expected.clip(0, 255)).max() <= 0.5
    assert f"{white} is taken for white" in caplog.text


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"0.tif": ramp(-3, np.float32)}, "grey values from -3 .*fit none"),
        ({"0.tif": ramp(7, np.float32)}, "to 7 .*fit none"),
        ({"0.tif": ramp(1e6, np.int32)}, "fit none"),
        ({"0.tif": ramp(1, np.float32), "1.tif": ramp(4000, np.uint16)}, "floats in some images and whole numbers"),
        ({"0.tif": ramp(np.nan, np.float32), "1.tif": ramp(1, np.float32)}, "2 of 4 .*NaN"),
    ],
)
def test_grey_values_of_no_known_range_are_refused(tmp_path: Path, images: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_into_memory(find_images(save_of_each(tmp_path, images)), 16)


def test_grey_of_16_bits_in_a_set_of_colour_is_scaled_too(tmp_path: Path) -> None:
    images = {"0.png": Image.new("RGB", (8, 8), "red"), "1.png": ramp(4095, np.uint16)}
    root = save_of_each(tmp_path, images)
    assert read_into_memory(find_images(root), 8)[1].max() > 240


def test_the_transparent_value_of_16_bits_is_white(tmp_path: Path) -> None:
    root = save_of_each(tmp_path, {"0.png": Image.fromarray(np.full((8, 8), 300, np.uint16))}, transparency=300)
    assert (read_into_memory(find_images(root), 8) == 255).all()


def test_the_first_frame_of_animations_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gencond")
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    names = ("0.gif", "1.webp", "2.tif", "3.png")
    root = save_of_each(tmp_path, dict.fromkeys(names, first), save_all=True, append_images=[second])
    images = read_into_memory(find_images(root), 8)
    assert images[:, 0].min() > 180 and images[:, 2].max() < 20
    assert "8 image(s) have more than one frame, of which the first is read (a/0.gif first)" in caplog.text


def test_pillow_s_own_limits_end_in_the_line_that_other_bad_images_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PngInfo()
    text.add_text("about", "x" * (2**20 + 1), zip=True)
    root = save_of_each(tmp_path, {"text.png": Image.new("RGB", (8, 8))}, pnginfo=text)
    for label in ("a", "b"):
        Image.new("RGB", (100, 100)).save(root / label / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(
        InputError, match=r"4 of 4 images .*a/large.png \(DecompressionBombError: .*a/text.png \(ValueError"
    ):
        load_real(str(root))


@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_a_jpeg_decoded_at_a_fraction_is_near_the_whole_one(side: int) -> None:
    """Bound: docs/data.md measured 0.36 levels on photographs at most; smooth noise is nearer."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    file = io.BytesIO()
    noise.save(file, "JPEG", quality=90)
    whole = ImageOps.fit(Image.open(file).convert("RGB"), (side, side), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(whole).astype(int) - read_image(file, side))
    assert difference.mean() < 0.5


# --- holding out ---------------------------------------------------------------------------------------------------


def random_set(counts: dict[str, int], seed: int) -> LabeledImages:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(list(counts.values())))
    images = torch.randint(
        256, (len(labels), 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return LabeledImages(images, labels, tuple(counts))


def pictures_of(data: LabeledImages) -> set[bytes]:
    return {image.numpy().tobytes() for image in data.images}


def test_adding_images_moves_none_between_training_and_test() -> None:
    few, more = random_set({"a": 300, "b": 200}, 0), random_set({"a": 500, "b": 90}, 1)
    both = LabeledImages(torch.cat([few.images, more.images]), torch.cat([few.labels, more.labels]), ("a", "b"))
    for part in ("test", "validation"):
        rest, held = split_off(few, 0.2, part)
        all_rest, all_held = split_off(both, 0.2, part)
        assert pictures_of(rest) <= pictures_of(all_rest) and pictures_of(held) <= pictures_of(all_held)
        assert 60 < len(held) < 140  # of 500, a fifth: four standard deviations


def test_a_validation_set_is_a_share_of_what_a_test_set_left() -> None:
    rest, _ = split_off(random_set({"a": 400, "b": 400}, 0), 0.3)
    rest, held = split_off(rest, 0.3, "validation")
    assert 0.22 < len(held) / (len(rest) + len(held)) < 0.38  # four standard deviations


def test_of_small_classes_one_image_is_on_either_side_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gencond")
    small = random_set(dict.fromkeys("abcdefgh", 2), 0)
    for fraction in (0.001, 0.999):
        caplog.clear()
        rest, held = split_off(small, fraction)
        assert rest.counts.tolist() == held.counts.tolist() == [1] * 8
        assert "of 8 class(es), 'a' first" in caplog.text


def test_the_split_of_digits_is_the_one_that_published_artefacts_were_made_with() -> None:
    train, test = load_real("digits", test_fraction=0.3333)
    assert (train.fingerprint, test.fingerprint) == PUBLISHED_DIGITS
    assert len(train) == 1198 and len(split_off(train, 0.4, "validation", closed=True)[1]) == 478


def test_classes_of_equal_names_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gencond")
    images = np.arange(6 * 8 * 8, dtype=np.uint8).reshape(6, 8, 8)
    names = np.array([b"crane", "élan".encode(), b"crane"])
    np.savez(tmp_path / "s.npz", x_train=images, y_train=np.array([0, 1, 2, 0, 1, 2]), names=names, extra=names)
    train, test = load_real(str(tmp_path / "s.npz"))
    assert train.class_names == ("crane", "crane (2)", "élan") and (train.counts + test.counts).tolist() == [2, 2, 2]
    assert "two classes are called 'crane': number 2 is 'crane (2)' here" in caplog.text
    assert "left out of" in caplog.text and "extra" in caplog.text
