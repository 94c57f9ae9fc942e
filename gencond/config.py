"""A recipe: frozen dataclasses, one a part, read from a YAML file; `part.field=value` overrides on the command line."""

import copy
import difflib
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast, dataclass_transform

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from gencond.common.errors import InputError

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "gencond"  # which a run without a recipe plans
# Fields of earlier versions, which artefacts and run folders hold, and the value at which they said nothing.
RETIRED: dict[str, dict[str, Any]] = {"objective": {"center_margin": 1.0}, "real": {"learnable_only": False}}

COLUMNS = ("image_column", "label_column")  # of `data`: they are of its source and of no other

MOST = 10**9  # of anything; what that takes in memory is looked at once the images are known
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]
FewOrZero = Annotated[int, Field(ge=0, le=1000)]
Side = Annotated[int, Field(ge=8, le=512)]  # of images, in pixels
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("must be ascending, each once")
    return values


Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Steps = Annotated[Counts, AfterValidator(_ascending)]
Part = TypeVar("Part")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def part(cls: type[Part]) -> type[Part]:
    """Make a class a part of the recipe: frozen, its fields given by name and validated, unknown ones refused."""
    made = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(cls)
    return cast("type[Part]", made)  # pydantic's annotation does not say that it is the same class


@part
class Data:
    """The real images: where they lie, how large they are, and what is held out of them."""

    source: str = Field(
        "digits",
        description="A named set (digits, mnist, fashion_mnist, cifar10, cifar100), a folder of images, of WebDataset "
        "shards or of parquet files, one that `save_to_disk` of Hugging Face wrote, a set of its Hub "
        "(hf:owner/name[:config][@revision]), or an .npz file; `--data` sets it.",
    )
    image_column: str | None = Field(
        None,
        description="The column of the images in parquet files and sets of Hugging Face; null takes the only one that "
        "can be. `--image-column` sets it.",
    )
    label_column: str | None = Field(
        None, description="The column of their classes, likewise. `--label-column` sets it."
    )
    image_size: Side | None = Field(
        None,
        description="Side in pixels that images are scaled and cropped to; null keeps square images as they are, and "
        "otherwise takes the largest size a generator can have that is not over the median shorter side, 8 to 32.",
    )
    test_fraction: Share = Field(
        0.2, description="Share of each class that is held out as the test set, where the source has no test images."
    )
    judge_on: Literal["test", "validation"] = Field(
        "test",
        description="What a classifier is tested on. `validation` is a slice of the training set, to choose settings "
        "by; the test set then stays unread.",
    )
    validation_fraction: Share = Field(0.2, description="Share of the training set that this slice takes.")
    augmentation: str = Field(
        "color_crop_cutout_flip_scale_rotate",
        description="Operations that leave the class of an image as it is: color, crop, cutout, flip, scale and "
        "rotate, joined by `_`, or none. The extractors and the evaluation use them, and so does matching unless "
        "condense.augmentation names others.",
    )


@part
class Synthesizer:
    """What makes the images: a generator with codes, or a bank of pixels that are learned one by one."""

    kind: Literal["generator", "pixels"] = Field(
        "generator", description="A generator with codes, or a bank of pixels."
    )
    factor: Annotated[int, Field(ge=1, le=8)] = Field(
        1,
        description="Every image is cut into factor x factor parts, and each part counts as an image of full size "
        "(the multi-formation of IDC). IPC counts the images before they are cut.",
    )
    by_parts: bool = Field(
        False,
        description="Whether a generator makes each of these parts by itself, from a code of its own, instead of "
        "whole images. It is then pretrained on real images of a part's size, and the side of the images has to be a "
        "multiple of factor.",
    )


