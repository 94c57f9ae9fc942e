"""Tables of Hugging Face `datasets`: parquet files, folders that `save_to_disk` wrote, sets of the Hub."""

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import gencond
from gencond.cli import main
from gencond.common.errors import InputError
from gencond.common.ranges import to_uint8
from gencond.config import column_overrides, load_recipe, parse_recipe
from gencond.data import decode
from gencond.data.decode import read_into_memory
from gencond.data.find import find_images
from gencond.data.load import load_real
from gencond.data.mapped import MappedImages
from gencond.data.tables import Columns, TableSource, columns_of, find_in_tables

CLASSES = ["zebra", "ant", "10", "2"]  # in no order: as text "10" < "2" < "ant" < "zebra"
SIDE = 8


@pytest.fixture(autouse=True)
def own_arrow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `datasets` converts goes into a folder of the test, and no bar is drawn."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "png")
    return file.getvalue()


def table(numbers: Sequence[int], **columns: datasets.features.features.FeatureType) -> datasets.Dataset:
    """Image number k is of class k modulo 4, in a column for each of `columns` (default: `image`, `label`)."""
    known = columns or {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    values = {
        name: [{"bytes": png(k), "path": None} for k in numbers]
        if isinstance(feature, datasets.Image)
        else [CLASSES[k % 4] for k in numbers]
        if feature == datasets.Value("string")
        else [k % 4 for k in numbers]
        for name, feature in known.items()
    }
    return datasets.Dataset.from_dict(values, features=datasets.Features(known))


def saved(root: Path, **splits: datasets.Dataset) -> Path:
    datasets.DatasetDict(splits).save_to_disk(str(root))
    return root


def assert_read(source: str | Path, numbers: Sequence[int], columns: Columns = Columns()) -> TableSource:  # noqa: B008
    """Pixels and names of classes are those of the rows, in their order."""
    found = find_in_tables(source, columns)
    images = read_into_memory(found, SIDE).permute(0, 2, 3, 1)
    assert np.array_equal(images.numpy(), np.stack([pixels(k) for k in numbers]))
    assert [found.class_names[label] for label in found.labels] == [CLASSES[k % 4] for k in numbers]
    assert found.class_names == tuple(sorted(CLASSES))
    return found


def test_a_saved_folder_is_read_row_by_row_with_its_test_set(tmp_path: Path) -> None:
    found = assert_read(
        saved(tmp_path / "set", train=table(range(12)), test=table(range(20, 24))), [*range(12), *range(20, 24)]
    )
    assert (found.num_train, found.has_test) == (12, True)
    assert found.class_of is not None and [found.class_names[label] for label in found.class_of] == CLASSES


def test_a_single_saved_table_is_all_training_images(tmp_path: Path) -> None:
    table(range(8)).save_to_disk(str(tmp_path / "set"))
    found = assert_read(tmp_path / "set", range(8))
    assert (found.num_train, found.has_test) == (8, False)


def test_parquet_files_are_split_by_words_in_their_names_or_folders(tmp_path: Path) -> None:
    for name, numbers in (("train-00000-of-00002", range(6)), ("train-00001-of-00002", range(6, 8)), ("test", [20])):
        (tmp_path / "files" / "data").mkdir(parents=True, exist_ok=True)
        table(numbers).to_parquet(tmp_path / "files" / "data" / f"{name}.parquet")
    (tmp_path / "files" / "README.md").write_text("a set")
    assert assert_read(tmp_path / "files", [*range(8), 20]).num_train == 8
    for split, numbers in (("train", range(8)), ("validation", [20])):
        (tmp_path / "folders" / split).mkdir(parents=True)
        table(numbers).to_parquet(tmp_path / "folders" / split / "0000.parquet")
    assert assert_read(tmp_path / "folders", [*range(8), 20]).num_train == 8
    assert assert_read(tmp_path / "folders" / "train" / "0000.parquet", range(8)).num_train == 8


def test_plain_bytes_and_plain_text_are_images_and_classes(tmp_path: Path) -> None:
    """As programs write them that know nothing of `datasets`."""
    import pyarrow as pa
    import pyarrow.parquet

    numbers = range(8)
    plain = pa.table({"content": [png(k) for k in numbers], "species": [CLASSES[k % 4] for k in numbers]})
    pyarrow.parquet.write_table(plain, tmp_path / "plain.parquet")
    assert_read(tmp_path / "plain.parquet", numbers)


def test_numbers_without_names_are_named_by_themselves(tmp_path: Path) -> None:
    table(range(8), image=datasets.Image(), label=datasets.Value("int64")).save_to_disk(str(tmp_path / "set"))
    found = find_in_tables(tmp_path / "set")
    assert found.class_names == ("0", "1", "2", "3") and found.labels.tolist() == [0, 1, 2, 3] * 2


def test_columns_are_named_where_several_can_be_meant(tmp_path: Path) -> None:
    coarse = datasets.ClassLabel(names=["a", "b", "c", "d"])
    two = table(
        range(8), img=datasets.Image(), mask=datasets.Image(), fine=datasets.ClassLabel(names=CLASSES), rough=coarse
    )
    two.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match="columns img, mask can all hold images: name one with --image-column"):
        find_in_tables(tmp_path / "set")
    with pytest.raises(InputError, match="columns fine, rough can all hold classes: name one with --label-column"):
        find_in_tables(tmp_path / "set", Columns(image="img"))
    assert_read(tmp_path / "set", range(8), Columns("img", "fine"))
    assert find_in_tables(tmp_path / "set", Columns("img", "rough")).class_names == ("a", "b", "c", "d")
    with pytest.raises(InputError, match="'fine' cannot hold images; these can: img, mask"):
        find_in_tables(tmp_path / "set", Columns("fine"))
    with pytest.raises(InputError, match="'Img' is no column; these can: img, mask"):
        find_in_tables(tmp_path / "set", Columns("Img"))


