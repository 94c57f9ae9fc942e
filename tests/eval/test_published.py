"""Others' figures come with their source."""

import json
from importlib import resources

from gencond.eval.published import CIFAR10, PUBLISHED, curves_of


def test_every_published_curve_names_its_source_and_how_it_was_read() -> None:
    content = json.loads(resources.files("gencond").joinpath("eval", "published", "cifar10.json").read_text("utf-8"))
    assert set(content["drawn"]) <= set(content["curves"]) == set(CIFAR10)
    for curve in content["curves"].values():
        source = content["sources"][curve["source"]]
        assert source["arxiv"] and source["figure"] and source["read"]
        megabits = [at for at, _ in curve["points"]]
        assert megabits == sorted(set(megabits)) and all(0 < top1 < 100 for _, top1 in curve["points"])


def test_the_drawn_curves_are_those_of_the_file() -> None:
    assert curves_of("cifar10", 10, (3, 32)) == {name: CIFAR10[name] for name in ("DDiF", "RUO")}
    assert CIFAR10["RUO"] == {0.107: 70.3, 0.77: 77.5, 2.0: 79.7} and list(PUBLISHED) == ["cifar10"]