@part
class Pixels:
    """The bank of pixels, where synthesizer.kind is `pixels`."""

    ipc: Count = Field(10, description="Images of each class.")
    init: Literal["real", "kmeans", "noise"] = Field(
        "real",
        description="What the images start from: random real images, k-means representatives of each class in the "
        "features of an extractor, or noise.",
    )
    space: Literal["unit", "normalised"] = Field(
        "unit",
        description="What is learned: values in [0, 1], or values divided by the standard deviation of the data, as "
        "DM does.",
    )
    clamp_every_steps: CountOrZero = Field(
        1, description="Steps after which pixels are clamped to the range of images; 0 never clamps them."
    )
    learning_rate: Rate = Field(1.0, description="Learning rate of SGD.")
    rate_per_ipc: bool = Field(
        False,
        description="Whether the rate is multiplied by `ipc`, since a mean over more images gives each image a "
        "smaller gradient.",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="Momentum of SGD.")


@part
class Generator:
    """The backbone, where synthesizer.kind is `generator`."""

    backbone: Literal["biggan", "biggan_deep", "transform"] = Field(
        "biggan",
        description="`biggan` makes 8 to 512 px and can be pretrained here; `biggan_deep` has published weights; "
        "`transform` is made like an image codec and begins as the linear transform of the images that it starts from.",
    )
    weights: str | None = Field(
        None,
        description="Weights of a pretrained backbone, instead of pretraining: a file, a folder, a URL or a Hub id, "
        "or `imagenet1k` for biggan_deep at 128, 256 or 512 px. They decide all sizes below.",
    )
    sha256: str | None = Field(None, description="SHA-256 that the file of weights must have; null checks none.")
    width: Count = Field(
        64,
        description="Channels. biggan: of the blocks up to 16 pixels, and each doubling beyond halves them. "
        "biggan_deep: of the last block, with up to 16 times as many before. transform: of its convolutions.",
    )
    num_blocks: Annotated[int, Field(ge=1, le=16)] | None = Field(
        None,
        description="Blocks of biggan, each of which doubles the side; null leaves a first feature map of 4 to 7 "
        "pixels.",
    )
    chunk_dim: Count = Field(
        16,
        description="biggan: length of the part of the latent that the first layer and each block get, so that the "
        "latent is (num_blocks + 1) times as long. transform: the most whole numbers for each square of an image, no "
        "more than the square has pixels.",
    )
    square: Count | None = Field(
        None, description="transform: side of a square in pixels; null takes the largest up to 8 that divides an image."
    )
    quantization_step: Rate = Field(
        0.4,
        description="transform: how far an image in [-1, 1] moves, as a norm, when one of these numbers changes by 1. "
        "Coarse steps leave most numbers at 0, which costs next to nothing to store.",
    )
    latent_dim: Count = Field(128, description="biggan_deep: length of the latent.")
    class_embed_dim: Count = Field(64, description="Length of the embedding of a class.")
    attention_resolution: Count | None = Field(
        None, description="Side of the feature maps that are attended to; null leaves attention out."
    )
    truncation: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="biggan_deep: the t of latents t * truncated normal(-2, 2), also of those that codes start from; "
        "null means 1 for published weights and a standard normal otherwise.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="What its products are computed in while codes and generator are fitted and matched; pretraining "
        "computes as accelerate launch says. Samples are always made in float32.",
    )
    linear_path: bool = Field(
        False,
        description="biggan: whether a linear function of the latent is added to the image. With "
        "codes.start=components it begins as the one that makes the images that codes start from, as well as so many "
        "components can; pretraining leaves it out.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Whether matching saves memory at the price of a second forward pass."
    )


@part
class Pretrain:
    """Adversarial pretraining of the generator."""

    num_steps: CountOrZero = Field(2000, description="Steps of the generator; 0 starts from random weights.")
    batch_size: Count = Field(64, description="Images in a batch.")
    discriminator_steps: Count = Field(1, description="Steps of the discriminator for each step of the generator.")
    discriminator_width: Count = Field(64, description="Channels of the discriminator.")
    generator_lr: Rate = Field(2e-4, description="Learning rate of the generator.")
    discriminator_lr: Rate = Field(4e-4, description="Learning rate of the discriminator.")
    ema_halflife_steps: Count = Field(150, description="Half-life of the average of the generator's weights, in steps.")
    augmentation: str = Field(
        "crop",
        description="Differentiable operations, named as in data.augmentation. Each image, real or synthetic, goes "
        "through all of them.",
    )


