import numpy as np
import pytest
import torch

from gencond.generator.codes import Codes, drawn_codes, philox, whole_numbers


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    bits = philox(np.array([counter], dtype=np.uint64), np.array(key, dtype=np.uint64))
    assert bits[0].tolist() == expected


def test_a_code_depends_on_seed_class_and_slot_alone() -> None:
    labels, slots = torch.tensor([3, 0, 3, 7]), torch.tensor([5, 5, 6, 2**33])
    codes = drawn_codes(1, labels, slots, 10)
    for row in range(4):
        assert torch.equal(codes[row], drawn_codes(1, labels[row : row + 1], slots[row : row + 1], 10)[0])
    assert torch.equal(codes.flip(0), drawn_codes(1, labels.flip(0), slots.flip(0), 10))
    assert torch.equal(codes[:, :6], drawn_codes(1, labels, slots, 6))
    assert len(torch.cat([codes, drawn_codes(2, labels, slots, 10)]).unique(dim=0)) == 8


def test_codes_are_standard_normal() -> None:
    codes = drawn_codes(0, torch.zeros(20_000, dtype=torch.int64), torch.arange(20_000), 5).flatten()
    # 100,000 draws: standard error .003 for the mean, .0022 for the deviation, .01 for the kurtosis; 5 sigma
    assert abs(float(codes.mean())) < 0.016 and abs(float(codes.std()) - 1) < 0.012
    assert abs(float(codes.pow(4).mean()) - 3) < 0.1


def test_truncated_codes_are_scaled_truncated_normals() -> None:
    labels, slots = torch.zeros(20_000, dtype=torch.int64), torch.arange(20_000)
    codes = drawn_codes(0, labels, slots, 5, truncation=1.0).flatten()
    reference = torch.nn.init.trunc_normal_(torch.empty(100_000), a=-2, b=2)
    for sample in (codes, reference):
        assert sample.abs().max() <= 2
        # law: deviation .87962, fourth moment 1.41619; standard errors .0028, .0016 and .0075 of 100,000 draws; 5 sigma
        assert abs(float(sample.mean())) < 0.014 and abs(float(sample.std()) - 0.8796) < 0.008
        assert abs(float(sample.pow(4).mean()) - 1.4162) < 0.038
    assert torch.equal(drawn_codes(0, labels, slots, 5, truncation=0.5).flatten(), codes / 2)  # scaled, not cut again


def test_truncated_codes_come_from_the_same_uniforms() -> None:
    labels, slots = torch.tensor([3, 0, 3]), torch.tensor([5, 5, 6])
    normal, truncated = drawn_codes(1, labels, slots, 40), drawn_codes(1, labels, slots, 40, truncation=1.0)
    assert torch.equal(normal.flatten().argsort(), truncated.flatten().argsort())
    assert torch.equal(truncated[1], drawn_codes(1, labels[1:2], slots[1:2], 40, truncation=1.0)[0])
    assert (truncated.abs() < normal.abs()).all()


def test_a_codebook_draws_all_its_codes_by_its_law() -> None:
    codes = Codes(num_classes=2, num_slots=1, latent_dim=6, seed=9, truncation=0.4)
    labels, slots = torch.tensor([1, 1]), torch.tensor([0, 1])
    assert torch.equal(codes(labels, slots), drawn_codes(9, labels, slots, 6, truncation=0.4))
    unlearned = Codes(num_classes=2, num_slots=0, latent_dim=6, seed=9, truncation=0.4)
    assert torch.equal(unlearned(labels, slots), codes(labels, slots))


def test_negative_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        drawn_codes(0, torch.tensor([-1]), torch.tensor([0]), 4)


def test_learned_slots_are_learned_and_later_ones_drawn() -> None:
    codes = Codes(num_classes=3, num_slots=2, latent_dim=6, seed=4)
    labels, slots = torch.tensor([2, 2, 0]), torch.tensor([1, 2, 0])
    with torch.no_grad():
        codes.learned.fill_(7)
    latents = codes(labels, slots)
    assert (latents[[0, 2]] == 7).all()
    assert torch.equal(latents[1], drawn_codes(4, labels[1:2], slots[1:2], 6)[0])
    assert not torch.equal(codes(labels, slots, seed=5)[1], latents[1])
    latents.sum().backward()
    assert codes.learned.grad.sum() == 2 * 6  # the drawn one takes no gradient


def test_untrained_codes_are_those_of_the_stream() -> None:
    codes = Codes(num_classes=2, num_slots=3, latent_dim=5, seed=9)
    labels, slots = torch.tensor([0, 1]), torch.tensor([2, 0])
    assert torch.equal(codes(labels, slots), drawn_codes(9, labels, slots, 5))


