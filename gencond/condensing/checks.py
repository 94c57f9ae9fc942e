"""Whether a recipe's parts fit each other and the images, before minutes of work."""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from jaxtyping import Int64
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.room import require_memory
from gencond.condensing.append import require_growing
from gencond.condensing.backbones import IMAGENET1K
from gencond.condensing.build import as_ranked, codes_start_from_images, extractor_maker, generator_maker
from gencond.condensing.quick_score import num_held_out
from gencond.config import Recipe, first_difference, parse_recipe, to_dict
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.generator.artefact import Condensed
from gencond.losses.own import own_term


def check_fit(recipe: Recipe, data: LabeledImages) -> None:
    """Holds a recipe's parts against each other and builds each once for the images, before minutes of work.

    Raises:
        InputError: a combination that means nothing, or a part that does not fit the images.
    """
    check_parts(recipe)
    if recipe.objective.own_term is not None:
        own_term(recipe.objective.own_term)
    check_networks(recipe, data)
    check_counts(recipe, data.counts, data.class_names)


def recipe_to_append_by(onto: Condensed, source: str | None, overrides: Sequence[str]) -> Recipe:
    """The recipe that an artefact was made by, for images to append: as many steps, nothing pretrained.

    Args:
        source: of the new images, as `data.source`; None takes what the overrides say.
        overrides: as `part.field=value`.
    Raises:
        InputError: an artefact that does not say how it was made; overrides that change its shape.
    """
    require_growing(onto)
    made = (onto.config.provenance or {}).get("recipe")
    if not made:
        raise InputError("the artefact does not say by what recipe it was made, so nothing can be appended to it")
    # Quick scores would be of the new classes alone, and take images from a class that may have few.
    fitting = [f"data.image_size={onto.image_size}", "condense.score_every_steps=null"]
    name = str(made.get("name", "of the artefact"))
    kept, recipe = (parse_recipe(made, name, [*fitting, *changes], source) for changes in ((), overrides))
    for part in ("generator", "synthesizer"):
        if difference := first_difference(to_dict(kept)[part], to_dict(recipe)[part]):
            raise InputError(f"{part}.{difference}: the artefact's generator stays as it is")
    shape = {
        "codes.num_slots": (recipe.codes.num_slots, onto.num_slots),
        "codes.fresh": (recipe.codes.fresh, onto.config.get("fresh", "none")),
    }
    for field, (asked, has) in shape.items():
        if asked != has:
            raise InputError(f"{field}={asked}: what is appended to has {has}, which stays")
    return recipe


def check_networks(recipe: Recipe, data: LabeledImages) -> None:
    """Builds the recipe's networks for images of the data's size, channels and classes. Raises as `check_fit`."""
    check_sizes(recipe, data)
    try:
        if recipe.synthesizer.kind == "generator":
            generators = generator_maker(recipe, data)
            if recipe.generator.weights is None:
                generators.new()
        extractor_maker(recipe, data, torch.device("cpu")).network(0)
        _check_ranking(recipe, data)
        for strategy in (recipe.data.augmentation, recipe.pretrain.augmentation, recipe.condense.augmentation):
            Augmentation(strategy or "none", data.image_size)
    except InputError:
        raise  # it says already what is wrong
    except ValueError as error:
        raise InputError(f"recipe {recipe.name} does not fit {data.image_size} px images: {error}") from None
    if recipe.synthesizer.factor > data.image_size // 2:
        raise InputError(
            f"synthesizer.factor={recipe.synthesizer.factor} leaves nothing of {data.image_size} px images"
        )


def _check_ranking(recipe: Recipe, data: LabeledImages) -> None:
    """Raises InputError where images are ranked at a side that the network cannot take."""
    part = recipe.codes
    if part.ranking_resize is None or not (part.learnable_first or part.skip_easiest is not None):
        return
    try:
        extractor_maker(as_ranked(recipe), data, torch.device("cpu")).network(0)
    except ValueError as error:
        raise InputError(f"codes.ranking_resize={part.ranking_resize} does not fit features.network: {error}") from None


