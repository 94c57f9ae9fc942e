"""Sets that do not fit in memory: decoded once into a file, from folders and from shards."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import gencond.data.decode
from gencond.cli import main
from gencond.common.errors import InputError
from gencond.common.pictures import png_bytes
from gencond.data.decode import read_into_memory
from gencond.data.find import find_images
from gencond.data.images import LabeledImages, rows_seen
from gencond.data.load import load_real
from gencond.data.mapped import MappedImages
from gencond.data.source import told_apart
from gencond.eval.baselines import CODEC_REAL, usual_baselines
from gencond.generator.exporting import PART_WRITERS, EncodedImage, Layout, lay_out
from gencond.networks.training import Shuffled

SIZE = 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 8 colour images of many sizes, one of them grey."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cow"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).convert("L" if (name, number) == ("ant", 3) else "RGB")
            image.save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any set counts as one that does not fit in memory; five images are decoded at once."""
    monkeypatch.setattr(gencond.data.decode, "MAPPED_ABOVE_BYTES", 0)
    monkeypatch.setattr(gencond.data.decode, "CHUNK_BYTES", 5 * 3 * SIZE**2)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is decoded, in order."""
    seen: list[str] = []
    read = gencond.data.decode.read_image

    def counted(file: Path, image_size: int, white: int | None) -> np.ndarray | str:
        seen.append(str(file))
        return read(file, image_size, white)

    monkeypatch.setattr(gencond.data.decode, "read_image", counted)
    return seen


def all_of(images: torch.Tensor | MappedImages) -> torch.Tensor:
    return images[:] if isinstance(images, MappedImages) else images


def assert_equal(one: LabeledImages, other: LabeledImages) -> None:
    assert torch.equal(all_of(one.images), all_of(other.images)) and torch.equal(one.labels, other.labels)
    assert one.class_names == other.class_names


def test_a_file_holds_the_pixels_that_memory_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = load_real(str(folder), SIZE)
    monkeypatch.setattr(gencond.data.decode, "MAPPED_ABOVE_BYTES", 0)
    in_file = load_real(str(folder), SIZE)
    for one, other in zip(in_memory, in_file, strict=True):
        assert isinstance(other.images, MappedImages) and not isinstance(one.images, MappedImages)
        assert_equal(one, other)
        assert one.images.is_contiguous() and other.images[:].is_contiguous()
        assert other.images.shape == one.images.shape and other.channels == 3
        np.testing.assert_allclose(one.mean_std, other.mean_std, rtol=1e-9)
        assert list(one.digests()) == list(other.digests())


def test_rows_are_read_as_they_are_indexed(folder: Path, large: None) -> None:
    train, test = load_real(str(folder), SIZE)
    everything = all_of(train.images)
    rows = torch.tensor([[3, 1], [0, 3]])
    assert torch.equal(train.images[rows], everything[rows])
    assert torch.equal(train.images[4], everything[4]) and torch.equal(train.images[2:7], everything[2:7])
    assert torch.equal(torch.cat(list(train.images.split(4))), everything)
    part = train.subset(torch.tensor([5, 2]))
    assert isinstance(part.images, MappedImages) and torch.equal(all_of(part.images), everything[[5, 2]])
    assert part.fingerprint != train.fingerprint == load_real(str(folder), SIZE)[0].fingerprint
    images, labels = Shuffled(train.images.to(torch.device("cpu")), train.labels, 3)(torch.Generator().manual_seed(0))
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:3]
    assert torch.equal(images, everything[rows]) and torch.equal(labels, train.labels[rows])
    assert len(rows_seen(train, test)) == 0 and len(rows_seen(train, part)) == 2


def test_a_small_part_of_a_large_set_is_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gencond.data.decode, "MAPPED_ABOVE_BYTES", 10 * 3 * SIZE**2)
    train, test = load_real(str(folder), SIZE)
    assert isinstance(train.images, MappedImages) and isinstance(test.images, torch.Tensor)


def test_a_second_run_decodes_nothing(folder: Path, large: None, decoded: list[str]) -> None:
    first, _ = load_real(str(folder), SIZE)
    assert len(decoded) == 24
    assert_equal(first, load_real(str(folder), SIZE)[0])
    assert len(decoded) == 24


@pytest.mark.parametrize("killed_at", [1, 5, 13, 23])
def test_a_killed_run_goes_on_where_it_was(
    folder: Path, large: None, decoded: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    def killed(file: object, position: int, array: np.ndarray) -> None:
        if len(decoded) > killed_at:
            raise KeyboardInterrupt
        write(file, position, array)

    write = gencond.data.decode._write_at
    with monkeypatch.context() as patched:
        patched.setattr(gencond.data.decode, "_write_at", killed)
        with pytest.raises(KeyboardInterrupt):
            load_real(str(folder), SIZE)
    assert not [path for path in (own_cache / "images").iterdir() if not path.name.startswith(".")]
    before = len(decoded)
    whole_chunks = before // 5 * 5 - (5 if before % 5 == 0 else 0)  # the last one was not written
    resumed = load_real(str(folder), SIZE)
    assert len(decoded) - before == 24 - whole_chunks
    monkeypatch.setattr(gencond.data.decode, "MAPPED_ABOVE_BYTES", 2**30)
    for one, other in zip(resumed, load_real(str(folder), SIZE), strict=True):
        assert_equal(one, other)


def test_another_size_is_decoded_anew(folder: Path, large: None, decoded: list[str]) -> None:
    load_real(str(folder), SIZE)
    assert load_real(str(folder), 8)[0].image_size == 8 and len(decoded) == 48


def test_of_a_changed_folder_only_what_lies_around_the_change_is_decoded_again(
    folder: Path, large: None, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = load_real(str(folder), SIZE)
    Image.new("RGB", (20, 20), "red").save(folder / "ant" / "0.png")  # another image
    (folder / "cow" / "1.png").unlink()
    Image.new("RGB", (20, 20), "blue").save(folder / "ant" / "00.png")  # moves all behind it
    decoded.clear()
    after, test = load_real(str(folder), SIZE)
    assert before.fingerprint != after.fingerprint and before.images.folder != after.images.folder
    assert len(decoded) == 5  # at once, and both new images are among the first five
    monkeypatch.setattr(gencond.data.decode, "MAPPED_ABOVE_BYTES", 2**30)
    for one, other in zip((after, test), load_real(str(folder), SIZE), strict=True):
        assert_equal(one, other)


def kept(cache: Path) -> list[str]:
    """The decoded sets of a cache, without the locks beside them."""
    return [path.name for path in (cache / "images").iterdir() if path.suffix != ".lock"]


def test_a_broken_image_is_mended_without_decoding_the_others_again(
    folder: Path, large: None, decoded: list[str], own_cache: Path
) -> None:
    whole = (folder / "bee" / "2.png").read_bytes()
    (folder / "bee" / "2.png").write_bytes(whole[:100])
    with pytest.raises(InputError, match="bee/2.png"):
        load_real(str(folder), SIZE)
    (folder / "bee" / "2.png").write_bytes(whole)
    decoded.clear()
    train, _ = load_real(str(folder), SIZE)
    assert len(decoded) == 5 and kept(own_cache) == [train.images.folder.name]


def test_broken_images_are_named_and_nothing_is_kept_as_whole(folder: Path, large: None, own_cache: Path) -> None:
    (folder / "bee" / "2.png").write_bytes(b"not an image")
    (folder / "cow" / "gone.png").symlink_to(folder / "nowhere.png")
    for _ in range(2):
        with pytest.raises(InputError, match="2 of 25 images.*bee/2.png.*cow/gone.png"):
            load_real(str(folder), SIZE)
    assert [name[0] for name in kept(own_cache)] == ["."]


def test_grey_images_stay_grey_in_a_file(folder: Path, large: None) -> None:
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    train, _ = load_real(str(folder), SIZE)
    assert train.channels == 1 and train.images.shape[1:] == (1, SIZE, SIZE) and len(train.mean_std[0]) == 1


def test_what_classes_lack_is_said_before_anything_is_decoded(folder: Path, large: None, decoded: list[str]) -> None:
    for path in list((folder / "bee").iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match="class 'bee' has 1 image"):
        load_real(str(folder), SIZE)
    assert not decoded


def test_too_little_space_is_said_before_anything_is_decoded(
    folder: Path, large: None, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gencond.data.decode.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 10}))
    with pytest.raises(InputError, match="24 decoded images need .* GB .* GENCOND_CACHE"):
        load_real(str(folder), SIZE)
    assert not decoded


def test_a_set_in_a_file_is_condensed_and_judged(folder: Path, large: None, tmp_path: Path) -> None:
    tiny = [*TINY, "generator.num_blocks=null", f"data.image_size={SIZE}", "evaluate.ipc=[1]", "evaluate.num_seeds=1"]
    main(["condense", "--recipe", "demo", "--data", str(folder), "--out", str(tmp_path / "run"), *tiny])
    main(["evaluate", str(tmp_path / "run")])
    rows = json.loads((tmp_path / "run" / "report.json").read_text())["rows"]
    assert {row["images"] for row in rows} >= {"gencond", *usual_baselines(1)} - {CODEC_REAL}


# --- shards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """The same images as an image folder and as shards of ten, each with its test set, class names not sorted."""
    rng = np.random.default_rng(0)
    names = ["cow", "ant", "bee"]
    for split, count in (("train", 21), ("test", 6)):
        images = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        labels = sorted((number % 3 for number in range(count)), key=lambda label: names[label])
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / "folder" / split / names[label] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        layout, shards = Layout(names, names, count, 0), tmp_path / "shards" / split
        shards.mkdir(parents=True)
        lay_out("webdataset", shards, layout)
        encoded = [EncodedImage(label, number, png_bytes(images[number])) for number, label in enumerate(labels)]
        for part in range(-(-count // 10)):
            PART_WRITERS["webdataset"](encoded[10 * part : 10 * part + 10], shards, layout, part)
    return tmp_path


@pytest.mark.parametrize("limit", [0, 2**30])
def test_shards_and_a_folder_of_the_same_images_are_the_same_data(
    exported: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(gencond.data.decode, "MAPPED_ABOVE_BYTES", limit)
    pairs = zip(load_real(str(exported / "folder")), load_real(str(exported / "shards")), strict=True)
    for from_folder, from_shards in pairs:
        assert_equal(from_folder, from_shards)
        assert from_folder.fingerprint == from_shards.fingerprint
        assert from_shards.class_names == ("ant", "bee", "cow") and from_shards.class_of == (2, 0, 1)


def test_shards_without_names_or_test_set_are_split(exported: Path) -> None:
    root = exported / "shards" / "train"
    (root / "classes.txt").unlink()
    train, test = load_real(str(root))
    assert train.class_names == ("0", "1", "2") and len(train) + len(test) == 21


def test_what_shards_lack_is_said(exported: Path) -> None:
    root = exported / "shards" / "train"
    (root / "classes.txt").write_text("cow\nant\n")
    with pytest.raises(InputError, match="class indices go from 0 to 2, and 2 classes exist"):
        load_real(str(root))
    (root / "classes.txt").write_text("cow\nant\nbee\nelk\n")
    with pytest.raises(InputError, match="class 'elk' of .* has no images"):
        load_real(str(root))
    with tarfile.open(root / "000001.tar", "a") as shard:
        shard.add(exported / "folder" / "train" / "ant" / "000.png", "lonely.png")
    with pytest.raises(InputError, match="000001.tar: lonely.png has no class index: expected lonely.cls"):
        load_real(str(root))
    (root / "000001.tar").write_bytes(b"no tar at all")
    with pytest.raises(InputError, match="000001.tar cannot be read as a WebDataset shard"):
        load_real(str(root))


def test_a_shard_that_was_cut_off_is_named(exported: Path) -> None:
    shard = exported / "shards" / "train" / "000002.tar"
    shard.write_bytes(shard.read_bytes()[: 512 + 100])  # in the middle of its image
    with pytest.raises(InputError, match="000002.tar"):
        load_real(str(exported / "shards"))


def test_packed_shards_are_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "000000.tar.gz").touch()
    with pytest.raises(InputError, match="000000.tar.gz is compressed"):
        load_real(str(tmp_path))


def test_a_second_run_waits_for_the_first_and_decodes_nothing(
    folder: Path, large: None, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    really = gencond.data.decode.take_lock

    def busy(file: Path) -> int | None:
        return really(file) if len(waited) == 2 else None

    monkeypatch.setattr("gencond.data.decode.take_lock", busy)

    def first_run_ends(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            source = gencond.data.find.find_images(folder)
            gencond.data.decode.decode_into_cache(source, SIZE)
            decoded.clear()

    monkeypatch.setattr("gencond.data.decode.time.sleep", first_run_ends)
    load_real(str(folder), SIZE)
    assert len(waited) == 2 and not decoded


def test_folders_of_equal_names_and_times_are_not_taken_for_each_other(tmp_path: Path, large: None) -> None:
    for number, name in enumerate(("one", "two")):
        for label in "ab":
            for image in range(3):
                path = tmp_path / name / label / f"{image}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (SIZE, SIZE), (100 * number, image, 0)).save(path)
                os.utime(path, (0, 0))
    one, two = (load_real(str(tmp_path / name), SIZE)[0] for name in ("one", "two"))
    assert one.images[torch.arange(2)].max() < 100 <= two.images[torch.arange(2)].max()


def test_shards_beside_folders_and_shards_without_images_are_refused(exported: Path) -> None:
    (exported / "mixed").mkdir()
    (exported / "shards" / "train").rename(exported / "mixed" / "train")
    (exported / "folder" / "test").rename(exported / "mixed" / "test")
    with pytest.raises(InputError, match="test holds no shards, and .*train does: write both in one way"):
        load_real(str(exported / "mixed"))
    (exported / "shards" / "test").rename(exported / "folder" / "test")
    with pytest.raises(InputError, match="test holds shards, and the training images lie in folders"):
        load_real(str(exported / "folder"))
    shutil.rmtree(exported / "mixed" / "test")
    (exported / "mixed" / "test").mkdir()
    with tarfile.open(exported / "mixed" / "test" / "000000.tar", "w"):
        pass
    with pytest.raises(InputError, match="the shards of .*test hold no images"):
        load_real(str(exported / "mixed"))
    (exported / "mixed" / "train" / "classes.txt").write_bytes(b"\xff")
    shutil.rmtree(exported / "mixed" / "test")
    with pytest.raises(InputError, match="classes.txt is no UTF-8 text"):
        load_real(str(exported / "mixed"))


# --- what a shard may hold ---------------------------------------------------------------------------------------


def png_of(colour: int) -> bytes:
    return png_bytes(np.full((8, 8, 3), colour, np.uint8))


def write_shard(path: Path, members: Sequence[tuple[str, bytes | str]]) -> Path:
    """A .tar of (name, content): bytes of a file; "-> name" a symbolic link, "=> name" a hard link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type = tarfile.SYMTYPE if content.startswith("->") else tarfile.LNKTYPE
                member.linkname, content = content[3:], b""
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


