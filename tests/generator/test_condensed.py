import json
import pickle
import re
import socket
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import webdataset
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import normalize, to_tensor

import gencond
from gencond.common.errors import InputError
from gencond.data.find import find_images
from gencond.data.load import load_real
from gencond.eval.subject import fresh_images
from gencond.generator.biggan import BigGANGenerator
from gencond.generator.biggan_deep import BigGANDeepGenerator
from gencond.generator.card import model_card
from gencond.generator.dataset import CondensedDataset, backbone_config, load, new_backbone
from gencond.generator.exporting import class_folders, export_images
from gencond.generator.packing import decode
from gencond.generator.published import load_biggan
from gencond.generator.sampling import LARGEST_BLOCK, block_of, blocks_of

NAMES = ["ant", "bee", "cat"]


def make(
    names: list[str] = NAMES, slots: int = 3, size: int = 8, channels: int = 1, width: int = 8
) -> CondensedDataset:
    torch.manual_seed(1)
    config = {
        "sample_size": 8, "out_channels": 1, "num_class_embeds": len(names), "latent_dim": 8,
        "class_embed_dim": 6, "block_out_channels": [width],
    }  # fmt: skip
    return CondensedDataset(names, config, slots, seed=5).eval()


@pytest.fixture
def condensed() -> CondensedDataset:
    return make()


DEEP = {
    "_class_name": "BigGANDeepGenerator", "sample_size": 16, "num_class_embeds": 3, "latent_dim": 8,
    "class_embed_dim": 6, "block_out_channels": [16, 8], "truncation": 0.5,
}  # fmt: skip


# --- learning


def test_images_to_learn_from_are_made_in_pieces_with_the_same_values_and_gradients(
    condensed: CondensedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled images keep the blocks that their bits are promised for."""
    labels, slots = torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3)
    sizes: list[int] = []
    condensed.generator.register_forward_hook(lambda _, given, made: sizes.append(len(made)))

    def made() -> tuple[torch.Tensor, torch.Tensor]:
        images = condensed(labels, slots)
        (gradient,) = torch.autograd.grad(images.square().sum(), condensed.codes.learned)
        return images, gradient

    at_once = made()
    monkeypatch.setattr("gencond.generator.dataset.LEARNED_PIXELS", 4 * 64)
    in_pieces = made()
    with torch.no_grad():
        sampled = condensed(labels, slots)
    assert sizes == [9, 4, 4, 1, 9]
    for found, expected in zip((*in_pieces, sampled), (*at_once, at_once[0]), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_generator_whose_batch_norms_learn_meets_whole_batches(
    condensed: CondensedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their statistics are those of a batch, so pieces would be other images."""
    monkeypatch.setattr("gencond.generator.dataset.LEARNED_PIXELS", 4 * 64)
    sizes: list[int] = []
    condensed.generator.register_forward_hook(lambda _, given, made: sizes.append(len(made)))
    condensed.generator.train()
    condensed(torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3))
    assert sizes == [9]


def test_a_generator_that_learns_in_bfloat16_learns_from_its_gradients_and_samples_in_float32(
    condensed: CondensedDataset,
) -> None:
    labels, slots = torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3)

    def learned() -> tuple[torch.Tensor, torch.Tensor]:
        images = condensed(labels, slots)
        (gradient,) = torch.autograd.grad(images.square().sum(), condensed.codes.learned)
        return images, gradient

    sampled, (images, gradient) = condensed.sample(3)[0], learned()
    condensed.learns_in = torch.bfloat16
    rounded, gradient_of_rounded = learned()
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, images)
    torch.testing.assert_close(rounded, images, atol=0.03, rtol=0)  # 8 bits of products, some of them in a row
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), gradient_of_rounded.flatten(), dim=0)
    assert cosine > 0.99
    assert torch.equal(condensed.sample(3)[0], sampled)


# --- backbones


