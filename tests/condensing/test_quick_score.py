import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe

from gencond.common.errors import InputError
from gencond.common.files import read_log, state_fingerprint
from gencond.common.quick_scores import quick_scores
from gencond.condensing.build import build
from gencond.condensing.checks import check_fit
from gencond.condensing.quick_score import QuickScorer, hold_out, num_held_out
from gencond.condensing.run import condense
from gencond.condensing.run_folder import RunFolder
from gencond.config import load_recipe
from gencond.data.images import LabeledImages, rows_seen
from gencond.eval.subject import notes_on_origin
from gencond.generator.artefact import Condensed
from gencond.generator.pixels import CondensedPixels

CPU = torch.device("cpu")
SCORED = "condense.score_every_steps=4"
SMALL_PIXELS = ["features.width=8", "pixels.ipc=2", "condense.num_steps=6", "real.batch_size=4", "save_every_steps=2"]


@pytest.fixture(scope="module")
def scored(few_digits: LabeledImages, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Condensed]:
    """(folder, what it returned) of one run of the tiny recipe with scores, to be read or copied."""
    run = tmp_path_factory.mktemp("scored") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENCOND_CACHE", str(run.with_name("cache")))
        return run, condense(tiny_recipe(SCORED), few_digits, run)


def test_a_run_with_scores_ends_in_the_bits_of_one_without_on_the_images_that_are_left(
    few_digits: LabeledImages, scored: tuple[Path, Condensed], tmp_path: Path
) -> None:
    """So neither does a stage see what is held out nor do scores touch what a run draws."""
    rest, held_out = hold_out(tiny_recipe(SCORED).condense, few_digits)
    assert len(rest) + len(held_out) == len(few_digits) and len(rows_seen(rest, held_out)) == 0
    without = condense(tiny_recipe(), rest, tmp_path / "without")
    assert state_fingerprint(scored[1]) == state_fingerprint(without)
    assert [(score["step"], score["ipc"]) for score in quick_scores(read_log(scored[0]))] == [(4, 4), (6, 4)]
    assert not quick_scores(read_log(tmp_path / "without"))


@pytest.mark.parametrize("name", ["m3d:digits", "dream:digits"])
def test_pixels_are_scored_as_well_with_the_bits_of_a_run_without(
    few_digits: LabeledImages, tmp_path: Path, name: str
) -> None:
    small = [*SMALL_PIXELS, "features.train_images=32", "synthesizer.factor=2"]
    recipe, without = (load_recipe(name, [*small, *more], "digits") for more in ([SCORED], []))
    scored = condense(recipe, few_digits, tmp_path / "scored")
    rest, _ = hold_out(recipe.condense, few_digits)
    assert state_fingerprint(scored) == state_fingerprint(condense(without, rest, tmp_path / "without"))
    scores = quick_scores(read_log(tmp_path / "scored"))
    assert [score["step"] for score in scores] == [4, 6] and {score["num_images"] for score in scores} == {10}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before a state", "after a state", "before the artefact"])
