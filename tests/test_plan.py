"""Without a recipe the default method is planned: for the images, the machine and the minutes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

import gencond
from gencond.cli import main
from gencond.common.errors import InputError
from gencond.condensing.build import generator_maker
from gencond.condensing.checks import check_fit, check_networks
from gencond.condensing.forecast import Amount, Cost, Forecast, Stage
from gencond.config import load_recipe, parse_recipe, to_dict, to_yaml
from gencond.data.images import GENERATOR_SIZES, LabeledImages
from gencond.examine import Patient
from gencond.networks.extractor import emulates_bfloat16
from gencond.plan import (
    FIELDS,
    SAFETY,
    checked_minutes,
    chosen_steps,
    derived,
    kept_plan,
    plan,
    planned_apart,
    planned_recipe,
    reasons,
)

CPU = torch.device("cpu")


def patient(side: int, channels: int, num_classes: int, of_class: int) -> Patient:
    images = torch.zeros(num_classes, channels, side, side, dtype=torch.uint8)
    sample = LabeledImages(images, torch.arange(num_classes), tuple(map(str, range(num_classes))))
    counts, count = torch.full((num_classes,), of_class), num_classes * of_class
    return Patient(sample, counts, 10, Amount(count, count, of_class, images.nbytes, False, 0.0, 0))


def test_images_are_ranked_at_16_px_by_networks_of_ours_alone() -> None:
    """Others may not take so small images, and five blocks cannot halve them."""
    about = patient(64, 3, 10, 500)
    for field, expected in (
        ("features.width=32", 16), ("features.depth=5", None), ("features.network=vit_tiny_patch16_224", None),
    ):  # fmt: skip
        asked = load_recipe("gencond", [field])
        recipe = load_recipe("gencond", [*derived(about, asked, set(), CPU), field])
        assert recipe.codes.ranking_resize == expected
    deep = load_recipe("gencond", ["features.depth=5", "codes.ranking_resize=16", "data.image_size=64"])
    with pytest.raises(InputError, match="codes.ranking_resize=16 does not fit features.network: 5 blocks"):
        check_networks(deep, about.sample)


@pytest.mark.parametrize(
    ("side", "of_class", "factor", "slots", "lengths"),
    [
        (64, 500, 4, 31, [1, 10, 31]),
        (64, 5000, 4, 50, [1, 10, 50]),
        (64, 150, 2, 37, [1, 10, 37]),
        (48, 500, 4, 31, [1, 10, 31]),
        (48, 150, 3, 16, [1, 10, 16]),
        (128, 1000, 4, 50, [1, 10, 50]),
        (28, 6000, 2, 50, [1, 10, 50]),
        (32, 5000, 4, 50, [1, 10, 50]),
        (24, 5000, 3, 50, [1, 10, 50]),
        (32, 60, 2, 15, [1, 10, 15]),
        (32, 3, 1, 3, [1, 3]),
        (16, 120, 2, 30, [1, 10, 30]),
        (8, 120, 1, 50, [1, 10, 50]),
    ],
)
def test_parts_slots_and_lengths_follow_from_the_images(
    side: int, of_class: int, factor: int, slots: int, lengths: list[int]
) -> None:
    about = patient(side, 3, 10, of_class)
    recipe = load_recipe("gencond", derived(about, load_recipe("gencond"), set(), CPU))
    assert (recipe.synthesizer.factor, recipe.codes.num_slots) == (factor, slots)
    assert recipe.synthesizer.by_parts == (factor > 1) and list(recipe.condense.prefix_lengths) == lengths
    assert max(recipe.evaluate.ipc) <= of_class and recipe.data.image_size == side
    assert (f"{factor**2} in one" in dict(reasons(recipe, about, CPU))["made"]) == (factor > 1)
    started = dict(reasons(recipe, about, CPU))["started"]
    assert ("that a network knows" in started) == (of_class > factor**2)
    assert recipe.condense.images_per_step == max(96, 12 * factor**2)
    assert recipe.codes.ranking_resize == (16 if side > 16 else None)
    assert recipe.generator.precision == ("float32" if emulates_bfloat16(CPU) else "bfloat16")
    rates = (recipe.condense.generator_lr, recipe.condense.code_lr)
    assert rates == ((0.001, 0.1) if factor == 2 and side < 48 else (0.0003, 0.02))
    if factor > 2:  # codes of small parts are no longer than two thirds of what they stand for
        maker = generator_maker(recipe, about.sample)
        assert maker.new().config.latent_dim <= 3 * (side // factor) ** 2 * 2 / 3


@pytest.mark.parametrize("size", GENERATOR_SIZES)
@pytest.mark.parametrize("of_class", [2, 400])
def test_the_plan_fits_every_size_that_is_chosen_by_itself(size: int, of_class: int) -> None:
    about = patient(size, 3, 2, of_class)
    recipe = load_recipe("gencond", derived(about, load_recipe("gencond"), set(), CPU))
    rows = torch.arange(2).repeat_interleave(of_class)
    check_fit(recipe, LabeledImages(torch.zeros(2 * of_class, 3, size, size, dtype=torch.uint8), rows, ("a", "b")))


def test_what_is_asked_for_is_what_the_rest_follows_from_and_what_is_said() -> None:
    overrides = ["synthesizer.factor=1", "synthesizer.by_parts=false", "codes.num_slots=20", "features.compile=false"]
    about, asked = patient(32, 3, 10, 60), load_recipe("gencond", overrides)
    given = {override.partition("=")[0] for override in overrides}
    recipe = load_recipe("gencond", [*derived(about, asked, given, CPU), *overrides])
    assert recipe.condense.prefix_lengths == (1, 10, 20) and recipe.features.resize is None
    said = dict(reasons(recipe, about, CPU))
    assert "whole; 20 learned codes" in said["made"] and "not compiled" in said["on"]
    assert "600 to learn from, 60 of them held out" in said["images"]


def expected(**each: float) -> Forecast:
    names = {"pretrain": 600, "encode": 400, "condense": 400}
    stages = [Stage("reading images", "5 images", 30.0)]
    stages += [Stage(name, "", 0.0, names[name], Cost(seconds, 10.0)) for name, seconds in each.items()]
    return Forecast(tuple(stages), (), memory=0, gpu_memory=0, cache=0, out=0)


def test_steps_fill_the_minutes_that_other_stages_leave() -> None:
    of_step = {"pretrain": 0.3, "encode": 0.2, "condense": 2.5}
    for minutes in (5.0, 30.0, 120.0):
        steps, notes = chosen_steps(expected(**of_step), minutes, set())
        seconds = 60.0 + sum(steps[FIELDS[name]] * each for name, each in of_step.items())
        assert 0.85 * SAFETY < seconds / (60 * minutes) <= SAFETY and not notes
        assert steps["condense.num_steps"] * 2.5 > 0.6 * 60 * minutes * SAFETY  # most of it is matching


def test_steps_that_were_asked_for_stay_and_leave_their_time_to_the_others() -> None:
    of_step = {"pretrain": 0.3, "encode": 0.2, "condense": 2.5}
    steps, _ = chosen_steps(expected(**of_step), 30.0, {"pretrain.num_steps"})
    assert "pretrain.num_steps" not in steps
    more, _ = chosen_steps(expected(encode=0.2, condense=2.5), 30.0, set())
    assert more["condense.num_steps"] >= steps["condense.num_steps"]


def test_minutes_that_do_not_suffice_say_how_many_do() -> None:
    with pytest.raises(InputError, match=r"--minutes 1 are too few .* give \d+ or more") as error:
        chosen_steps(expected(pretrain=0.3, encode=0.2, condense=2.5), 1.0, set())
    enough = float(str(error.value).rpartition("give ")[2].split()[0])
    assert chosen_steps(expected(pretrain=0.3, encode=0.2, condense=2.5), enough, set())[0]["condense.num_steps"] >= 20


def test_more_minutes_than_are_of_use_are_said() -> None:
    steps, notes = chosen_steps(expected(condense=0.01), 600.0, set())
    assert steps["condense.num_steps"] == 10_000 and "it ends after" in notes[0]


def test_a_plan_is_a_recipe_that_can_be_kept_and_what_was_asked_for_is_in_it(
    own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    asked = ["--data", "digits", "--minutes", "3", "codes.num_slots=4", "features.compile=false"]
    main(["plan", *asked, "--out", str(tmp_path / "own.yaml")])
    said = capsys.readouterr().out
    for word in ("1,438 to learn from", "MMD, intra-class diversity, inter-class centers", "condense ", "all of it"):
        assert word in said, said
    # Of images that are not held out: 1,438 - 143, ten times in batches of 128.
    assert re.search(r"^ranking +102 steps", said, re.M) and re.search(r"^quick scores +5, of 100 steps", said, re.M)
    kept = load_recipe(str(tmp_path / "own.yaml"))
    assert kept.minutes == 3 and kept.codes.num_slots == 4 and kept.data.source == "digits"
    assert kept.objective.diversity_weight > 0 and kept.objective.center_weight > 0
    assert not list(own_cache.iterdir())


def test_a_run_without_a_recipe_goes_on_with_its_plan(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    small = [*TINY, "features.kind=pool", "real.kind=random", "features.compile=false", "condense.prefix_lengths=[1,2]"]
    small += ["codes.num_slots=2", "condense.num_steps=3", "evaluate.ipc=[1]"]
    made = gencond.condense("digits", tmp_path / "run", minutes=5, overrides=small)
    assert "all of it" in caplog.text and made.num_slots == 2
    first = to_dict(load_recipe(str(tmp_path / "run" / "recipe.yaml")))
    monkeypatch.setattr("gencond.plan.plan", None)  # nothing is planned again
    gencond.condense("digits", tmp_path / "run", minutes=5, overrides=small)
    assert to_dict(planned_recipe("digits", None, small, tmp_path / "run")) == first
    with pytest.raises(InputError, match="holds a run planned for 5 minutes: go on with that"):
        gencond.condense("digits", tmp_path / "run", minutes=6, overrides=small)


def test_a_second_call_for_a_folder_that_a_run_is_planned_for_is_refused_before_it_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call plans; the lock is a process's own, so the second call is another process."""
    out, said = tmp_path / "run", []

    def while_planning(*_: object) -> None:
        words = [sys.executable, "-m", "gencond.cli", "condense", "--data", "digits", "--out", str(out)]
        said.append(subprocess.run(words, capture_output=True, text=True, check=False))
        raise InputError("planned enough")

    monkeypatch.setattr("gencond.plan.plan", while_planning)
    with pytest.raises(InputError, match="planned enough"):
        planned_recipe("digits", 5.0, [], out)
    (second,) = said
    assert second.returncode == 2 and second.stderr.startswith(f"gencond: another process works in {out}")
    assert not out.exists()