def test_a_deep_backbone_is_sampled_saved_and_read_like_any_other(tmp_path: Path) -> None:
    condensed = CondensedDataset(NAMES, DEEP, 2, seed=5).eval()
    condensed.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert isinstance(again.generator, BigGANDeepGenerator) and again.codes.truncation == 0.5
    images, _ = again.sample(5)
    assert images.shape == (15, 3, 16, 16) and torch.equal(images, condensed.sample(5)[0])
    assert torch.equal(condensed.sample(2)[0].view(3, 2, 3, 16, 16), images.view(3, 5, 3, 16, 16)[:, :2])


def test_the_config_of_a_backbone_makes_an_equal_one(condensed: CondensedDataset) -> None:
    for generator in (new_backbone(DEEP), condensed.generator):
        again = new_backbone(json.loads(json.dumps(backbone_config(generator))))
        assert type(again) is type(generator) and backbone_config(again) == backbone_config(generator)
        again.load_state_dict(generator.state_dict())
    assert isinstance(condensed.generator, BigGANGenerator)  # its config names no class, as old artefacts' do not


def test_codes_follow_the_truncation_asked_for_or_else_the_backbones(condensed: CondensedDataset) -> None:
    assert condensed.codes.truncation is None
    assert CondensedDataset(NAMES, DEEP).codes.truncation == 0.5
    assert CondensedDataset(NAMES, DEEP, truncation=0.8).codes.truncation == 0.8
    with pytest.raises(InputError, match="at most 1, not 2"):
        CondensedDataset(NAMES, DEEP, truncation=2.0)


def test_a_condensed_dataset_passes_checkpointing_on(condensed: CondensedDataset) -> None:
    condensed.enable_gradient_checkpointing()
    assert condensed.generator.gradient_checkpointing


# --- images of parts


def by_parts() -> CondensedDataset:
    config = {
        "sample_size": 4, "out_channels": 1, "num_class_embeds": 3, "latent_dim": 8, "class_embed_dim": 6,
        "block_out_channels": [8],
    }  # fmt: skip
    return CondensedDataset(NAMES, config, 2, seed=5, factor=2, by_parts=True).eval()


def test_each_part_of_an_image_is_made_from_its_own_part_of_the_code() -> None:
    condensed = by_parts()
    assert condensed.image_size == 8 and condensed.codes.latent_dim == 4 * 8
    labels, slots = torch.tensor([2, 0]), torch.tensor([1, 7])  # a learned slot and one past them
    images, codes = condensed(labels, slots), condensed.codes(labels, slots)
    for row, label in enumerate(labels):
        for part, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            alone = condensed.generator(codes[row, 8 * part : 8 * part + 8][None], label[None])[0]
            torch.testing.assert_close(images[row, :, top : top + 4, left : left + 4], alone)
    made = condensed.generator(codes.view(8, 8), labels.repeat_interleave(4))
    upsampled = torch.nn.functional.interpolate(made, size=(8, 8), mode="bilinear")
    torch.testing.assert_close(decode(images, 2), upsampled)  # IDC's cut gives back what the generator made


def test_a_set_of_parts_is_sampled_saved_and_stored_like_any_other(tmp_path: Path) -> None:
    condensed = by_parts()
    condensed.stored_as("int8").save_pretrained(tmp_path)
    again = load(tmp_path)
    images, labels = again.sample(5)
    assert images.shape == (3 * 5 * 4, 1, 8, 8) and labels.tolist() == sorted([0, 1, 2] * 20)
    assert torch.equal(images.unflatten(0, (3, 5, 4))[:, :2], again.sample(2)[0].unflatten(0, (3, 2, 4)))


# --- sampling


def test_samples_are_class_major_and_in_the_public_range(condensed: CondensedDataset) -> None:
    images, labels = condensed.sample(ipc=4)
    assert images.shape == (12, 1, 8, 8) and images.dtype == torch.float32
    assert 0 <= images.min() and images.max() <= 1 and images.std() > 0.01
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(images.flatten(1).unique(dim=0)) == 12
    assert not images.requires_grad


@pytest.mark.parametrize("num_classes", [2, 3, 10, 130, 300])
def test_a_small_set_is_a_prefix_of_a_large_one_bit_for_bit(num_classes: int) -> None:
    # width 64 so that the convolutions take the kernels of real networks
    condensed = make([f"{label:03d}" for label in range(num_classes)], width=64)
    large = condensed.sample(ipc=21)[0].view(num_classes, 21, 1, 8, 8)
    for ipc in (1, 2, 3, 5, 8, 20):
        assert torch.equal(condensed.sample(ipc)[0].view(num_classes, ipc, 1, 8, 8), large[:, :ipc]), ipc


