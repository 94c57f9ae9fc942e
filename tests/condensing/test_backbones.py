from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe

from gencond.common.errors import InputError
from gencond.condensing.backbones import GeneratorMaker, for_classes
from gencond.condensing.build import build
from gencond.condensing.checks import check_parts
from gencond.condensing.encode import adam
from gencond.condensing.run import condense
from gencond.config import Recipe
from gencond.data.images import LabeledImages
from gencond.generator.biggan_deep import BigGANDeepGenerator
from gencond.generator.dataset import CondensedDataset, backbone_config

DEEP = (
    "generator.backbone=biggan_deep", "generator.width=2", "generator.latent_dim=8", "pretrain.num_steps=0",
    "generator.truncation=0.5",
)  # fmt: skip


def deep(num_classes: int = 10, size: int = 8) -> BigGANDeepGenerator:
    torch.manual_seed(1)
    return BigGANDeepGenerator(size, 1, num_classes, 8, 8, [32], truncation=0.5).eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    deep().save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


def with_weights(weights: Path, *overrides: str) -> Recipe:
    return tiny_recipe(*DEEP, f"generator.weights={weights}", *overrides)


def generators(recipe: Recipe, data: LabeledImages) -> GeneratorMaker:
    return build(recipe, data, torch.device("cpu")).generators


def test_a_random_backbone_of_the_published_shape_has_its_widths(few_digits: LabeledImages) -> None:
    images = torch.zeros(20, 3, 128, 128, dtype=torch.uint8)
    photographs = LabeledImages(images, torch.arange(20) % 10, few_digits.class_names)
    asked = [f"generator.{name}=128" for name in ("width", "latent_dim", "class_embed_dim")]
    asked += ["generator.num_blocks=null", "generator.attention_resolution=64"]
    makes = generators(tiny_recipe(*DEEP, *asked), photographs)
    with torch.device("meta"):
        made = makes.new()
    assert made.config.block_out_channels == [2048, 1024, 512, 256, 128]
    # the published network with 10 classes of 128 numbers instead of 1000
    assert sum(weight.numel() for weight in made.parameters()) == 50_244_484 - 990 * 128


def test_published_weights_are_condensed_into_an_artefact_that_keeps_them_nearby(
    few_digits: LabeledImages, weights: Path, tmp_path: Path
) -> None:
    recipe = with_weights(weights, "codes.encode_steps=0", "condense.generator_lr=1e-4", "condense.class_lr=1e-9")
    condensed = condense(recipe, few_digits, tmp_path / "run")
    before, after = deep().state_dict(), condensed.generator.state_dict()
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert 0 < moved["linear.weight"] < 1e-3 and moved["class_embedding.weight"] < 1e-7
    assert max(value for name, value in moved.items() if "running" in name) == 0  # the norms' rows are frozen
    assert condensed.config.provenance["recipe"]["generator"]["weights"] == "weights"  # and no path
    start = CondensedDataset(few_digits.class_names, backbone_config(deep()), 4, recipe.seed).codes.learned
    assert start.abs().max() <= 1 and 0.3 < start.std() < 0.55  # half a normal truncated to [-2, 2]
    assert (condensed.codes.learned - start).abs().mean() < 0.2


def test_gradient_checkpointing_changes_no_weight(few_digits: LabeledImages, weights: Path, tmp_path: Path) -> None:
    plain, checkpointed = (
        condense(
            with_weights(weights, f"generator.gradient_checkpointing={choice}"), few_digits, tmp_path / choice
        ).state_dict()
        for choice in ("false", "true")
    )
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_classes_of_imagenet_start_from_their_own_embeddings() -> None:
    generator = deep(1000)
    known = generator.class_embedding.weight
    some = for_classes(generator, ["n01440764", "n01443537", "n15075141"])  # tench, goldfish and the last one
    assert torch.equal(some.class_embedding.weight, known[[0, 1, 999]]) and some.config.num_class_embeds == 3
    latents = torch.randn(2, 8)
    assert torch.equal(some(latents, torch.tensor([2, 1])), generator(latents, torch.tensor([999, 1])))


def test_other_classes_start_near_the_mean_class_and_as_many_as_there_are_in_its_order() -> None:
    generator = deep(1000)
    known = generator.class_embedding.weight
    others = for_classes(generator, ["ant", "bee"]).class_embedding.weight
    assert (others - known.mean(0)).abs().max() < 0.01 and not torch.equal(others[0], others[1])
    assert for_classes(deep(2), ["ant", "bee"]).config.num_class_embeds == 2
    assert for_classes(generator, [f"{label:03d}" for label in range(1000)]) is generator


def test_weights_of_another_size_are_refused(few_digits: LabeledImages, tmp_path: Path) -> None:
    deep(size=16).save_pretrained(tmp_path / "large")
    with pytest.raises(InputError, match="make 1x16x16 px images, the data has 1x8x8: set data.image_size=16"):
        generators(with_weights(tmp_path / "large"), few_digits).published()
    with pytest.raises(InputError, match="no weights at"):
        generators(with_weights(tmp_path / "nowhere"), few_digits).published()


def test_a_generator_that_was_pretrained_without_a_linear_path_gets_one_and_no_other_change(
    few_digits: LabeledImages, tmp_path: Path
) -> None:
    plain = generators(tiny_recipe(), few_digits)
    plain.new().save_pretrained(tmp_path / "plain")
    with_path = generators(tiny_recipe("generator.linear_path=true"), few_digits)
    read = with_path.read(tmp_path / "plain")
    latents, labels = torch.randn(3, read.config.latent_dim), torch.arange(3)
    assert read.path is not None and not read.path.weight.any() and not read.training
    assert torch.equal(read(latents, labels), plain.read(tmp_path / "plain")(latents, labels))
    with_path.new().save_pretrained(tmp_path / "path")
    with pytest.raises(InputError, match="has linear_path True; the recipe and data ask for False"):
        plain.read(tmp_path / "path")
    wider = generators(tiny_recipe("generator.linear_path=true", "generator.width=24"), few_digits)
    with pytest.raises(InputError, match="has block_out_channels"):
        wider.read(tmp_path / "plain")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["generator.weights=x"], "pretrained already: set pretrain.num_steps=0"),
        (
            ["generator.backbone=biggan_deep"],
            "BigGAN-deep is not pretrained here",
        ),
        (
            ["generator.backbone=transform", "generator.weights=x", "pretrain.num_steps=0"],
            "set generator.weights to null",
        ),
        (["generator.weights=imagenet1k", "pretrain.num_steps=0"], "set generator.backbone=biggan_deep"),
        (
            ["generator.linear_path=true", "generator.backbone=transform", "pretrain.num_steps=0"],
            "only a biggan without generator.weights has a linear path",
        ),
        (["generator.truncation=0.5"], "only biggan_deep has a generator.truncation"),
    ],
)
def test_backbones_that_mean_nothing_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_parts(tiny_recipe(*overrides))


def test_every_weight_has_one_rate() -> None:
    condensed = CondensedDataset(list("ab"), backbone_config(deep(2)), 3)
    rates = {
        id(weight): group["lr"]
        for group in adam(condensed, 1e-4, 1e-2, 1e-5).param_groups
        for weight in group["params"]
    }
    assert len(rates) == len(list(condensed.parameters()))
    assert rates[id(condensed.codes.learned)] == 1e-2 and rates[id(condensed.generator.linear.weight)] == 1e-4
    assert rates[id(condensed.generator.class_embedding.weight)] == 1e-5