def samples(*keys: str) -> list[tuple[str, bytes | str]]:
    """An image of each key, of class 0, 1, 0, 1, ... and of a colour that is ten times its number."""
    pairs = [((f"{key}.png", png_of(10 * n)), (f"{key}.cls", str(n % 2).encode())) for n, key in enumerate(keys)]
    return [member for pair in pairs for member in pair]


def colours(root: Path) -> list[tuple[int, int]]:
    """(colour, label) of each image."""
    source = find_images(root)
    return list(zip(read_into_memory(source, 8)[:, 0, 0, 0].tolist(), source.labels.tolist(), strict=True))


def test_a_shard_that_is_cut_off_anywhere_is_named_or_whole(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", samples("a", "b", "c"))
    whole = shard.read_bytes()
    last_byte = len(whole.rstrip(b"\0"))
    end = -(-last_byte // 512) * 512 + 1024  # two blocks of zeros behind the last member
    places = {*range(0, len(whole), 64), *range(end - 3, end + 3), *range(0, len(whole), 512)}
    for place in places:
        shard.write_bytes(whole[:place])
        if place < end:
            with pytest.raises(InputError, match=r"0\.tar"):
                find_images(tmp_path)
        else:  # what is lost are zeros that fill the last record
            assert len(find_images(tmp_path)) == 3


def test_a_damaged_header_and_joined_shards_are_named(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", samples("a", "b", "c"))
    whole = shard.read_bytes()
    for start in range(0, len(whole.rstrip(b"\0")), 512):
        if whole[start + 257 : start + 262] == b"ustar":
            shard.write_bytes(whole[: start + 150] + b"?" + whole[start + 151 :])  # in its checksum
            with pytest.raises(InputError, match=r"0\.tar"):
                find_images(tmp_path)
    shard.write_bytes(whole + whole)
    with pytest.raises(InputError, match="goes on behind its end"):
        find_images(tmp_path)


def test_keys_with_dots_are_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", samples("n01.v2.0", "n01.v2.1", "dir.x/plain"))
    assert colours(tmp_path) == [(0, 0), (10, 1), (20, 0)]


def test_of_a_key_with_several_images_the_plain_one_is_read_and_the_others_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    extra = [
        ("a.mask.png", png_of(99)),
        ("a.json", b"{}"),
        ("._a.png", b""),
        ("c.rgb.png", png_of(7)),
        ("c.cls", b" 1\n"),
    ]
    write_shard(tmp_path / "0.tar", [*samples("a", "b"), *extra])
    assert colours(tmp_path) == [(0, 0), (10, 1), (7, 1)]
    for said in ("1 further image(s) of a key (0.tar/a.mask.png", "1 hidden or system", "shards that are no images"):
        assert said in caplog.text


def test_links_in_shards_are_followed(tmp_path: Path) -> None:
    links = [("d/e.png", "-> ../b.png"), ("d/e.cls", "=> a.cls"), ("f.PNG", "=> d/e.png"), ("f.cls", "-> b.cls")]
    write_shard(tmp_path / "0.tar", [*links, *samples("a", "b")])
    assert colours(tmp_path) == [(0, 0), (10, 1), (10, 0), (10, 1)]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*samples("a", "b"), *samples("a")], "a.png is there twice"),
        ([*samples("a", "b"), ("./a.png", b"")], "a.png is there twice"),
        ([*samples("a", "b"), ("a.jpg", b"")], "a.jpg is there twice, or in two formats"),
        ([*samples("a", "b"), ("c.cls", b"0")], "c.cls has no image"),
        ([*samples("a", "b"), ("c.png", b"")], "c.png has no class index: expected c.cls"),
        ([*samples("a", "b"), ("c.l.png", b""), ("c.r.png", b""), ("c.cls", b"0")], "not the only image of c.cls"),
        ([*samples("a", "b"), ("c.png", "-> gone.png"), ("c.cls", b"0")], "c.png is a link to gone.png"),
        ([*samples("a", "b"), ("c.png", "-> c.png"), ("c.cls", b"0")], "c.png is a link to c.png"),
        ([*samples("a", "b"), ("c.png", b""), ("c.cls", b"1_0")], "c.cls holds b'1_0', which is no class index"),
        ([*samples("a", "b"), ("c.png", b""), ("c.cls", b"cat")], "no class index"),
        ([*samples("a", "b"), ("c.png", b""), ("c.cls", b"1000000000")], "from 0 to 1000000000, and 3 training images"),
        ([*samples("a", "b"), ("c.png", b""), ("c.cls", b"9" * 30)], "no class index"),
    ],
)  # fmt: skip
def test_a_shard_with_something_lacking_or_twice_is_refused(tmp_path: Path, members: list, message: str) -> None:
    write_shard(tmp_path / "0.tar", members)
    with pytest.raises(InputError, match=message):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("train", "test"), [("imagenet1k-train-0", "imagenet1k-validation-0"), ("train_0", "val_0"), ("Train", "test")]
)
def test_shards_of_one_folder_are_split_by_their_names(tmp_path: Path, train: str, test: str) -> None:
    write_shard(tmp_path / f"{train}.tar", samples("a", "b"))
    write_shard(tmp_path / f"{test}.tar", samples("a", "b", "c"))
    found = find_images(tmp_path)
    assert found.has_test and found.num_train == 2 and len(found) == 5 and found.names[0] == f"{train}.tar/a.png"


