"""The generator that a recipe starts from, for one data set: with random weights, published ones, or from a folder."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.files import read_json
from gencond.common.seeding import seeded
from gencond.config import Recipe
from gencond.data.images import LabeledImages
from gencond.generator.backbone import Backbone
from gencond.generator.biggan import BigGANGenerator
from gencond.generator.biggan_deep import BigGANDeepGenerator, stage_widths
from gencond.generator.dataset import BACKBONES, backbone_config, new_backbone
from gencond.generator.discriminator import channels_at
from gencond.generator.loading import read_model
from gencond.generator.published import load_biggan, load_biggan_deep, load_imagenet1k
from gencond.generator.transform import TransformGenerator

logger = logging.getLogger(__name__)

IMAGENET1K = "imagenet1k"
LARGEST_SQUARE = 8  # pixels: the transform of a larger one weighs more than it saves


def made_size(recipe: Recipe, data: LabeledImages) -> int:
    """Side in pixels of what the recipe's generator makes: whole images, or parts of them.

    Raises:
        ValueError: parts that do not fill an image.
    """
    if not recipe.synthesizer.by_parts:
        return data.image_size
    factor = recipe.synthesizer.factor
    size, rest = divmod(data.image_size, factor)
    if rest:
        raise ValueError(f"{factor} x {factor} parts do not fill an image: change synthesizer.factor or by_parts")
    return size


def has_pretraining(recipe: Recipe) -> bool:
    """Whether adversarial pretraining comes first: not of pixels, nor of a transform, which begins as the images'."""
    return (
        recipe.synthesizer.kind == "generator"
        and recipe.generator.backbone != "transform"
        and recipe.pretrain.num_steps > 0
    )


def new_generator(recipe: Recipe, data: LabeledImages) -> Backbone:
    """The recipe's backbone with random weights, for images of the data's size or parts of them.

    Raises:
        ValueError: a size that the blocks cannot make.
    """
    part, size = recipe.generator, made_size(recipe, data)
    num_blocks = part.num_blocks or max(1, (size // 4).bit_length() - 1)  # a first feature map of 4 to 7 pixels
    with seeded(recipe.seed):
        if part.backbone == "biggan_deep":
            return BigGANDeepGenerator(
                sample_size=size,
                out_channels=data.channels,
                num_class_embeds=data.num_classes,
                latent_dim=part.latent_dim,
                class_embed_dim=part.class_embed_dim,
                block_out_channels=[part.width * times for times in stage_widths(num_blocks)],
                attention_resolution=part.attention_resolution,
                truncation=part.truncation,
            )
        if part.backbone == "transform":
            square = part.square or max(side for side in range(1, LARGEST_SQUARE + 1) if size % side == 0)
            return TransformGenerator(
                sample_size=size,
                out_channels=data.channels,
                num_class_embeds=data.num_classes,
                latent_dim=min(part.chunk_dim, data.channels * square**2) * (size // square) ** 2,
                square=square,
                width=part.width,
            )
        return BigGANGenerator(
            sample_size=size,
            out_channels=data.channels,
            num_class_embeds=data.num_classes,
            latent_dim=part.chunk_dim * (num_blocks + 1),
            class_embed_dim=part.class_embed_dim,
            block_out_channels=[
                channels_at(size >> doublings_left, part.width) for doublings_left in reversed(range(num_blocks))
            ],
            attention_resolution=part.attention_resolution,
        )


def published_generator(recipe: Recipe, data: LabeledImages) -> Backbone:
    """The recipe's backbone with `generator.weights`, for the data's classes.

    Raises:
        InputError: weights that cannot be had, or make images of another size or other channels.
    """
    part = recipe.generator
    if part.backbone == "biggan_deep":
        truncation = 1.0 if part.truncation is None else part.truncation
        if part.weights == IMAGENET1K:
            generator: Backbone = load_imagenet1k(data.image_size, truncation, part.sha256)
        else:
            generator = load_biggan_deep(part.weights, truncation, part.sha256)
    else:
        generator = load_biggan(part.weights, part.sha256)
    made = generator.config.out_channels, generator.config.sample_size
    asked = data.channels, made_size(recipe, data)
    if made != asked:
        raise InputError(
            f"generator.weights={part.weights} make {made[0]}x{made[1]}x{made[1]} px images, the data has "
            f"{asked[0]}x{asked[1]}x{asked[1]}: set data.image_size={made[1] * data.image_size // asked[1]}"
        )
    return for_classes(generator, data.class_names)


def read_generator(folder: Path, recipe: Recipe, data: LabeledImages) -> Backbone:
    """A generator that was saved, which has to be of the recipe's shape.

    Raises:
        InputError: no generator, or another shape.
    """
    config = folder / "config.json"
    kind = BACKBONES.get(read_json(config).get("_class_name") if config.is_file() else None, BigGANGenerator)
    generator, expected = read_model(kind, folder, "a pretrained generator"), new_generator(recipe, data)
    found = backbone_config(generator)
    for name, value in backbone_config(expected).items():
        if found.get(name) != value:
            raise InputError(f"{folder} has {name} {found.get(name)}; the recipe and data ask for {value}")
    return generator


def for_classes(generator: Backbone, class_names: Sequence[str]) -> Backbone:
    """A pretrained generator with the class embeddings that some classes start from.

    Those of ImageNet where every name is one of its 1000 WordNet ids (`n01440764`); those it has where it has as many
    classes, in their order; and otherwise their mean, with a thousandth of their spread to tell classes apart.
    """
    rows = _imagenet_rows(class_names) if generator.config.num_class_embeds == 1000 else None
    known = generator.class_embedding.weight.detach()
    if rows is not None:
        embeddings = known[rows]
    elif len(class_names) == len(known):
        return generator
    else:
        logger.info(
            "generator: its %d classes are not these %d (%s, ...): each starts from their mean", len(known),
            len(class_names), class_names[0],
        )  # fmt: skip
        noise = torch.randn(len(class_names), known.shape[1], generator=torch.Generator().manual_seed(0))
        embeddings = known.mean(0) + 1e-3 * known.std(0) * noise
    made = new_backbone(backbone_config(generator) | {"num_class_embeds": len(class_names)})
    made.load_state_dict(generator.state_dict() | {"class_embedding.weight": embeddings})
    return made.eval()


def _imagenet_rows(class_names: Sequence[str]) -> Tensor | None:
    """Class indices of ImageNet-1k; None where a name is no WordNet id of it."""
    from timm.data import ImageNetInfo

    position = {name: row for row, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    if not all(name in position for name in class_names):
        return None
    return torch.tensor([position[name] for name in class_names])
