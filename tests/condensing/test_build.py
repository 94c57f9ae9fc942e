"""Any part goes with any other that it means something with; what means nothing is refused in one line."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from conftest import TINY, tiny_recipe, whole
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.ranges import to_signed
from gencond.condensing.build import Parts, build
from gencond.condensing.checks import check_parts
from gencond.condensing.difficulty import Ranking
from gencond.condensing.extractors import FreshExtractors
from gencond.condensing.match import Matching
from gencond.condensing.real import BatchSide, Draw, RepresentativeSide
from gencond.condensing.run import condense
from gencond.condensing.run_folder import RunFolder
from gencond.condensing.starts import CodeStarts, Representatives, start_from_components, start_from_transform
from gencond.condensing.step import Objective
from gencond.config import RECIPES, Recipe, available_recipes, load_recipe
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.data.select import class_batches, nested_representatives
from gencond.generator.dataset import CondensedDataset
from gencond.generator.packing import decode
from gencond.generator.pixels import CondensedPixels
from gencond.networks.convnet import ConvNet
from gencond.networks.extractor import Embedding, Extractor

TERMS = ("mean", "mmd", "gradient", "diversity", "center", "classification", "representative", "pixel")
NONE = [f"objective.{term}_weight=0" for term in TERMS]
SMALL = [
    "condense.num_steps=3", "pixels.ipc=2", "pixels.learning_rate=0.1", "condense.stream_probability=0",
    "codes.encode_steps=0", "pretrain.num_steps=0", "features.train_images=16", "features.refresh_steps=2",
    "real.batch_size=4", "real.refresh_steps=2", "codes.num_slots=2", "codes.representative_sizes=[1,2]",
]  # fmt: skip


def parts_of(recipe: Recipe, data: LabeledImages) -> Parts:
    return build(recipe, data, torch.device("cpu"))


def not_started(recipe: Recipe, data: LabeledImages) -> tuple[CondensedDataset, Representatives]:
    """An artefact of a recipe whose codes are as drawn, and the images that they are to start from."""
    made_of = parts_of(recipe, data)
    representatives = made_of.starts.choose(made_of.new_extractors()[0])
    return made_of.new_condensed(made_of.generators.new(), representatives), representatives


def legal_terms(real: str, features: str) -> list[str]:
    return [
        term
        for term in TERMS
        if not (term == "gradient" and real == "statistics") and not (term == "classification" and features == "fresh")
    ]


COMBINATIONS = [
    (synthesizer, factor, real, features)
    for synthesizer, factor, real, features in itertools.product(
        ("generator", "pixels"), (1, 2), ("statistics", "random", "representatives"), ("pool", "fresh", "online")
    )
    if real != "statistics" or features == "pool"
]


@pytest.mark.parametrize(("synthesizer", "factor", "real", "features"), COMBINATIONS)
def test_every_legal_combination_condenses(
    few_digits: LabeledImages, tmp_path: Path, synthesizer: str, factor: int, real: str, features: str
) -> None:
    terms = legal_terms(real, features)
    parts = [f"synthesizer.kind={synthesizer}", f"synthesizer.factor={factor}", f"real.kind={real}"]
    weights = [f"objective.{term}_weight=0.1" for term in terms]
    recipe = tiny_recipe(*SMALL, *NONE, *parts, f"features.kind={features}", "features.num_random=0", *weights)
    condensed = condense(recipe, few_digits, tmp_path / "run")
    images, labels = condensed.sample(2)
    assert images.shape == (20 * factor**2, 1, 8, 8) and len(labels) == len(images)
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    seen = {name for entry in logged if entry["stage"] == "condense" for name in entry}
    assert set(terms) <= seen


def test_a_generator_of_parts_condenses(few_digits: LabeledImages, tmp_path: Path) -> None:
    parts = ["synthesizer.factor=2", "synthesizer.by_parts=true", "codes.encode_steps=2", "codes.fresh=mixed"]
    recipe = tiny_recipe(*[one for one in SMALL if not one.startswith("codes.encode")], *parts)
    condensed = condense(recipe, few_digits, tmp_path / "run")
    assert condensed.generator.config.sample_size == 4 and condensed.image_size == 8
    images, _ = condensed.sample(3)  # one slot past the learned ones
    assert images.shape == (10 * 3 * 4, 1, 8, 8) and condensed.codes.fresh == "mixed"


TRANSFORM = (
    "generator.backbone=transform", "generator.square=4", "generator.chunk_dim=16", "generator.quantization_step=0.2",
    "codes.encode_steps=2", "codes.fresh=mixed",
)  # fmt: skip


@pytest.mark.parametrize("factor", [1, 2])
def test_a_transform_begins_as_the_images_that_its_slots_start_from(few_digits: LabeledImages, factor: int) -> None:
    parts = [f"synthesizer.factor={factor}", f"synthesizer.by_parts={factor > 1}".lower()]
    recipe = tiny_recipe(*SMALL, *TRANSFORM, *parts)
    condensed, representatives = not_started(recipe, few_digits)
    start_from_transform(condensed, representatives, step=0.2)
    with torch.no_grad():
        made = condensed(representatives.labels, representatives.slots)
    error = (made - representatives.images).square().mean()
    # A rounded number is off by .5 of a step, or by .6 where it becomes 0; of orthonormal numbers, as many as pixels.
    assert error < (0.6 * 0.2) ** 2 and (made - representatives.images).abs().max() > 0.01


@pytest.mark.parametrize("factor", [1, 2])
def test_codes_start_as_uncorrelated_components_from_which_the_images_can_be_told(
    few_digits: LabeledImages, factor: int
) -> None:
    parts = [f"synthesizer.factor={factor}", f"synthesizer.by_parts={factor > 1}".lower()]
    recipe = tiny_recipe(*SMALL, *parts, "codes.start=components", "codes.encode_steps=2", "generator.num_blocks=1")
    condensed, representatives = not_started(recipe, few_digits)
    drawn = condensed.codes.learned.detach().clone()
    start_from_components(condensed, representatives, seed=0)
    width = condensed.generator.config.latent_dim
    rows = representatives.labels * condensed.num_slots + representatives.slots
    codes = condensed.codes.learned.detach()[rows].view(-1, width)
    moved = (codes != drawn[rows].view(-1, width)).any(0)
    codes = codes[:, moved]
    torch.testing.assert_close(codes.T.cov(), torch.eye(codes.shape[1]), atol=1e-3, rtol=0)
    images = condensed.cut(representatives.images).flatten(1)
    ones = torch.cat([codes, torch.ones(len(codes), 1)], 1)
    made = ones @ torch.linalg.lstsq(ones, images).solution
    share = (images - made).square().mean() / (images - images.mean(0)).square().mean()
    # As many components as a code has numbers; the digits' own spectrum says what they leave.
    values = torch.linalg.svdvals(images - images.mean(0)).square()
    assert share == pytest.approx(float(values[codes.shape[1] :].sum() / values.sum()), abs=1e-4)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_linear_path_begins_with_the_images_of_its_components(few_digits: LabeledImages, factor: int) -> None:
    parts = [f"synthesizer.factor={factor}", f"synthesizer.by_parts={factor > 1}".lower(), "generator.num_blocks=1"]
    recipe = tiny_recipe(
        *SMALL, *parts, "codes.start=components", "codes.encode_steps=2", "generator.linear_path=true",
        "generator.chunk_dim=32",
    )  # fmt: skip
    condensed, representatives = not_started(recipe, few_digits)
    start_from_components(condensed, representatives, seed=0)
    with torch.no_grad():
        made = condensed(representatives.labels, representatives.slots)
    images = representatives.images
    # Digits end at -1 and 1, which a tanh does not reach: .97 is a squared error of .0009, and errors in between add.
    assert (made - images).square().mean() < 0.05 * (images - images.mean(0)).square().mean()


def test_a_path_is_fitted_to_what_the_blocks_leave_of_each_part_of_its_class(few_digits: LabeledImages) -> None:
    recipe = tiny_recipe(
        *SMALL, "synthesizer.factor=2", "synthesizer.by_parts=true", "generator.num_blocks=1",
        "codes.start=components", "codes.encode_steps=2", "generator.linear_path=true", "generator.chunk_dim=32",
    )  # fmt: skip
    condensed, representatives = not_started(recipe, few_digits)
    # Blocks that show the class strongly, so that a part of another class would be off by as much as classes differ.
    table = condensed.generator.class_embedding.weight
    with torch.no_grad():
        table.copy_(torch.linspace(-4, 4, len(table))[:, None].expand_as(table))
        condensed.generator.out_conv.weight.mul_(30)
    start_from_components(condensed, representatives, seed=0)
    with torch.no_grad():
        error = (condensed(representatives.labels, representatives.slots) - representatives.images).square().mean()
        wrong = representatives.labels.roll(1)
        codes = condensed.codes(representatives.labels, representatives.slots).view(len(wrong) * 4, -1)
        mixed = condensed.generator(codes, wrong.repeat_interleave(4))
    off = (mixed - condensed.cut(representatives.images)).square().mean()
    assert error < 0.7 * off  # with labels of other parts it is .9 of it


def test_pretraining_leaves_the_linear_path_at_zero(few_digits: LabeledImages, tmp_path: Path) -> None:
    condense(tiny_recipe(*SMALL, "pretrain.num_steps=2", "generator.linear_path=true"), few_digits, tmp_path / "run")
    pretrained = load_file(tmp_path / "run" / "pretrained" / "diffusion_pytorch_model.safetensors")
    learned = load_file(tmp_path / "run" / "condensed" / "diffusion_pytorch_model.safetensors")
    assert not pretrained["path.weight"].any() and learned["generator.path.weight"].any()


def test_a_transform_condenses_to_whole_numbers(few_digits: LabeledImages, tmp_path: Path) -> None:
    small = [one for one in SMALL if not one.startswith(("codes.encode", "pretrain"))]
    condensed = condense(tiny_recipe(*small, *TRANSFORM), few_digits, tmp_path / "run")
    learned = condensed.codes.learned
    assert not (tmp_path / "run" / "pretrained").exists()  # a recipe's steps of that are not its
    assert torch.equal(learned, learned.round()) and len(learned.unique()) > 5
    assert condensed.stored_as("coded").num_bytes < condensed.stored_as("int8").num_bytes
    assert torch.equal(condensed.stored_as("coded").codes.learned, learned)
    assert condensed.sample(3)[0].shape == (30, 1, 8, 8)  # one slot past the learned ones


def test_an_artefact_without_fresh_codes_holds_so_many_images(few_digits: LabeledImages, tmp_path: Path) -> None:
    small = [one for one in SMALL if not one.startswith(("codes.encode", "pretrain"))]
    small = [one for one in small if not one.startswith("codes.num_slots")]
    recipe = tiny_recipe(*small, *TRANSFORM, "codes.fresh=none", "condense.num_steps=0", "codes.num_slots=11")
    condensed = condense(recipe, few_digits, tmp_path / "run")
    most = recipe.codes.num_slots  # no multiple of the blocks that images are sampled in
    assert condensed.largest_ipc == most and condensed.sample(most)[0].shape == (10 * most, 1, 8, 8)
    with pytest.raises(InputError, match=f"holds {most} images of each class"):
        condensed.sample(most + 1)
    with pytest.raises(InputError, match="makes no others"):
        condensed.stream()


def test_the_images_that_a_network_finds_easiest_start_no_slot_where_a_share_is_left_out() -> None:
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(3).repeat_interleave(40)
    images = torch.randint(0, 256, (120, 1, 8, 8), generator=rng, dtype=torch.uint8)  # nothing says their class
    is_easy = torch.arange(120) % 4 < 2
    images[is_easy] = 0
    for label in range(3):
        images[is_easy & (labels == label), :, 3 * label : 3 * label + 2] = 255  # but for a bar in every second image
    data = LabeledImages(images, labels, ("a", "b", "c"))
    easy = to_signed(images[is_easy]).flatten(1)

    def share_of_easy(*overrides: str) -> float:
        recipe = tiny_recipe(*SMALL, "data.augmentation=none", "codes.encode_steps=1", "codes.num_slots=15", *overrides)
        parts = parts_of(recipe, data)
        chosen = parts.starts.choose(parts.new_extractors()[0]).images.flatten(1)
        assert len(chosen) == 45
        return float((torch.cdist(chosen, easy).amin(1) < 1e-4).float().mean())

    assert share_of_easy("codes.skip_easiest=0.6", "codes.ranking_steps=60") == 0
    assert share_of_easy("codes.skip_easiest=0", "codes.ranking_steps=60") == 1
    assert share_of_easy() > 0.3  # half of them are there to be drawn


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_generator_computes_as_the_recipe_says_while_it_learns(few_digits: LabeledImages, precision: str) -> None:
    parts = parts_of(tiny_recipe(f"generator.precision={precision}"), few_digits)
    assert parts.generators is not None
    starts = parts.starts.choose(parts.new_extractors()[0])
    condensed = parts.new_condensed(parts.generators.make(), starts)
    assert isinstance(condensed, CondensedDataset) and condensed.learns_in is getattr(torch, precision)


def test_the_network_that_ranks_sees_images_at_a_side_of_its_own(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (64, 1, 16, 16), dtype=torch.uint8)
    data = LabeledImages(images, torch.arange(64) % 2, ("a", "b"))
    wide = tiny_recipe("codes.ranking_steps=2", "codes.skip_easiest=0.2", "features.depth=null")
    small = replace(wide, codes=replace(wide.codes, ranking_resize=8))

    def ranking_of(recipe: Recipe) -> Ranking:
        starts = parts_of(recipe, data).starts
        assert isinstance(starts, CodeStarts) and starts.ranking is not None
        return starts.ranking

    seen = [ranking_of(recipe).maker.new(0).normalise(torch.zeros(1, 1, 16, 16)).shape[-1] for recipe in (wide, small)]
    assert seen == [16, 8] and parts_of(small, data).maker.resize is None
    assert not torch.equal(*(ranking_of(recipe).difficulties(data, tmp_path) for recipe in (wide, small)))


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("scale", ["relative", "sum"])
@pytest.mark.parametrize("real", ["statistics", "random"])
def test_every_term_moves_pixels_on_its_own(few_digits: LabeledImages, term: str, scale: str, real: str) -> None:
    if (term, real) == ("gradient", "statistics"):
        return
    recipe = tiny_recipe(
        *SMALL, *NONE, "synthesizer.kind=pixels", f"real.kind={real}", "features.num_random=0", "pixels.init=real",
        f"objective.{term}_weight=1", f"objective.scale={scale}", "pixels.ipc=3",
    )  # fmt: skip
    matching = start_pixels(recipe, few_digits)
    before = matching.condensed.pixels.clone()
    if term == "representative":  # which is where they start from
        with torch.no_grad():
            matching.condensed.pixels += 0.1
            before = matching.condensed.pixels.clone()
    parts = matching.step(0)
    assert set(parts) == {"loss", term} and torch.isfinite(parts["loss"]) and parts["loss"] != 0
    assert not torch.equal(matching.condensed.pixels, before)


def start_pixels(recipe: Recipe, data: LabeledImages) -> Matching:
    check_parts(recipe)
    parts = parts_of(recipe, data)
    extractors, key = parts.new_extractors()
    real, representatives = parts.new_real_side(extractors, key), parts.starts.choose(extractors)
    return Matching(parts, parts.new_condensed(None, representatives), extractors, real, representatives)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (NONE, "the objective is empty"),
        (["features.num_trajectories=0", "features.num_random=0"], "the pool of extractors is empty"),
        (["features.kind=fresh", "objective.classification_weight=0"], "statistics cannot be kept for extractors that"),
        (["features.kind=online"], "needs features.kind=pool, not online"),
        (["objective.gradient_weight=1"], "gradients have no statistics"),
        (["objective.kernel=laplace"], "kept for the Gaussian kernel: objective.kernel=laplace"),
        (["features.kind=fresh", "real.kind=random"], "knows no classes"),
        (["features.num_trajectories=0"], "knows no classes"),
        (["synthesizer.kind=pixels", "condense.stream_probability=0.1", "codes.encode_steps=0"], "no fresh images"),
        (["synthesizer.kind=pixels", "condense.stream_probability=0"], "set codes.encode_steps=0"),
        ([*SMALL, "synthesizer.kind=pixels", "synthesizer.by_parts=true"], "pixels are learned whole"),
        ([*SMALL, *TRANSFORM, "codes.fresh=prior"], "set codes.fresh to none or mixed"),
        (["codes.fresh=none", "condense.stream_probability=0.1"], "nothing to match past the learned slots"),
        (["synthesizer.by_parts=true"], "by_parts needs parts"),
        (["features.batch_size=1", "features.norm=batch"], "set features.batch_size to 2 or more"),
        (
            ["synthesizer.kind=pixels", "condense.stream_probability=0", "codes.encode_steps=0", "pixels.ipc=1"],
            "asks for 2 slots of pixels.ipc=1",
        ),
        (
            [*SMALL, "synthesizer.kind=pixels", "pixels.init=noise", "objective.representative_weight=1"],
            "start from noise have no representatives",
        ),
        (["features.weights=w.safetensors"], "belong to a timm network, and features.network is convnet"),
        (["features.weights=w", "features.network=resnet10t", "features.num_random=2"], "are one network"),
        (["objective.center_weight=1", "condense.classes_per_step=1"], "a single class a step has no other centers"),
        (
            ["real.kind=random", "objective.mean_weight=1", "condense.classes_per_step=1"],
            "no unit with a single class of real images",
        ),
        (
            [
                *SMALL,
                "synthesizer.kind=pixels",
                "pixels.ipc=1",
                "condense.prefix_lengths=null",
                "objective.representative_weight=1",
            ],
            "but the first are anchored",
        ),
    ],
)
def test_a_combination_that_means_nothing_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        check_parts(tiny_recipe(*overrides))
    assert "\n" not in str(refused.value) and str(refused.value).startswith("recipe demo: ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["synthesizer.factor=5"], "leaves nothing of 8 px images"),
        (["synthesizer.factor=3", "synthesizer.by_parts=true"], "3 x 3 parts do not fill"),
        (["synthesizer.factor=4", "objective.representative_weight=1"], "codes start from 16 real images each"),
        (["synthesizer.kind=pixels", "pixels.ipc=7", "synthesizer.factor=2"], r"starts from 28 real images a class"),
        ([*TRANSFORM, "codes.num_slots=40"], "num_slots=40 of a transform start from 40 real images a class"),
        (["features.network=resnet_ap10", "features.resize=12"], "cannot halve 12 px"),
        (["features.network=no_such_net"], "timm has no such model"),
    ],
)
def test_a_part_that_does_not_fit_the_images_is_refused_before_any_work(
    few_digits: LabeledImages, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        condense(tiny_recipe(*SMALL, *overrides), few_digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["features.norm=batch"],
        ["features.norm=none", "features.activation=leaky_relu", "features.pooling=max"],
        ["features.network=resnet_ap10"],
        ["features.network=resnet10t", "features.resize=32"],
    ],
)
@pytest.mark.parametrize("kind", ["pool", "fresh", "online"])
def test_any_network_is_an_extractor_of_any_kind(
    few_digits: LabeledImages, tmp_path: Path, kind: str, overrides: list[str]
) -> None:
    real = "statistics" if kind == "pool" else "random"
    recipe = tiny_recipe(
        *SMALL, *NONE, "objective.mean_weight=1", "synthesizer.kind=pixels", f"real.kind={real}", *overrides,
        f"features.kind={kind}", "condense.num_steps=2", "features.snapshot_steps=[1]",
    )  # fmt: skip
    assert torch.isfinite(condense(recipe, few_digits, tmp_path / "run").pixels).all()


def test_a_random_network_with_batch_norm_sees_standardised_activations(few_digits: LabeledImages) -> None:
    recipe = tiny_recipe("features.norm=batch", "features.activation=relu")
    network = parts_of(recipe, few_digits).maker.new(0).network
    assert float((network.norms[0].running_var - 1).abs().min()) > 1e-3  # not the ones it starts from
    assert not network.training


def test_weights_of_a_timm_network_are_read_without_its_head(few_digits: LabeledImages, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = timm.create_model("resnet10t", num_classes=7, in_chans=1).state_dict()
    save_file(other, tmp_path / "w.safetensors")
    torch.save(other, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        recipe = tiny_recipe(
            "features.network=resnet10t", "features.resize=32", f"features.weights={tmp_path / name}",
        )  # fmt: skip
        network = parts_of(recipe, few_digits).maker.new(3).network
        torch.testing.assert_close(network.model.conv1[0].weight, other["conv1.0.weight"])
        assert network.classifier.out_features == 10
        running = next(name for name in other if name.endswith("running_mean"))
        torch.testing.assert_close(network.model.state_dict()[running], other[running])  # its own, not settled anew
    del other["conv1.0.weight"]
    save_file(other, tmp_path / "broken.safetensors")
    recipe = tiny_recipe("features.network=resnet10t", f"features.weights={tmp_path / 'broken.safetensors'}")
    with pytest.raises(InputError, match=r"does not hold the weights of this network: conv1.0.weight is missing"):
        parts_of(recipe, few_digits).maker.new(0)


# --- the steps of the papers are their formulas ----------------------------------------------------------------------


def a_draw(step: int, classes: Tensor, extractor: Extractor) -> Draw:
    """Two slots of each class, no anchors."""
    none = torch.empty(0, dtype=torch.int64)
    return Draw(step, classes, 0, (2,), extractor, torch.Generator().manual_seed(3), none)


def paper_step(data: LabeledImages, weights: dict[str, float], factor: int) -> tuple[CondensedPixels, Tensor, dict]:
    """One step on a frozen network and a fixed draw: (a bank of 3 classes x 2 images, its gradient, its parts)."""
    few = data.subset(torch.cat([data.rows_of(label) for label in (0, 1, 2)]))
    three = LabeledImages(few.images, few.labels, ("0", "1", "2"))
    pixels = CondensedPixels(three.class_names, 2, 8, 1, factor)
    pixels.fill_(torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    extractor = Extractor(ConvNet(1, 3, 8, width=4, depth=2), *three.mean_std)
    augmentation = Augmentation("color_crop_cutout_flip_scale_rotate", 8, *three.mean_std)
    draw = a_draw(0, torch.arange(3), extractor)
    side = BatchSide(three, 5, torch.device("cpu"))
    objective = Objective(pixels, side, augmentation, choose_nothing(), weights, factor=factor, scale="sum")
    loss, _ = whole(objective.at(draw))
    (gradient,) = torch.autograd.grad(loss, pixels.pixels)
    rng = torch.Generator().manual_seed(3)
    params = augmentation.draw(3, rng)
    rows = class_batches(three, torch.arange(3), 5, rng)
    return pixels, gradient, {
        "extractor": extractor, "augment": lambda x, c: augmentation(x, params.rows(torch.full((len(x),), c))),
        "real": to_signed(three.images[rows.flatten()]).view(3, 5, 1, 8, 8),
    }  # fmt: skip


def choose_nothing() -> object:
    empty = torch.empty(0, dtype=torch.int64)
    return Representatives(empty, empty, empty.view(0, 1), torch.empty(0, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("factor", [1, 2])
def test_the_image_gradient_of_a_dm_step_is_that_of_its_formula(few_digits: LabeledImages, factor: int) -> None:
    pixels, gradient, given = paper_step(few_digits, {"mean": 1.0}, factor)
    loss = 0
    for c in range(3):
        syn = decode(pixels.pixels[2 * c : 2 * c + 2], factor)
        mean_syn = sum(given["extractor"](given["augment"](x[None], c))[0] for x in syn) / len(syn)
        mean_real = sum(given["extractor"](given["augment"](x[None], c))[0] for x in given["real"][c]) / 5
        loss = loss + ((mean_real - mean_syn) ** 2).sum()
    expected = torch.autograd.grad(loss, pixels.pixels)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3)  # float32 sums in another order


@pytest.mark.parametrize("factor", [1, 2])
def test_the_image_gradient_of_an_m3d_step_is_that_of_its_formula(few_digits: LabeledImages, factor: int) -> None:
    pixels, gradient, given = paper_step(few_digits, {"mmd": 1.0}, factor)
    loss = 0
    for c in range(3):
        syn = decode(pixels.pixels[2 * c : 2 * c + 2], factor)
        rows = [given["extractor"](given["augment"](x[None], c))[0] for x in [*syn, *given["real"][c]]]
        m, n = len(syn), len(rows)
        distance = [[((a - b) ** 2).sum() for b in rows] for a in rows]
        width = sum(d.detach() for line in distance for d in line) / (n**2 - n)
        kernel = [[sum(torch.exp(-d / (width * 2.0**q)) for q in (-2, -1, 0, 1, 2)) for d in line] for line in distance]
        within_syn = sum(kernel[i][j] for i in range(m) for j in range(m)) / m**2
        between = sum(kernel[i][j] for i in range(m) for j in range(m, n)) / (m * (n - m))
        within_real = sum(kernel[i][j] for i in range(m, n) for j in range(m, n)) / (n - m) ** 2
        loss = loss + within_syn - 2 * between + within_real
    expected = torch.autograd.grad(loss, pixels.pixels)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3)  # float32 sums in another order


def test_images_are_augmented_and_compared_at_the_side_that_networks_see(few_digits: LabeledImages) -> None:
    """Parts of that side are looked at as they are made, and real images are shrunk to it first."""
    data = replace(few_digits, images=few_digits.images.repeat_interleave(2, 2).repeat_interleave(2, 3))  # 16 px
    overrides = ["synthesizer.factor=2", "features.resize=8", "real.kind=random", "features.kind=fresh"]
    assert parts_of(tiny_recipe(*overrides), data).augmentation.image_size == 8
    assert (
        parts_of(tiny_recipe("features.resize=8"), data).augmentation.image_size == 16
    )  # statistics are of whole images
    assert parts_of(tiny_recipe(*overrides[2:], "features.resize=32"), data).augmentation.image_size == 16
    torch.manual_seed(0)
    extractor = Extractor(ConvNet(1, 10, 8, width=4, depth=2), *data.mean_std, resize=8)
    pixels = CondensedPixels(data.class_names, 2, 16, 1, 2)
    pixels.fill_(torch.rand(20, 1, 16, 16) * 2 - 1)
    augmentation = Augmentation("none", 8, *data.mean_std)
    draw = a_draw(0, torch.arange(10), extractor)
    objective = Objective(
        pixels,
        BatchSide(data, 4, torch.device("cpu")),
        augmentation,
        choose_nothing(),
        {"mean": 1.0},
        factor=2,
        scale="sum",
    )
    loss, _ = whole(objective.at(draw))
    expected = torch.tensor(0.0)
    rng = torch.Generator().manual_seed(3)
    augmentation.draw(10, rng)
    rows = class_batches(data, torch.arange(10), 4, rng)
    for label in range(10):
        tiles = pixels.pixels[2 * label : 2 * label + 2]
        parts = torch.cat([tiles[:, :, top : top + 8, left : left + 8] for top in (0, 8) for left in (0, 8)])
        real = F.interpolate(to_signed(data.images[rows[label]]), size=(8, 8), mode="bilinear", antialias=True)
        expected = expected + (extractor(parts).mean(0) - extractor(real).mean(0)).square().sum()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)  # float32 sums in another order


def test_an_idc_step_matches_convolution_gradients_of_each_class(few_digits: LabeledImages) -> None:
    pixels, gradient, given = paper_step(few_digits, {"gradient": 1.0}, 2)
    network = given["extractor"].network.requires_grad_(True)
    weights = [conv.weight for conv in network.convs]
    loss = 0
    for c in range(3):
        grads = []
        for images in (given["real"][c], decode(pixels.pixels[2 * c : 2 * c + 2], 2)):
            seen = given["extractor"].normalise(given["augment"](images, c))
            entropy = F.cross_entropy(network(seen), torch.full((len(seen),), c))
            grads.append(torch.autograd.grad(entropy, weights, create_graph=True))
        loss = loss + sum(((a.detach() - b) ** 2).sum() for a, b in zip(*grads, strict=True))
    expected = torch.autograd.grad(loss, pixels.pixels)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3)  # float32 sums in another order


def test_a_step_looks_at_some_of_many_images_and_other_ones_each_time(few_digits: LabeledImages) -> None:
    recipe = tiny_recipe(
        *SMALL, *NONE, "objective.mean_weight=1", "synthesizer.kind=pixels", "synthesizer.factor=2",
        "condense.images_per_step=3", "pixels.momentum=0", "condense.schedule=constant", "pixels.clamp_every_steps=0",
    )  # fmt: skip
    matching = start_pixels(recipe, few_digits)
    moved = []
    for step in range(4):
        before = matching.condensed.pixels.clone()
        matching.step(step)
        quarters = (matching.condensed.pixels != before).view(20, 2, 4, 2, 4).any((2, 4)).view(10, 8)  # of each class
        assert (quarters.sum(1) == 3).all()
        moved.append(quarters)
    assert not torch.equal(moved[0], moved[1]) and sum(moved).bool().float().mean() > 0.7


def test_a_step_makes_only_the_images_that_it_looks_at(
    few_digits: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(
        *SMALL, *NONE, "objective.mean_weight=1", "synthesizer.kind=pixels", "pixels.ipc=7", "pixels.momentum=0",
        "condense.prefix_lengths=[7]", "condense.images_per_step=3", "condense.schedule=constant",
        "pixels.clamp_every_steps=0",
    )  # fmt: skip
    made: list[int] = []
    make = CondensedPixels.forward
    monkeypatch.setattr(
        CondensedPixels,
        "forward",
        lambda self, labels, slots, *more: (made.append(len(slots)), make(self, labels, slots, *more))[1],
    )
    matching = start_pixels(recipe, few_digits)
    moved = []
    for step in range(3):
        before = matching.condensed.pixels.clone()
        matching.step(step)
        moved.append((matching.condensed.pixels != before).flatten(1).any(1).view(10, 7))
        assert (moved[-1].sum(1) == 3).all()
    assert made == [30, 30, 30] and not torch.equal(moved[0], moved[1])


def test_pixels_are_clamped_as_often_as_the_recipe_says_and_their_rate_follows_ipc(few_digits: LabeledImages) -> None:
    parts = [*SMALL, *NONE, "objective.mean_weight=1", "synthesizer.kind=pixels", "pixels.learning_rate=3"]
    wild = start_pixels(tiny_recipe(*parts, "pixels.clamp_every_steps=0"), few_digits)
    tame = start_pixels(tiny_recipe(*parts, "pixels.clamp_every_steps=2", "pixels.rate_per_ipc=true"), few_digits)
    assert [m.optimizer.param_groups[0]["lr"] for m in (wild, tame)] == [3.0, 6.0]
    for matching in (wild, tame):
        with torch.no_grad():
            matching.condensed.pixels += 5
        matching.optimizer.param_groups[0]["lr"] = 0.0
        matching.step(1)
        assert float(matching.condensed.pixels.detach().max()) > 4  # step 1 is no second one
        matching.schedule.base_lrs = [0.0]
        matching.optimizer.param_groups[0]["lr"] = 0.0
        matching.step(2)
    assert float(wild.condensed.pixels.detach().max()) > 4 and float(tame.condensed.pixels.detach().max()) == 1


def test_an_online_network_classifies_once_it_was_trained(few_digits: LabeledImages) -> None:
    recipe = tiny_recipe(
        *SMALL, *NONE, "objective.classification_weight=1", "synthesizer.kind=pixels", "features.kind=online",
        "real.kind=random",
    )  # fmt: skip
    matching = start_pixels(recipe, few_digits)
    before = matching.condensed.pixels.clone()
    assert matching.step(0) == {} and torch.equal(matching.condensed.pixels, before)  # a net just drawn
    assert set(matching.step(1)) == {"loss", "classification"}
    assert matching.step(2) == {}  # drawn anew every two steps


def test_a_step_with_nothing_to_learn_passes(few_digits: LabeledImages) -> None:
    recipe = tiny_recipe(
        *SMALL, *NONE, "objective.diversity_weight=1", "synthesizer.kind=pixels", "condense.prefix_lengths=[1]"
    )
    matching = start_pixels(recipe, few_digits)
    assert float(matching.step(0)["diversity"].detach()) == 0


# --- representatives -------------------------------------------------------------------------------------------------


def test_representatives_are_the_images_nearest_to_the_centers_of_scikit_learn(few_digits: LabeledImages) -> None:
    extractor = Extractor(ConvNet(1, 10, 8, width=4, depth=2), *few_digits.mean_std)
    side = RepresentativeSide(few_digits, 3, torch.device("cpu"), refresh_steps=2, seed=7)
    rows = side.rows(a_draw(0, torch.tensor([4, 9]), extractor))
    for label, chosen in zip((4, 9), rows, strict=True):
        of_class = few_digits.rows_of(label)
        features = extractor(to_signed(few_digits.images[of_class])).numpy()
        centers = KMeans(3, n_init=1, random_state=7).fit(features).cluster_centers_
        nearest = {int(of_class[((features - center) ** 2).sum(1).argmin()]) for center in centers}
        assert set(chosen.tolist()) == nearest
    other = Extractor(ConvNet(1, 10, 8, width=4, depth=2), *few_digits.mean_std)
    assert torch.equal(side.rows(a_draw(1, torch.tensor([4, 9]), other)), rows)  # not chosen anew yet


def test_slots_past_the_representatives_start_from_other_random_images_of_their_class(
    few_digits: LabeledImages,
) -> None:
    recipe = tiny_recipe("codes.num_slots=5", "codes.representative_sizes=[1,2]", "objective.representative_weight=1")
    alone = replace(recipe, codes=replace(recipe.codes, num_slots=2))
    unused = FreshExtractors(
        lambda seed: pytest.fail("k-means in pixels asks for no features"), refresh_steps=1, seed=0
    )
    chosen, representatives = (parts_of(one, few_digits).starts.choose(unused) for one in (recipe, alone))
    assert chosen.slots.tolist() == [0, 1, 2, 3, 4] * 10
    of_class = chosen.images.unflatten(0, (10, 5))
    assert torch.equal(of_class[:, :2].flatten(0, 1), representatives.images)
    for label, images in enumerate(of_class):
        assert len(images.flatten(1).unique(dim=0)) == 5  # none twice
        own = to_signed(few_digits.images[few_digits.rows_of(label)])
        assert all((own == image).flatten(1).all(1).any() for image in images)


def test_codes_start_from_images_that_stand_for_others_in_the_space_that_a_recipe_names(
    few_digits: LabeledImages,
) -> None:
    class Brightness(Extractor):  # a feature that no k-means of pixels would go by
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).mean(1, keepdim=True)

    network = Brightness(ConvNet(1, 10, 8, width=4, depth=2), *few_digits.mean_std)
    seen = FreshExtractors(lambda seed: network, refresh_steps=1, seed=0)
    options = "codes.num_slots=1", "codes.representative_sizes=[1]", "objective.representative_weight=1"
    recipe = tiny_recipe(*options, "codes.representative_space=features")
    chosen = parts_of(recipe, few_digits).starts.choose(seen)
    for label, (row,) in enumerate(chosen.rows.tolist()):  # one cluster: the image nearest to the mean
        own = few_digits.rows_of(label)
        brightness = to_signed(few_digits.images[own]).flatten(1).mean(1)
        assert row == own[(brightness - brightness.mean()).abs().argmin()]
    in_pixels = parts_of(tiny_recipe(*options), few_digits).starts.choose(seen)
    assert not torch.equal(in_pixels.rows, chosen.rows)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.representative_weight=1"],
        ["objective.representative_weight=1", "codes.representative_space=features"],
        ["synthesizer.kind=pixels", "pixels.init=kmeans", "pixels.ipc=3", *NONE],
    ],
)
def test_each_process_chooses_for_its_own_classes_what_one_chooses_for_all(
    few_digits: LabeledImages, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("codes.num_slots=5", *overrides)
    parts = parts_of(recipe, few_digits)
    extractors, _ = parts.new_extractors()
    one = parts.starts.choose(extractors)
    calls: list[int] = []
    nested = nested_representatives
    monkeypatch.setattr("gencond.condensing.starts.nested_representatives", lambda *a: calls.append(1) or nested(*a))
    shares: list[Tensor] = []
    monkeypatch.setattr("gencond.condensing.starts.from_all", lambda own: shares.extend(own) or shares)
    for rank in range(3):
        monkeypatch.setattr("gencond.condensing.starts.rank_and_world", lambda rank=rank: (rank, 3))
        several = parts.starts.choose(extractors)
    assert len(calls) == 10  # k-means of each class once
    assert torch.equal(several.rows, one.rows) and torch.equal(several.labels, one.labels)
    assert several.real is few_digits.images  # which are held once


def test_a_class_smaller_than_the_batch_gives_its_images_more_than_once(few_digits: LabeledImages) -> None:
    extractor = Extractor(ConvNet(1, 10, 8, width=4, depth=2), *few_digits.mean_std)
    side = RepresentativeSide(few_digits, 20, torch.device("cpu"), candidates=5)
    rows = side.rows(a_draw(0, torch.arange(10), extractor))
    assert rows.shape == (10, 20) and all(len(row.unique()) == 5 for row in rows)
    assert torch.equal(few_digits.labels[rows], torch.arange(10)[:, None].expand(10, 20))


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", available_recipes())
def test_every_recipe_and_variant_is_legal(name: str) -> None:
    variants = (yaml.safe_load((RECIPES / f"{name}.yaml").read_text()).get("variants") or {}).keys()
    for variant in ["", *(f":{variant}" for variant in variants)]:
        recipe = load_recipe(f"{name}{variant}")
        check_parts(recipe)
        assert recipe.name == f"{name}{variant}"


@pytest.mark.parametrize("name", ["dm", "m3d", "dream", "cached", "generative"])
def test_a_paper_runs_on_digits_from_its_recipe_alone(few_digits: LabeledImages, tmp_path: Path, name: str) -> None:
    small = [line for line in TINY if not line.startswith(("features.snapshot", "codes.encode_steps", "condense.pref"))]
    recipe = load_recipe(
        f"{name}:digits",
        [*small, "pixels.ipc=2", "real.batch_size=6", "features.snapshot_steps=[1,2]", "features.train_images=16",
         "condense.prefix_lengths=null", "features.num_trajectories=1"],
    )  # fmt: skip
    condensed = condense(recipe, few_digits, tmp_path / "run")
    assert len(condensed.sample(2)[0]) == 20 * recipe.synthesizer.factor**2


@pytest.mark.parametrize("content", ["variants: [quick]", "variants: {quick: 3}"])
def test_variants_that_are_no_parts_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(InputError, match="variants must be names with"):
        load_recipe(f"{tmp_path}/own.yaml")


def test_variants_are_laid_over_a_recipe_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "objective: {mean_weight: 1}\nfeatures: {width: 8, depth: 2}\n"
        "variants:\n  wide: {features: {width: 16}}\n  wider: {features: {width: 32}}\n"
    )
    recipe = load_recipe(f"{tmp_path}/own.yaml:wide:wider", ["features.batch_size=4"])
    assert (recipe.features.width, recipe.features.depth, recipe.features.batch_size) == (32, 2, 4)
    assert recipe.name == "own:wide:wider"
    with pytest.raises(InputError, match=r"recipe own has no variant 'narrow'; known: wide, wider"):
        load_recipe(f"{tmp_path}/own.yaml:narrow")


# --- exact resume ----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("recipe_name", ["dream", "m3d"])
def test_a_killed_run_with_nets_and_choices_of_its_own_ends_in_the_same_bits(
    few_digits: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_name: str
) -> None:
    recipe = load_recipe(
        f"{recipe_name}:digits",
        ["condense.num_steps=7", "save_every_steps=3", "features.width=4", "features.train_images=32",
         "features.refresh_steps=5", "real.refresh_steps=2", "pixels.ipc=2", "real.batch_size=4"],
    )  # fmt: skip
    whole = condense(recipe, few_digits, tmp_path / "whole")
    save = RunFolder.save_state

    def dies(self, states, stage, step, *advice):
        save(self, states, stage, step, *advice)
        if step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_state", dies)
        with pytest.raises(Killed):
            condense(recipe, few_digits, tmp_path / "killed")
    resumed = condense(recipe, few_digits, tmp_path / "killed")
    assert torch.equal(whole.pixels, resumed.pixels)
    assert os.listdir(tmp_path / "whole" / "condensed") == os.listdir(tmp_path / "killed" / "condensed")


# --- compiled and in bfloat16 ----------------------------------------------------------------------------------------


def test_bfloat16_features_are_close_to_float32_ones(few_digits: LabeledImages) -> None:
    network = ConvNet(1, 10, 8, width=16, depth=2)
    images = to_signed(few_digits.images)
    exact, rounded = network.features(images), Embedding("bfloat16")(network, images)
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    error = (exact - rounded).norm() / exact.norm()
    assert error < 0.02  # 8 bits of mantissa: .4 % a product, over two layers


COMPILED = """
import torch
from gencond.networks.extractor import Embedding
from gencond.networks.convnet import ConvNet

embed = Embedding(compile=True)
for seed in range(3):
    torch.manual_seed(seed)
    network = ConvNet(1, 10, 8, width=8, depth=2).requires_grad_(False)
    images = torch.randn(6, 1, 8, 8, requires_grad=True)
    plain, compiled = network.features(images), embed(network, images)
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)
    direction = torch.randn_like(plain)
    gradients = [torch.autograd.grad((value * direction).sum(), images)[0] for value in (plain, compiled)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3, rtol=1e-3)
print(torch._dynamo.utils.counters["stats"]["unique_graphs"], "graph")
"""


@pytest.mark.slow
def test_compiled_features_and_image_gradients_are_those_of_plain_code_with_one_graph_for_all_networks() -> None:
    """In a process of its own: the type checks of these tests are not compiled."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "graph"]


def test_compiling_without_a_compiler_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gencond.networks.extractor.shutil.which", lambda name: None)
    monkeypatch.setattr("gencond.networks.extractor.torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler .* set features.compile=false"):
        Embedding(compile=True)
