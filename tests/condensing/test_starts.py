from dataclasses import replace

import pytest
import torch
from conftest import tiny_recipe
from torch import Tensor

from gencond.common.errors import InputError
from gencond.condensing import difficulty
from gencond.condensing.build import build
from gencond.condensing.checks import check_parts
from gencond.condensing.difficulty import Ranking
from gencond.condensing.starts import CodeStarts, Representatives
from gencond.data.images import LabeledImages

LEARNABLE = ["codes.learnable_first=true", "codes.ranking_steps=60", "codes.encode_steps=1"]


def some_false(data: LabeledImages) -> tuple[LabeledImages, Tensor]:
    """(the images, one in ten under a false label; which these are)."""
    is_false = torch.arange(len(data)) % 10 == 0
    return replace(data, labels=torch.where(is_false, (data.labels + 5) % 10, data.labels)), is_false


def starts_of(data: LabeledImages, *overrides: str) -> tuple[CodeStarts, Representatives]:
    """(what chooses, what it chose)."""
    parts = build(tiny_recipe(*LEARNABLE, *overrides), data, torch.device("cpu"))
    assert isinstance(parts.starts, CodeStarts)
    return parts.starts, parts.starts.choose(parts.new_extractors()[0])


@pytest.fixture
def long_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred and twenty digits are seen more than ten times each."""
    monkeypatch.setattr(difficulty, "MOST_PASSES", 100)


@pytest.mark.usefixtures("long_trained")
def test_images_under_false_labels_start_no_slot_as_long_as_there_are_others(few_digits: LabeledImages) -> None:
    data, is_false = some_false(few_digits)
    few = starts_of(data, "codes.num_slots=6", "codes.representative_sizes=[1,3]")[1]
    assert len(few.rows) == 60 and is_false[few.rows].float().mean() < 0.05 < is_false.float().mean()
    any_images = starts_of(
        data, "codes.learnable_first=false", "codes.num_slots=6", "codes.representative_sizes=[1,3]"
    )[1]
    assert is_false[any_images.rows].float().mean() > 0.05


@pytest.mark.usefixtures("long_trained")
def test_other_images_start_the_last_slots_of_a_class(few_digits: LabeledImages) -> None:
    data, _ = some_false(few_digits)
    starts, all_of_them = starts_of(data, "codes.num_slots=50", "codes.representative_sizes=[1,3]")
    assert sorted(all_of_them.rows.flatten().tolist()) == list(range(len(data)))
    comes_first, num_known = starts.learnable
    assert num_known == int(comes_first.sum()) < len(data)
    for label in range(10):
        of_class = comes_first[all_of_them.rows[all_of_them.labels == label, 0]]
        assert of_class.tolist() == sorted(of_class.tolist(), reverse=True)


def test_nothing_is_asked_where_k_means_takes_every_image(
    few_digits: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranking, "learnable", lambda *asked: pytest.fail("asked"))
    starts, chosen = starts_of(few_digits, "codes.num_slots=50", "codes.representative_sizes=[1,50]")
    assert len(chosen.rows) == len(few_digits) and starts.about == {}


def test_two_ways_to_choose_by_ease_are_refused() -> None:
    with pytest.raises(InputError, match=r"skip_easiest and codes.learnable_first choose the same .* null or false"):
        check_parts(tiny_recipe(*LEARNABLE, "codes.skip_easiest=0.1"))