def test_a_column_of_classes_goes_before_other_numbers(tmp_path: Path) -> None:
    known = {"image": datasets.Image(), "width": datasets.Value("int64"), "y": datasets.ClassLabel(names=CLASSES)}
    table(range(8), **known).save_to_disk(str(tmp_path / "set"))
    assert_read(tmp_path / "set", range(8))


@pytest.mark.parametrize(
    ("splits", "why"),
    [
        ({"train": table([0, 1, 2])}, "class '2' of .* has no images: add some or remove the class"),
        ({"a": table(range(4)), "b": table(range(4))}, "has splits a, b: one of them has to be called train"),
        (
            {"train": table(range(4), label=datasets.ClassLabel(names=CLASSES))},
            "no column holds images: it has label .int64.",
        ),
        ({"train": table(range(4), image=datasets.Image())}, "no column holds classes: it has image .PIL"),
        (
            {
                "train": table(range(4), image=datasets.Image(), label=datasets.Value("string")),
                "test": table([0], image=datasets.Image(), label=datasets.ClassLabel(names=["lion", "x", "y", "z"])),
            },
            "split 'test' has class 'lion', which the training images have not",
        ),
    ],
    ids=["class", "splits", "images", "classes", "test class"],
)
def test_what_cannot_be_meant_is_refused_in_a_line(
    splits: dict[str, datasets.Dataset], why: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=why):
        find_in_tables(saved(tmp_path / "set", **splits))


def test_images_without_a_label_are_left_out_as_a_test_set_and_refused_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = table(range(4)).map(lambda row: {"label": -1})
    with caplog.at_level("INFO", logger="gencond"):
        found = assert_read(saved(tmp_path / "one", train=table(range(8)), test=hidden), range(8))
    assert not found.has_test and "split 'test' of" in caplog.text and "its images have no labels" in caplog.text
    with pytest.raises(InputError, match="split 'train': 4 of 12 rows have no 'label'"):
        find_in_tables(saved(tmp_path / "two", train=datasets.concatenate_datasets([table(range(8)), hidden])))


def test_the_validation_split_is_the_test_set_where_the_other_has_no_labels(tmp_path: Path) -> None:
    unlabelled = table(range(30, 34), image=datasets.Image())
    of = {"train": table(range(8)), "test": unlabelled, "validation": table(range(20, 24))}
    found = assert_read(saved(tmp_path / "set", **of), [*range(8), *range(20, 24)])
    assert found.has_test and found.num_train == 8


