"""Condensing: from real images to the artefact, stage by stage."""

import logging
from pathlib import Path

from gencond.common.distributed import from_main, new_accelerator
from gencond.common.errors import InputError
from gencond.common.files import cache_dir, require_writable, state_fingerprint, weights_hash
from gencond.condensing.append import Growth
from gencond.condensing.build import Parts, build
from gencond.condensing.checks import check_fit
from gencond.condensing.run_folder import RunFolder, prepare_run, write_artefact
from gencond.condensing.stages import PRETRAIN, STAGES, Work, begin, given_generator, go_through
from gencond.condensing.tracking import tracked
from gencond.config import Recipe, to_dict
from gencond.data.images import LabeledImages
from gencond.generator.artefact import Condensed
from gencond.generator.backbone import Backbone
from gencond.generator.card import model_card
from gencond.generator.dataset import load

logger = logging.getLogger(__name__)


def condense(
    recipe: Recipe,
    data: LabeledImages,
    out: Path,
    pretrained: Path | None = None,
    growth: Growth | None = None,
    track: str | None = None,
) -> Condensed:
    """Condenses real images into the artefact in `out/condensed`, resuming whatever of it is done.

    Args:
        pretrained: a folder with a pretrained generator of the recipe's shape; None trains one as the recipe says.
        growth: the artefact that the images are appended to; it stays as it is.
        track: the name of a tracker that hears of the run, see `tracking.require_tracker`.
    Raises:
        InputError: `out` holds another run, parts of the recipe that do not fit the images or each other, more
            processes than classes.
    """
    accelerator = new_accelerator()
    check_fit(recipe, data)
    require_writable(cache_dir())
    if accelerator.num_processes > min(data.num_classes, recipe.condense.classes_per_step):
        raise InputError(
            f"{accelerator.num_processes} processes share {min(data.num_classes, recipe.condense.classes_per_step)} "
            "class(es) a step: use fewer processes, or raise condense.classes_per_step where there are more classes"
        )
    if data.num_classes == 1 and recipe.objective.scale == "relative" and recipe.real.kind != "statistics":
        raise InputError("objective.scale=relative: one class has no distance to others, append two or set sum")
    parts = build(recipe, data, accelerator.device, growth)
    with prepare_run(out, recipe, data, identities_of_weights(recipe, parts, pretrained)) as run:
        if from_main(run.artefact.is_dir):
            logger.info("condense: %s is complete, reusing it", run.artefact)
            from_main(run.drop_states)
            return load(run.artefact)
        if growth is not None and accelerator.is_main_process:
            logger.info(
                "append: %d images of %d class(es), brought to the artefact's %d px, join %d classes; %d of them are "
                "learned again",
                len(data), data.num_classes, data.image_size, growth.onto.num_classes, len(growth.known_again),
            )  # fmt: skip
        with tracked(run, track, to_dict(recipe)):
            work = begin(parts, run, pretrained)
            go_through(STAGES, parts, work, run)

        def write() -> None:
            write_artefact(run.artefact, work.condensed, model_card(work.condensed))
            run.drop_states()

        from_main(write)
    return work.condensed


def pretrain(recipe: Recipe, data: LabeledImages, out: Path, track: str | None = None) -> Path:
    """Makes the generator that condensing starts from, and nothing more; returns where it lies.

    `condense` with the same recipe, data and folder goes on from it.

    Raises:
        InputError: as `condense`.
    """
    check_fit(recipe, data)
    parts = build(recipe, data, new_accelerator().device)
    with prepare_run(out, recipe, data, identities_of_weights(recipe, parts)) as run:
        done = from_main(run.pretrained.is_dir)
        with tracked(run, None if done else track, to_dict(recipe)):
            pretrained_generator(parts, run)
    return run.pretrained


def pretrained_generator(parts: Parts, run: RunFolder, pretrained: Path | None = None) -> Backbone | None:
    """The generator that condensing starts from: `pretrained`, published weights, or the run's own pretraining.

    None where pixels are learned. What was pretrained in the run folder before is taken from there.

    Raises:
        InputError: see `stages.given_generator`; a pretraining that diverged.
    """
    work = Work(generator=given_generator(parts, run, pretrained))
    go_through((PRETRAIN,), parts, work, run)
    return work.generator


def identities_of_weights(recipe: Recipe, parts: Parts, pretrained: Path | None = None) -> dict[str, str]:
    """What identifies the weights that a run takes from elsewhere: their content, whatever their path.

    One process reads them for all.

    Args:
        pretrained: see `condense`.
    Raises:
        InputError: `pretrained` is no generator, or one of another shape.
    """
    named = {"generator": recipe.generator.weights, "features": recipe.features.weights}

    def read() -> dict[str, str]:
        found = {part: weights_hash(weights) for part, weights in named.items() if weights is not None}
        if pretrained is not None:
            if parts.generators is None:
                raise InputError(f"pixels start from no generator: leave {pretrained} out")
            found["pretrained"] = state_fingerprint(parts.generators.read(pretrained))
        if parts.growth is not None:
            found["artefact"] = parts.growth.onto.fingerprint
        return found

    return from_main(read)
