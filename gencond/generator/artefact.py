"""What every artefact can do, whatever makes its images: sample at any IPC, datasets, streams, exports."""

import functools
import json
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.files import short_hash, state_fingerprint
from gencond.common.pictures import PICTURED_CLASSES, PICTURED_IMAGES, grid, screen_scale, write_png
from gencond.common.ranges import require_finite, to_uint8
from gencond.common.room import require_disk, require_memory, require_place
from gencond.generator.exporting import FILE_WRITERS, PART_WRITERS, check_export, export_images
from gencond.generator.loading import WEIGHTS_NAME, FiniteModel, arguments_of
from gencond.generator.packing import decode
from gencond.generator.sampling import (
    SampledDataset,
    SampleStream,
    Synthesize,
    block_images,
    sample_class_major,
    threads_for,
)
from gencond.generator.storage import check_storage, from_stored, num_stored_bytes, to_stored
from gencond.generator.streaming import export_in_parts

SMALLEST_PNG = 67  # bytes
BLOCK_BYTES = 200  # of memory that a block of the plan takes
MOST_PNG_SAVES = 50  # times, of images that are not of one colour


class Condensed(FiniteModel, ABC):
    """A diffusers model that maps (class, slot) to an image; slots 0 .. k-1 of each class are the set of IPC k.

    Calling it with (labels, slots, seed=None) gives images in [-1, 1], not yet cut by `factor`, with gradient. An
    artefact may cut each image into factor x factor ones (`packing.decode`): IPC counts the images before.
    """

    stored: str  # what its slots hold, for people

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side in pixels."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """1 grey, 3 colour."""

    @property
    def class_names(self) -> list[str]:
        return list(self.config.class_names)

    @property
    def num_classes(self) -> int:
        return len(self.config.class_names)

    @property
    def class_groups(self) -> list[int]:
        """Numbers of classes that came together; images of a class have the same bits whatever groups come after."""
        return [self.num_classes]

    @property
    def num_slots(self) -> int:
        """Learned slots per class."""
        return self.config.num_slots

    @property
    def largest_ipc(self) -> int | None:
        """Above it there is nothing to sample; None: no limit."""
        return None

    @property
    def images_per_slot(self) -> int:
        return self.config.factor**2

    @property
    def squares(self) -> dict[str, int]:
        """Names of weights whose rows are images of squares, and how many of these lie in a row."""
        return {}

    @property
    def num_bytes(self) -> int:
        """What must be stored to sample from it: the file of weights as it is stored, and the config that reads it.

        The config is counted without the account of how it was made.
        """
        config = {"_class_name": type(self).__name__, **self._told(), "provenance": None}
        return num_stored_bytes(self.state_dict(), self.config.storage, self.squares) + len(
            json.dumps(config, indent=2).encode()
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all that its images depend on: how it lies on disk is no part of that."""
        return short_hash(self._told() | {"provenance": None, "storage": None}, state_fingerprint(self))

    def _told(self) -> dict[str, Any]:
        """What it was called with, as artefacts that were made before there were groups of classes tell it."""
        return {name: value for name, value in arguments_of(self).items() if (name, value) != ("class_groups", None)}

    def bytes_of(self, ipc: int) -> int:
        """What must be stored for `ipc` images of each class: of a generator all of it, of pixels their own."""
        return self.num_bytes

    def stored_as(self, storage: str) -> "Condensed":
        """A copy whose weights are those that come back when it is saved in fewer bits; it samples from these.

        Args:
            storage: `float32`, `float16`, `int8` or `coded`, see `storage.to_stored`.
        Raises:
            InputError: another storage, or values that it cannot hold.
        """
        copy = type(self)(**arguments_of(self) | {"storage": storage})
        copy.load_state_dict(from_stored(to_stored(self.state_dict(), storage, self.squares)))
        return copy.to(self.device).eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str], *positional: Any, **options: Any) -> None:
        """diffusers' own, but for an artefact that is stored in fewer bits, which is one file."""
        if self.config.storage == "float32":
            super().save_pretrained(save_directory, *positional, **options)
            return
        if positional or options:
            option = next(iter(options), "other argument")
            raise InputError(f"an artefact in {self.config.storage} takes no {option} when it is saved")
        self.save_config(save_directory)
        save_file(
            to_stored(self.state_dict(), self.config.storage, self.squares),
            Path(save_directory) / WEIGHTS_NAME,
            metadata={"format": "pt"},
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], output_loading_info: bool = False, **options: Any
    ) -> Any:
        """diffusers' own, but for an artefact that is stored in fewer bits."""
        source = pretrained_model_name_or_path
        of_hub = {name: options[name] for name in ("revision", "token", "cache_dir") if name in options}
        config = cls.load_config(source, **of_hub)
        if config.get("storage", "float32") == "float32":
            return super().from_pretrained(source, output_loading_info=output_loading_info, **options)
        check_storage(config["storage"])
        if unknown := options.keys() - of_hub.keys() - {"use_safetensors"}:
            raise InputError(f"an artefact in {config['storage']} takes no {min(unknown)} when it is loaded")
        condensed = cls.from_config(config)
        local = Path(source) / WEIGHTS_NAME
        file = local if local.is_file() else hf_hub_download(str(source), WEIGHTS_NAME, **of_hub)
        state = from_stored(load_file(file))
        own = condensed.state_dict()
        info = {
            "missing_keys": sorted(own.keys() - state.keys()),
            "unexpected_keys": sorted(state.keys() - own.keys()),
            "mismatched_keys": sorted(
                name for name in own.keys() & state.keys() if own[name].shape != state[name].shape
            ),
        }
        if not any(info.values()):
            require_finite(state)
            condensed.load_state_dict(state)
        return (condensed.eval(), info) if output_loading_info else condensed.eval()

    @torch.no_grad()
    def sample(
        self,
        ipc: SupportsIndex,
        classes: Sequence[SupportsIndex | str] | Tensor | None = None,
        seed: int | None = None,
        device: str | torch.device | None = None,
    ) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """`ipc` images of each class, class-major, in [0, 1], and their class indices.

        Image (class, slot) is the same bits for every `ipc`, `classes` and order: IPC 10 is a prefix of IPC 50. An
        artefact with a `factor` gives factor^2 images for each that is counted, one after the other.

        Args:
            ipc: images per class, at least 1; pixels hold `largest_ipc`, a generator has no limit.
            classes: indices or names, in the order wanted; None for all.
            seed: another seed for the images past the learned codes.
            device: moved there first; None stays where the weights are.
        Raises:
            InputError: `ipc` below 1 or above `largest_ipc`, an unknown class, a seed that is not in 0 .. 2^64 - 1.
        """
        ipc = self._checked_ipc(ipc)
        if isinstance(classes, str) or (classes is not None and len(classes) == 0):
            raise InputError(f"classes must be a list of indices or names with something in it, not {classes!r}")
        if device is not None:
            self.to(device)
        wanted = range(self.num_classes) if classes is None else [self._class_index(one) for one in classes]
        if len(set(wanted)) < len(wanted):
            raise InputError("a class is asked for twice")
        self._require_room(len(wanted) * ipc)
        return sample_class_major(
            self._synthesizer(seed), list(wanted), ipc, self.class_groups, self.image_size, threads_for(self.device)
        )

    def draw(self, file: Path, classes: Sequence[int] | None = None) -> None:
        """Writes a PNG of the first samples, a class a row.

        Args:
            classes: of which the first are drawn; None: of all.
        """
        chosen = list(range(self.num_classes) if classes is None else classes)[:PICTURED_CLASSES]
        images, _ = self.sample(min(PICTURED_IMAGES, self.largest_ipc or PICTURED_IMAGES), chosen)
        rows = to_uint8(images).cpu().unflatten(0, (len(chosen), -1))[:, :PICTURED_IMAGES]
        write_png(file, grid(rows, screen_scale(self.image_size)))

    def as_dataset(
        self, ipc: SupportsIndex, transform: Callable | None = None, seed: int | None = None
    ) -> SampledDataset:
        """The images of `sample(ipc)` as a map-style dataset of (float image in [0, 1], class index)."""
        images, labels = self.sample(ipc, seed=seed)
        return SampledDataset(to_uint8(images).cpu(), labels.cpu(), self.class_names, transform)

    def stream(self, batch_size: int | None = None, seed: int | None = None) -> SampleStream:
        """Endless batches of fresh images, past the learned codes, aware of loader workers and processes.

        Args:
            batch_size: a multiple of `images_per_slot`; None takes the largest up to 128.
        Raises:
            InputError: pixels, which hold all the images there are.
        """
        if self.largest_ipc is not None:
            raise InputError(
                f"this set holds {self.largest_ipc} images of each class and makes no others: use sample()"
            )
        base: int = self.config.seed if seed is None else seed
        batch_size = 128 // self.images_per_slot * self.images_per_slot if batch_size is None else batch_size
        self._require_room(batch_size // self.images_per_slot)
        return SampleStream(
            self._synthesizer(base), self.num_classes, self.num_slots, batch_size, base, self.images_per_slot
        )

    def export(
        self,
        out: str | Path,
        ipc: SupportsIndex,
        format: str = "imagefolder",
        seed: int | None = None,
        rank: int = 0,
        num_processes: int = 1,
    ) -> Path:
        """Writes `ipc` images of each class to `out`, whole or not at all; where they are.

        Folders are written as they are sampled, so they may be of any size: killed at any moment, the same call goes
        on, and ends with the same bytes on however many processes (`streaming`). One file is sampled into memory first.

        Args:
            out: a folder; for npz and ddranking a file, which gets its suffix where that is missing.
            ipc, seed: as in `sample`.
            format: `imagefolder` (<class>/<slot>.png), `webdataset` (tar shards of png + cls, and classes.txt),
                `parquet` (the Hub's image-classification layout, needs pyarrow), `npz` (x_train, y_train, names),
                `ddranking` (a .pt of images, normalised, and labels: what its hard-label scores take as `image_tensor`
                and `hard_labels`). Folder names sort as the classes and file names as the slots: who takes the first k
                files of each class has IPC k. Shards hold the first slots of all classes first.
            rank, num_processes: of processes that were started together, share the work and all make this call; rank 0
                returns last.
        Raises:
            InputError: as `sample`; an unknown format or one that such images do not fit or that is one file and shared
                by processes; `out` exists and is not empty, or beside it lies an unfinished export of something else.
        """
        ipc, seed = self._checked_ipc(ipc), self._checked_seed(seed)
        synthesize = self._synthesizer(seed)
        out = check_export(Path(out), format, self.class_names, self.channels, self.image_size)
        require_place(out.parent)
        count, of_image = ipc * self.num_classes * self.images_per_slot, self.channels * self.image_size**2
        size = count * (of_image if format in FILE_WRITERS else max(SMALLEST_PNG, of_image // MOST_PNG_SAVES))
        require_disk(size, out.parent, f"{count:,} images", "lower ipc")
        require_memory(
            BLOCK_BYTES * count // block_images(self.image_size), f"the plan of {count:,} images", "lower ipc"
        )
        if format in PART_WRITERS:
            origin = {
                "artefact": self.fingerprint, "seed": seed, "device": self.device.type, "torch": torch.__version__,
            }  # fmt: skip
            export_in_parts(
                synthesize, self.class_names, self.class_groups, out, format, ipc, self.image_size,
                self.images_per_slot, origin, threads_for(self.device), rank, num_processes,
            )  # fmt: skip
            return out
        if num_processes > 1:
            raise InputError(f"format {format} is one file, which one process writes: start one, or choose a folder")
        images, labels = self.sample(ipc, seed=seed)
        return export_images(to_uint8(images), labels, self.class_names, out, format)

    def _require_room(self, num_slots: int) -> None:
        """Raises InputError where the images of so many slots are more than memory holds."""
        count = num_slots * self.images_per_slot
        require_memory(
            4 * count * self.channels * self.image_size**2, f"{count:,} images at once",
            "ask for fewer; export() to a folder writes any number",
        )  # fmt: skip

    def _checked_ipc(self, ipc: SupportsIndex) -> int:
        if isinstance(ipc, bool) or not hasattr(ipc, "__index__") or operator.index(ipc) < 1:
            raise InputError(f"ipc (images per class) must be a whole number of at least 1, not {ipc!r}")
        if self.largest_ipc is not None and operator.index(ipc) > self.largest_ipc:
            raise InputError(
                f"this set holds {self.largest_ipc} images of each class: IPC {ipc} is more than there are"
            )
        return operator.index(ipc)

    def _checked_seed(self, seed: SupportsIndex | None) -> int | None:
        if seed is not None and not (hasattr(seed, "__index__") and 0 <= operator.index(seed) < 2**64):
            raise InputError(f"seed must be in 0 .. 2^64 - 1, not {seed}")
        return None if seed is None else operator.index(seed)

    def _class_index(self, one: SupportsIndex | str) -> int:
        if isinstance(one, str):
            if one in self.config.class_names:
                return self.class_names.index(one)
        elif hasattr(one, "__index__") and 0 <= operator.index(one) < self.num_classes:
            return operator.index(one)
        raise InputError(f"no class {one!r} among the {self.num_classes} of this dataset")

    def _synthesizer(self, seed: int | None) -> Synthesize:
        """(labels, slots) -> images as they are sampled, without gradient; it pickles, as loader workers need it."""
        return functools.partial(self._for_sampling()._images_of, seed=self._checked_seed(seed))

    def _for_sampling(self) -> "Condensed":
        """This model as it is sampled; never one that training would find changed."""
        return self

    @torch.no_grad()
    def _images_of(self, labels: Tensor, slots: Tensor, seed: int | None) -> Tensor:
        self.eval()
        if self.largest_ipc is not None:  # blocks of slots are longer; what is past its end is never looked at
            slots = slots.clamp_max(self.largest_ipc - 1)
        return decode(self(labels.to(self.device), slots.to(self.device), seed), self.config.factor)
