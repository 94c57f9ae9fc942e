"""The artefact: a condensed dataset is a folder of weights from which any number of images per class is sampled."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int64
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.files import read_json
from gencond.generator.artefact import Condensed
from gencond.generator.backbone import Backbone, own_truncation
from gencond.generator.biggan import BigGANGenerator
from gencond.generator.biggan_deep import BigGANDeepGenerator
from gencond.generator.codes import Codes, Fresh
from gencond.generator.loading import WEIGHTS_NAME, arguments_of, hub_file, hub_place, read_model
from gencond.generator.packing import cut, tile
from gencond.generator.pixels import CondensedPixels
from gencond.generator.transform import TransformGenerator

ARTEFACT_FOLDER = "condensed"
# Go through a generator at once where it learns on a CPU: 1920 parts of 16 px then take less than half of the time that
# they take all at once, those of 8 px nine tenths of it.
LEARNED_PIXELS = 24_576

BACKBONES: dict[str, type[Backbone]] = {
    kind.__name__: kind for kind in (BigGANGenerator, BigGANDeepGenerator, TransformGenerator)
}


def backbone_config(generator: Backbone) -> dict[str, Any]:
    """What makes an equal backbone with other weights: its arguments and, as `_class_name`, its class."""
    return {"_class_name": type(generator).__name__, **arguments_of(generator)}


def new_backbone(config: Mapping[str, Any]) -> Backbone:
    """A backbone with random weights; a config without `_class_name` is a `BigGANGenerator`'s.

    Raises:
        InputError: no backbone of that name.
        ValueError: sizes that do not divide.
    """
    arguments = dict(config)
    name = arguments.pop("_class_name", BigGANGenerator.__name__)
    if name not in BACKBONES:
        raise InputError(f"generator_config names {name!r}, which is no backbone: known are {', '.join(BACKBONES)}")
    return BACKBONES[name](**arguments)


class CondensedDataset(Condensed):
    """A conditional generator with its codebook: (class, slot) -> image.

    Args:
        class_names: class i of the labels is `class_names[i]`.
        generator_config: of its backbone, see `new_backbone`.
        num_slots: learned codes per class.
        seed: of the stream that every further code is drawn from.
        factor: every image is cut into factor x factor (`packing.decode`).
        provenance: what was condensed by what: recipe, data fingerprint, commit, versions.
        storage: how its weights are saved; see `stored_as`, which rounds them.
        truncation: in (0, 1], of the codes drawn (`codes.drawn_codes`); None: the backbone's own, standard normal where
            it has none.
        by_parts: the generator makes the factor x factor parts of an image, each from its own part of the code, not the
            image as a whole.
        fresh: what slots past the learned ones are made from: `prior`, latents as the backbone knows them; `mixed`,
            points between learned codes (`codes.Codes`); `none`: there are none.
        class_groups: numbers of classes that were appended together, in order; None: all classes came at once.
    Raises:
        InputError: an unknown backbone, a truncation out of range, groups that are not all of the classes.
        ValueError: nothing learned that could be mixed, or nothing at all.
    """

    stored = "learned codes"
    _supports_gradient_checkpointing = True
    learns_in = torch.float32  # what the generator's products are computed in while it learns; samples are in float32

    @register_to_config
    def __init__(
        self,
        class_names: Sequence[str],
        generator_config: Mapping[str, Any],
        num_slots: int = 0,
        seed: int = 0,
        factor: int = 1,
        provenance: Mapping[str, Any] | None = None,
        storage: str = "float32",
        truncation: float | None = None,
        by_parts: bool = False,
        fresh: Fresh = "prior",
        class_groups: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if class_groups is not None and (min(class_groups, default=0) < 1 or sum(class_groups) != len(class_names)):
            raise InputError(f"class_groups {list(class_groups)} are not the {len(class_names)} classes")
        self.generator = new_backbone(generator_config)
        truncation = own_truncation(self.generator, truncation)
        self.parts = self.parts_in_a_row**2  # that the generator makes of one image
        code_dim = self.parts * self.generator.config.latent_dim
        self.codes = Codes(
            len(class_names), num_slots, code_dim, seed, truncation, fresh=fresh, parts=self.parts,
            whole=self.generator.whole_latents,
        )  # fmt: skip

    @property
    def class_groups(self) -> list[int]:
        return list(self.config.class_groups or [self.num_classes])

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.generator.config.sample_size * self.parts_in_a_row

    @property
    def largest_ipc(self) -> int | None:
        return self.num_slots if self.config.fresh == "none" else None

    @property
    def parts_in_a_row(self) -> int:
        """Of an image; 1 where the parts that it is cut into are made together."""
        return self.config.factor if self.config.by_parts else 1

    @property
    def squares(self) -> dict[str, int]:
        in_a_row = self.generator.squares_in_a_row
        return {"codes.learned": in_a_row} if in_a_row > 1 else {}

    @property
    def channels(self) -> int:
        return self.generator.config.out_channels

    def forward(
        self, labels: Int64[Tensor, " n"], slots: Int64[Tensor, " n"], seed: int | None = None
    ) -> Float[Tensor, "n c h w"]:
        codes = self.codes(labels, slots, seed)
        if self.parts == 1:
            return self._made(codes, labels)
        made = self._made(codes.view(len(codes) * self.parts, -1), labels.repeat_interleave(self.parts))
        return tile(made.unflatten(0, (-1, self.parts)), self.config.factor)

    def _made(self, latents: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n c s s"]:
        """What the generator makes. Where it learns, in `learns_in`, and on a CPU so many at a time as leave their
        activations in its caches; sampled images come in blocks of their own, whose bits are promised.
        """
        if not torch.is_grad_enabled():
            return self.generator(latents, labels)
        at_once, device = len(labels), latents.device.type
        if device == "cpu" and not self.generator.training:  # whose batch norms would see other batches
            at_once = max(1, LEARNED_PIXELS // self.generator.config.sample_size**2)
        # No autocast at all for float32: one that is switched off would switch off that of accelerate launch too.
        with nullcontext() if self.learns_in is torch.float32 else torch.autocast(device, self.learns_in):
            pieces = zip(latents.split(at_once), labels.split(at_once), strict=True)
            return torch.cat([self.generator(*piece) for piece in pieces]).float()

    def cut(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "m c h2 w2"]:
        """The squares of images that the pieces of their codes stand for, in the order of the pieces."""
        for in_a_row in (self.parts_in_a_row, self.generator.squares_in_a_row):
            images = cut(images, in_a_row).flatten(0, 1)
        return images

    def _for_sampling(self) -> "CondensedDataset":
        """A copy that convolves channels-last, twice as fast on a CPU; by rounding, others than training's bits."""
        return copy.deepcopy(self).to(memory_format=torch.channels_last)


