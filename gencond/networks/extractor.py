"""Frozen extractors: images -> features."""

import copy
import logging
import math
import shutil
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.func import functional_call

from gencond.common.errors import InputError
from gencond.common.progress import progress
from gencond.common.ranges import to_signed
from gencond.data.mapped import MappedImages

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPILERS = ("g++", "clang++", "c++", "cl")
# Graphs are kept for each batch size and each architecture; beyond the limit torch falls back to slow code silently.
GRAPHS_KEPT = 64
EMBEDDED_AT_ONCE = 256  # images that are handed to an extractor without gradient
# On a CPU more pixels go through a network in pieces, since their activations leave its caches: forward and back, 64
# images of 28 px at a time take three quarters of the time of 960 at once in bfloat16, half of it in float32. So few
# images are never parted: networks for large ones are slower in smaller batches.
CACHED_PIXELS, NEVER_PARTED = 50_176, 32
# That go through networks without gradient: from so many on, compiling takes less time than it saves (ConvNet-3 of 64
# channels on one thread: half a minute, and a quarter of a millisecond for each image of 32 px).
PIXELS_WORTH_COMPILING = 200_000_000
BATCHES_WORTH_A_BAR = 20
SEVERAL = 5  # times as long; CPUs that compute in bfloat16 take about as long or less, others twenty times


def can_compile() -> bool:
    """Whether `torch.compile` finds what it needs: on a CPU a C++ compiler."""
    return torch.cuda.is_available() or any(shutil.which(name) for name in COMPILERS)


def advice_on_bfloat16(device: torch.device, *, extractors: bool, generator: bool, launch: bool) -> list[str]:
    """What to change where these, or a run as launched, compute in bfloat16 on a CPU that has no arithmetic for it."""
    changes = ["set features.precision=float32"] * extractors + ["set generator.precision=float32"] * generator
    changes += ["start without mixed precision bf16"] * launch
    slow = "this CPU has no bfloat16 arithmetic and is many times slower in it than in float32"
    return [f"{slow}: {change}" for change in changes] if changes and emulates_bfloat16(device) else []


@cache
def emulates_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 take several times as long as in float32 there: many CPUs lack the arithmetic.

    Measured in some hundredths of a second, since no list of CPUs stays complete.
    """
    if device.type != "cpu":
        return False
    convolution, images = nn.Conv2d(32, 32, 3, padding=1), torch.zeros(4, 32, 16, 16)

    @torch.no_grad()
    def fastest(dtype: torch.dtype) -> float:
        own, seconds = copy.deepcopy(convolution).to(dtype), []
        for _ in range(4):
            started = time.perf_counter()
            own(images.to(dtype))
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    return fastest(torch.bfloat16) > SEVERAL * fastest(torch.float32)


class _Features(nn.Module):
    """`features` as a module's forward, which `functional_call` runs with weights from elsewhere."""

    network: Any  # a module with `features`

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