def test_a_plan_is_kept_in_a_file_and_goes_on_with_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, small = tmp_path / "new" / "recipe.yaml", ["features.compile=false", "generator.width=8", "codes.num_slots=1"]
    small += ["pretrain.num_steps=1", "codes.encode_steps=1", "condense.num_steps=1", "condense.prefix_lengths=[1]"]
    made = kept_plan(kept, "digits", 5.0, small)
    monkeypatch.setattr("gencond.plan.plan", None)  # nothing is planned again
    for minutes in (None, 5):
        assert to_dict(kept_plan(kept, "digits", minutes, small)) == to_dict(made)
    with pytest.raises(InputError, match="holds a plan for 5 minutes: go on with that"):
        kept_plan(kept, "digits", 6, small)
    kept.write_text(to_yaml(load_recipe("demo")))
    with pytest.raises(InputError, match="holds a recipe: go on with that"):
        kept_plan(kept, "digits", None, [])


def test_a_plan_that_matches_nothing_says_so(own_cache: Path) -> None:
    small = ["features.compile=false", "generator.width=8", "pretrain.num_steps=0", "codes.num_slots=1"]
    small += ["codes.encode_steps=1", "condense.prefix_lengths=[1]"]
    assert "nothing is matched" in " ".join(plan("digits", 5.0, [*small, "condense.num_steps=0"]).notes)


