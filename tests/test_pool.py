from pathlib import Path

import pytest
import torch

from gencond.data import LabeledImages
from gencond.features import Extractor, state_fingerprint
from gencond.pool import build_pool
from gencond.ranges import to_signed


def build(data: LabeledImages, cache: Path, steps: tuple[int, ...] = (1, 40), seed: int = 0) -> list[Extractor]:
    return build_pool(
        data, cache, width=16, depth=2, num_trajectories=2, snapshot_steps=steps, num_random=1, batch_size=64,
        learning_rate=0.05, strategy="crop", seed=seed, device=torch.device("cpu"),
    )[0]  # fmt: skip


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
