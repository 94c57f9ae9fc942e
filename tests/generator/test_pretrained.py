import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import published_layouts as layouts
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gencond.common.errors import InputError
from gencond.common.files import cache_dir, file_sha256
from gencond.generator import biggan, biggan_deep, published
from gencond.generator.biggan import BigGANGenerator
from gencond.generator.biggan_deep import BigGANDeepGenerator
from gencond.generator.dataset import backbone_config
from gencond.generator.loading import read_model
from gencond.generator.published import PublishedFile, converted, load_biggan, load_biggan_deep, load_imagenet1k

CLASSES = 5
DEEP: dict[str, Callable[[], nn.Module]] = {
    "HuggingFace 128": lambda: layouts.HuggingFaceDeep(128, 4, CLASSES, 6),
    "HuggingFace 256": lambda: layouts.HuggingFaceDeep(256, 4, CLASSES, 6),
    "BigGAN-PyTorch deep": lambda: layouts.PyTorchDeep(64, 4, CLASSES, 6, outputs=3, attention=32),
    "BigGAN-PyTorch deep, all outputs": lambda: layouts.PyTorchDeep(64, 4, CLASSES, 6, outputs=8, attention=16),
    "StudioGAN deep": lambda: layouts.StudioBigGAN(64, 8, CLASSES, 6, 7, attention=2, deep=True),
}
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "BigGAN-PyTorch ImageNet": lambda: layouts.PyTorchBigGAN(64, 4, CLASSES, 3, 7, attention=32),
    "BigGAN-PyTorch CIFAR": lambda: layouts.PyTorchBigGAN(32, 2, CLASSES, chunk=0, latent_dim=9, attention=None),
    "StudioGAN CIFAR": lambda: layouts.StudioBigGAN(32, 4, CLASSES, 3, 7, attention=2),
    "StudioGAN Tiny ImageNet": lambda: layouts.StudioBigGAN(64, 4, CLASSES, 3, 7, attention=3),
}


def small(name: str, seed: int = 0) -> nn.Module:
    return layouts.randomise({**DEEP, **PLAIN}[name](), seed)


def saved(network: nn.Module, path: Path, **torch_save) -> Path:
    torch.save(network.state_dict(), path, **torch_save)
    return path


def latents_and_labels(generator: nn.Module) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([0, 4, 2])
    return torch.randn(3, generator.config.latent_dim), labels


# --- the same images


