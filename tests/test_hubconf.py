import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gencond.common.errors import InputError
from gencond.common.ranges import to_uint8
from gencond.config import parse_recipe
from gencond.data.images import LabeledImages
from gencond.eval.classifier import train_and_test
from gencond.eval.protocols import Protocol

ROOT = Path(__file__).parent.parent


def shipped(name: str = "digits") -> torch.nn.Module:
    return torch.hub.load(str(ROOT), "condensed", name, source="local")


def most_levels_apart(images: torch.Tensor, golden: str) -> int:
    """Of 255; one is allowed, since other processors round the last bit of a convolution otherwise."""
    saved = np.load(ROOT / "tests" / "golden" / golden)
    return np.abs(to_uint8(images).numpy().astype(int).reshape(saved.shape) - saved.astype(int)).max()


def test_the_shipped_digits_repeat_their_saved_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = shipped().sample(ipc=2)
    assert most_levels_apart(images, "digits_ipc2.npy") <= 1
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]


@pytest.mark.parametrize("name, size", [("fashion_mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_the_shipped_flagships_repeat_the_first_part_of_each_class(name: str, size: tuple[int, ...]) -> None:
    model = shipped(name)
    images, labels = model.sample(ipc=1)
    assert images.shape == (40, *size) and labels.tolist() == [label for label in range(10) for _ in range(4)]
    assert most_levels_apart(images[::4], f"{name}_first.npy") <= 1
    assert parse_recipe(model.config.provenance["recipe"], name).name == f"flagship:{name}:quick"


def test_the_shipped_megabit_is_one_and_repeats_its_first_images() -> None:
    model = shipped("cifar10_1mbit")
    assert model.num_bytes * 8 < 1e6 * model.num_classes and model.config.storage == "coded"
    images, labels = model.sample(ipc=1)
    assert labels.tolist() == list(range(10)) and most_levels_apart(images, "cifar10_1mbit_first.npy") <= 1
    assert model.sample(ipc=600, classes=["ship"])[0].shape == (600, 3, 32, 32)
    assert parse_recipe(model.config.provenance["recipe"], "").name == "flagship:cifar10:quick:stream-large"


def test_the_page_of_the_shipped_sets_lists_the_hashes_of_their_weights() -> None:
    page = (ROOT / "checkpoints" / "README.md").read_text()
    folders = sorted(path for path in (ROOT / "checkpoints").iterdir() if path.is_dir())
    for folder in folders:
        weights = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
        assert f"| `{folder.name}` | `{hashlib.sha256(weights).hexdigest()}` |" in page
    assert len(folders) == 4


def test_the_shipped_digits_are_small_and_name_their_recipe() -> None:
    model = shipped()
    assert sum(file.stat().st_size for file in (ROOT / "checkpoints" / "digits").iterdir()) < 2e6
    made = model.config.provenance
    assert parse_recipe(made["recipe"], "digits").name == "demo" and made["data"]["num_images"] == 1198


def test_the_shipped_digits_teach_digits(digits: tuple) -> None:
    images, labels = shipped().sample(ipc=10)
    train = LabeledImages(to_uint8(images), labels, digits[0].class_names)
    protocol = Protocol("short", 150, 100, 0.05, min_steps=150, max_steps=150)
    (top1,) = train_and_test(
        [train], digits[1], network="convnet2w16", protocol=protocol, augmentation="crop_scale_rotate",
        normalisation=digits[0].mean_std, seeds=[0], device=torch.device("cpu"),
    )  # fmt: skip
    assert top1 > 0.9  # seen over three seeds: .95, .97, .95; ten random real images of each class give .91 to .93


def hub(entry: str, *arguments, **options) -> torch.nn.Module:
    return torch.hub.load(str(ROOT), entry, *arguments, source="local", **options)


def test_biggans_with_random_weights_need_no_network() -> None:
    labels = torch.tensor([1, 3])
    small = hub("biggan", 32)
    assert not small.training and small(torch.randn(2, 128), labels).shape == (2, 3, 32, 32)
    deep = hub("biggan_deep", truncation=0.4)
    assert not deep.training and deep.config.truncation == 0.4
    assert deep.sample(labels, rng=torch.Generator().manual_seed(0)).shape == (2, 3, 128, 128)


def test_biggans_are_read_from_files_of_their_resolution(tmp_path: Path) -> None:
    expected = hub("biggan", 32)
    expected.save_pretrained(tmp_path)
    again = hub("biggan", 32, weights=tmp_path)
    assert torch.equal(again.out_conv.weight, expected.out_conv.weight)
    with pytest.raises(InputError, match="makes 32 px images, not 128"):
        hub("biggan", weights=tmp_path)
    for entry, offered in (("biggan", "32, 64, 128 or 256"), ("biggan_deep", "128, 256 or 512")):
        with pytest.raises(InputError, match=f"has {offered} px, not 96"):
            hub(entry, 96)
    with pytest.raises(InputError, match="expected a file, a folder, a URL or a Hub id"):
        hub("biggan_deep", weights=tmp_path / "absent.bin")


SPY = """
import builtins, sys
sys.path.insert(0, sys.argv[1])
real, found = builtins.__import__, set()

def spy(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and (globals or {}).get("__name__", "").partition(".")[0] in ("gencond", "hubconf"):
        found.add(name.partition(".")[0])
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = spy
import hubconf
model = hubconf.condensed("digits")
model.sample(1), model.stream(), hubconf.condensed("cifar10_1mbit"), hubconf.biggan(32)
import gencond.generator.biggan_deep, gencond.generator.published
print(*(found - sys.stdlib_module_names - {"gencond"} - set(hubconf.dependencies)))
"""


def test_every_package_that_the_hub_needs_is_named_for_it() -> None:
    """torch.hub names the missing ones before it loads anything."""
    found = subprocess.run([sys.executable, "-c", SPY, str(ROOT)], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


SPAWNS = """
import sys

sys.path.append(sys.argv[1])  # where torch is; gencond is installed nowhere
if __name__ == "__main__":
    import torch

    model = torch.hub.load(sys.argv[2], "condensed", "digits", source="local")
    loader = torch.utils.data.DataLoader(
        model.stream(10), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    images, labels = next(iter(loader))
    # A worker has one thread, this process several: their sums are rounded differently.
    torch.testing.assert_close(images, next(iter(model.stream(10)))[0], atol=1e-5, rtol=0)
    print(tuple(images.shape))
"""


def test_a_model_from_the_hub_reaches_spawned_loader_workers(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(SPAWNS)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    places = str(Path(torch.__file__).parent.parent), str(ROOT)
    said = subprocess.run(
        [sys.executable, "-S", "main.py", *places], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert said.stdout.endswith("(10, 1, 8, 8)\n"), said.stderr


def test_hub_lists_its_entries_and_an_unknown_name_is_explained() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import hubconf; print([n for n in dir(hubconf) if callable(getattr(hubconf, n)) and not n.startswith('_')])"  # noqa: E501
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert listed.strip() == "['biggan', 'biggan_deep', 'condensed']"
    with pytest.raises(InputError, match="no folder nothing"):
        torch.hub.load(str(ROOT), "condensed", "nothing", source="local")
