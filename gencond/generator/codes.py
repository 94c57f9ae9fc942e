"""Nested codes: slot i of class c has one latent, whatever is asked for together with it.

The first slots are learned; beyond them a slot's latent is drawn from a counter-based stream keyed by (seed, class,
slot), or mixed of learned ones that this stream chooses. Images per class (IPC) k means slots 0..k-1, so a small set is
a prefix of a large one, bit for bit.
"""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_HALF_WORD = np.uint64(32)


def philox(counters: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox4x32-10: 128 random bits for each 128-bit counter under a 64-bit key.

    A bijection of the counter, so any element of the stream is computed on its own, in any order, on any machine.

    Args:
        counters: uint64 [n, 4], each word < 2^32.
        key: uint64 [2], each word < 2^32.
    Returns:
        uint64 [n, 4], each word uniform on 0..2^32-1.
    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
    """
    word0, word1, word2, word3 = counters.T.astype(np.uint64)
    key = key.astype(np.uint64)
    for _ in range(10):
        product0, product1 = word0 * _MULTIPLIERS[0], word2 * _MULTIPLIERS[1]  # 32 x 32 -> 64 bits, no overflow
        word0, word1, word2, word3 = (
            (product1 >> _HALF_WORD) ^ word1 ^ key[0],
            product1 & _LOW,
            (product0 >> _HALF_WORD) ^ word3 ^ key[1],
            product0 & _LOW,
        )
        key = (key + _KEY_STEPS) & _LOW
    return np.stack([word0, word1, word2, word3], axis=1)


TRUNCATED_AT = 2.0  # standard deviations: where BigGAN-deep's published latents end


def drawn_codes(
    seed: int,
    labels: Int64[Tensor, " n"],
    slots: Int64[Tensor, " n"],
    latent_dim: int,
    truncation: float | None = None,
) -> Float[Tensor, "n latent_dim"]:
    """Standard normal or truncated latents, row i a function of (seed, labels[i], slots[i]) alone.

    Both laws come from the same uniforms u, by the inverse of their distribution function.

    Args:
        truncation: t > 0 of latents t z with z normal and truncated to [-2, 2],
            z = P^-1(P(-2) + u (P(2) - P(-2))), standard deviation .8796: scaled, not cut again at t. None: normal.
    Raises:
        ValueError: a negative seed, label or slot.
    """
    uniform = uniform_stream(seed, labels, slots, latent_dim)
    if truncation is None:
        return torch.special.ndtri(uniform).float()
    below = math.erfc(TRUNCATED_AT / math.sqrt(2)) / 2  # the normal's mass past one end
    latents = torch.special.ndtri(below + uniform * (1 - 2 * below))
    return (truncation * latents.clamp(-TRUNCATED_AT, TRUNCATED_AT)).float()  # rounding may step over the end


def uniform_stream(
    seed: int, labels: Int64[Tensor, " n"], slots: Int64[Tensor, " n"], length: int
) -> Float64[Tensor, "n length"]:
    """Uniform numbers inside (0, 1), row i a function of (seed, labels[i], slots[i]) alone.

    Raises:
        ValueError: a negative seed, label or slot.
    """
    if seed < 0 or (len(labels) and (labels.min() < 0 or slots.min() < 0)):
        raise ValueError("seed, labels and slots must not be negative")
    n, blocks = len(labels), -(-length // 4)
    counters = np.empty((n, blocks, 4), dtype=np.uint64)
    counters[..., 0] = np.arange(blocks, dtype=np.uint64)
    counters[..., 1] = labels.cpu().numpy().astype(np.uint64)[:, None]
    slot = slots.cpu().numpy().astype(np.uint64)[:, None]
    counters[..., 2], counters[..., 3] = slot & _LOW, slot >> _HALF_WORD
    key = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], dtype=np.uint64)
    bits = philox(counters.reshape(-1, 4), key).reshape(n, 4 * blocks)[:, :length]
    return torch.from_numpy((bits.astype(np.float64) + 0.5) * 2.0**-32)


Fresh = Literal["prior", "mixed", "none"]
ROUNDED_UP = 0.4  # of a step: what is less than .6 becomes 0, for a 0 costs the least to store


def whole_numbers(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """x rounded, with a dead zone around 0; gradients pass as though it were not, but for zeros, which stay zeros.

    Source: "straight-through" of Bengio et al. (1308.3432); dead zones are those of image codecs.
    """
    rounded = (x.detach().abs() + ROUNDED_UP).floor() * x.detach().sign()
    return rounded + (x - x.detach()) * (rounded != 0)


class Codes(nn.Module):
    """The codebook: a latent for every (class, slot).

    Args:
        num_classes, num_slots: classes, and learned slots of each.
        latent_dim: length of a latent.
        seed: of the stream, which also initialises the learned slots.
        truncation: of the stream, see `drawn_codes`.
        fresh: what further latents are: of the `prior`, the stream's; `mixed` of learned ones, a + u (b - a), u uniform
            in (0, 1/2), for random codes a and b of the class: where learning has moved the codes away from the prior,
            these make better images; `none`: there are no further ones.
        parts: of a latent; each is mixed by itself, of any learned parts of the class.
        whole: learned latents are whole numbers, as which they are stored.
    Raises:
        ValueError: nothing learned that could be mixed, or nothing at all.
    """

    def __init__(
        self,
        num_classes: int,
        num_slots: int,
        latent_dim: int,
        seed: int = 0,
        truncation: float | None = None,
        fresh: Fresh = "prior",
        parts: int = 1,
        whole: bool = False,
    ) -> None:
        super().__init__()
        if fresh != "prior" and num_slots == 0:
            raise ValueError("no learned codes to make further ones of")
        self.fresh, self.parts, self.whole = fresh, parts, whole
        self.num_classes, self.num_slots, self.latent_dim, self.seed = num_classes, num_slots, latent_dim, seed
        self.truncation = truncation
        labels = torch.arange(num_classes).repeat_interleave(num_slots)
        slots = torch.arange(num_slots).repeat(num_classes)
        self.learned = nn.Parameter(
            drawn_codes(seed, labels, slots, latent_dim, truncation)
        )  # [classes * slots, latent_dim]

    def forward(
        self, labels: Int64[Tensor, " n"], slots: Int64[Tensor, " n"], seed: int | None = None
    ) -> Float[Tensor, "n latent_dim"]:
        """Latents of (class, slot) pairs; gradients reach the learned ones.

        Args:
            seed: another seed for the slots past the learned ones.
        Raises:
            ValueError: a slot past the learned ones, where there are none.
        """
        drawn_seed = self.seed if seed is None else seed
        if self.num_slots == 0:
            return drawn_codes(drawn_seed, labels, slots, self.latent_dim, self.truncation).to(self.learned)
        is_learned = slots < self.num_slots
        row = labels * self.num_slots + torch.where(is_learned, slots, 0)
        latents = self._rows(self.learned, row)  # also where none is learned: data parallelism wants every parameter
        if bool(is_learned.all()):
            return latents
        if self.fresh == "none":
            raise ValueError(f"there are no codes past the {self.num_slots} learned ones of a class")
        if self.fresh == "mixed":
            drawn = self._mixed(drawn_seed, labels, slots)
        else:
            drawn = drawn_codes(drawn_seed, labels, slots, self.latent_dim, self.truncation).to(latents)
        return torch.where(is_learned[:, None], latents, drawn)

    def _mixed(self, seed: int, labels: Int64[Tensor, " n"], slots: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """With gradient, as the learned ones."""
        uniform = uniform_stream(seed, labels, slots, 3 * self.parts).view(-1, self.parts, 3)
        of_class = self.num_slots * self.parts
        first, second = ((uniform[..., which] * of_class).long().to(labels.device) for which in (0, 1))
        learned = self.learned.view(-1, self.latent_dim // self.parts)
        start = labels[:, None] * of_class
        one, other = self._rows(learned, start + first), self._rows(learned, start + second)
        return torch.lerp(one, other, (uniform[..., 2:] / 2).to(one)).flatten(1)

    def _rows(self, learned: Tensor, rows: Tensor) -> Tensor:
        """Of the codebook, as they are stored."""
        latents = F.embedding(rows, learned)
        return whole_numbers(latents) if self.whole else latents

    @torch.no_grad()
    def settle_(self) -> None:
        """The learned latents become what they stand for, in place: the same images, and whole numbers are stored."""
        if self.whole:
            self.learned.copy_(whole_numbers(self.learned))