def check_sizes(recipe: Recipe, data: LabeledImages) -> None:
    """Raises InputError for a number that alone asks for more memory than there is, before any of it is allocated."""
    of_step = min(data.num_classes, recipe.condense.classes_per_step)
    image = 4 * data.channels * data.image_size**2  # bytes
    of_kernel = 9 * 4  # of a convolution's weight between two channels
    nets = recipe.features.num_trajectories * len(recipe.features.snapshot_steps) + recipe.features.num_random
    at_least = {"features.width": of_kernel * recipe.features.width**2}
    if recipe.features.kind == "pool":
        at_least["features.num_trajectories and num_random"] = nets * recipe.features.width * of_kernel
    if recipe.real.kind == "statistics":
        at_least["real.num_frequencies"] = 16 * nets * data.num_classes * recipe.real.num_frequencies
    else:
        at_least["real.batch_size"] = of_step * recipe.real.batch_size * image
    if recipe.synthesizer.kind == "pixels":
        at_least["pixels.ipc"] = 2 * data.num_classes * recipe.pixels.ipc * image
    else:
        part = recipe.generator
        code = {
            "biggan": 2 * part.chunk_dim,  # or more
            "biggan_deep": part.latent_dim,
            "transform": min(part.chunk_dim, data.channels * data.image_size**2),
        }[part.backbone]
        at_once = recipe.condense.images_at_once is None and recipe.condense.images_per_step is None
        of_slot = image if at_once else 12  # its number and its place in a random order
        longest = max(recipe.condense.prefix_lengths or (recipe.codes.num_slots,))
        at_least |= {
            "generator.chunk_dim of a linear path": 20
            * code**2
            * part.linear_path,  # what its fit solves, twice, and an identity
            "generator.width": of_kernel * part.width**2,
            "generator.chunk_dim and latent_dim": 4 * code * part.width,
            "generator.class_embed_dim": 4 * max(data.num_classes, part.width) * part.class_embed_dim,
            "codes.num_slots": 16 * data.num_classes * recipe.codes.num_slots * code,  # gradient and two moments too
            "codes.encode_batch_size": recipe.codes.encode_batch_size * image * bool(recipe.codes.encode_steps),
            "condense.prefix_lengths": of_step * longest * of_slot,
            "condense.stream_length": of_step * recipe.condense.stream_length * of_slot,
            "pretrain.batch_size": recipe.pretrain.batch_size * image * bool(recipe.pretrain.num_steps),
            "pretrain.discriminator_width": of_kernel * recipe.pretrain.discriminator_width**2,
        }
    if recipe.evaluate.ipc:
        at_least["evaluate.ipc"] = data.num_classes * max(recipe.evaluate.ipc) * image
    for field, num_bytes in at_least.items():
        require_memory(num_bytes, f"recipe {recipe.name}: {field} alone would", "lower it")


def check_counts(recipe: Recipe, counts: Int64[Tensor, " classes"], class_names: Sequence[str]) -> None:
    """Whether the smallest class has the images that learning starts from. Raises as `check_fit`.

    Args:
        counts: training images of each class, from which those of quick scores are held out first.
    """
    left = counts - num_held_out(recipe.condense, counts)
    smallest, name = min(zip(left.tolist(), class_names, strict=True))
    per_slot = recipe.synthesizer.factor**2
    has = f"has {smallest}" + (
        " besides those held out for quick scores" if recipe.condense.score_every_steps is not None else ""
    )
    needed = recipe.pixels.ipc * per_slot
    if codes_start_from_images(recipe) and smallest < per_slot and per_slot > 1:
        raise InputError(
            f"codes start from {per_slot} real images each (synthesizer.factor={recipe.synthesizer.factor}), and class "
            f"{name!r} {has}: lower the factor"
        )
    of_slots = recipe.codes.num_slots * per_slot
    if (
        recipe.codes.skip_easiest == "held_out"
        and codes_start_from_images(recipe)
        and smallest < 2
        and int(left.max()) > of_slots
    ):
        raise InputError(
            f"codes.skip_easiest=held_out tests on an image of each class that it holds out, and class {name!r} {has}: "
            "add some, or set it to null"
        )
    if recipe.synthesizer.kind == "generator" and recipe.generator.backbone == "transform" and smallest < of_slots:
        raise InputError(
            f"codes.num_slots={recipe.codes.num_slots} of a transform start from {of_slots} real images a class, and "
            f"class {name!r} {has}: lower it"
        )
    if recipe.synthesizer.kind == "pixels" and recipe.pixels.init != "noise" and smallest < needed:
        raise InputError(
            f"pixels.ipc={recipe.pixels.ipc} starts from {needed} real images a class, and class {name!r} "
            f"{has}: lower it or set pixels.init=noise"
        )