def test_shards_that_may_belong_to_either_split_are_refused(tmp_path: Path) -> None:
    for name in ("train-0", "val-0", "more-0"):
        write_shard(tmp_path / f"{name}.tar", samples("a", "b"))
    with pytest.raises(InputError, match="more-0.tar beside train-0.tar: which shards are for training"):
        find_images(tmp_path)
    (tmp_path / "val-0.tar").unlink()
    assert len(find_images(tmp_path)) == 4 and not find_images(tmp_path).has_test


def test_shards_for_testing_and_validation_are_not_mixed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gencond")
    for name in ("train-0", "val-0", "test-0"):
        write_shard(tmp_path / f"{name}.tar", samples("a", "b"))
    assert find_images(tmp_path).names[2:] == ["test-0.tar/a.png", "test-0.tar/b.png"]
    assert "1 shards of" in caplog.text and "for validation are left out" in caplog.text


def test_packed_shards_beside_others_are_to_be_unpacked(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", samples("a", "b"))
    (tmp_path / "1.tar.zst").touch()
    with pytest.raises(InputError, match=r"1\.tar\.zst is compressed"):
        find_images(tmp_path)


def test_shards_beside_class_folders_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gencond")
    write_shard(tmp_path / "download.tar", samples("a", "b"))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png_of(0))
    assert find_images(tmp_path).class_names == ("cat", "dog")
    assert "1 shard(s) beside folders (download.tar first)" in caplog.text