@pytest.mark.parametrize("kind", ["int8", "uint8", "uint32", "int64"])
def test_whole_numbers_of_every_kind_are_classes(kind: str, tmp_path: Path) -> None:
    table(range(8), image=datasets.Image(), label=datasets.Value(kind)).to_parquet(tmp_path / "set.parquet")
    assert find_in_tables(tmp_path / "set.parquet").labels.tolist() == [0, 1, 2, 3] * 2


def test_numbers_that_mean_no_class_are_refused_in_every_split(tmp_path: Path) -> None:
    for number, odd in enumerate((-2, 7)):
        strange = table(range(4)).cast_column("label", datasets.Value("int64"))
        strange = strange.map(lambda row, odd=odd: {"label": odd}, features=strange.features)
        other = datasets.ClassLabel(names=CLASSES[::-1])
        strange._info.features["label"] = other  # as files say that were written by something else
        root = saved(tmp_path / str(number), train=table(range(8)), test=strange)
        with pytest.raises(InputError, match=f"split 'test' has 'label' {odd}: classes are numbered 0 to 3"):
            find_in_tables(root)
    from_one = table(range(8), image=datasets.Image(), label=datasets.Value("int64"))
    from_one = from_one.map(lambda row: {"label": row["label"] + 1})
    from_one.save_to_disk(str(tmp_path / "from_one"))
    with pytest.raises(InputError, match="class indices go from 1 to 4: number the classes from 0"):
        find_in_tables(tmp_path / "from_one")
    nameless = table(range(8), image=datasets.Image(), label=datasets.ClassLabel(names=["a", " ", "c", "d"]))
    nameless.save_to_disk(str(tmp_path / "nameless"))
    with pytest.raises(InputError, match="class number 1 has an empty name"):
        find_in_tables(tmp_path / "nameless")


def test_names_of_files_are_no_patterns(tmp_path: Path) -> None:
    (tmp_path / "x[1]").mkdir()
    table(range(8)).to_parquet(tmp_path / "x[1]" / "set*.parquet")
    table(range(8, 16)).to_parquet(tmp_path / "x[1]" / "set2.parquet")
    assert_read(tmp_path / "x[1]" / "set*.parquet", range(8))
    assert_read(tmp_path / "x[1]" / "set2.parquet", range(8, 16))