def test_an_image_does_not_depend_on_the_classes_asked_for_or_their_order(condensed: CondensedDataset) -> None:
    everything = condensed.sample(ipc=6)[0].view(3, 6, 1, 8, 8)
    images, labels = condensed.sample(ipc=6, classes=["cat", 0])
    assert labels.tolist() == [2] * 6 + [0] * 6
    assert torch.equal(images.view(2, 6, 1, 8, 8), everything[[2, 0]])


@pytest.mark.parametrize(("num_classes", "width"), [(3, 8), (10, 64)])
def test_an_image_does_not_depend_on_the_number_of_threads(num_classes: int, width: int) -> None:
    """Convolutions of such sizes do, where threads share them."""
    condensed = make([f"{label:03d}" for label in range(num_classes)], width=width)
    threads = torch.get_num_threads()
    samples = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            samples.append(condensed.sample(ipc=20)[0])
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(samples[0], samples[1]) and torch.equal(samples[0], samples[2])


def test_sampling_leaves_the_model_as_training_had_it(condensed: CondensedDataset) -> None:
    condensed.train()
    strides = [parameter.stride() for parameter in condensed.parameters()]
    condensed.sample(2)
    condensed.stream(batch_size=3).batch(0)
    assert condensed.training and [parameter.stride() for parameter in condensed.parameters()] == strides


def test_more_images_than_learned_codes_are_no_repetitions_and_follow_the_seed(condensed: CondensedDataset) -> None:
    images = condensed.sample(ipc=600)[0]
    assert len(images.flatten(1).unique(dim=0)) == 1800
    other = condensed.sample(ipc=10, seed=77)[0].view(3, 10, 1, 8, 8)
    same = condensed.sample(ipc=10)[0].view(3, 10, 1, 8, 8)
    assert torch.equal(other[:, :3], same[:, :3]) and (other[:, 3:] != same[:, 3:]).any((-1, -2, -3)).all()


