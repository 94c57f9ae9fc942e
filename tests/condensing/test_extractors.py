from pathlib import Path

import pytest
import torch

from gencond.common.errors import InputError
from gencond.common.files import state_fingerprint
from gencond.common.ranges import to_signed
from gencond.condensing.extractors import ExtractorMaker, FreshExtractors, OnlineExtractors, Pool, build_pool
from gencond.data.images import LabeledImages
from gencond.networks.convnet import ConvNet
from gencond.networks.extractor import Extractor, advice_on_bfloat16, emulates_bfloat16
from gencond.networks.training import Shuffled, train_network


def make(seed: int, width: int = 4, norm: str = "instance") -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(1, 10, 8, width=width, depth=2, norm=norm)


def build(data: LabeledImages, cache: Path, steps: tuple[int, ...] = (1, 40), seed: int = 0) -> list[Extractor]:
    maker = ExtractorMaker(lambda seed: make(seed, width=16), *data.mean_std)
    return build_pool(data, cache, maker, Pool("convnet", 2, steps, 1, 64, 0.05, 0.0, "crop", seed))[0]


def test_it_holds_snapshots_of_growing_skill_and_random_nets(few_digits: LabeledImages, tmp_path: Path) -> None:
    pool = build(few_digits, tmp_path)
    images = to_signed(few_digits.images)
    skill = [float((net.logits(net(images)).argmax(1) == few_digits.labels).float().mean()) for net in pool]
    assert len(pool) == 5 and len({state_fingerprint(net) for net in pool}) == 5
    assert skill[1] > skill[0] + 0.2 and skill[3] > skill[2] + 0.2 and skill[1] > 0.8
    assert skill[4] < 0.4  # never trained


def test_it_is_read_again_bit_for_bit_and_rebuilt_for_another_seed(
    few_digits: LabeledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    first = [state_fingerprint(net) for net in build(few_digits, tmp_path, (1, 2))]
    assert "reusing" not in caplog.text
    assert [state_fingerprint(net) for net in build(few_digits, tmp_path, (1, 2))] == first
    assert "reusing the pool of 5 nets" in caplog.text
    assert [state_fingerprint(net) for net in build(few_digits, tmp_path, (1, 2), seed=1)] != first
    assert [state_fingerprint(net) for net in build(few_digits, tmp_path / "elsewhere", (1, 2))] == first


def test_a_pool_that_diverged_is_not_kept(few_digits: LabeledImages, tmp_path: Path) -> None:
    def network(seed: int) -> ConvNet:
        made = make(seed, width=16)
        torch.nn.init.constant_(made.classifier.bias, torch.nan)
        return made

    with pytest.raises(InputError, match="not finite after training: lower features.learning_rate"):
        build_pool(
            few_digits, tmp_path, ExtractorMaker(network, *few_digits.mean_std),
            Pool("convnet", 1, (1,), 0, 64, 0.05, 0.0, "crop", seed=0),
        )  # fmt: skip
    assert not (tmp_path / "pools").exists()


def test_fresh_networks_depend_on_the_step_alone_and_stay_for_the_stated_steps() -> None:
    maker = ExtractorMaker(make, (0.0,), (1.0,))
    one, other = (FreshExtractors(maker.new, refresh_steps=3, seed=0) for _ in range(2))
    seen = [state_fingerprint(one.at(step)) for step in range(6)]
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5]
    assert state_fingerprint(other.at(4)) == seen[4] and state_fingerprint(other.at(1)) == seen[1]
    assert not any(parameter.requires_grad for parameter in one.at(0).parameters())


def test_an_online_network_learns_and_its_state_goes_on_where_it_was(few_digits: LabeledImages) -> None:
    mean, std = few_digits.mean_std

    def train(network: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        train_network(
            network, Shuffled(few_digits.images, few_digits.labels, 32), num_steps=2, learning_rate=0.05, mean=mean,
            std=std, seed=seed, optimizer=optimizer,
        )  # fmt: skip

    def new() -> OnlineExtractors:
        def optimizer(net: torch.nn.Module) -> torch.optim.SGD:
            return torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)

        return OnlineExtractors(FreshExtractors(ExtractorMaker(make, mean, std).new, 4, 0), optimizer, train)

    whole = new()
    seen = []
    for step in range(6):
        seen.append(state_fingerprint(whole.at(step)))
        whole.after(step)
    assert len(set(seen)) == 6 and seen[4] == state_fingerprint(new().at(4))  # drawn anew at step 4
    half, resumed = new(), new()
    for step in range(2):
        half.at(step)
        half.after(step)
    resumed.load_state_dict(half.state_dict())
    assert state_fingerprint(resumed.at(2)) == seen[2]
    resumed.after(2)
    assert state_fingerprint(resumed.at(3)) == seen[3]  # the momentum went along
    untouched = new()
    untouched.load_state_dict(new().state_dict())
    assert state_fingerprint(untouched.at(0)) == seen[0]


def test_each_part_that_computes_in_bfloat16_is_advised_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def advised(device: str = "cpu", **parts: bool) -> list[str]:
        return [line.split(": ")[1] for line in advice_on_bfloat16(torch.device(device), **parts)]

    monkeypatch.setattr("gencond.networks.extractor.emulates_bfloat16", lambda device: device.type == "cpu")
    extractors, generator = "set features.precision=float32", "set generator.precision=float32"
    launch, all_of_them = "start without mixed precision bf16", {"extractors": True, "generator": True, "launch": True}
    nothing = dict.fromkeys(all_of_them, False)
    assert advised(**all_of_them) == [extractors, generator, launch]
    assert advised(**nothing | {"extractors": True}) == [extractors]
    assert advised(**nothing | {"generator": True}) == [generator]
    assert advised(**nothing | {"launch": True}) == [launch]
    assert advised(**nothing) == advised("cuda", **all_of_them) == []
    assert not emulates_bfloat16(torch.device("cuda"))  # nothing is run there to find out