def test_no_learned_slots_at_all_works() -> None:
    assert Codes(num_classes=2, num_slots=0, latent_dim=5)(torch.tensor([1]), torch.tensor([0])).shape == (1, 5)


def test_mixed_codes_lie_between_two_learned_parts_of_their_class() -> None:
    codes = Codes(num_classes=2, num_slots=3, latent_dim=10, seed=4, fresh="mixed", parts=2)
    labels, slots = torch.tensor([1, 0, 1, 1]), torch.tensor([3, 8, 2**40, 1])
    latents = codes(labels, slots)
    learned = codes.learned.detach().view(2, 6, 5)  # [classes, slots * parts, part]
    for latent, label in zip(latents[:3].detach(), labels, strict=False):
        for part in latent.view(2, 5):
            own = learned[label]
            ends = own[:, None] + torch.tensor([0.0, 0.5])[:, None, None, None] * (own[None] - own[:, None])
            length = (ends[1] - ends[0]).norm(dim=-1)
            detour = (part - ends[0]).norm(dim=-1) + (part - ends[1]).norm(dim=-1) - length
            assert detour.min() < 1e-5  # on one of the segments, in the half that is nearer to its first code
    assert torch.equal(latents[3], codes.learned[1 * 3 + 1])
    assert not torch.equal(latents[0], codes(labels, slots, seed=5)[0])
    assert torch.equal(latents[2], codes(labels[2:3], slots[2:3])[0])  # whatever is asked for with it
    latents[0].sum().backward()
    assert codes.learned.grad[3:].abs().sum() > 0 and codes.learned.grad[:3].abs().sum() == 0


@pytest.mark.parametrize("fresh", ["mixed", "none"])
def test_what_has_no_prior_needs_learned_codes(fresh: str) -> None:
    with pytest.raises(ValueError, match="no learned codes to make further ones of"):
        Codes(num_classes=2, num_slots=0, latent_dim=10, fresh=fresh)


def test_where_there_are_no_further_codes_none_is_made() -> None:
    codes = Codes(num_classes=2, num_slots=3, latent_dim=10, fresh="none")
    assert codes(torch.tensor([0, 1]), torch.tensor([2, 0])).shape == (2, 10)
    with pytest.raises(ValueError, match="no codes past the 3 learned ones"):
        codes(torch.tensor([0, 1]), torch.tensor([2, 3]))


# --- whole numbers


def test_whole_numbers_have_a_dead_zone_around_zero() -> None:
    x = torch.tensor([0.0, 0.59, -0.59, 0.61, -0.61, 1.5, 1.61, -1.61, 40.2])
    assert whole_numbers(x).tolist() == [0, 0, 0, 1, -1, 1, 2, -2, 40]


def test_gradients_pass_rounding_but_for_zeros() -> None:
    x = torch.tensor([0.3, -0.3, 0.7, -5.2], requires_grad=True)
    (whole_numbers(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [0, 0, 3, 4]


def test_learned_codes_of_whole_numbers_are_such_before_and_after_they_settle() -> None:
    codes = Codes(2, 3, 8, seed=1, fresh="mixed", whole=True)
    with torch.no_grad():
        codes.learned.mul_(3)
    labels, slots = torch.tensor([0, 1, 1, 0]), torch.tensor([2, 0, 1, 7])
    before = codes(labels, slots).detach()
    assert torch.equal(before[:3], before[:3].round()) and not torch.equal(codes.learned, codes.learned.round())
    codes.settle_()
    assert torch.equal(codes(labels, slots), before)
    assert torch.equal(codes.learned, codes.learned.round()) and len(codes.learned.unique()) > 3
    plain = Codes(2, 3, 8, seed=1)
    kept = plain.learned.clone()
    plain.settle_()
    assert torch.equal(plain.learned, kept)


def test_a_fresh_code_lies_between_two_learned_ones_of_its_class() -> None:
    codes = Codes(3, 2, 45, seed=0, fresh="mixed", whole=True)
    fresh = codes(torch.tensor([1]), torch.tensor([5]))[0]
    one, other = whole_numbers(codes.learned[2:4])
    pairs = [(one, one), (one, other), (other, one), (other, other)]
    nearest = min(
        torch.linalg.norm(fresh - start) + torch.linalg.norm(fresh - end) - torch.linalg.norm(start - end)
        for start, end in pairs
    )
    assert nearest < 1e-4