@pytest.mark.parametrize("ipc", [0, -3, True])
def test_a_wrong_ipc_is_explained(condensed: CondensedDataset, ipc: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        condensed.sample(ipc)


@pytest.mark.parametrize("classes", [["dog"], [3], [-1], ["ant", 0], [], "12"])
def test_wrong_classes_are_explained(condensed: CondensedDataset, classes: list) -> None:
    with pytest.raises(InputError, match="no class|asked for twice|must be a list"):
        condensed.sample(1, classes=classes)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_the_stream_cannot_take_is_refused(condensed: CondensedDataset, seed: int) -> None:
    with pytest.raises(InputError, match="seed must be in 0"):
        condensed.sample(5, seed=seed)


def test_numbers_of_other_kinds_count_as_numbers(condensed: CondensedDataset) -> None:
    images, labels = condensed.sample(np.int64(2), classes=torch.tensor([1]))
    assert images.shape[0] == 2 and labels.tolist() == [1, 1]
    dataset = condensed.as_dataset(2)
    assert dataset.targets == [0, 0, 1, 1, 2, 2] and dataset.class_to_idx == {"ant": 0, "bee": 1, "cat": 2}


@pytest.mark.parametrize(("num_classes", "size"), [(2, 8), (10, 8), (10, 64), (1000, 32), (1000, 128), (128, 32)])
def test_blocks_cover_the_grid_once_and_fit_their_bound(num_classes: int, size: int) -> None:
    seen = set()
    for label in {0, 1, num_classes // 2, num_classes - 1}:
        for slot in range(70):
            block = block_of(label, slot, [num_classes], size)
            assert block.first_class <= label < block.last_class <= num_classes
            assert block.first_slot <= slot < block.last_slot
            inside = {(block.first_class, s) for s in range(block.first_slot, block.last_slot)}
            assert all(block_of(c, s, [num_classes], size) == block for c, s in inside)
            images = (block.last_class - block.first_class) * (block.last_slot - block.first_slot)
            assert images <= LARGEST_BLOCK and images * size**2 <= LARGEST_BLOCK * 32**2
            seen.add(block)
    assert block_of(0, 0, [num_classes], size).last_slot == 1  # IPC 1 computes no second slot


def test_blocks_of_classes_stay_as_they_are_when_others_are_appended() -> None:
    """Groups of 3, 200 and 5 classes: the old blocks are those without the new group, and no block holds two groups."""
    ends = [3, 203, 208]
    for label in (0, 2, 3, 130, 202, 203, 207):
        for slot in (0, 1, 5, 40):
            number = sum(label >= end for end in ends)
            block = block_of(label, slot, [3, 200, 5], 32)
            assert block == block_of(label, slot, [3, 200, 5][: number + 1], 32)
            assert (ends[number - 1] if number else 0) <= block.first_class <= label < block.last_class <= ends[number]
    blocks = blocks_of(range(208), 10, [3, 200, 5], 32)
    covered = [(c, s) for first, last, start, end in blocks for c in range(first, last) for s in range(start, end)]
    assert len(covered) == len(set(covered)) and {(c, s) for c in range(208) for s in range(10)} <= set(covered)
    assert [block.first_slot for block in blocks] == sorted(block.first_slot for block in blocks)


def test_groups_that_are_not_all_classes_are_refused() -> None:
    config = backbone_config(BigGANGenerator(8, 1, 3, 8, 4, (8,)))
    with pytest.raises(InputError, match=r"class_groups \[2, 2\] are not the 3 classes"):
        CondensedDataset(["a", "b", "c"], config, 1, class_groups=[2, 2])


def test_the_dataset_gives_float_images_labels_and_transforms(condensed: CondensedDataset) -> None:
    dataset = condensed.as_dataset(ipc=2, transform=lambda image: image * 2)
    image, label = dataset[5]
    assert len(dataset) == 6 and label == 2 and dataset.classes == NAMES
    # as_dataset keeps uint8: half a step of 1/255, doubled by the transform
    torch.testing.assert_close(image, condensed.sample(2)[0][5] * 2, atol=1.01 / 255, rtol=0)


def test_the_stream_is_fresh_balanced_and_shared_out_without_repetition(condensed: CondensedDataset) -> None:
    stream = condensed.stream(batch_size=6)
    batches = [batch for batch, _ in zip(stream, range(4), strict=False)]
    images = torch.cat([images for images, _ in batches])
    assert len(torch.cat([images, condensed.sample(3)[0]]).flatten(1).unique(dim=0)) == 24 + 9
    assert all(labels.bincount().tolist() == [2, 2, 2] for _, labels in batches)
    loader = torch.utils.data.DataLoader(condensed.stream(batch_size=6), batch_size=None, num_workers=0)
    assert torch.equal(next(iter(loader))[0], batches[0][0])
    assert torch.equal(pickle.loads(pickle.dumps(condensed.stream(batch_size=6))).batch(0)[0], batches[0][0])
    ranks = [condensed.stream(batch_size=6) for _ in range(2)]
    for rank, own in enumerate(ranks):
        own.rank, own.num_processes = rank, 2
    shared = [next(iter(own)) for own in ranks]
    assert torch.equal(shared[0][0], batches[0][0]) and torch.equal(shared[1][0], batches[1][0])


def test_a_batch_of_the_stream_is_in_random_order_and_its_labels_are_those_of_its_images() -> None:
    """Images of one code would lie side by side otherwise, and libraries mix neighbours."""
    condensed = CondensedDataset(NAMES, make().config.generator_config, 3, seed=5, factor=2).eval()
    stream = condensed.stream(batch_size=120)
    images, labels = stream.batch(1)
    assert (
        float((labels[1:] == labels[:-1]).float().mean()) < 0.5
    )  # a third, and 0.75 if the four of a code were together
    slots = torch.arange(3 + 30, 3 + 60)  # past the learned ones and those of batch 0
    of_class = [stream.synthesize(torch.full((30,), one), slots).view(30, 4, -1) for one in range(3)]
    made = torch.stack(of_class).flatten(0, 2)
    nearest = torch.cdist((images * 2 - 1).flatten(1), made).argmin(1)
    assert torch.equal(nearest // 120, labels)
    assert nearest.remainder(120).unique().numel() == 120


@pytest.mark.parametrize("batch_size", [1, 6, 8])
def test_a_classifier_sees_whole_batches_however_many_images_a_slot_gives(batch_size: int) -> None:
    condensed = CondensedDataset(NAMES, make().config.generator_config, 3, seed=5, factor=2).eval()
    fresh = fresh_images(condensed, batch_size, num_steps=3)
    (source,) = fresh.sources([1], condensed.device)
    batches = [source(torch.Generator()) for _ in range(3)]
    images = torch.cat([images for images, _ in batches])
    assert fresh.num_images == len(images) == len(images.flatten(1).unique(dim=0)) == 3 * batch_size
    assert all(len(labels) == batch_size for _, labels in batches) and images.dtype == torch.uint8  # as exported
    stream = condensed.stream(batch_size=-(-batch_size // 4) * 4)  # of whole slots
    assert torch.equal(batches[0][1], stream.batch(2**24)[1][:batch_size])


# --- exports


def test_an_exported_imagefolder_is_the_format_that_is_condensed(condensed: CondensedDataset, tmp_path: Path) -> None:
    condensed.export(tmp_path / "out", ipc=5)
    images = condensed.sample(5)[0]
    for row, path in enumerate(sorted((tmp_path / "out").rglob("*.png"))):
        expected = (images[row, 0] * 255).round().to(torch.uint8).numpy()
        assert np.array_equal(np.asarray(Image.open(path)), expected)
    train, test = load_real(str(tmp_path / "out"))
    assert train.class_names == tuple(NAMES) and len(train) + len(test) == 15 and train.channels == 1


def test_npz_webdataset_and_parquet_hold_the_same_images(condensed: CondensedDataset, tmp_path: Path) -> None:
    import io
    import tarfile

    import pyarrow.parquet

    for format in ("npz", "webdataset", "parquet"):
        condensed.export(tmp_path / format, ipc=2, format=format)
    with np.load(tmp_path / "npz.npz") as file:
        images, labels, names = file["x_train"][..., 0], file["y_train"], file["names"].tolist()
    assert names == NAMES and labels.tolist() == [0, 0, 1, 1, 2, 2]
    with tarfile.open(tmp_path / "webdataset" / "000000.tar") as shard:
        members = {member.name: shard.extractfile(member).read() for member in shard}
    table = pyarrow.parquet.read_table(tmp_path / "parquet").to_pylist()
    table.sort(key=lambda row: row["image"]["path"])  # class-major
    for row in range(6):
        assert int(members[f"{row:09d}.cls"]) == table[row]["label"] == labels[row]
        for content in (members[f"{row:09d}.png"], table[row]["image"]["bytes"]):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), images[row])


def test_the_first_k_sorted_files_of_each_sorted_folder_are_ipc_k(condensed: CondensedDataset, tmp_path: Path) -> None:
    """What judges that read an ImageFolder go by, Rethinking-DC among them."""
    for ipc in (3, 12):
        condensed.export(tmp_path / str(ipc), ipc=ipc)
    for name, folder in zip(NAMES, sorted((tmp_path / "12").iterdir()), strict=True):
        first = [path.read_bytes() for path in sorted(folder.iterdir())[:3]]
        assert first == [path.read_bytes() for path in sorted((tmp_path / "3" / folder.name).iterdir())]
        assert folder.name == name


def test_the_ddranking_file_holds_images_as_that_judge_normalises_them(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(10).repeat_interleave(2)
    export_images(images, labels, [str(label) for label in range(10)], tmp_path / "set", "ddranking")
    found = torch.load(tmp_path / "set.pt", weights_only=True)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    expected = torch.stack([normalize(to_tensor(image.permute(1, 2, 0).numpy()), mean, std) for image in images])
    torch.testing.assert_close(found["images"], expected)
    assert torch.equal(found["labels"], labels)


def test_a_judge_that_does_not_know_such_images_is_named_before_sampling(
    condensed: CondensedDataset, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="10 or 100 classes of 3x32x32 px; these are 3 classes of 1x8x8 px"):
        condensed.export(tmp_path / "out", ipc=10**9, format="ddranking")
    assert not any(tmp_path.iterdir())


def test_export_refuses_to_overwrite_and_unknown_formats(condensed: CondensedDataset, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        condensed.export(tmp_path / "full", ipc=1)
    with pytest.raises(InputError, match="unknown format 'gif'"):
        condensed.export(tmp_path / "new", ipc=1, format="gif")
    assert not (tmp_path / "new").exists()


def test_class_folders_sort_like_the_classes() -> None:
    assert class_folders(["a b", "c"]) == ["a_b", "c"]
    assert class_folders([".a", "b"]) == ["0_.a", "1_b"] and class_folders(["a", "test"]) == ["0_a", "1_+test+"]
    assert class_folders(["A", "a"]) == ["0_A", "1_a"]  # one folder on many disks
    assert class_folders(["T-shirt/top", "T-shirt_top"]) == ["0_T-shirt_top", "1_T-shirt_top"]


# Names that readers put in different orders, take for splits or leave out, and none of all that.
TRYING_NAMES = [
    ["1", "10", "2"],
    ["class1", "class10", "class9"],
    ["Zebra", "ant", "bee"],
    ["1", "01", "001"],
    ["bullet_train", "eval", "test_tube", "train", "vase"],
    ["9test", "Train", "contest", "dev-2", "lost+found", "train2", "valid", "__init__"],
    ["test data", "testset", "training-images"],
    ["ant", "bee", "cat"],
]


@pytest.mark.parametrize("names", TRYING_NAMES, ids=lambda names: names[0])
def test_torchvision_timm_and_we_find_all_classes_of_a_folder_in_order(names: list[str], tmp_path: Path) -> None:
    make(names).export(tmp_path / "set", ipc=2)
    found = ImageFolder(str(tmp_path / "set"))
    assert found.targets == [label for label in range(len(names)) for _ in range(2)]
    ours = find_images(tmp_path / "set")
    assert list(ours.class_names) == found.classes and ours.labels.tolist() == found.targets and not ours.has_test
    for split in ("train", "validation"):  # where it would look for a folder of that name
        reader = create_dataset("", str(tmp_path / "set"), split=split).reader
        assert [label for _, label in reader.samples] == found.targets
        assert [Path(path).parent.name for path, _ in reader.samples[::2]] == found.classes
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == found.classes  # and nothing else lies there


@pytest.mark.parametrize("names", TRYING_NAMES, ids=lambda names: names[0])
@pytest.mark.parametrize("format", ["imagefolder", "webdataset", "parquet"])
def test_hugging_face_finds_all_images_and_labels(names: list[str], format: str, tmp_path: Path) -> None:
    condensed = make(names)
    condensed.export(tmp_path / "set", ipc=2, format=format)
    found = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    rows = [(row.get("label", row.get("cls")), row.get("image", row.get("png"))) for row in found["train"]]
    rows.sort(key=lambda row: row[0])
    assert [label for label, _ in rows] == [label for label in range(len(names)) for _ in range(2)]
    images = (condensed.sample(2)[0] * 255).round().to(torch.uint8)[:, 0].numpy()
    assert np.array_equal(np.stack([np.asarray(image) for _, image in rows]), images)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the package leaves shards open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_webdataset_package_finds_images_and_classes_of_shards(condensed: CondensedDataset, tmp_path: Path) -> None:
    shards = condensed.export(tmp_path / "set", ipc=2, format="webdataset")
    urls = sorted(map(str, shards.glob("*.tar")))
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    images = (condensed.sample(2)[0] * 255).round().to(torch.uint8)[:, 0].numpy()
    order = sorted(range(len(found)), key=lambda row: found[row][1])  # shards hold all classes' first images first
    assert [found[row][1] for row in order] == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(np.stack([np.asarray(found[row][0].convert("L")) for row in order]), images)


def test_shards_say_to_hugging_face_what_the_data_is_and_to_others_what_classes_are(
    condensed: CondensedDataset, tmp_path: Path
) -> None:
    condensed.export(tmp_path / "set", ipc=1, format="webdataset")
    _, settings, _ = (tmp_path / "set" / "README.md").read_text().split("---\n")
    files = [{"split": "train", "path": "*.tar"}]
    assert yaml.safe_load(settings) == {"configs": [{"config_name": "default", "data_files": files}]}
    assert (tmp_path / "set" / "classes.txt").read_text().splitlines() == NAMES


@pytest.mark.parametrize("name", ["a\nb", "a\x85b", "", "a\udcffb"])
def test_a_class_name_that_no_line_of_text_can_hold_is_refused_before_sampling(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no line of text, .* choose another format or rename the class"):
        make([name, "b"]).export(tmp_path / "set", ipc=10**9, format="webdataset")
    assert not any(tmp_path.iterdir())


def test_no_class_name_breaks_the_table_of_the_model_card() -> None:
    card = model_card(make(["a|b", "c\nd", "<e>", "*f*", "g\\|h"]))
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert len(rows) == 9  # head, rule and seven facts
    for row in rows:
        assert len(re.split(r"(?<!\\)(?:\\\\)*\|", row)) == 4  # two cells between three pipes that are not escaped
    assert r"| Classes | 5: a\|b, c d, \<e>, \*f\*, g\\\|h |" in rows


# --- loading


def test_saving_and_loading_repeats_the_samples_bit_for_bit(condensed: CondensedDataset, tmp_path: Path) -> None:
    condensed.save_pretrained(tmp_path / "run" / "condensed")
    for path in (tmp_path / "run", tmp_path / "run" / "condensed"):
        again = gencond.load(path)
        assert torch.equal(again.sample(5)[0], condensed.sample(5)[0])
        assert again.class_names == NAMES and not again.training
    sizes = [file.stat().st_size for file in (tmp_path / "run/condensed").iterdir()]
    assert max(sizes) < condensed.num_bytes < 1.05 * sum(sizes)  # the weights' file and the config


def test_what_is_no_artefact_is_explained(condensed: CondensedDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no config.json"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a list, not an object"),
        (lambda folder: edit(folder, lambda config: config.pop("class_names")), "lacks class_names"),
        (lambda folder: edit(folder, lambda config: config.update(_class_name="UNet")), "describes 'UNet'"),
        (lambda folder: edit(folder, lambda config: config.update(num_slots=9)), "cannot be loaded"),
        (lambda folder: edit(folder, lambda config: config["generator_config"].pop("sample_size")), "cannot be loaded"),
        (lambda folder: edit(folder, lambda config: config["generator_config"].update(_class_name="x")), "no backbone"),
        (lambda folder: edit(folder, lambda config: config.update(class_names="ant")), "must be a list of different"),
        (lambda folder: edit(folder, lambda config: config.update(class_names=["a", "b"])), "one of 2 classes"),
        (lambda folder: edit(folder, lambda config: config.update(provenance="me")), "must be an object"),
        (lambda folder: drop_weight(folder, "codes.learned"), "missing keys, codes.learned first"),
        (lambda folder: drop_weight(folder, "generator.blocks.0.conv1.weight"), "missing keys"),
        (lambda folder: next(folder.glob("*.safetensors")).rename(folder / "weights.bin"), "no weights"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "no weights"),
        (lambda folder: truncate(next(folder.glob("*.safetensors"))), "cannot be loaded"),
    ],
)
def test_a_broken_artefact_is_explained_in_one_line(
    condensed: CondensedDataset, tmp_path: Path, break_it, message: str
) -> None:
    condensed.save_pretrained(tmp_path)
    break_it(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def drop_weight(folder: Path, name: str) -> None:
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_the_hub_is_asked_once_where_there_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments, **options) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits to ask again"))
    with pytest.raises(InputError, match="^no/such cannot be loaded as a condensed dataset: the Hub's address is not"):
        gencond.load("no/such")
    with pytest.raises(InputError, match="^no/such/G.pth is no file, and not read from the Hub: the Hub's address is"):
        load_biggan("no/such/G.pth")