KINDS: dict[str, type[Condensed]] = {kind.__name__: kind for kind in (CondensedDataset, CondensedPixels)}


def load(name_or_path: str | Path, device: str | torch.device | None = None) -> Condensed:
    """A condensed dataset from a run folder, an artefact folder or a Hub id, in eval mode.

    A Hub id is "owner/name" or "owner/name@revision", a branch, a tag or a commit. What was loaded once stays in the
    Hub's cache (`HF_HOME`) and is loaded from there without a network; only a commit is then known to be the newest.

    A `CondensedDataset` (a generator) or `CondensedPixels`; both sample, stream and export alike.

    Raises:
        InputError: no such folder, not an artefact, a broken or incomplete one, a Hub that cannot be reached.
    """
    path = Path(name_or_path)
    kind: type[Condensed] = CondensedDataset
    if path.is_dir():
        folder = artefact_folder(path)
        kind = _require_artefact(folder)
        source = str(folder)
    elif not path.exists() and not path.parent.is_dir() and hub_place(str(name_or_path)):
        source = str(name_or_path)
        kind = KINDS.get(_name_on_hub(source), CondensedDataset)
    else:
        raise InputError(
            f"no folder {name_or_path}: expected a run folder, an artefact folder or a Hub id (owner/name[@revision])"
        )
    condensed = read_model(kind, source, "a condensed dataset")
    return condensed.to(device) if device is not None else condensed


def artefact_folder(path: Path) -> Path:
    """Where an artefact lies: in a folder of a run, or in the folder itself."""
    return path / ARTEFACT_FOLDER if (path / ARTEFACT_FOLDER).is_dir() else path


def _name_on_hub(source: str) -> str:
    """The class that a Hub model's config names; empty where it cannot be read, which reading the model will tell."""
    try:
        hub_id, revision = hub_place(source) or (source, None)
        return str(read_json(hub_file(hub_id, "config.json", revision)).get("_class_name", ""))
    except Exception:  # whatever can go wrong with a Hub
        return ""


def _require_artefact(folder: Path) -> type[Condensed]:
    """What kind of artefact a folder holds. Raises InputError where it is none, or not whole."""
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{folder} is no condensed dataset: it has no config.json")
    content = read_json(config)
    name = content.get("_class_name")
    if name not in KINDS:
        raise InputError(f"{config} describes {name!r}, not a {' or '.join(KINDS)}")
    is_generator = KINDS[name] is CondensedDataset
    own = {"generator_config"} if is_generator else {"image_size", "channels"}
    missing = {"class_names", "num_slots"} | own
    missing -= content.keys()
    if missing:
        raise InputError(f"{config} lacks {', '.join(sorted(missing))}: restore the file")
    names, made = content["class_names"], content.get("provenance")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(f"{config}: class_names must be a list of different names")
    if is_generator:
        generator = content["generator_config"]
        if not isinstance(generator, dict) or generator.get("num_class_embeds") != len(names):
            raise InputError(f"{config}: generator_config must be one of {len(names)} classes")
    if not isinstance(made, dict | None):
        raise InputError(f"{config}: provenance must be an object")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no weights: {WEIGHTS_NAME} is missing")
    return KINDS[name]
