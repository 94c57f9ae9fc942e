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
    found = starts.learnable
    assert found is not None and found.num_known == int(found.is_first.sum()) < len(data) == found.num_asked
    for label in range(10):
        of_class = found.is_first[all_of_them.rows[all_of_them.labels == label, 0]]
        assert of_class.tolist() == sorted(of_class.tolist(), reverse=True)


def test_first_slots_start_from_known_images_where_fewer_are_known_than_later_sets_have(
    few_digits: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each class five images are known; the sets have one and ten."""
    is_known = torch.zeros(len(few_digits), dtype=torch.bool)
    for label in range(10):
        is_known[few_digits.rows_of(label)[3:8]] = True
    losses = torch.rand(len(few_digits), generator=torch.Generator().manual_seed(0))  # say nothing of what is known
    monkeypatch.setattr(Ranking, "answers", lambda *asked: (losses, is_known))
    chosen = starts_of(few_digits, "codes.num_slots=11", "codes.representative_sizes=[1,10]")[1]
    for label in range(10):
        assert is_known[chosen.rows[chosen.labels == label, 0]].tolist() == [True] * 5 + [False] * 6


def test_nothing_is_asked_where_the_first_slot_takes_all_of_a_class(
    few_digits: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranking, "answers", lambda *asked: pytest.fail("asked"))
    one_of_each = few_digits.subset(torch.stack([few_digits.rows_of(label)[0] for label in range(10)]))
    starts, chosen = starts_of(one_of_each, "codes.num_slots=1", "codes.representative_sizes=[1]")
    assert len(chosen.rows) == 10 and starts.about == {}


def test_two_ways_to_choose_by_ease_are_refused() -> None:
    with pytest.raises(InputError, match=r"skip_easiest and codes.learnable_first choose the same .* null or false"):
        check_parts(tiny_recipe(*LEARNABLE, "codes.skip_easiest=0.1"))