@pytest.mark.parametrize("name", [*DEEP, *PLAIN])
def test_a_loaded_generator_repeats_the_published_forward(name: str, tmp_path: Path) -> None:
    network = small(name)
    path = saved(network, tmp_path / "G_ema.pth")
    generator = load_biggan_deep(path) if name in DEEP else load_biggan(path)
    latents, labels = latents_and_labels(generator)
    latents.requires_grad_()
    images, expected = generator(latents, labels), network(latents, labels)
    assert not generator.training and images.std() > 0.1
    # folding, one multiply-add and fused attention round differently; signals before the tanh are of size 1 to 10
    torch.testing.assert_close(images, expected, atol=2e-5, rtol=1e-4)
    (gradient,), (wanted,) = (torch.autograd.grad(out.square().sum(), latents) for out in (images, expected))
    assert (gradient - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.parametrize("name", ["HuggingFace 128", "BigGAN-PyTorch CIFAR"])
def test_what_was_loaded_is_saved_and_read_again(name: str, tmp_path: Path) -> None:
    load = load_biggan_deep if name in DEEP else load_biggan
    generator = load(saved(small(name), tmp_path / "weights.bin"))
    generator.save_pretrained(tmp_path / "ours")
    inputs = latents_and_labels(generator)
    for again in (load(tmp_path / "ours"), read_model(type(generator), tmp_path / "ours", "a generator")):
        assert torch.equal(again(*inputs), generator(*inputs))
        assert backbone_config(again) == backbone_config(generator)
    # folded: no u, no v, no second row
    assert sum(value.numel() for value in generator.state_dict().values()) < 1.1 * sum(
        weight.numel() for weight in generator.parameters()
    )


@pytest.mark.parametrize(("truncation", "row"), [(1.0, 50), (0.4, 20), (0.58, 29), (0.94, 47), (0.02, 1), (0.005, 0)])
def test_a_truncation_takes_its_own_row_of_statistics(truncation: float, row: int, tmp_path: Path) -> None:
    network = small("HuggingFace 128")
    generator = load_biggan_deep(saved(network, tmp_path / "a.bin"), truncation)
    name = "layers.3.bn_1.running_means"
    mean = network.generator.state_dict()[name][row]
    assert torch.equal(generator.blocks[3].norm2.running_mean, mean) and generator.config.truncation == truncation
    latents, labels = latents_and_labels(generator)
    torch.testing.assert_close(generator(latents, labels), network(latents, labels, row), atol=2e-5, rtol=1e-4)


def test_weights_of_unconverged_power_iterations_are_divided_by_what_was_stored(tmp_path: Path) -> None:
    network = small("StudioGAN CIFAR")
    conv = network.blocks[0][0].conv2d1
    generator = load_biggan(saved(network, tmp_path / "a.pth"))
    sigma = conv.weight_u @ conv.weight_orig.flatten(1) @ conv.weight_v
    largest = torch.linalg.matrix_norm(conv.weight_orig.flatten(1), 2)
    assert sigma < 0.95 * largest
    torch.testing.assert_close(generator.blocks[0].conv1.weight, conv.weight_orig / sigma)


# --- the published lists of entries


@pytest.mark.parametrize(
    ("network", "entries", "elements", "digest", "config"),
    [
        (
            lambda: layouts.HuggingFaceDeep(128), 506, 52_687_425, "46a76f57a24d9ecf",
            lambda: {**biggan_deep.published_config(128), "truncation": 1.0},
        ),
        (
            lambda: layouts.HuggingFaceDeep(256), 602, 58_573_185, "46f80d3b112b77a5",
            lambda: {**biggan_deep.published_config(256), "truncation": 1.0},
        ),
        (
            lambda: layouts.HuggingFaceDeep(512), 698, 58_908_865, "1bd28297845bd0bb",
            lambda: {**biggan_deep.published_config(512), "truncation": 1.0},
        ),
        (
            lambda: layouts.PyTorchBigGAN(), 166, 70_497_632, "459292636951839d",
            lambda: biggan.published_config(128),
        ),
        (
            lambda: layouts.PyTorchBigGAN(32, 64, 10, chunk=0, latent_dim=128, attention=None), 72, 4_314_385,
            "109cc1ccfa9eca98", lambda: biggan.published_config(32),
        ),
        (
            lambda: layouts.StudioBigGAN(), 177, 70_573_062, "03ff52d6115645b5",
            lambda: {**biggan.published_config(128), "norm_eps": 1e-4},
        ),
        (
            lambda: layouts.StudioBigGAN(32, 96, 10, attention=2), 117, 9_464_946, "c8be2c7e1f063b9c",
            lambda: {
                "sample_size": 32, "num_class_embeds": 10, "latent_dim": 80, "class_embed_dim": 128,
                "block_out_channels": [384, 384, 384], "attention_resolution": 16,
            },
        ),
    ],
)  # fmt: skip
def test_the_published_entries_are_those_and_give_the_published_configuration(
    network: Callable[[], nn.Module], entries: int, elements: int, digest: str, config: Callable[[], dict]
) -> None:
    """The digest is of the same lines of each published implementation's own state dict, built at full size."""
    with torch.device("meta"):
        weights = network().state_dict()
        lines = layouts.key_list(weights)
        assert len(lines) == entries and sum(value.numel() for value in weights.values()) == elements
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest
        generator = converted(weights, "a file", 1.0, {})
        expected = type(generator)(**config())
    assert backbone_config(generator) == backbone_config(expected)


def test_weights_without_logged_norms_have_tensorflows_eps(tmp_path: Path) -> None:
    network = layouts.randomise(layouts.PyTorchBigGAN(64, 4, CLASSES, 3, 7, attention=32, eps=1e-4))
    weights = {name: value for name, value in network.state_dict().items() if not name.endswith("sv0")}
    torch.save(weights, tmp_path / "a.pth")
    generator = load_biggan(tmp_path / "a.pth")
    assert generator.config.norm_eps == 1e-4 and generator.config.out_norm_eps == 1e-5
    latents, labels = latents_and_labels(generator)
    torch.testing.assert_close(generator(latents, labels), network(latents, labels), atol=2e-5, rtol=1e-4)


# --- how files come


def test_old_and_half_precision_files_and_safetensors_are_read(tmp_path: Path) -> None:
    network = small("BigGAN-PyTorch CIFAR")
    expected = load_biggan(saved(network, tmp_path / "new.pth"))
    inputs = latents_and_labels(expected)
    old = load_biggan(saved(network, tmp_path / "old.bin", _use_new_zipfile_serialization=False))
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    assert torch.equal(old(*inputs), expected(*inputs))
    # safetensors lie elsewhere in memory, and spectral norms are summed in another order
    torch.testing.assert_close(load_biggan(tmp_path / "a.safetensors")(*inputs), expected(*inputs))
    torch.save(network.half().state_dict(), tmp_path / "half.pth")
    assert load_biggan(tmp_path / "half.pth").dtype == torch.float32


def test_a_state_dict_among_numpy_scores_is_read(tmp_path: Path) -> None:
    network = small("StudioGAN CIFAR")
    optimizer = torch.optim.Adam(network.parameters())
    scores = {"best_fid": np.float64(3.5), "step": np.int64(7), "seed": 1, "run_name": "x", "best": np.float32(2)}
    content = {"state_dict": network.state_dict(), "optimizer": optimizer.state_dict(), **scores}
    path = tmp_path / "model=G_ema-best-weights-step=7.pth"
    torch.save(content, path)
    assert load_biggan(path).config.sample_size == 32
    # numpy before version 2 called its modules otherwise
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core", b"numpy.core"))
    assert load_biggan(tmp_path / "old.pth").config.sample_size == 32


def test_a_folder_as_it_is_downloaded_is_read_and_its_description_must_agree(tmp_path: Path) -> None:
    saved(small("HuggingFace 128"), tmp_path / "pytorch_model.bin")
    layers = [[number % 2 == 1, 1, 1] for number in range(10)]
    described = {"output_dim": 128, "layers": layers, "eps": 1e-3, "n_stats": 51}
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert load_biggan_deep(tmp_path).config.norm_eps == 1e-3
    for wrong in ({"output_dim": 256}, {"layers": layers[:8]}, {"layers": layers[::-1]}, {"layers": []}):
        (tmp_path / "config.json").write_text(json.dumps(described | wrong))
        with pytest.raises(InputError, match="config.json beside it describes"):
            load_biggan_deep(tmp_path)


def test_a_download_is_kept_and_held_to_its_hash(tmp_path: Path) -> None:
    path = saved(small("BigGAN-PyTorch CIFAR"), tmp_path / "G_ema.pth")
    url, digest = path.as_uri(), file_sha256(path)
    with pytest.raises(InputError, match=f"has sha256 {digest}, expected {'0' * 64}"):
        load_biggan(url, sha256="0" * 64)
    assert list((cache_dir() / "weights").iterdir()) == []
    expected = load_biggan(url, sha256=digest)
    (kept,) = (cache_dir() / "weights").iterdir()
    path.unlink()
    inputs = latents_and_labels(expected)
    assert torch.equal(load_biggan(url, sha256=digest[:12])(*inputs), expected(*inputs))  # without the network
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_biggan(url, sha256="0" * 64)
    assert file_sha256(kept) == digest  # asking for another one leaves it
    kept.write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be downloaded"):  # a damaged copy is asked for again
        load_biggan(url, sha256=digest)


def test_a_short_download_is_not_kept(tmp_path: Path) -> None:
    path = saved(small("BigGAN-PyTorch CIFAR"), tmp_path / "G_ema.pth")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="damaged, cut short"):
        load_biggan(path.as_uri())
    assert list((cache_dir() / "weights").iterdir()) == []