@part
class Features:
    """The extractors: the networks in whose features real and synthetic images are compared."""

    kind: Literal["pool", "fresh", "online"] = Field(
        "pool",
        description="`pool` keeps num_trajectories x snapshots of networks in training, and num_random that never "
        "train; `fresh` draws a random network every refresh_steps; `online` also trains that network after each "
        "step, on train_images real images.",
    )
    network: str = Field("convnet", description="`convnet`, `resnet_ap10` or the name of a timm model.")
    weights: str | None = Field(
        None,
        description="Weights of a timm model: `pretrained` downloads its own, a path reads a file; null draws random "
        "ones.",
    )
    resize: Side | None = Field(
        None, description="Side in pixels that images are scaled to before a network sees them; null leaves them."
    )
    width: Count = Field(128, description="Channels of convnet and resnet_ap10.")
    depth: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="Blocks of convnet; null follows the size of the images."
    )
    activation: Literal["relu", "leaky_relu", "sigmoid", "swish"] = Field("relu", description="Activation of convnet.")
    norm: Literal["instance", "batch", "layer", "group", "none"] = Field(
        "instance", description="Normalisation of convnet and resnet_ap10."
    )
    pooling: Literal["avg", "max", "none"] = Field("avg", description="Pooling of convnet.")
    num_trajectories: FewOrZero = Field(2, description="pool: networks that are trained on the real images.")
    snapshot_steps: Steps = Field(
        (20, 50, 100, 200, 350),
        description="pool: training steps after which a copy of each such network is kept, ascending.",
    )
    num_random: FewOrZero = Field(4, description="pool: networks that never train.")
    refresh_steps: Count = Field(1, description="fresh and online: steps after which a new network is drawn.")
    train_images: Count = Field(2000, description="online: real images that the network trains on after each step.")
    batch_size: Count = Field(128, description="pool and online: images in a batch of this training.")
    learning_rate: Rate = Field(0.01, description="pool and online: learning rate of this training.")
    cutmix: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="pool and online: share of the batches that are mixed by CutMix."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of the extractors, except in gradient matching, which stays in float32."
    )
    compile: bool | None = Field(
        None,
        description="Whether the extractors are compiled, except in gradient matching, which torch cannot compile. It "
        "costs half a minute and then saves up to three quarters of a step; on a CPU it needs a C++ compiler. null "
        "compiles a long pass over the real images alone, on a CPU with such a compiler.",
    )


@part
class Real:
    """What stands for the real images of a class in a step."""

    kind: Literal["statistics", "random", "representatives"] = Field(
        "statistics",
        description="`statistics` of the whole set, kept for each extractor of a pool; `random` batches; or "
        "`representatives`, the images nearest to k-means centers in the current features (DREAM).",
    )
    batch_size: Count = Field(256, description="random and representatives: real images of each class in a step.")
    refresh_steps: Count = Field(10, description="representatives: steps between two choices of them.")
    candidates: Count | None = Field(
        None,
        description="Random images of a class that are looked at, to choose from or to take statistics of; null looks "
        "at all.",
    )
    num_passes: Count = Field(2, description="statistics: passes over the images, each augmented anew.")
    num_frequencies: Annotated[int, Field(ge=3, le=MOST, multiple_of=3)] = Field(
        510, description="statistics: frequencies of the random Fourier embedding, which is twice as long."
    )


