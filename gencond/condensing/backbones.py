"""The generators that condensing starts from: with random weights, with published ones, or from a folder."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.files import read_json
from gencond.common.seeding import seeded
from gencond.config import Generator
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


def made_size(image_size: int, factor: int, by_parts: bool) -> int:
    """The side in pixels of what a generator makes: whole images, or one of factor x factor parts of an image.

    Raises:
        ValueError: the parts do not fill an image.
    """
    if not by_parts:
        return image_size
    size, rest = divmod(image_size, factor)
    if rest:
        raise ValueError(f"{factor} x {factor} parts do not fill an image: change synthesizer.factor or by_parts")
    return size


def usual_blocks(size: int) -> int:
    """Blocks of a generator of a size in pixels, so that its first feature map has 4 to 7."""
    return max(1, (size // 4).bit_length() - 1)


@dataclass(frozen=True)
class GeneratorMaker:
    """Makes the generators that condensing may start from, all of one shape, for one data set.

    Args:
        part: what a recipe says of them.
        size: the side in pixels of what they make.
        image_size: the side of the data's images, which may be several parts wide.
        class_names: of the data, in its order.
        seed: of random weights.
    """

    part: Generator
    size: int
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    seed: int

    def make(self) -> Backbone:
        """The generator before any training here: with published weights where the recipe names some, else random."""
        return self.new() if self.part.weights is None else self.published()

    def new(self) -> Backbone:
        """A generator with random weights, a function of the seed alone.

        Raises:
            ValueError: a size that the blocks cannot make.
        """
        part, size = self.part, self.size
        num_blocks = part.num_blocks or usual_blocks(size)
        with seeded(self.seed):
            if part.backbone == "biggan_deep":
                return BigGANDeepGenerator(
                    sample_size=size,
                    out_channels=self.channels,
                    num_class_embeds=len(self.class_names),
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
                    out_channels=self.channels,
                    num_class_embeds=len(self.class_names),
                    latent_dim=min(part.chunk_dim, self.channels * square**2) * (size // square) ** 2,
                    square=square,
                    width=part.width,
                )
            return BigGANGenerator(
                sample_size=size,
                out_channels=self.channels,
                num_class_embeds=len(self.class_names),
                latent_dim=part.chunk_dim * (num_blocks + 1),
                class_embed_dim=part.class_embed_dim,
                block_out_channels=[
                    channels_at(size >> doublings_left, part.width) for doublings_left in reversed(range(num_blocks))
                ],
                attention_resolution=part.attention_resolution,
                linear_path=part.linear_path,
            )

    def published(self) -> Backbone:
        """A generator with the published weights that the recipe names, for the data's classes.

        Raises:
            InputError: weights that cannot be had, or that make images of another size or other channels.
        """
        part = self.part
        if part.weights is None:
            raise InputError("no published weights are named: set generator.weights")
        if part.backbone == "biggan_deep":
            truncation = 1.0 if part.truncation is None else part.truncation
            if part.weights == IMAGENET1K:
                generator: Backbone = load_imagenet1k(self.image_size, truncation, part.sha256)
            else:
                generator = load_biggan_deep(part.weights, truncation, part.sha256)
        else:
            generator = load_biggan(part.weights, part.sha256)
        made, asked = (generator.config.out_channels, generator.config.sample_size), (self.channels, self.size)
        if made != asked:
            raise InputError(
                f"generator.weights={part.weights} make {made[0]}x{made[1]}x{made[1]} px images, the data has "
                f"{asked[0]}x{asked[1]}x{asked[1]}: set data.image_size={made[1] * self.image_size // asked[1]}"
            )
        return for_classes(generator, self.class_names)

    def read(self, folder: Path) -> Backbone:
        """A generator that was saved in a folder.

        Raises:
            InputError: no generator, or one of another shape.
        """
        config = folder / "config.json"
        kind = BACKBONES.get(read_json(config).get("_class_name", "") if config.is_file() else "", BigGANGenerator)
        generator, expected = read_model(kind, folder, "a pretrained generator"), self.new()
        found, asked = backbone_config(generator), backbone_config(expected)
        gets_path = bool(asked.get("linear_path")) and not found.get("linear_path")
        if gets_path:
            found["linear_path"] = True
        for name, value in asked.items():
            if found.get(name) != value:
                raise InputError(f"{folder} has {name} {found.get(name)}; the recipe and data ask for {value}")
        if gets_path:  # which is 0 until it is fitted, so that what was pretrained without it is as good
            expected.load_state_dict(generator.state_dict(), strict=False)
            return expected.eval()
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
        embeddings = near_their_mean(known, len(class_names), seed=0)
    made = new_backbone(backbone_config(generator) | {"num_class_embeds": len(class_names)})
    made.load_state_dict(generator.state_dict() | {"class_embedding.weight": embeddings})
    return made.eval()


def near_their_mean(embeddings: Float[Tensor, "n d"], count: int, seed: int) -> Float[Tensor, "count d"]:
    """Class embeddings that new classes start from: the mean of known ones, with a thousandth of their spread to tell
    classes apart.

    Args:
        embeddings: of two classes at least.
    """
    noise = torch.randn(count, embeddings.shape[1], generator=torch.Generator().manual_seed(seed))
    return embeddings.mean(0) + 1e-3 * embeddings.std(0) * noise


def _imagenet_rows(class_names: Sequence[str]) -> Tensor | None:
    """Class indices of ImageNet-1k; None where a name is no WordNet id of it."""
    from timm.data.imagenet_info import ImageNetInfo

    position = {name: row for row, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    if not all(name in position for name in class_names):
        return None
    return torch.tensor([position[name] for name in class_names])
