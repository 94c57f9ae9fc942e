"""A recipe: frozen dataclasses, one a part, read from a YAML file; `part.field=value` overrides on the command line."""

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from gencond.common.errors import InputError

RECIPES = Path(__file__).parent / "recipes"

MOST = 10**9  # of anything; what that takes in memory is looked at once the images are known
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]
FewOrZero = Annotated[int, Field(ge=0, le=1000)]
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
    """The real images.

    source: a named set, a folder or an .npz file; `--data` sets it.
    image_size: side in pixels; null takes that of the images (see `data.load_real`).
    test_fraction: held out of each class where the source has no test images.
    judge_on: `validation` judges on a slice held out of the training set, to choose settings by; the test set stays
        unread.
    validation_fraction: that slice's share of the training set.
    augmentation: operations that leave the class as it is; for extractors, evaluation and, unless `condense` names
        others, matching.
    """

    source: str = "digits"
    image_size: Annotated[int, Field(ge=8, le=512)] | None = None
    test_fraction: Share = 0.2
    judge_on: Literal["test", "validation"] = "test"
    validation_fraction: Share = 0.2
    augmentation: str = "color_crop_cutout_flip_scale_rotate"


@part
class Synthesizer:
    """What makes the images: a generator with codes, or a bank of pixels that are learned one by one.

    factor: every image is cut into factor x factor, each of which counts as an image of full size (IDC's
        multi-formation). IPC counts the images before they are cut.
    by_parts: a generator makes each of these parts by itself, from a code of its own, instead of whole images; it is
        pretrained on real images of a part's size. Sides have to be multiples of factor.
    """

    kind: Literal["generator", "pixels"] = "generator"
    factor: Annotated[int, Field(ge=1, le=8)] = 1
    by_parts: bool = False


@part
class Pixels:
    """The bank of pixels. ipc: images of each class.

    init: random real images, k-means representatives of each class (in the features of an extractor), or noise.
    space: what is learned: `unit` is [0, 1]; `normalised` divides by the data's standard deviation, as DM does.
    clamp_every_steps: back into the range of images; 0 never.
    learning_rate, momentum: of SGD; rate_per_ipc multiplies the rate by `ipc`, since a mean over more images gives each
        a smaller gradient.
    """

    ipc: Count = 10
    init: Literal["real", "kmeans", "noise"] = "real"
    space: Literal["unit", "normalised"] = "unit"
    clamp_every_steps: CountOrZero = 1
    learning_rate: Rate = 1.0
    rate_per_ipc: bool = False
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5


@part
class Generator:
    """The backbone.

    backbone: `biggan`, 8 to 512 px, which can be pretrained here; `biggan_deep`, of which published weights exist;
        `transform`, made like an image codec, which begins as the linear transform of the images that it starts from.
    weights: of a pretrained one instead of pretraining: a file, a folder, a URL or a Hub id; `imagenet1k` of
        biggan_deep, at 128, 256 or 512 px. They say all sizes below.
    sha256: of the file of weights; null checks none.
    width: of biggan, channels of the blocks up to 16 pixels; each doubling beyond halves them. Of biggan_deep, channels
        of the last block, and up to 16 times as many before. Of transform, of its convolutions.
    num_blocks: each doubles the side; null leaves a first feature map of 4 to 7 pixels.
    chunk_dim: of biggan: part of the latent that the first layer and each block get; the latent is (num_blocks + 1)
        times as long. Of transform: whole numbers for each square of an image, at most; no more than it has pixels.
    square: of transform: side in pixels; null is the largest up to 8 that divides an image.
    quantization_step: of transform: by which an image in [-1, 1] changes, as a norm, where one of these numbers changes
        by 1. Coarse steps leave most numbers at 0, which costs next to nothing to store.
    latent_dim: of biggan_deep.
    attention_resolution: side of the feature maps that are attended to; null leaves attention out.
    truncation: of biggan_deep: t of the latents t * truncated normal(-2, 2), also those that codes start from; null is
        1 of published weights and otherwise a standard normal.
    gradient_checkpointing: less memory in matching for a second forward pass.
    """

    backbone: Literal["biggan", "biggan_deep", "transform"] = "biggan"
    weights: str | None = None
    sha256: str | None = None
    width: Count = 64
    num_blocks: Annotated[int, Field(ge=1, le=16)] | None = None
    chunk_dim: Count = 16
    square: Count | None = None
    quantization_step: Rate = 0.4
    latent_dim: Count = 128
    class_embed_dim: Count = 64
    attention_resolution: Count | None = None
    truncation: Annotated[float, Field(gt=0, le=1)] | None = None
    gradient_checkpointing: bool = False