def test_published_files_without_a_hash_are_held_to_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(small("HuggingFace 128"), tmp_path / "pytorch_model.bin")
    size, digest = path.stat().st_size, file_sha256(path)
    monkeypatch.setitem(published.IMAGENET1K, 128, PublishedFile(path.as_uri(), size + 1, None))
    with pytest.raises(InputError, match=f"gave {size:,} bytes, and the published weights take {size + 1:,}"):
        load_imagenet1k(128)
    monkeypatch.setitem(published.IMAGENET1K, 128, PublishedFile(path.as_uri(), size, None))
    assert load_imagenet1k(128, 0.4).config.truncation == 0.4
    assert f"no hash of {path.as_uri()} is published; what was read has sha256 {digest}" in caplog.text
    monkeypatch.setitem(published.IMAGENET1K, 128, PublishedFile(path.as_uri(), size, "0" * 64))
    with pytest.raises(InputError, match="expected 0000"):
        load_imagenet1k(128)
    with pytest.raises(InputError, match="128, 256 or 512 px, not 64"):
        load_imagenet1k(64)


# --- what is refused


class Harmful:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("touched"),))


def explained(source: Path | str, load: Callable = load_biggan, **options) -> str:
    with pytest.raises(InputError) as error:
        load(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_that_would_run_code_are_refused_and_run_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": small("StudioGAN CIFAR").state_dict(), "extra": Harmful()}
    for number, zipped in enumerate((True, False)):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert "which could run code and is not read" in explained(path)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(content["extra"]))
    explained(tmp_path / "plain.pth")
    assert not (tmp_path / "touched").exists()


