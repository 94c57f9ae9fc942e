"""The artefact: a condensed dataset is a folder of weights from which any number of images per class is sampled."""

import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int64
from torch import Tensor

from gencond.errors import InputError
from gencond.files import read_json
from gencond.generator.biggan import BigGANGenerator
from gencond.generator.codes import Codes
from gencond.generator.loading import read_model
from gencond.generator.sampling import (
    SampledDataset,
    SampleStream,
    Synthesize,
    check_export,
    export_images,
    sample_class_major,
)
from gencond.ranges import to_uint8

ARTEFACT_FOLDER = "condensed"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


class CondensedDataset(ModelMixin, ConfigMixin):
    """A conditional generator with its codebook: (class, slot) -> image.

    Args:
        class_names: class i of the labels is `class_names[i]`.
        generator_config: that of its `BigGANGenerator`.
        num_slots: learned codes per class.
        seed: of the stream that every further code is drawn from.
        provenance: what was condensed by what: recipe, data fingerprint, commit, versions.
    """

    @register_to_config
    def __init__(
        self,
        class_names: Sequence[str],
        generator_config: Mapping[str, Any],
        num_slots: int = 0,
        seed: int = 0,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.generator = BigGANGenerator(**generator_config)
        self.codes = Codes(len(class_names), num_slots, self.generator.config.latent_dim, seed)

    @property
    def class_names(self) -> list[str]:
        return list(self.config.class_names)

    @property
    def num_classes(self) -> int:
        return len(self.config.class_names)

    @property
    def num_slots(self) -> int:
        """Learned codes per class. IPC up to it is sampled from them alone."""
        return self.config.num_slots

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.generator.config.sample_size

    @property
    def channels(self) -> int:
        return self.generator.config.out_channels

    @property
    def num_bytes(self) -> int:
        """What must be stored to sample from it: weights, statistics and codes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    def forward(
        self, labels: Int64[Tensor, " n"], slots: Int64[Tensor, " n"], seed: int | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Images in [-1, 1] of (class, slot) pairs, with gradient."""
        return self.generator(self.codes(labels, slots, seed), labels)

    @torch.no_grad()
    def sample(
        self,
        ipc: SupportsIndex,
        classes: Sequence[SupportsIndex | str] | Tensor | None = None,
        seed: int | None = None,
        device: str | torch.device | None = None,
    ) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """`ipc` images of each class, class-major, in [0, 1], and their class indices.

        Image (class, slot) is the same bits for every `ipc`, `classes` and order: IPC 10 is a prefix of IPC 50.

        Args:
            ipc: images per class, at least 1, without upper limit.
            classes: indices or names, in the order wanted; None for all.
            seed: another seed for the images past the learned codes.
            device: moved there first; None stays where the weights are.
        Raises:
            InputError: `ipc` below 1, an unknown class, a seed that is not in 0 .. 2^64 - 1.
        """
        if isinstance(ipc, bool) or not hasattr(ipc, "__index__") or operator.index(ipc) < 1:
            raise InputError(f"ipc (images per class) must be a whole number of at least 1, not {ipc!r}")
        if isinstance(classes, str) or (classes is not None and len(classes) == 0):
            raise InputError(f"classes must be a list of indices or names with something in it, not {classes!r}")
        if device is not None:
            self.to(device)
        wanted = range(self.num_classes) if classes is None else [self._class_index(one) for one in classes]
        if len(set(wanted)) < len(wanted):
            raise InputError("a class is asked for twice")
        synthesize, ipc = self._synthesizer(seed), operator.index(ipc)
        return sample_class_major(synthesize, list(wanted), ipc, self.num_classes, self.image_size)

    def as_dataset(
        self, ipc: SupportsIndex, transform: Callable | None = None, seed: int | None = None
    ) -> SampledDataset:
        """The images of `sample(ipc)` as a map-style dataset of (float image in [0, 1], class index)."""
        images, labels = self.sample(ipc, seed=seed)
        return SampledDataset(to_uint8(images).cpu(), labels.cpu(), self.class_names, transform)

    def stream(self, batch_size: int = 128, seed: int | None = None) -> SampleStream:
        """Endless batches of fresh images, past the learned codes, aware of loader workers and processes."""
        seed = self.config.seed if seed is None else seed
        return SampleStream(self._synthesizer(seed), self.num_classes, self.num_slots, batch_size, seed)

    def export(self, out: str | Path, ipc: int, format: str = "imagefolder", seed: int | None = None) -> None:
        """Writes `ipc` images of each class to `out`; see `sampling.export_images` for the formats.

        Raises:
            InputError: `ipc` below 1, an unknown format, or `out` exists and is not empty.
        """
        check_export(Path(out), format)
        images, labels = self.sample(ipc, seed=seed)
        export_images(to_uint8(images), labels, self.class_names, Path(out), format)

    def _class_index(self, one: SupportsIndex | str) -> int:
        if isinstance(one, str) and one in self.config.class_names:
            return self.class_names.index(one)
        if hasattr(one, "__index__") and 0 <= operator.index(one) < self.num_classes:
            return operator.index(one)
        raise InputError(f"no class {one!r} among the {self.num_classes} of this dataset")

    def _synthesizer(self, seed: int | None) -> Synthesize:
        """(labels, slots) -> images, without gradient; it pickles, as loader workers need it."""
        if seed is not None and not 0 <= seed < 2**64:
            raise InputError(f"seed must be in 0 .. 2^64 - 1, not {seed}")
        return functools.partial(self._images_of, seed=seed)

    @torch.no_grad()
    def _images_of(self, labels: Tensor, slots: Tensor, seed: int | None) -> Tensor:
        self.eval()
        return self(labels.to(self.device), slots.to(self.device), seed)


def load(name_or_path: str | Path, device: str | torch.device | None = None) -> CondensedDataset:
    """A condensed dataset from a run folder, an artefact folder or a Hub id ("owner/name"), in eval mode.

    Raises:
        InputError: no such folder, not an artefact, a broken or incomplete one, a Hub that cannot be reached.
    """
    path = Path(name_or_path)
    if path.is_dir():
        folder = path / ARTEFACT_FOLDER if (path / ARTEFACT_FOLDER).is_dir() else path
        _require_artefact(folder)
        source = str(folder)
    elif not path.exists() and not path.parent.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)):
        source = str(name_or_path)
    else:
        raise InputError(
            f"no folder {name_or_path}: expected a run folder, an artefact folder or a Hub id (owner/name)"
        )
    condensed = read_model(CondensedDataset, source, "a condensed dataset")
    return condensed.to(device) if device is not None else condensed


def _require_artefact(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{folder} is no condensed dataset: it has no config.json")
    content = read_json(config)
    kind = content.get("_class_name")
    if kind != CondensedDataset.__name__:
        raise InputError(f"{config} describes {kind!r}, not a {CondensedDataset.__name__}")
    missing = {"class_names", "generator_config", "num_slots"} - content.keys()
    if missing:
        raise InputError(f"{config} lacks {', '.join(sorted(missing))}: restore the file")
    names, generator, made = content["class_names"], content["generator_config"], content.get("provenance")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(f"{config}: class_names must be a list of different names")
    if not isinstance(generator, dict) or generator.get("num_class_embeds") != len(names):
        raise InputError(f"{config}: generator_config must be one of {len(names)} classes")
    if not isinstance(made, dict | None):
        raise InputError(f"{config}: provenance must be an object")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no weights: {WEIGHTS_NAME} is missing")