@part
class Codes:
    """The learned slots of a generator."""

    num_slots: Count = Field(50, description="Learned slots of each class.")
    fresh: Literal["prior", "mixed", "none"] = Field(
        "prior",
        description="What slots past the learned ones are made from: `prior`, latents as in pretraining; `mixed`, "
        "points between learned codes of the class; `none`, there are no others.",
    )
    start: Literal["prior", "components"] = Field(
        "prior",
        description="What learned codes start as: `prior`, drawn as in pretraining; `components`, the principal "
        "components of the images that their slots start from, which encoding then needs fewer steps for.",
    )
    representative_sizes: Steps = Field(
        (1, 10, 50),
        description="Set sizes, ascending. Slots up to the largest start from k-means representatives, chosen so that "
        "the first so many are a good set by themselves; further slots start from random images.",
    )
    representative_space: Literal["pixels", "features"] = Field(
        "pixels",
        description="Where k-means finds them: in `pixels`, or in the `features` of the first step's extractor (DREAM; "
        "with `online` it was never trained).",
    )
    skip_easiest: Annotated[float, Field(ge=0, lt=1)] | Literal["held_out"] | None = Field(
        None,
        description="Share of each class, its easiest images, that is skipped when slots choose the images they start "
        "from; the next ones are taken. A network trained on the whole set ranks them. null takes any images. "
        "`held_out` tries some shares, and random images, with brief trainings that are tested on a fifth of the "
        "training images, and takes the best.",
    )
    learnable_first: bool = Field(
        False,
        description="Slots start from images that a network takes for what they are after codes.ranking_steps of "
        "training on all of them, or as few as show it each ten times; k-means looks at those alone, and other images "
        "come last. Of a class of which it knows fewer than its first set has, the easiest ones count as known.",
    )
    ranking_steps: Count = Field(
        1000,
        description="Steps that this network trains for, and that of codes.learnable_first. Trainings of `held_out` "
        "take half as many at most.",
    )
    ranking_resize: Side | None = Field(
        None,
        description="Side in pixels to which images are brought for this network; null takes what extractors see. What "
        "is easy shows in small images too, and training takes a quarter of the time at half the side.",
    )
    encode_steps: CountOrZero = Field(
        0, description="Steps that fit slots and generator to the images they start from; 0 skips this stage."
    )
    encode_batch_size: Count = Field(128, description="Slots in a step of encoding.")
    encode_generator_lr: Rate = Field(1e-3, description="Learning rate of the generator while encoding.")
    encode_code_lr: Rate = Field(5e-2, description="Learning rate of the codes while encoding.")


@part
class Objective:
    """Weights of the terms of the loss; 0 leaves a term out."""

    scale: Literal["relative", "sum"] = Field(
        "relative",
        description="`relative` averages over classes and divides the squared distances of means by the real gap "
        "between classes, so that networks compare; `sum` adds over classes and divides by nothing, as the papers do.",
    )
    mean_weight: Weight = Field(0.0, description="Weight of the distance between class means (DM).")
    mmd_weight: Weight = Field(0.0, description="Weight of the squared maximum mean discrepancy (M3D).")
    kernel: Literal["gaussian", "linear", "polynomial", "laplace"] = Field(
        "gaussian",
        description="Kernel of the MMD between batches, as M3D has it. Statistics are kept for Gaussians around the "
        "median distance.",
    )
    gradient_weight: Weight = Field(
        0.0, description="Weight of gradient matching (IDC, DREAM), on the weights of convolutions only."
    )
    gradient_metric: Literal["mse", "l1"] = Field("mse", description="Distance between gradients.")
    diversity_weight: Weight = Field(
        0.0, description="Weight of the intra-class term, which keeps images of a class from lying in one direction."
    )
    center_weight: Weight = Field(
        0.0, description="Weight of the inter-class term, which draws a class to its real center, away from all others."
    )
    classification_weight: Weight = Field(
        0.0, description="Weight of the cross-entropy that trained extractors give the images."
    )
    representative_weight: Weight = Field(
        0.0, description="Weight of the squared error in pixels between slots and the real images they start from."
    )
    pixel_weight: Weight = Field(
        0.0, description="Weight of the term that holds mean thumbnails and contrasts of a class at the real ones."
    )
    own_term: str | None = Field(
        None, description="A term of your own, by the name that `gencond.losses.register_term` was given in Python."
    )
    own_weight: Weight = Field(0.0, description="Weight of that term.")