@part
class Pretrain:
    """Adversarial pretraining. num_steps: of the generator; 0 starts from random weights.

    augmentation: differentiable, of real and synthetic images alike, every operation on every image.
    """

    num_steps: CountOrZero = 2000
    batch_size: Count = 64
    discriminator_steps: Count = 1
    discriminator_width: Count = 64
    generator_lr: Rate = 2e-4
    discriminator_lr: Rate = 4e-4
    ema_halflife_steps: Count = 150
    augmentation: str = "crop"


@part
class Features:
    """The extractors.

    kind: `pool` keeps num_trajectories x snapshots of nets in training, plus num_random that never train; `fresh`
        draws a random net every refresh_steps; `online` trains such a net further after each step, on train_images
        real ones.
    network: `convnet`, `resnet_ap10` or a timm name.
    weights: of a timm network: `pretrained` downloads its own, a path reads a file; null draws them.
    resize: side that images are brought to before a network sees them; null leaves them.
    width, depth: of convnet and resnet_ap10 (no depth); depth null follows the image size.
    activation, norm, pooling: of convnet.
    batch_size, learning_rate, cutmix: of training in a pool or online; cutmix is the share of mixed batches.
    precision, compile: of the extractors' arithmetic, but for gradient matching, which torch cannot compile. Compiling
        costs half a minute and then saves up to three quarters of a step; it needs a C++ compiler on a CPU.
    """

    kind: Literal["pool", "fresh", "online"] = "pool"
    network: str = "convnet"
    weights: str | None = None
    resize: Annotated[int, Field(ge=8, le=512)] | None = None
    width: Count = 128
    depth: Annotated[int, Field(ge=1, le=100)] | None = None
    activation: Literal["relu", "leaky_relu", "sigmoid", "swish"] = "relu"
    norm: Literal["instance", "batch", "layer", "group", "none"] = "instance"
    pooling: Literal["avg", "max", "none"] = "avg"
    num_trajectories: FewOrZero = 2
    snapshot_steps: Steps = (20, 50, 100, 200, 350)
    num_random: FewOrZero = 4
    refresh_steps: Count = 1
    train_images: Count = 2000
    batch_size: Count = 128
    learning_rate: Rate = 0.01
    cutmix: Annotated[float, Field(ge=0, le=1)] = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False


@part
class Real:
    """What stands for a class's real images in a step.

    kind: `statistics` of the whole set, kept for each extractor of a pool; `random` batches; `representatives`, the
        images nearest to k-means centers in the current features (DREAM).
    batch_size: real images of each class in a step.
    refresh_steps: between two choices of representatives.
    candidates: how many random images of a class are looked at, to choose from or to take statistics of; null all.
    num_passes, num_frequencies: of the statistics: passes over the images, length of the Fourier embedding (a multiple
        of 3).
    """

    kind: Literal["statistics", "random", "representatives"] = "statistics"
    batch_size: Count = 256
    refresh_steps: Count = 10
    candidates: Count | None = None
    num_passes: Count = 2
    num_frequencies: Annotated[int, Field(ge=3, le=MOST, multiple_of=3)] = 510


@part
class Codes:
    """The learned slots.

    representative_sizes: the first so many slots start from k-means representatives, further ones from random images.
    skip_easiest: slots start from images that a network, trained for ranking_steps on the whole set, finds neither
        easiest nor hard: of each class this share, the easiest, is skipped, and those that follow are taken. null takes
        any.
    encode_steps: fitting slots and generator to these real images; 0 skips it.
    fresh: what slots past them are made from: `prior`, latents as in pretraining; `mixed`, points between learned codes
        of the class; `none`: num_slots images of each class are all there are.
    """

    num_slots: Count = 50
    fresh: Literal["prior", "mixed", "none"] = "prior"
    representative_sizes: Steps = (1, 10, 50)
    skip_easiest: Annotated[float, Field(ge=0, lt=1)] | None = None
    ranking_steps: Count = 1000
    encode_steps: CountOrZero = 0
    encode_batch_size: Count = 128
    encode_generator_lr: Rate = 1e-3
    encode_code_lr: Rate = 5e-2