def test_what_is_no_file_of_weights_is_explained(tmp_path: Path) -> None:
    for name, content in (("page.bin", b"<html>404</html>"), ("empty.pth", b""), ("a.safetensors", b"12345678{")):
        (tmp_path / name).write_bytes(content)
        assert "cannot be read as weights" in explained(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    for name in ("list.pth", "numbers.pth"):
        assert "holds no state dict" in explained(tmp_path / name)
    old = saved(small("StudioGAN CIFAR"), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old.write_bytes(old.read_bytes()[:-5000])
    assert "damaged, cut short" in explained(old)
    assert "expected a file, a folder, a URL or a Hub id" in explained(tmp_path / "absent.pth")
    (tmp_path / "folder").mkdir()
    assert "must hold one file of weights" in explained(tmp_path / "folder")
    assert "cannot be downloaded" in explained((tmp_path / "absent.pth").as_uri())
    assert "not read from the Hub" in explained("nobody/nothing")
    assert "not read from the Hub" in explained("nobody/nothing/in/G_ema.pth")
    path = saved(small("StudioGAN CIFAR"), tmp_path / "a.pth")
    assert "expected 1234abcd" in explained(path, sha256="1234abcd")


def changed(weights: dict[str, Tensor], change: Callable[[dict], object]) -> dict[str, Tensor]:
    weights = dict(weights)
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("StudioGAN CIFAR", lambda w: w.clear(), "the layout of none of .*: its entries are none"),
        ("StudioGAN CIFAR", lambda w: w.pop("linear0.weight_orig"), "the layout of none of HuggingFace's BigGAN-deep,"),
        ("StudioGAN CIFAR", lambda w: w.pop("blocks.1.0.bn1.gain.weight_u"), "looks like StudioGAN's BigGAN, but "
         "blocks.1.0.bn1.gain.weight_u is missing"),
        ("StudioGAN CIFAR", lambda w: w.pop("blocks.3.0.conv2d1.weight_orig"), "belongs to none of its layers"),
        ("StudioGAN CIFAR", lambda w: w.pop("blocks.1.0.conv2d1.weight_orig"), r"its blocks are numbered \[0, 2, 3\]"),
        ("StudioGAN CIFAR", lambda w: w.update(info_proj_linear=torch.ones(1)), "info_proj_linear belongs to none"),
        ("StudioGAN CIFAR", lambda w: w.update({"bn4.weight": torch.ones(3)}), r"bn4 has a weight of shape \(3,\), "
         r"expected \(16,\)"),
        ("StudioGAN CIFAR", lambda w: w.update({"linear0.weight_u": torch.ones(3)}), "weight_u and weight_v do not"),
        ("BigGAN-PyTorch CIFAR", lambda w: w.update({"linear.u0": torch.ones(1, 3)}), "linear.u0 does not fit"),
        ("StudioGAN CIFAR", lambda w: w.update({"blocks.9.0.sigma": torch.ones(1)}), "2 attention layers"),
        ("StudioGAN CIFAR", lambda w: w["blocks.0.0.bn1.bn.running_var"].fill_(torch.nan), "running_var is not finite"),
        ("HuggingFace 128", lambda w: w.pop("generator.bn.running_vars"), "generator.bn.running_vars is missing"),
        ("StudioGAN CIFAR", lambda w: w.update({"linear0.weight_orig": torch.ones(3)}), "its sizes fit none"),
        ("StudioGAN deep", lambda w: w.update({"shared.weight": torch.ones(5, 99)}), "of 13 leaves no latent"),
        ("HuggingFace 128", lambda w: w.update({"generator.bn.running_vars": torch.ones(0, 4)}), "its sizes fit none"),
        ("BigGAN-PyTorch deep", lambda w: w.pop("blocks.7.0.conv1.weight"), "it has 7 blocks, expected two for each"),
    ],
)  # fmt: skip
def test_a_layout_that_is_not_whole_is_explained(name: str, change: Callable, message: str, tmp_path: Path) -> None:
    torch.save(changed(small(name).state_dict(), change), tmp_path / "a.pth")
    load = load_biggan_deep if name in DEEP else load_biggan
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path / "a.pth")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "a.pth"))