@part
class Condense:
    """Matching: the steps in which synthetic images are fitted to the real ones."""

    num_steps: CountOrZero = Field(1000, description="Steps.")
    prefix_lengths: Counts | None = Field(
        None,
        description="How many slots of a class form the set of a step, drawn from this list; null always takes all.",
    )
    prefixes_at_once: bool = Field(
        False,
        description="Whether a step serves all of prefix_lengths at once, since the images of a prefix are in every "
        "longer one, instead of one that is drawn. Where images_per_step allows fewer images, some of those between "
        "two lengths stand for all of them.",
    )
    stream_probability: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Share of the steps that match fresh slots past the learned ones instead."
    )
    stream_length: Count = Field(10, description="Fresh slots of a class in such a step.")
    classes_per_step: Count = Field(
        10, description="The most classes in a step; its cost follows this, not the number of classes."
    )
    images_per_step: Count | None = Field(
        None,
        description="The most images of a class in a step, counted after they are cut by factor; of more, a random "
        "part is taken. null takes all.",
    )
    images_at_once: Count | None = Field(
        None,
        description="Images that are in memory at once, so that the memory of a step does not grow with "
        "classes_per_step; null takes all at once.",
    )
    augmentation: str | None = Field(
        None, description="Operations of matching, named as in data.augmentation; null takes those."
    )
    augmentation_mode: Literal["one", "idc", "all"] = Field(
        "one",
        description="`one` operation for each image, the stronger mix of `idc`, or `all`. A batch of real images "
        "shares the draw of its class with the synthetic ones.",
    )
    representative_batch_size: Count = Field(
        64, description="(class, slot) pairs in a step that are held to their real image; never slot 0."
    )
    generator_lr: Rate = Field(3e-4, description="Learning rate of the generator.")
    class_lr: Rate | None = Field(
        None, description="Learning rate of the generator's class embeddings; null takes generator_lr."
    )
    code_lr: Rate = Field(3e-2, description="Learning rate of the codes.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Schedule of all learning rates.")
    max_grad_norm: Rate | None = Field(1.0, description="Norm that gradients are clipped to; null does not clip.")
    ema_halflife_steps: CountOrZero = Field(
        20,
        description="Half-life, in steps, of the average of the weights that becomes the artefact; 0 takes the last "
        "iterate.",
    )
    score_every_steps: Count | None = Field(
        None,
        description="Steps between two quick scores, and there is one at the end: a classifier trains for a moment on "
        "what is learned so far and is tested on held-out training images. null takes none and holds none out.",
    )
    score_images: Count = Field(
        1000,
        description="Training images that are held out of condensing for these scores: at least one of each class, and "
        "about a tenth of the training set at most.",
    )


@part
class Evaluate:
    """How the result is judged."""

    ipc: Counts | None = Field(
        None,
        description="Images per class to judge at; null takes 1, 10 and 50 of a generator, and what is stored of "
        "pixels.",
    )
    networks: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("convnet3",),
        description="Classifiers that are trained: `convnet2`, `convnet3w64` and the like, or names of timm models.",
    )
    protocol: str = Field(
        "quick", description="How they are trained: a name of gencond.eval.protocols; `dm:200` is dm with 200 epochs."
    )
    num_seeds: Annotated[int, Field(ge=1, le=1000)] = Field(3, description="Classifiers of each network.")


@part
class Recipe:
    """All that a run depends on: the data, the four exchangeable parts of the method, and how the result is judged."""

    name: str = Field(description="Name of the recipe, for reports.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seed of all that is random in the run.")
    minutes: Rate | None = Field(
        None,
        description="Minutes that the numbers of steps were planned for, on one machine (`gencond plan`); null where "
        "they were not.",
    )
    save_every_steps: Count = Field(
        100, description="Steps after which the state is saved that a killed run resumes from."
    )
    data: Data = Data()
    synthesizer: Synthesizer = Synthesizer()
    pixels: Pixels = Pixels()
    generator: Generator = Generator()
    pretrain: Pretrain = Pretrain()
    features: Features = Features()
    real: Real = Real()
    codes: Codes = Codes()
    objective: Objective = Objective()
    condense: Condense = Condense()
    evaluate: Evaluate = Evaluate()