@part
class Objective:
    """Weights of the terms; 0 leaves a term out.

    scale: `relative` averages over classes and divides the means' squared distances by the real gap between classes,
        so that nets compare; `sum` adds over classes and divides by nothing, as the papers do.
    kernel: of the MMD between batches, M3D's; statistics are kept for Gaussians around the median distance.
    gradient_metric: of gradient matching, convolution weights only.
    center_margin: in real gaps.
    """

    scale: Literal["relative", "sum"] = "relative"
    mean_weight: Weight = 0.0
    mmd_weight: Weight = 0.0
    kernel: Literal["gaussian", "linear", "polynomial", "laplace"] = "gaussian"
    gradient_weight: Weight = 0.0
    gradient_metric: Literal["mse", "l1"] = "mse"
    diversity_weight: Weight = 0.0
    center_weight: Weight = 0.0
    center_margin: Rate = 1.0
    classification_weight: Weight = 0.0
    representative_weight: Weight = 0.0
    pixel_weight: Weight = 0.0


@part
class Condense:
    """Matching.

    prefix_lengths: drawn from in every step: how many slots of a class form that step's set; null takes all.
    stream_probability: share of steps that match fresh slots past the learned ones instead, stream_length of a class.
    classes_per_step: at most; the cost of a step follows it, not the number of classes.
    images_per_step: at most, of a class and after `factor`; more are drawn from at random. null takes all.
    images_at_once: bounds the memory of a step, which then does not grow with classes_per_step; null takes all at once.
    augmentation, augmentation_mode: of matching; null takes `data.augmentation`. `one` operation an image, `idc`'s
        stronger mix, or `all`. A batch of real images shares its class's draw with the synthetic ones.
    representative_batch_size: (class, slot) pairs a step that are held to their real image, never slot 0.
    generator_lr, class_lr, code_lr: of the generator, of its class embeddings (null: as of the rest), of the codes.
    schedule, max_grad_norm: of all learning rates, of the gradient; null does not clip.
    ema_halflife_steps: of the average that becomes the artefact; 0 takes the last iterate.
    """

    num_steps: CountOrZero = 1000
    prefix_lengths: Counts | None = None
    stream_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    stream_length: Count = 10
    classes_per_step: Count = 10
    images_per_step: Count | None = None
    images_at_once: Count | None = None
    augmentation: str | None = None
    augmentation_mode: Literal["one", "idc", "all"] = "one"
    representative_batch_size: Count = 64
    generator_lr: Rate = 3e-4
    class_lr: Rate | None = None
    code_lr: Rate = 3e-2
    schedule: Literal["cosine", "constant"] = "cosine"
    max_grad_norm: Rate | None = 1.0
    ema_halflife_steps: CountOrZero = 20


@part
class Evaluate:
    """How the result is judged.

    ipc: null takes 1, 10 and 50 of a generator and what is stored of pixels.
    networks: `convnet2`, `convnet3w64` or timm names.
    protocol: see `eval.protocols`; `dm:200` is dm with 200 epochs.
    """

    ipc: Counts | None = None
    networks: Annotated[tuple[str, ...], Field(min_length=1)] = ("convnet3",)
    protocol: str = "quick"
    num_seeds: Annotated[int, Field(ge=1, le=1000)] = 3


@part
class Recipe:
    """All of a run. save_every_steps: of the state that a killed run resumes from."""

    name: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    save_every_steps: Count = 100
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
        source: of the data, taken as it is (an override would be read as YAML).

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
    for override in overrides:
        _apply_override(values, override)
    if source is not None:
        values["data"] = (values.get("data") or {}) | {"source": source}
    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        raise InputError(_explain(error, where)) from None


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r} is not of the form part.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"the value of override {override!r} is not valid YAML") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
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
    first = error.errors()[0]
    location = [str(step) for step in first["loc"]]
    name = ".".join(location)
    if first["type"] == "unexpected_keyword_argument":
        fields = asdict(Recipe(name="")) if len(location) == 1 else asdict(Recipe(name="")).get(location[0], {})
        close = difflib.get_close_matches(location[-1], fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(fields)}"
        return f"recipe {where}: unknown field {name!r}; {hint}"
    return f"recipe {where}: {name} = {first['input']!r}: {first['msg']}"


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values, as they stand in YAML and JSON."""
    return TypeAdapter(Recipe).dump_python(recipe, mode="json")


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, as `load_recipe` reads it."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False)


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
