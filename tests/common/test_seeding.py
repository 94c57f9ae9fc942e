import torch
from conftest import tiny_recipe

from gencond.common.seeding import seeded
from gencond.condensing.build import build
from gencond.data.images import LabeledImages
from gencond.eval.networks import build_network


def test_draws_depend_on_the_seed_and_no_generator_of_the_process_moves(monkeypatch, few_digits: LabeledImages) -> None:
    def of_all_devices(seed: int) -> None:
        raise AssertionError("the generators of GPUs are set")

    monkeypatch.setattr("torch.cuda.manual_seed_all", of_all_devices)
    monkeypatch.setattr("torch.manual_seed", of_all_devices)
    before = torch.get_rng_state()
    with seeded(3):
        drawn = torch.randn(4)
    parts = [build(tiny_recipe(f"seed={seed}"), few_digits, torch.device("cpu")) for seed in (0, 0, 1)]
    first = [build_network("mlp", 1, 10, 8, seed).classifier.weight for seed in (0, 0, 1)]
    other = [parts[0].maker.network(seed).classifier.weight for seed in (0, 0, 1)]
    third = [one.generators.new().linear.weight for one in parts]
    for one, again, another in (first, other, third):
        assert torch.equal(one, again) and not torch.equal(one, another)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.randn(4, generator=torch.Generator().manual_seed(3)))