def test_a_file_of_the_other_network_names_its_loader(tmp_path: Path) -> None:
    deep = saved(small("HuggingFace 128"), tmp_path / "deep.bin")
    plain = saved(small("StudioGAN CIFAR"), tmp_path / "plain.pth")
    assert explained(deep).endswith("holds a BigGANDeepGenerator, not a BigGANGenerator: use load_biggan_deep")
    assert explained(plain, load_biggan_deep).endswith("not a BigGANDeepGenerator: use load_biggan")
    load_biggan_deep(deep).save_pretrained(tmp_path / "ours")
    assert explained(tmp_path / "ours").endswith(
        "holds a BigGANDeepGenerator, not a BigGANGenerator: use load_biggan_deep"
    )


def test_a_truncation_that_a_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    path = saved(small("StudioGAN deep"), tmp_path / "a.pth")
    assert load_biggan_deep(path).config.truncation is None
    assert "statistics of standard normal latents only" in explained(path, load_biggan_deep, truncation=0.5)
    for truncation in (0.0, 1.1, -1.0):
        assert "above 0 and at most 1" in explained(path, load_biggan_deep, truncation=truncation)
    generator = load_biggan_deep(saved(small("HuggingFace 128"), tmp_path / "b.bin"), 0.4)
    generator.save_pretrained(tmp_path / "ours")
    assert load_biggan_deep(tmp_path / "ours").config.truncation == 0.4
    assert "statistics of truncation 0.4 only" in explained(tmp_path / "ours", load_biggan_deep, truncation=0.5)


def test_the_classes_of_what_is_loaded_are_ours(tmp_path: Path) -> None:
    assert isinstance(load_biggan(saved(small("StudioGAN CIFAR"), tmp_path / "a.pth")), BigGANGenerator)
    deep = load_biggan_deep(saved(small("StudioGAN deep"), tmp_path / "b.pth"))
    assert isinstance(deep, BigGANDeepGenerator)
    assert deep.sample([0, 4], rng=torch.Generator().manual_seed(0)).shape == (2, 3, 64, 64)