def test_the_lines_of_classes_txt_are_names_whatever_ends_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    write_shard(tmp_path / "0.tar", [*samples("a", "b"), ("c.png", png_of(1)), ("c.cls", b"2")])
    (tmp_path / "classes.txt").write_bytes("\ufeffcrane\r\nélan \x85x\r\ncrane\r\n\r\n".encode())
    found = find_images(tmp_path)
    assert found.class_names == ("crane", "crane (2)", "élan \x85x") and found.class_of == (0, 2, 1)
    assert "two classes are called 'crane': number 2 is 'crane (2)' here" in caplog.text
    (tmp_path / "classes.txt").write_text("crane\n\nelk\n")
    with pytest.raises(InputError, match="classes.txt has an empty line where a class name is expected"):
        find_images(tmp_path)


def test_two_lists_of_classes_that_differ_are_refused(exported: Path) -> None:
    (exported / "shards" / "test" / "classes.txt").write_text("ant\nbee\ncow\n")
    with pytest.raises(InputError, match="train/classes.txt and .*test/classes.txt differ"):
        find_images(exported / "shards")


def test_names_told_apart_never_meet_another_name() -> None:
    assert told_apart(["a", "a", "a (2)", "a", "b"]) == ["a", "a (3)", "a (2)", "a (4)", "b"]


