"""How much of the easiest images is skipped is found on held-out images, and each choice is held to a made set."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_recipe
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.files import state_fingerprint
from gencond.common.provenance import spoken_starts
from gencond.condensing.build import Parts, build
from gencond.condensing.checks import check_counts
from gencond.condensing.easiest import SHARES, taken
from gencond.condensing.extractors import ExtractorMaker
from gencond.condensing.forecast import Amount, forecast
from gencond.condensing.run import condense
from gencond.condensing.run_folder import RunFolder
from gencond.data.images import LabeledImages, split_off

CPU = torch.device("cpu")
HELD_OUT = "codes.skip_easiest=held_out"
BRIEF = ("data.augmentation=none", "codes.ranking_steps=60", "codes.num_slots=40", "features.width=16", HELD_OUT)
CLASSES, OF_CLASS, MODES = 3, 240, 4


def made_set(easy: float, wrong: float, easy_stands_alone: bool) -> LabeledImages:
    """A share of each class is easy, another is falsely labelled; the rest are noisy, each like one of four patterns.

    Args:
        easy_stands_alone: easy images are like nothing else of their class; otherwise like the first of its patterns.
    """
    rng = torch.Generator().manual_seed(5)
    patterns = torch.randn(CLASSES, MODES, 8, 8, generator=rng)
    marks = torch.randn(CLASSES, 8, 8, generator=rng)
    images, labels = [], []
    for label in range(CLASSES):
        for number in range(OF_CLASS):
            kind, mode = number / OF_CLASS, number % MODES
            if kind < easy:
                image = 60 * (marks[label] if easy_stands_alone else patterns[label, 0])
                noise = 2.0
            else:
                image = 25 * patterns[(label + (kind >= 1 - wrong)) % CLASSES, mode]
                noise = 20.0
            images.append(128 + image + noise * torch.randn(8, 8, generator=rng))
            labels.append(label)
    pixels = torch.stack(images).clamp(0, 255).round().to(torch.uint8)[:, None]
    order = torch.randperm(len(labels), generator=rng)
    return LabeledImages(pixels[order], torch.tensor(labels)[order], ("a", "b", "c"))


def parts_of(data: LabeledImages, *overrides: str) -> Parts:
    return build(tiny_recipe(*BRIEF, *overrides), data, CPU)


@pytest.fixture(scope="module")
def worthless_easy() -> LabeledImages:
    """The easiest images say nothing that the others do not, and the hardest are false."""
    return made_set(easy=0.3, wrong=0.45, easy_stands_alone=False)


@pytest.fixture(scope="module")
def few_hard() -> LabeledImages:
    """All that a share up to 0.45 leads to is easy, and says nothing of the rest."""
    return made_set(easy=0.75, wrong=0.0, easy_stands_alone=True)


def test_where_the_easiest_images_teach_nothing_and_the_hardest_are_false_some_are_skipped(
    worthless_easy: LabeledImages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    parts = parts_of(worthless_easy)
    assert parts.starts.skipped in (0.3, 0.45)
    (said,) = [message for message in caplog.messages if "held-out" in message]
    found = dict(re.findall(r"(random|[\d.]+ %) ([\d.]+)(?:,| \()", said))
    assert list(found) == ["random", "0 %", "15 %", "30 %", "45 %"]
    best = max(found, key=lambda share: float(found[share]))
    assert said.endswith(f": {best} are skipped") and best == f"{100 * parts.starts.skipped:g} %"


def test_where_random_images_alone_show_all_of_a_class_they_are_taken(
    few_hard: LabeledImages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    starts = parts_of(few_hard).starts
    assert starts.skipped is None and starts.about == {"skip_easiest": None}
    assert caplog.messages[-1].endswith("random images are taken")
    assert all(
        torch.equal(rows, few_hard.rows_of(label)) for label, rows in enumerate(starts.candidates())
    )  # any image of a class


@pytest.mark.parametrize(
    ("top1", "share"),
    [
        ((0.80, 0.70, 0.79, 0.80, 0.75), None),  # of equal ones the plain one
        ((0.80, 0.70, 0.79, 0.83, 0.83), None),  # ahead by less than the standard error, 4 points
        ((0.80, 0.70, 0.79, 0.85, 0.85), 0.3),
        ((0.80, 0.90, 0.79, 0.85, 0.85), 0.0),
        ((1.00, 1.00, 1.00, 1.00, 1.00), None),
    ],
)
def test_random_images_are_left_for_what_is_ahead_by_more_than_the_standard_error(
    top1: tuple[float, ...], share: float | None
) -> None:
    assert taken(dict(zip(SHARES, top1, strict=True)), num_held_out=100) == share  # sqrt(0.8 x 0.2 / 100)


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """(images, labels, arguments) of every training from here on."""
    calls = []
    train = ExtractorMaker.train

    def noted(self: ExtractorMaker, network, images, labels, **arguments) -> None:
        calls.append((images, labels, arguments))
        train(self, network, images, labels, **arguments)

    monkeypatch.setattr(ExtractorMaker, "train", noted)
    return calls


def test_each_trial_sees_the_same_number_of_images_and_none_that_is_held_out(
    worthless_easy: LabeledImages, own_cache: Path, trained_on: list
) -> None:
    starts = parts_of(worthless_easy).starts
    assert starts.skipped is None or starts.skipped in SHARES
    (_, _, ranking), *trials = trained_on
    assert ranking["num_steps"] == 60 and len(trials) == len(SHARES)
    losses = starts.ranking.difficulties(worthless_easy, own_cache)
    rest, held_out = split_off(worthless_easy, 0.2, closed=True)
    assert len(held_out) == CLASSES * OF_CLASS // 5
    loss_of = {image.numpy().tobytes(): float(loss) for image, loss in zip(worthless_easy.images, losses, strict=True)}
    held = {image.numpy().tobytes() for image in held_out.images}
    for share, (images, labels, arguments) in zip(SHARES, trials, strict=True):
        assert (arguments["num_steps"], arguments["batch_size"]) == (30, 128)  # half of the ranking's
        assert Counter(labels.tolist()) == dict.fromkeys(range(CLASSES), 40 * 4 // 5)
        assert not held & {image.numpy().tobytes() for image in images}
        for label in range(CLASSES) if share is not None else ():
            ranked = sorted(loss_of[image.numpy().tobytes()] for image in rest.images[rest.labels == label])
            first = int(share * len(ranked))
            own = sorted(loss_of[image.numpy().tobytes()] for image in images[labels == label])
            assert own == ranked[first : first + 32]


def test_shares_that_come_to_the_same_images_are_tried_once_and_say_so(
    worthless_easy: LabeledImages, trained_on: list, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    slots = OF_CLASS * 4 // 5  # four fifths of a class leave no more than a fifth to skip
    starts = parts_of(worthless_easy, "codes.ranking_steps=4", f"codes.num_slots={slots}").starts
    assert starts.skipped in SHARES
    assert len(trained_on) == 1 + 4 and "45 %" not in caplog.text  # random, 0, 15 % and 30 %, which is 20


def test_few_images_are_tried_with_several_seeds_within_the_same_bound(few_hard: LabeledImages) -> None:
    def lengths(ranking_steps: int, num_started: int) -> tuple[int, int]:
        starts = parts_of(few_hard, f"codes.ranking_steps={ranking_steps}").starts
        return starts.trials.steps_and_seeds(num_started)

    assert lengths(1000, 100) == (100, 3)  # three times a hundred steps, the fewest
    assert lengths(1000, 1600) == (200, 2)  # twenty passes over four fifths of them, in batches of 128
    assert lengths(1000, 2500) == (313, 1)
    assert lengths(1000, 10**6) == (500, 1)  # half as long as the ranking
    assert lengths(1, 100) == (1, 1)


def test_what_was_found_is_read_again_and_found_anew_where_it_is_damaged_or_asked_for_other_slots(
    few_hard: LabeledImages, own_cache: Path, trained_on: list, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    brief = "codes.ranking_steps=4"
    first = parts_of(few_hard, brief).starts.skipped
    said = caplog.messages[-1]
    of_first = len(trained_on)
    assert parts_of(few_hard, brief).starts.skipped == first and caplog.messages[-1] == said
    assert len(trained_on) == of_first == 1 + len(SHARES)
    assert parts_of(few_hard, brief, "codes.num_slots=20").starts.skipped in SHARES
    assert len(trained_on) == of_first + len(SHARES)  # the ranking is the same
    for file in (own_cache / "difficulties").iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert parts_of(few_hard, brief).starts.skipped == first and caplog.messages[-1] == said
    assert "is damaged" in caplog.text


def test_where_slots_need_every_image_nothing_is_ranked_or_tried(
    few_hard: LabeledImages, own_cache: Path, trained_on: list
) -> None:
    starts = parts_of(few_hard, f"codes.num_slots={OF_CLASS}").starts
    assert starts.trials is None and sum(map(len, starts.candidates())) == len(few_hard)
    no_starts = parts_of(few_hard, "codes.encode_steps=0", "objective.representative_weight=0").starts
    assert no_starts.trials is None and no_starts.skipped is None and no_starts.about == {}
    assert not trained_on and not list(own_cache.iterdir())


class Killed(BaseException):
    pass


def test_a_run_that_is_killed_while_it_tries_ends_in_the_same_bits_and_the_artefact_tells_the_share(
    worthless_easy: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(*BRIEF)

    def cache(name: str) -> None:
        monkeypatch.setenv("GENCOND_CACHE", str(tmp_path / name))

    cache("a")
    whole = condense(recipe, worthless_easy, tmp_path / "whole")
    made = whole.config.provenance
    assert made["recipe"]["codes"]["skip_easiest"] == "held_out" and made["skip_easiest"] in (0.3, 0.45)
    words = f"real images that come after the easiest {100 * made['skip_easiest']:g} % of a class"
    assert spoken_starts(made) == words
    assert f"| Codes start from | {words} |" in (tmp_path / "whole" / "condensed" / "README.md").read_text()
    cache("b")
    test, tested, save = ExtractorMaker.top1, [], RunFolder.save_state

    def dies_at_third(self: ExtractorMaker, network, data) -> float:
        if len(tested) == 2:
            raise Killed
        tested.append(network)
        return test(self, network, data)

    def dies_after_a_state(self: RunFolder, states, name: str, *others) -> None:
        save(self, states, name, *others)
        if name == "condense":
            raise Killed

    for where, name, dies in ((ExtractorMaker, "top1", dies_at_third), (RunFolder, "save_state", dies_after_a_state)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(where, name, dies)
            condense(recipe, worthless_easy, tmp_path / "killed")
    again = condense(recipe, worthless_easy, tmp_path / "killed")
    assert state_fingerprint(again) == state_fingerprint(whole) and again.config.provenance == made


def test_a_share_that_the_recipe_gives_is_in_the_recipe_alone(few_hard: LabeledImages) -> None:
    for given in ("0.2", "null"):
        starts = parts_of(few_hard, f"codes.skip_easiest={given}").starts
        assert starts.trials is None and starts.about == {}
    assert spoken_starts({}) is None and spoken_starts({"skip_easiest": None}) == "any real images"


def test_a_class_of_one_image_is_refused_where_one_of_each_has_to_be_held_out() -> None:
    recipe, names = tiny_recipe(HELD_OUT, "codes.num_slots=1"), ("a", "b")
    with pytest.raises(InputError, match="class 'b' has 1: add some, or set it to null"):
        check_counts(recipe, torch.tensor([9, 1]), names)
    check_counts(recipe, torch.tensor([1, 1]), names)  # which are all needed
    check_counts(tiny_recipe("codes.skip_easiest=0.3", "codes.num_slots=1"), torch.tensor([9, 1]), names)


def test_a_network_that_diverges_is_one_line_that_says_what_to_change(few_hard: LabeledImages) -> None:
    trials = parts_of(few_hard).starts.trials
    network = trials.ranking.maker.network(0)
    with torch.no_grad():
        network.classifier.weight.fill_(float("nan"))
    broken = ExtractorMaker(lambda seed: network, *few_hard.mean_std)
    object.__setattr__(trials.ranking, "maker", broken)
    with pytest.raises(InputError, match="diverged: set codes.skip_easiest to null or a number") as error:
        trials.trained(torch.arange(20), num_steps=1, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("slots", "lines"), [(40, 1), (240, 0)])
def test_trials_are_a_line_of_the_forecast_where_there_is_something_to_choose(
    few_hard: LabeledImages, trained_on: list, slots: int, lines: int
) -> None:
    recipe = tiny_recipe(*BRIEF, f"codes.num_slots={slots}", "pretrain.num_steps=0")
    amount = Amount(900, 720, OF_CLASS, 64 * 900, False, 0.5, 0)
    found = forecast(recipe, few_hard.subset(torch.arange(64)), amount, CPU)
    tried = [stage for stage in found.stages if stage.name == "trying what to skip"]
    assert [stage.amount for stage in tried] == ["5, of 30 steps"] * lines
    ranking = [stage.seconds for stage in found.stages if stage.name == "ranking"]
    assert len(ranking) == lines and all(stage.seconds > 0 for stage in tried)