def test_another_column_of_images_is_decoded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAPPED_ABOVE_BYTES", 0)
    rows = [{"one": {"bytes": png(k)}, "two": {"bytes": png(k + 50)}, "label": k % 4} for k in range(16)]
    known = {"one": datasets.Image(), "two": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    datasets.Dataset.from_list(rows, features=datasets.Features(known)).save_to_disk(str(tmp_path / "set"))
    first, second = (load_real(str(tmp_path / "set"), columns=Columns(name))[0].images[:] for name in ("one", "two"))
    assert not torch.equal(first[: len(second)], second[: len(first)])


def test_paths_in_a_table_are_those_from_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    (tmp_path / "there" / "pictures").mkdir(parents=True)
    for k in range(8):
        (tmp_path / "there" / "pictures" / f"{k}.png").write_bytes(png(k))
    cells = [{"bytes": None, "path": f"pictures/{k}.png"} for k in range(8)]
    cells = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    plain = pa.table({"image": cells, "label": [CLASSES[k % 4] for k in range(8)]})
    pyarrow.parquet.write_table(plain, tmp_path / "there" / "set.parquet")
    monkeypatch.chdir(tmp_path)
    assert_read(tmp_path / "there" / "set.parquet", range(8))


def test_a_column_of_any_name_can_be_named(tmp_path: Path) -> None:
    for number, name in enumerate(("a = b: c", "10", "null", "ä", "\U0001f600")):
        known = {
            "image": datasets.Image(),
            name: datasets.ClassLabel(names=CLASSES),
            "x": datasets.ClassLabel(names=CLASSES),
        }
        table(range(8), **known).save_to_disk(str(tmp_path / str(number)))
        recipe = load_recipe("demo", column_overrides(None, name))
        assert_read(tmp_path / str(number), range(8), columns_of(recipe.data))


def test_further_splits_are_left_out_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    of = {name: table(range(4)) for name in ("train", "test", "unsupervised")}
    with caplog.at_level("INFO", logger="gencond"):
        find_in_tables(saved(tmp_path / "set", **of))
    assert "only splits train, test are read, not ['unsupervised']" in caplog.text


def test_two_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    for config in ("fine", "rough"):
        (tmp_path / "set" / config).mkdir(parents=True)
        table(range(4)).to_parquet(tmp_path / "set" / config / "train.parquet")
    with pytest.raises(InputError, match="fine/train.parquet and rough/train.parquet lie in two folders"):
        find_in_tables(tmp_path / "set")


def test_damage_is_said_by_us_alone(tmp_path: Path) -> None:
    """`datasets` logs it too."""
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    command = [sys.executable, "-m", "gencond.cli", "condense", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be read by `datasets`" in done.stderr


def test_damage_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cut.parquet cannot be read by `datasets`"):
        find_in_tables(tmp_path / "cut.parquet")
    table(range(0)).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="empty.parquet cannot be read by `datasets`"):
        find_in_tables(tmp_path / "empty.parquet")
    broken = saved(
        tmp_path / "set", train=table(range(8)).map(lambda row: {"image": {"bytes": b"no image", "path": None}})
    )
    with pytest.raises(InputError, match=r"8 of 8 images in .*set cannot be read: train/0 \(no known image format\)"):
        load_real(str(broken))


def test_a_set_larger_than_memory_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = saved(tmp_path / "set", train=table(range(12)), test=table(range(20, 24)))
    in_memory = load_real(str(root))
    monkeypatch.setattr(decode, "MAPPED_ABOVE_BYTES", 0)
    for one, other in zip(in_memory, load_real(str(root)), strict=True):
        assert isinstance(other.images, MappedImages) and torch.equal(one.images[:], other.images[:])
        assert torch.equal(one.labels, other.labels)
    key = find_images(root).key(SIDE)
    saved(tmp_path / "again", train=table(range(1, 13)), test=table(range(20, 24)))
    assert find_images(tmp_path / "again").key(SIDE) != key == find_images(root).key(SIDE)


def test_what_is_exported_as_parquet_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    condensed = gencond.load("checkpoints/cifar10")
    images, labels = condensed.sample(ipc=3)
    found = find_images(condensed.export(tmp_path / "set", ipc=3, format="parquet"))
    in_order = found.labels.argsort(stable=True)  # files hold the first images of all classes before the second ones
    assert torch.equal(read_into_memory(found, 32)[in_order], to_uint8(images))
    assert torch.equal(found.labels[in_order], labels) and found.class_names == tuple(condensed.class_names)


def test_a_run_reads_a_table_and_remembers_its_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rough = datasets.ClassLabel(names=["a", "b", "c", "d"])
    known = {"img": datasets.Image(), "fine": datasets.ClassLabel(names=CLASSES), "rough": rough}
    root = saved(tmp_path / "set", train=table(range(48), **known), test=table(range(60, 72), **known))
    arguments = ["--recipe", "demo", "--data", str(root), "--out", str(tmp_path / "run"), *TINY]
    with pytest.raises(SystemExit, match="2"):
        main(["condense", *arguments])
    assert "name one with --label-column" in capsys.readouterr().err and not (tmp_path / "run").exists()
    main(["condense", *arguments, "--label-column", "rough"])
    assert gencond.load(tmp_path / "run").class_names == ["a", "b", "c", "d"]
    report = gencond.evaluate(tmp_path / "run", ipc=1, baselines=[])
    assert report.num_test_images == 12


def test_columns_go_with_their_source() -> None:
    made = {"name": "x", "data": {"source": "/there/a.parquet", "label_column": "fine"}}
    assert parse_recipe(made, "x", source="/moved/a.parquet").data.label_column == "fine"
    assert parse_recipe(made, "x", source="/there/folder").data.label_column is None
    assert parse_recipe(made, "x", ["data.label_column=rough"], "/there/b").data.label_column == "rough"


def test_columns_of_what_has_none_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels(0)).save(tmp_path / name / "0.png")
    with pytest.raises(InputError, match="has no columns: leave --image-column and --label-column out"):
        load_real(str(tmp_path), columns=Columns(label="x"))
    with pytest.raises(InputError, match="names no set of the Hub: expected hf:owner/name"):
        load_real("hf:owner//name")
    with pytest.raises(InputError, match="digits has no columns: leave --image-column and --label-column out"):
        load_real("digits", columns=Columns(label="x"))