def available_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), source: str | None = None) -> Recipe:
    """A recipe by name or from a YAML file, with its variants and with `part.field=value` overrides.

    `dm:fashion_mnist:quick` is `dm` with what its `variants` say under these names, one after the other.

    Args:
        source: of the data, taken as it is (an override would be read as YAML). Columns that the recipe names for a
            source of another name are left out.

    Raises:
        InputError: an unknown recipe, variant or field, a value of the wrong kind or out of range, broken YAML.
    """
    path, chosen = _find_recipe(name_or_path)
    content = {"name": path.stem} | read_recipe_file(path)
    variants = content.pop("variants", None) or {}
    if not isinstance(variants, dict) or not all(isinstance(value, dict | None) for value in variants.values()):
        raise InputError(f"{path}: variants must be names with `part: {{field: value}}` under each")
    for name in chosen:
        if name not in variants:
            known = ", ".join(variants) or "none"
            raise InputError(f"recipe {path.stem} has no variant {name!r}; known: {known}")
        _merge(content, variants[name] or {})
    if chosen:
        content["name"] = ":".join([content["name"], *chosen])
    return parse_recipe(content, str(name_or_path), overrides, source)


def _find_recipe(name_or_path: str) -> tuple[Path, list[str]]:
    """(file, names of variants). Raises InputError."""
    name, *variants = str(name_or_path).split(":")
    for path, chosen in (
        (RECIPES / f"{name}.yaml", variants),
        (Path(name_or_path), []),
        (Path(name), variants),
    ):
        if path.is_file():
            return path, chosen
    known = ", ".join(available_recipes())
    raise InputError(f"no recipe {name_or_path!r}: known are {known}; a path to a YAML file works too")


def _merge(content: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Lays `changes` over `content`, field by field within a part."""
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(content.get(name), dict):
            _merge(content[name], value)
        else:
            content[name] = copy.deepcopy(value)


def read_recipe_file(path: Path) -> dict[str, Any]:
    """What a YAML file says of a recipe, not validated. Raises InputError where it is no mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no recipe: expected `part:` with `field: value` lines")
    return content


def parse_recipe(
    content: Mapping[str, Any], where: str, overrides: Sequence[str] = (), source: str | None = None
) -> Recipe:
    """A recipe from plain values, as YAML and JSON hold them; `where` is named in errors. Raises InputError."""
    values = copy.deepcopy(dict(content))
    for part, fields in RETIRED.items():
        of_part = values.get(part)
        for field, idle in fields.items():
            if isinstance(of_part, dict) and of_part.get(field) == idle:
                del of_part[field]
    of_data = values.get("data")
    if source is not None and isinstance(of_data, dict) and not _is_same_source(of_data.get("source"), source):
        values["data"] = {field: value for field, value in of_data.items() if field not in COLUMNS}
    for override in overrides:
        _apply_override(values, override)
    if source is not None:
        values["data"] = (values.get("data") or {}) | {"source": source}
    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        raise InputError(_explain(error, where)) from None


def _is_same_source(named: Any, given: str) -> bool:
    """Whether a recipe's source, or one that it leaves open, can be the one that is given: it may have moved."""
    return named is None or Path(str(named)).name == Path(given).name


def column_overrides(image: str | None, label: str | None) -> list[str]:
    """Overrides that name the columns of a table; none where both are None."""
    given = zip(COLUMNS, (image, label), strict=True)
    return [f"data.{field}={json.dumps(name, ensure_ascii=False)}" for field, name in given if name is not None]


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r} is not of the form part.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"the value of override {override!r} is not valid YAML") from None
    if isinstance(value, str) and text.strip()[0] not in "\"'":  # YAML 1.1 reads 1e-3 as text
        try:
            value = float(value)
        except ValueError:
            pass
    *parents, field = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise InputError(f"override {override!r}: {parent!r} is a field, not a part")
    content[field] = value