def test_a_resumed_run_logs_each_score_once_and_the_same_as_one_that_was_not_killed(
    few_digits: LabeledImages,
    scored: tuple[Path, Condensed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    recipe, save = tiny_recipe(SCORED), RunFolder.save_state

    def dies(self: RunFolder, states, name: str, step: int, *advice) -> None:
        if name == "condense" and step == 4 and moment == "before a state":
            raise Killed  # the score after this step is measured again
        save(self, states, name, step, *advice)
        if name == "condense" and (step, moment) in ((4, "after a state"), (6, "before the artefact")):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_state", dies)
        with pytest.raises(Killed):
            condense(recipe, few_digits, tmp_path / "killed")
    assert quick_scores(read_log(tmp_path / "killed"))
    again = condense(recipe, few_digits, tmp_path / "killed")
    found, expected = (
        [(score["step"], score["top1"]) for score in quick_scores(read_log(run))]
        for run in (tmp_path / "killed", scored[0])
    )
    assert found == expected and [step for step, _ in found] == [4, 6]
    assert state_fingerprint(again) == state_fingerprint(scored[1])


def test_each_score_is_one_line_that_compares_it_with_the_one_before(
    few_digits: LabeledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    condense(tiny_recipe(SCORED), few_digits, tmp_path / "run")
    said = [message for message in caplog.messages if "quick" in message]
    assert said[0] == "condense: 10 of 120 training images are held out for quick scores"
    first, second = (
        re.fullmatch(
            rf"condense: step {step} of 6: a quick classifier on 4 images a class has ([\d.]+) % of 10 held-out "
            rf"images right{before}",
            message,
        )
        for step, before, message in zip((4, 6), ("", r" \(before: ([\d.]+)\)"), said[1:], strict=True)
    )
    assert first and second and first[1] == second[2]


def test_the_artefact_says_what_was_held_out_and_is_judged_with_the_images_that_it_was_given(
    few_digits: LabeledImages, scored: tuple[Path, Condensed]
) -> None:
    made = scored[1].config.provenance
    assert made["data"]["num_held_out"] == 10 and made["data"]["num_images"] == 120
    assert notes_on_origin(made, few_digits) == []
    assert "10 of them held out for quick scores" in (scored[0] / "condensed" / "README.md").read_text()
    assert "num_held_out" not in build(tiny_recipe(), few_digits, CPU).about["data"]


@pytest.mark.parametrize("score_images", [40, 1000])
def test_what_is_held_out_is_decided_by_content_and_is_a_tenth_at_most(
    digits: tuple[LabeledImages, LabeledImages], score_images: int
) -> None:
    train = digits[0]
    part = tiny_recipe(SCORED, f"condense.score_images={score_images}").condense
    rest, held_out = hold_out(part, train)
    expected = min(score_images, len(train) / 10)
    assert abs(len(held_out) - expected) <= 5  # each class is rounded
    shares = held_out.counts / train.counts
    assert (shares - expected / len(train)).abs().max() < 0.01
    turned = train.subset(torch.arange(len(train)).flip(0))
    assert len(rows_seen(hold_out(part, turned)[1], held_out)) == len(held_out)
    assert torch.equal(num_held_out(part, train.counts), held_out.counts)
    assert torch.equal(train.counts - held_out.counts, rest.counts)


@pytest.mark.parametrize(("of_class", "classes"), [(4, 10), (1, 2)])
def test_a_set_that_is_too_small_is_condensed_whole_and_that_is_said(
    few_digits: LabeledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture, of_class: int, classes: int
) -> None:
    rows = torch.cat([few_digits.rows_of(label)[:of_class] for label in range(classes)])
    few = LabeledImages(few_digits.images[rows], few_digits.labels[rows], few_digits.class_names[:classes])
    caplog.set_level("INFO", logger="gencond")
    scored = condense(tiny_recipe(SCORED), few, tmp_path / "scored")
    said = [message for message in caplog.messages if "quick scores" in message]
    assert len(said) == 1 and said[0].startswith(
        f"condense: no quick scores: {len(few)} training images of {classes} classes, {of_class} of the smallest, are"
    )
    assert "num_held_out" not in scored.config.provenance["data"]
    assert state_fingerprint(scored) == state_fingerprint(condense(tiny_recipe(), few, tmp_path / "without"))


def test_a_class_that_has_too_few_images_besides_those_held_out_is_refused_before_any_work(
    few_digits: LabeledImages,
) -> None:
    small = [*SMALL_PIXELS, "synthesizer.factor=2", "pixels.ipc=3"]  # 12 images, as many as a class has
    check_fit(load_recipe("m3d:digits", small), few_digits)
    with pytest.raises(InputError, match="class '0' has 11 besides those held out for quick scores: lower it"):
        check_fit(load_recipe("m3d:digits", [*small, SCORED]), few_digits)


def test_batch_norm_is_not_scored_on_one_image_at_a_time(few_digits: LabeledImages) -> None:
    alone = ["features.batch_size=1", "features.norm=batch"]
    check_fit(load_recipe("dm:digits", alone), few_digits)
    with pytest.raises(InputError, match="features.batch_size to 2 or more"):
        check_fit(load_recipe("dm:digits", [*alone, SCORED]), few_digits)


def scorer_of(data: LabeledImages, *overrides: str) -> tuple[QuickScorer, LabeledImages]:
    """(scorer, images that are condensed) of a recipe with networks of some width."""
    parts = build(tiny_recipe(SCORED, "features.width=32", *overrides), data, CPU)
    assert parts.scorer is not None
    return parts.scorer, parts.data


def bank(data: LabeledImages, images: torch.Tensor) -> CondensedPixels:
    """Pixels that hold images [classes, ipc, c, h, w] in [0, 1]."""
    pixels = CondensedPixels(data.class_names, images.shape[1], data.image_size, data.channels, 1, (0.0,), (1.0,), {})
    with torch.no_grad():
        pixels.pixels.copy_(images.reshape(pixels.pixels.shape))
    return pixels


def test_real_images_score_high_and_noise_does_not(digits: tuple[LabeledImages, LabeledImages]) -> None:
    scorer, rest = scorer_of(digits[0], "features.batch_size=32")
    real = torch.stack([rest.images[rest.rows_of(label)[:10]] for label in range(10)]).float() / 255
    noise = torch.rand(real.shape, generator=torch.Generator().manual_seed(0))
    good, bad = (scorer.tested(scorer.trained(*scorer.samples(bank(rest, one), 10))) for one in (real, noise))
    assert good > 0.8 and bad < 0.4


def test_a_score_is_the_same_whatever_was_drawn_before_and_draws_nothing_itself(
    few_digits: LabeledImages,
) -> None:
    scorer, rest = scorer_of(few_digits)
    images, labels = rest.images[::4], rest.labels[::4]
    first = scorer.tested(scorer.trained(images, labels, 5))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert scorer.tested(scorer.trained(images, labels, 5)) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_are_small_where_nothing_is_compiled_and_the_recipes_own_where_it_is(
    few_digits: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gencond.networks.extractor.can_compile", lambda: True)
    of = {
        compiles: scorer_of(few_digits, "features.batch_size=128", f"features.compile={compiles}")[0].batch_size
        for compiles in ("false", "true")
    }
    assert of == {"false": 32, "true": 128}


def test_a_finished_run_that_is_asked_for_again_keeps_its_scores(
    few_digits: LabeledImages, scored: tuple[Path, Condensed], tmp_path: Path
) -> None:
    run = shutil.copytree(scored[0], tmp_path / "run")
    again = condense(tiny_recipe(SCORED), few_digits, run)
    assert read_log(run) == read_log(scored[0]) and state_fingerprint(again) == state_fingerprint(scored[1])