class Embedding:
    """`network.features(images)` for all networks of one architecture, in a given precision, compiled once.

    Compiled code takes a network's weights as inputs: a pool, or nets that are drawn anew every step, share it. On two
    CPU cores compiled bfloat16 passes are about four times as fast as plain float32 ones; neither helps alone.

    Args:
        precision: "float32", or "bfloat16" for convolutions and products, with features in float32 all the same.
        compile: on a CPU it needs a C++ compiler; half a minute for each number of images that go through at once, at
            first. None leaves it to `for_many`.
    Raises:
        InputError: another precision, or no compiler.
    """

    def __init__(self, precision: str = "float32", compile: bool | None = False) -> None:
        if precision not in DTYPES:
            raise InputError(f"unknown precision {precision!r}; known: {', '.join(DTYPES)}")
        if compile and not can_compile():
            raise InputError("features.compile needs a C++ compiler (g++): install one or set features.compile=false")
        self.precision, self.dtype, self.compile = precision, DTYPES[precision], compile
        self._compiled: dict[bool, Callable[[dict[str, Tensor], Tensor], Tensor]] = {}  # by training mode

    def __call__(self, network: nn.Module, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        if not self.compile:
            with self._autocast(images):
                return network.features(images).float()  # pyright: ignore[reportCallIssue]  # networks here have it
        if network.training not in self._compiled:
            self._compiled[network.training] = self._compile(network)
        weights = {f"network.{name}": tensor for name, tensor in network.named_parameters()}
        buffers = {f"network.{name}": tensor for name, tensor in network.named_buffers()}
        return self._compiled[network.training](weights | buffers, images)

    def for_many(self, num_pixels: int, device: torch.device) -> "Embedding":
        """What embeds so many pixels fastest, without gradient: compiled, where that is left open and pays on a CPU.

        Says so in one line where there is no C++ compiler.
        """
        if self.compile is not None or device.type != "cpu" or num_pixels < PIXELS_WORTH_COMPILING:
            return self
        if not can_compile():
            logger.info("extractors: not compiled, since there is no C++ compiler (g++); compiled code is faster")
            return self
        return Embedding(self.precision, compile=True)

    def _autocast(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def _compile(self, network: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        torch._dynamo.config.recompile_limit = max(GRAPHS_KEPT, torch._dynamo.config.recompile_limit)
        skeleton = _Features(copy.deepcopy(network))

        def features(weights: dict[str, Tensor], images: Tensor) -> Tensor:
            with self._autocast(images):
                return functional_call(skeleton, weights, (images,)).float()

        return torch.compile(features, dynamic=False)


def resized(images: Float[Tensor, "n c h w"], size: int | None) -> Float[Tensor, "n c h2 w2"]:
    """Images of side `size`, bilinear, smoothed where they shrink; None leaves them."""
    if size in (None, images.shape[-1]):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


class Extractor(nn.Module):
    """A frozen network that takes images in [-1, 1] and owns their size and normalisation.

    Args:
        network: with `features(images)`, `classifier(features)` and `feature_dim`.
        mean, std: per channel, of the data in [-1, 1].
        resize: side that images are brought to first; None leaves them.
        knows_classes: whether its head was trained, so that `logits` mean something.
        embed: how `features` is computed.
    """

    network: Any  # a module with `features`, `classifier` and `feature_dim`, which torch's own does not declare
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        resize: int | None = None,
        knows_classes: bool = False,
        embed: Embedding | None = None,
    ) -> None:
        super().__init__()
        self.network, self.resize, self.knows_classes = network, resize, knows_classes
        self.embed = embed or Embedding()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.eval().requires_grad_(False)

    @property
    def feature_dim(self) -> int:
        return self.network.feature_dim

    def normalise(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """[-1, 1] -> what the network was trained on."""
        return resized((images - self.mean) / self.std, self.resize)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        images = self.normalise(images)
        num_pieces = -(-len(images) // images_in_caches(images))
        if num_pieces <= 1:
            return self.embed(self.network, images)
        at_once = -(-len(images) // num_pieces)
        # Compiled code is made for one size: the last piece is filled up to it, by fewer images than there are pieces.
        missing = num_pieces * at_once - len(images) if self.embed.compile else 0
        pieces = (torch.cat([images, images[:missing]]) if missing else images).split(at_once)
        return torch.cat([self.embed(self.network, piece) for piece in pieces])[: len(images)]

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """What the network's own head says of its features."""
        return self.network.classifier(features)

    def embedded_by(self, embed: Embedding) -> "Extractor":
        """The same network, and not a copy of it, whose features `embed` computes."""
        other = copy.copy(self)
        other.embed = embed
        return other

    def train(self, mode: bool = True) -> "Extractor":
        """Stays in eval mode: a frozen extractor has no training behaviour."""
        return super().train(False)


def images_in_caches(images: Tensor) -> int:
    """How many of these images go through a network at once: all, or as many as a CPU's caches hold activations of."""
    if images.device.type != "cpu":
        return max(1, len(images))
    return max(NEVER_PARTED, CACHED_PIXELS // max(1, math.prod(images.shape[-2:])))


@torch.no_grad()
def embed_all(
    extractor: Extractor,
    images: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"] | MappedImages,
    at_once: int = EMBEDDED_AT_ONCE,
    *,
    fill_up: bool = True,
    device: torch.device | None = None,
    description: str = "",
) -> Float[Tensor, "n d"]:
    """Features without gradient, some images at a time: memory follows the features, not the activations.

    Args:
        images: in [-1, 1] or uint8, on any device; `at_once` of them are floats where the extractor is.
        at_once: images that are handed to the extractor, which takes them in pieces on a CPU.
        fill_up: whether of more images than `at_once` the last few are filled up to as many, so that compiled code
            meets one size. It can change the last bits of their features.
        device: where the features are kept; None: where the extractor is.
        description: of a progress bar, where there are many batches; empty: none.
    """
    count = -(-len(images) // at_once)
    bar = progress(
        images.split(at_once), description=description, total=count, unit="batch",
        disable=not description or count < BATCHES_WORTH_A_BAR,
    )  # fmt: skip
    features = []
    for some in bar:
        given = len(some)
        if fill_up and count > 1 and given < at_once:
            some = torch.cat([some, images[: at_once - given]])
        own = extractor(to_signed(some).to(extractor.mean.device))[:given]
        features.append(own if device is None else own.to(device))
    return torch.cat(features)


@torch.no_grad()
def judged(
    extractor: Extractor, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """(cross-entropy of each image, whether the network takes it for what it is), on the CPU.

    Args:
        features: of the images, by the extractor.
    """
    logits = extractor.logits(features.to(extractor.mean.device))
    losses = F.cross_entropy(logits, labels.to(logits.device), reduction="none")
    return losses.cpu(), logits.argmax(1).cpu() == labels.cpu()