def test_minutes_are_of_the_default_method_alone_and_above_zero(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="minutes plan the default method"):
        gencond.condense("digits", tmp_path / "run", "dm", minutes=5)
    for minutes in (0.0, -1.0, 0.9, float("nan"), float("inf"), 10**400, True, "five"):
        with pytest.raises(InputError, match="--minutes .*: a number from 1"):
            checked_minutes(minutes)
    assert checked_minutes("5") == 5 and checked_minutes(None) == 30
    with pytest.raises(InputError, match="minutes are asked for by --minutes"):
        plan("digits", 5.0, ["minutes=3"])
    (tmp_path / "file").write_text("not a run")
    with pytest.raises(InputError, match="exists and is no run folder"):
        planned_recipe("digits", 5.0, [], tmp_path / "file")
    assert not (tmp_path / "run").exists()


def test_a_plan_made_by_a_process_of_its_own_is_the_recipe_or_the_line_that_says_why_not(own_cache: Path) -> None:
    small = ["features.compile=false", "features.width=8", "generator.width=8", "pretrain.discriminator_width=8"]
    small += ["condense.num_steps=3", "codes.encode_steps=2", "pretrain.num_steps=2", "codes.num_slots=2"]
    made = parse_recipe(planned_apart("digits", 7.0, [*small, "condense.prefix_lengths=[1,2]"]), "plan")
    assert made.minutes == 7 and made.data.source == "digits" and made.condense.num_steps == 3
    with pytest.raises(InputError, match="unknown field 'codes.slots'"):
        planned_apart("digits", 7.0, ["codes.slots=2"])
