"""Protocols beside what the released code does: rates, momentum, epochs, batches, boxes of CutMix."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gencond.common.errors import InputError
from gencond.eval.protocols import PROTOCOLS, Protocol, check_protocol, get_protocol
from gencond.networks.training import draw_cutmix

# Outputs of VICO-UoE/DatasetCondensation at 53f63a6 (`evaluate_synset` with 20 epochs, 300 images) and of snu-mllab/
# Efficient-Dataset-Condensation at ceac95a (`train` with 24 epochs, 150 images; `ipc_epoch`, `rand_bbox`), torch 2.14.
RELEASED = np.load(Path(__file__).parent.parent / "golden" / "released_code.npz")


def rates(protocol: Protocol, num_steps: int) -> list[float]:
    return [protocol.learning_rate * protocol.rate_at(step / num_steps) for step in range(num_steps)]


def test_dm_trains_as_the_released_code_but_for_one_epoch_after_the_first_half() -> None:
    """There the loop runs from epoch 0 through 20, and the rate falls after epoch 11; here one epoch less, after 10."""
    dm, released = get_protocol("dm:20", 2, 12), RELEASED["dm_rates"]
    np.testing.assert_allclose((dm.momentum, dm.weight_decay, 0), RELEASED["dm_sgd"], rtol=1e-6)  # no Nesterov
    assert dm.batch_of(300) == RELEASED["dm_batches"].max() and len(released) == 21 * 2 and dm.num_steps(300) == 20 * 2
    ours = np.array(rates(dm, 40))
    first, there = int((ours > 0.005).sum()), int((released > 0.005).sum())
    assert there == 12 * 2 and there - 4 < first < there  # a step more than half, where the momentum starts anew
    np.testing.assert_allclose(np.unique(ours), np.unique(released), rtol=1e-6)
    assert RELEASED["dm_fresh_momentum"].nonzero()[0].tolist() == [0, there]
    assert math.floor(dm.restart_at * 40) + 1 == first


def test_idc_trains_as_the_released_code() -> None:
    idc = get_protocol("idc:24", 10, 32)
    np.testing.assert_allclose((idc.momentum, idc.weight_decay, 0), RELEASED["idc_sgd"], rtol=1e-6)
    assert idc.batch_of(150) == RELEASED["idc_batches"].max() and idc.num_steps(150) == len(RELEASED["idc_rates"])
    np.testing.assert_allclose(rates(idc, 72), RELEASED["idc_rates"], rtol=1e-6)


@pytest.mark.parametrize("row", RELEASED["idc_epochs"].tolist())
def test_idc_trains_large_images_for_the_epochs_of_the_released_code(row: list[int]) -> None:
    ipc, factor, classes, epochs = row
    images = ipc * factor**2 * classes
    idc = get_protocol("idc", classes, 224)
    assert idc.num_steps(images) == epochs * math.ceil(images / idc.batch_of(images))


def test_boxes_of_cutmix_are_those_of_the_released_code_or_a_pixel_wider() -> None:
    """Of an odd side it takes one less; ours has all of it."""
    for lam, row, column, top, left, bottom, right in RELEASED["idc_boxes"].tolist():
        side = int(12 * math.sqrt(1 - lam))
        for center, first, last in ((row, top, bottom), (column, left, right)):
            assert (first, last) == (max(center - side // 2, 0), min(center + side // 2, 12))
    rng, again = (torch.Generator().manual_seed(0) for _ in range(2))
    for _ in range(200):
        mix = draw_cutmix(1.0, torch.zeros(4, 3, 12, 12), rng)
        torch.rand((), generator=again)
        side = int(12 * math.sqrt(float(torch.rand((), generator=again))))
        row, column = (int(torch.randint(12, (), generator=again)) for _ in range(2))
        torch.randperm(4, generator=again)
        for center, first, last in ((row, mix.top, mix.bottom), (column, mix.left, mix.right)):
            assert (first, last) == (max(center - side // 2 - side % 2, 0), min(center + side // 2, 12))


@pytest.mark.parametrize("name", ["dm", "idc"])
@pytest.mark.parametrize("size", [32, 224])
def test_a_protocol_of_one_operation_a_batch_is_otherwise_the_same(name: str, size: int) -> None:
    mine, batch = get_protocol(name, 100, size).describe(), get_protocol(f"{name}_batch:7", 100, size).describe()
    assert batch["augmentation"] == f"{mine['augmentation']}_a_batch" and batch["epochs"] == 7
    epochs = ("name", "augmentation", "epochs", "epochs_by_ipc", "num_classes")
    assert {key: value for key, value in mine.items() if key not in epochs} == {
        key: value for key, value in batch.items() if key not in epochs
    }


def test_a_protocol_is_asked_for_with_the_images_that_it_is_for() -> None:
    """A default size would give large images the small-image `idc`, without a word."""
    with pytest.raises(TypeError):
        get_protocol("idc")  # type: ignore[call-arg]


def test_a_protocol_that_needs_a_teacher_is_refused_where_there_is_none() -> None:
    check_protocol("soft")
    with pytest.raises(InputError, match="protocol soft learns a teacher's answers"):
        check_protocol("soft", from_labels=True)
    assert {name for name, one in PROTOCOLS.items() if one.temperature} == {"soft"}