def test_decoded_images_of_another_white_are_not_taken_over(tmp_path: Path, large: None) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(np.full((16, 16), 1000 + number, np.uint16)).save(tmp_path / name / f"{number}.png")
    before, _ = load_real(str(tmp_path), SIZE)
    assert before.images[torch.arange(2)].min() > 240  # of 1023
    Image.fromarray(np.full((16, 16), 65000, np.uint16)).save(tmp_path / "b" / "3.png")
    train, test = load_real(str(tmp_path), SIZE)
    assert sorted({*all_of(train.images).flatten().tolist(), *all_of(test.images).flatten().tolist()}) == [4, 253]


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("row", [0, 11, 23])
def test_a_flipped_byte_of_a_pixel_is_found_when_it_is_read_and_its_part_is_decoded_again(
    folder: Path, large: None, decoded: list[str], own_cache: Path, row: int
) -> None:
    train, test = load_real(str(folder), SIZE)
    everything = all_of(train.images), all_of(test.images)
    (kept,) = (path for path in (own_cache / "images").iterdir() if not path.name.startswith("."))
    flip(kept / "pixels", row * 3 * SIZE**2 + 7)
    again = load_real(str(folder), SIZE)  # no pixel is read
    with pytest.raises(InputError, match=rf"{kept.name} is damaged \(image {row}\) and will be made again"):
        [all_of(part.images) for part in again]
    before = len(decoded)
    mended = load_real(str(folder), SIZE)
    assert len(decoded) - before == (4 if row == 23 else 5)  # of 24 images in parts of five
    assert all(torch.equal(all_of(part.images), whole) for part, whole in zip(mended, everything, strict=True))
    assert not list((own_cache / "images").glob(".*.damaged"))