def _explain(error: ValidationError, where: str) -> str:
    first, *others = error.errors()
    location = _location(first)
    name = ".".join(location)
    if first["type"] == "unexpected_keyword_argument":
        fields = asdict(Recipe(name="")) if len(location) == 1 else asdict(Recipe(name="")).get(location[0], {})
        close = difflib.get_close_matches(location[-1], fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(fields)}"
        return f"recipe {where}: unknown field {name!r}; {hint}"
    why = [first["msg"], *(other["msg"] for other in others if _location(other) == location)]  # of each kind it may be
    return f"recipe {where}: {name} = {first['input']!r}: {', or '.join(why)}"


def _location(error: Mapping[str, Any]) -> list[str]:
    """Part, field and places in a list; pydantic also says which kind of value was tried there."""
    return [str(step) for depth, step in enumerate(error["loc"]) if depth < 2 or isinstance(step, int)]


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values, as they stand in YAML and JSON."""
    return TypeAdapter(Recipe).dump_python(recipe, mode="json")


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, as `load_recipe` reads it."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False)


@cache
def _schema() -> dict[str, Any]:
    """What pydantic knows of a recipe: parts, fields, descriptions, ranges, defaults."""
    return TypeAdapter(Recipe).json_schema()


class FieldDoc(NamedTuple):
    """What a recipe's field means.

    Args:
        name: of the field, within its part.
        description: one or more sentences.
        values: what it may be: a type with its range, or the choices.
        default: as YAML; empty where there is none.
    """

    name: str
    description: str
    values: str
    default: str


def recipe_docs() -> dict[str, tuple[str, list[FieldDoc]]]:
    """Each part of a recipe by name: what it is, and its fields in order. The recipe's own fields come first, as ""."""
    schema, docs = _schema(), {}
    for name, about in {"": schema, **schema["properties"]}.items():
        if name and "$ref" not in about:
            continue
        of_part = schema["$defs"][about["$ref"].rpartition("/")[2]] if name else about
        fields = [
            FieldDoc(
                field,
                known["description"],
                _values(known),
                _yaml_value(known["default"]) if "default" in known else "",
            )
            for field, known in of_part["properties"].items()
            if "$ref" not in known
        ]
        docs[name] = of_part["description"], fields
    return docs


def _values(known: Mapping[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in known:
        return ", or ".join(_values(one) for one in known["anyOf"])
    if "enum" in known:
        return f"one of {', '.join(known['enum'])}"
    if "const" in known:
        return known["const"]
    match known["type"]:
        case "null":
            return "null"
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case "array":
            return f"list of one or more: {_values(known['items'])}"
    words = "whole number" if known["type"] == "integer" else "number"
    limits = [
        f" {text} {known[key]}"
        for key, text in (
            ("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "up to"), ("exclusiveMaximum", "and below"),
        )
        if key in known and known[key] != MOST
    ]  # fmt: skip
    return "".join([words, *limits, f", a multiple of {known['multipleOf']}" if "multipleOf" in known else ""])


def _yaml_value(value: Any) -> str:
    """A plain value as it stands behind `field:` in YAML, in one line."""
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=math.inf).strip()[1:-1]


def to_commented_yaml(recipe: Recipe) -> str:
    """The whole recipe with what each field means, may be and is by default, as `load_recipe` reads it."""
    values, lines = to_dict(recipe), []

    def comment(text: str, indent: str = "") -> None:
        mark = f"{indent}# "
        lines.extend(textwrap.wrap(text, 100, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False))

    for part, (about, fields) in recipe_docs().items():
        indent, of_part = ("  ", values[part]) if part else ("", values)
        comment(about)
        lines.extend([f"{part}:"] if part else [""])
        for field in fields:
            comment(field.description, indent)
            comment(field.values + (f"; default {field.default}" if field.default else ""), indent)
            lines.append(f"{indent}{field.name}: {_yaml_value(of_part[field.name])}")
        lines.append("")
    return "\n".join(lines)


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first field that differs between two recipes as dicts, as "part.field: old there, new here"."""
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            if inner := first_difference(before, after):
                return f"{name}.{inner}"
        elif before != after:
            return f"{name}: {before} there, {after} here"
    return None