def check_parts(recipe: Recipe) -> None:
    """Raises InputError, with what to change, for parts that mean nothing together."""
    objective, features, real = recipe.objective, recipe.features, recipe.real
    has_pool, has_statistics = features.kind == "pool", real.kind == "statistics"
    is_pixels = recipe.synthesizer.kind == "pixels"
    trained = features.kind == "online" or (has_pool and features.num_trajectories > 0)
    makes_images = not is_pixels
    # Images of a class that there are, where no others are made.
    held = recipe.pixels.ipc if is_pixels else recipe.codes.num_slots if recipe.codes.fresh == "none" else None
    holder = "pixels.ipc" if is_pixels else "codes.fresh=none and codes.num_slots"
    judged = max(recipe.evaluate.ipc or (1,))
    longest = max(recipe.condense.prefix_lengths or (1,))
    wrong: dict[str, bool] = {
        "the objective is empty: give one of its terms a weight": not any(
            value for name, value in asdict(objective).items() if name.endswith("_weight")
        ),
        "objective.own_weight weighs no term: name one, objective.own_term=NAME": bool(objective.own_weight)
        and objective.own_term is None,
        "objective.own_term has no weight: set objective.own_weight": objective.own_term is not None
        and not objective.own_weight,
        "the pool of extractors is empty: set features.num_trajectories or features.num_random": has_pool
        and features.num_trajectories + features.num_random == 0,
        f"statistics cannot be kept for extractors that change: real.kind=statistics needs features.kind=pool, not "
        f"{features.kind}; set real.kind=random for those": has_statistics and not has_pool,
        "gradients have no statistics: objective.gradient_weight needs real.kind=random or representatives": bool(
            objective.gradient_weight
        )
        and has_statistics,
        f"statistics are kept for the Gaussian kernel: objective.kernel={objective.kernel} needs real.kind=random or "
        "representatives": objective.kernel != "gaussian" and has_statistics and bool(objective.mmd_weight),
        "a network that was never trained knows no classes: objective.classification_weight needs features.kind=online "
        "or a pool with num_trajectories": bool(objective.classification_weight) and not trained,
        "pixels make no fresh images: set condense.stream_probability=0": is_pixels
        and recipe.condense.stream_probability > 0,
        "pixels start from their images and are not encoded: set codes.encode_steps=0": is_pixels
        and recipe.codes.encode_steps > 0,
        f"condense.prefix_lengths asks for {longest} slots of {holder}={held}": held is not None and longest > held,
        "pixels that start from noise have no representatives: set objective.representative_weight=0": is_pixels
        and recipe.pixels.init == "noise"
        and bool(objective.representative_weight),
        "squared distances have no unit with a single class of real images: raise condense.classes_per_step or set "
        "objective.scale=sum": objective.scale == "relative"
        and bool(objective.mean_weight)
        and not has_statistics
        and recipe.condense.classes_per_step == 1,
        "a single class a step has no other centers: raise condense.classes_per_step or set "
        "objective.center_weight=0": bool(objective.center_weight) and recipe.condense.classes_per_step == 1,
        "all images of a class but the first are anchored: objective.representative_weight needs pixels.ipc above "
        "1": is_pixels and recipe.pixels.ipc == 1 and bool(objective.representative_weight),
        "networks of the same features.weights are one network: set features.kind=pool, features.num_random=1 and "
        "features.num_trajectories=0 for it, or train it (online, num_trajectories)": features.weights is not None
        and (features.kind == "fresh" or (has_pool and features.num_random > 1)),
        "generator.weights are pretrained already: set pretrain.num_steps=0": makes_images
        and recipe.generator.weights is not None
        and recipe.pretrain.num_steps > 0,
        "BigGAN-deep is not pretrained here: give generator.weights, or start from random ones with "
        "pretrain.num_steps=0": makes_images
        and recipe.generator.backbone == "biggan_deep"
        and recipe.generator.weights is None
        and recipe.pretrain.num_steps > 0,
        "generator.weights=imagenet1k are those of BigGAN-deep: set generator.backbone=biggan_deep": (
            recipe.generator.weights == IMAGENET1K and recipe.generator.backbone != "biggan_deep"
        ),
        "no weights of a transform are known: set generator.weights to null": makes_images
        and recipe.generator.backbone == "transform"
        and recipe.generator.weights is not None,
        "there is nothing to match past the learned slots: set condense.stream_probability=0 or codes.fresh=mixed": (
            makes_images and recipe.codes.fresh == "none" and recipe.condense.stream_probability > 0
        ),
        "pixels are learned whole: set synthesizer.by_parts=false": is_pixels and recipe.synthesizer.by_parts,
        "codes.skip_easiest and codes.learnable_first choose the same images: set one of them to null or false": (
            recipe.codes.skip_easiest is not None and recipe.codes.learnable_first
        ),
        "codes.start=components needs images to start from: set codes.encode_steps": makes_images
        and recipe.codes.start == "components"
        and not codes_start_from_images(recipe),
        "only a biggan without generator.weights has a linear path: set generator.linear_path=false": makes_images
        and recipe.generator.linear_path
        and (recipe.generator.backbone != "biggan" or recipe.generator.weights is not None),
        "a transform starts from its own components: set codes.start=prior": makes_images
        and recipe.codes.start == "components"
        and recipe.generator.backbone == "transform",
        "a transform knows no prior: set codes.fresh to none or mixed": makes_images
        and recipe.generator.backbone == "transform"
        and recipe.codes.fresh == "prior",
        "batch norm learns nothing from one image at a time: set features.batch_size to 2 or more": (
            trained or recipe.condense.score_every_steps is not None
        )
        and features.batch_size == 1
        and (features.norm == "batch" or features.network not in ("convnet", "resnet_ap10")),
        "synthesizer.by_parts needs parts: set synthesizer.factor to 2 or more": makes_images
        and recipe.synthesizer.by_parts
        and recipe.synthesizer.factor == 1,
        "only biggan_deep has a generator.truncation: set it to null": makes_images
        and recipe.generator.truncation is not None
        and recipe.generator.backbone != "biggan_deep",
        f"features.weights belong to a timm network, and features.network is {features.network}": (
            features.weights is not None and features.network in ("convnet", "resnet_ap10")
        ),
        f"evaluate.ipc asks for {judged} images of {holder}={held}": held is not None and judged > held,
    }
    for message, applies in wrong.items():
        if applies:
            raise InputError(f"recipe {recipe.name}: {message}")