@pytest.mark.parametrize(
    ("damage", "decoded_again"),
    [
        (lambda kept: flip(kept / "facts", 80 * 7 + 40), 5),  # a sum of image 7
        (lambda kept: flip(kept / "facts", 80 * 7), 5),  # its checksum
        (lambda kept: (kept / "pixels").write_bytes((kept / "pixels").read_bytes()[:-1]), 24),
        (lambda kept: (kept / "facts").unlink(), 24),
        (lambda kept: (kept / "about.json").write_text("{"), 24),
        (lambda kept: (kept / "about.json").write_text('{"shape": 3}'), 24),
    ],
)
def test_damage_beside_the_pixels_is_found_when_the_set_is_opened(
    folder: Path, large: None, decoded: list[str], own_cache: Path, caplog: pytest.LogCaptureFixture, damage,
    decoded_again: int,
) -> None:  # fmt: skip
    first, _ = load_real(str(folder), SIZE)
    fingerprint, moments, pixels = first.fingerprint, first.mean_std, all_of(first.images)
    (kept,) = (path for path in (own_cache / "images").iterdir() if not path.name.startswith("."))
    damage(kept)
    before = len(decoded)
    again, _ = load_real(str(folder), SIZE)
    assert "is damaged" in caplog.text and "will be made again" in caplog.text
    assert len(decoded) - before == decoded_again
    assert (again.fingerprint, again.mean_std) == (fingerprint, moments) and torch.equal(all_of(again.images), pixels)
