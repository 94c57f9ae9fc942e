"""Published BigGAN weights -> our backbones.

Five layouts of the same two networks are read: HuggingFace's BigGAN-deep; BigGAN and BigGAN-deep as BigGAN-PyTorch
writes them; both as StudioGAN does. Of each, spectral norm is folded into the weights, one row of batch-norm
statistics is kept, and the condition becomes [class embedding, latent]. The configuration is read off the shapes.
Files are safetensors, or read with `weights_only=True`: none can run code.
"""

import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn, TypeVar, cast
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor

from gencond.common.errors import InputError, first_line
from gencond.common.files import cache_dir, file_sha256, read_json, read_state_dict, short_hash, written_whole
from gencond.generator.backbone import Backbone, check_truncation
from gencond.generator.biggan import BigGANGenerator
from gencond.generator.biggan_deep import BLOCKS_PER_STAGE, BigGANDeepGenerator
from gencond.generator.loading import HUB_ID, WEIGHTS_NAME, hub_file, read_model

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=Backbone)
LOADERS = {BigGANGenerator.__name__: "load_biggan", BigGANDeepGenerator.__name__: "load_biggan_deep"}
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
BOTTOM = 4  # side of the first feature map, in every published BigGAN


class PublishedFile(NamedTuple):
    """Where weights lie, how many bytes their tensors take (a file has some more), and what they hash to if known."""

    url: str
    tensor_bytes: int
    sha256: str | None


HUB_FILE = rf"{HUB_ID}(/[\w./=-]+)?"
_S3 = "https://s3.amazonaws.com/models.huggingface.co/biggan/biggan-deep-{}-pytorch_model.bin"
IMAGENET1K = {
    128: PublishedFile(_S3.format(128), 210_749_700, None),
    256: PublishedFile(
        _S3.format(256), 234_292_740, "5900ef4065047e3aa0d1b66197b7f2664dceb59b27080e414ad57e203c485bc5"
    ),
    512: PublishedFile(_S3.format(512), 235_635_460, None),
}


# --- what users call -----------------------------------------------------------------------------------------------


def load_imagenet1k(resolution: int, truncation: float = 1.0, sha256: str | None = None) -> BigGANDeepGenerator:
    """DeepMind's BigGAN-deep for the 1000 classes of ImageNet, as HuggingFace converted and keeps it.

    Only the file of 256 px has a published hash. Of the others the size and every shape are checked, and the hash is
    logged so that later downloads can be held to it.

    Args:
        resolution: 128, 256 or 512 px.
        truncation, sha256: see `load_biggan_deep`.
    Raises:
        InputError: another resolution, or as `load_biggan_deep`.
    """
    if resolution not in IMAGENET1K:
        raise InputError(f"ImageNet weights of BigGAN-deep have 128, 256 or 512 px, not {resolution}")
    file = IMAGENET1K[resolution]
    expected = sha256 or file.sha256
    path = _download(file.url, expected, file.tensor_bytes)
    if expected is None:
        logger.warning(
            "no hash of %s is published; what was read has sha256 %s: give it as sha256= from now on",
            file.url,
            file_sha256(path),
        )
    return load_biggan_deep(path, truncation)


def load_biggan_deep(source: str | Path, truncation: float = 1.0, sha256: str | None = None) -> BigGANDeepGenerator:
    """A pretrained BigGAN-deep, in eval mode on the CPU.

    Of HuggingFace's files, which keep statistics for truncations 0, .02, ..., 1, the row round(50 truncation) is taken
    (their own code interpolates between rows with the two weights swapped, and by rounding is a row off at .58 and
    .94). The other layouts keep one row, of standard normal latents.

    Args:
        source: a file, a folder with one file of weights or one that `save_pretrained` wrote, a URL (kept in
            `$GENCOND_CACHE`), or a Hub id: `owner/name` or `owner/name/path/in/it.pth`.
        truncation: t in (0, 1] of the latents t * truncated normal(-2, 2) that images are made from; 1 or what was
            saved where the file has no choice.
        sha256: of the file, hex, all 64 digits or the first 8 and more; None checks no hash.
    Returns:
        A generator whose config holds all sizes, and the truncation.
    Raises:
        InputError: no such source, a file that is damaged, of another hash or layout, or not only tensors.
    Source: Brock et al., 1809.11096, appendix B; HuggingFace's conversion of TF Hub's `deepmind/biggan-deep`.
    """
    check_truncation(truncation)
    generator = _load(BigGANDeepGenerator, source, sha256, truncation)
    own = generator.config.truncation
    if truncation != 1 and truncation != own:
        has = "standard normal latents" if own is None else f"truncation {own}"
        raise InputError(f"{source} has statistics of {has} only, not of truncation {truncation}")
    return generator


def load_biggan(source: str | Path, sha256: str | None = None) -> BigGANGenerator:
    """A pretrained BigGAN, in eval mode on the CPU: BigGAN-PyTorch's `G_ema.pth` or StudioGAN's checkpoints.

    Latents are standard normal; what StudioGAN calls truncation cuts them at t instead of scaling them. Files without
    shared class embedding (BigGAN-PyTorch's CIFAR setting) get an identity table, which makes their gains of each class
    linear in it.

    Args:
        source, sha256: see `load_biggan_deep`.
    Raises:
        InputError: as `load_biggan_deep`.
    Source: Brock et al., 1809.11096.
    """
    return _load(BigGANGenerator, source, sha256, truncation=1.0)


def _load(kind: type[Kind], source: str | Path, sha256: str | None, truncation: float) -> Kind:
    path = _fetch(source, sha256)
    neighbour = path.parent / "config.json"
    described = read_json(neighbour) if neighbour.is_file() else {}
    if described.get("_class_name") in LOADERS and path.name == WEIGHTS_NAME:
        _require_kind(kind, described["_class_name"], source)
        return read_model(kind, path.parent, f"a {kind.__name__}")
    entries = read_entries(path, source)
    try:
        made = converted(entries, str(source), truncation, described)
    except InputError:
        raise  # it says already what is wrong
    except Exception as error:  # whatever tensors of other shapes, or a config.json of other words, can break
        raise InputError(f"{source} looks like a BigGAN, but its sizes fit none: {first_line(error)}") from error
    _require_kind(kind, type(made).__name__, source)
    for name, tensor in made.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{source} is damaged: {name} is not finite")
    return cast("Kind", made.eval())  # `_require_kind` has looked at its class


def _require_kind(kind: type[Backbone], found: str, source: str | Path) -> None:
    if found != kind.__name__:
        raise InputError(f"{source} holds a {found}, not a {kind.__name__}: use {LOADERS[found]}")


# --- from a source to a file ---------------------------------------------------------------------------------------


def _fetch(source: str | Path, sha256: str | None) -> Path:
    """A local file of weights. Raises InputError where there is none, or not the one asked for."""
    if re.match(r"(https?|file)://", str(source)):
        return _download(str(source), sha256)
    path = Path(source).expanduser()
    if not path.exists() and not path.parent.is_dir() and re.fullmatch(HUB_FILE, str(source)):
        path = _from_hub(str(source))
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        if len(files) != 1:
            listed = ", ".join(file.name for file in files) or "none"
            raise InputError(f"{source} must hold one file of weights ({' '.join(WEIGHT_SUFFIXES)}), and has {listed}")
        path = files[0]
    if not path.is_file():
        raise InputError(f"no weights at {source}: expected a file, a folder, a URL or a Hub id (owner/name)")
    _require_hash(path, sha256, source)
    return path


def _from_hub(name: str) -> Path:
    """A file of a Hub repository, or the folder with all that can be weights."""
    from huggingface_hub import snapshot_download

    owner, repository, *inside = name.split("/")
    try:
        if inside:
            return hub_file(f"{owner}/{repository}", "/".join(inside))
        patterns = ["config.json", *(f"*{suffix}" for suffix in WEIGHT_SUFFIXES)]
        return Path(snapshot_download(f"{owner}/{repository}", allow_patterns=patterns))
    except Exception as error:  # the Hub raises many kinds; all mean the same here
        raise InputError(f"{name} is no file, and not read from the Hub: {first_line(error)}") from None


def kept_file(url: str) -> Path:
    """Where the cache keeps what is downloaded from `url`."""
    return cache_dir() / "weights" / f"{short_hash(url)}-{PurePosixPath(urlsplit(url).path).name}"


def _download(url: str, sha256: str | None, at_least: int = 0) -> Path:
    """The cache's copy of `url`, downloaded where there is none of that hash; kept only if it can be read."""
    kept = kept_file(url)
    if kept.is_file() and (sha256 is None or _has_hash(kept, sha256)):
        return kept
    try:
        with written_whole(kept) as temporary:
            torch.hub.download_url_to_file(url, str(temporary), progress=sys.stderr.isatty())
            if temporary.stat().st_size < at_least:
                raise InputError(
                    f"{url} gave {temporary.stat().st_size:,} bytes, and the published weights take {at_least:,}: the "
                    "download broke off or the file is another one"
                )
            _require_hash(temporary, sha256, url)
            read_entries(temporary, url)
    except InputError:
        raise  # it says already what is wrong
    except (OSError, ValueError, HTTPException) as error:  # no such host, refused, unknown file, a full disk
        raise InputError(
            f"{url} cannot be downloaded ({first_line(error)}): download it elsewhere and give the file's path"
        ) from None
    return kept


def _has_hash(path: Path, sha256: str) -> bool:
    return len(sha256) >= 8 and file_sha256(path).startswith(sha256.lower())


def _require_hash(path: Path, sha256: str | None, source: str | Path) -> None:
    if sha256 is not None and not _has_hash(path, sha256):
        raise InputError(
            f"{source} has sha256 {file_sha256(path)}, expected {sha256}: the file is damaged or another one"
        )


# --- from a file to tensors ----------------------------------------------------------------------------------------


def read_entries(path: Path, source: str | Path) -> dict[str, Tensor]:
    """`files.read_state_dict`, in float32 where it is of another float. Raises InputError as that does."""
    entries = read_state_dict(path, source)
    return {name: value.float() if value.is_floating_point() else value for name, value in entries.items()}


# --- from published names to ours ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What a published implementation calls the parts of a network.

    Args:
        name: for people.
        kind: our class for the network.
        block, attention: prefixes, {} being the place in their list of blocks.
        modules: our name of a module -> theirs, where they differ.
        leaves: our name of a tensor in its module -> theirs; after `out_norm.` only for that of the last norm.
        norm_eps: of the batch norms.
    """

    name: str
    kind: type[Backbone]
    block: str
    attention: str
    modules: Mapping[str, str]
    leaves: Mapping[str, str]
    norm_eps: float

    def theirs(self, module: str, place: int | None = None) -> str:
        """Their name of one of our modules: `out_conv`, `blocks.norm1.gain` and `attention.query` at a place."""
        top, *inner = module.split(".")
        prefixes = {"blocks": self.block.format(place), "attention": self.attention.format(place)}
        names = [prefixes.get(top, self.modules.get(top, top)), *(self.modules.get(part, part) for part in inner)]
        return ".".join(names)


def _numbered(ours: str, theirs: str, first: int) -> dict[str, str]:
    return {f"{ours}{number}": f"{theirs}{first + number - 1}" for number in range(1, 5)}


_HUGGINGFACE_DEEP = Layout(
    name="HuggingFace's BigGAN-deep",
    kind=BigGANDeepGenerator,
    block="generator.layers.{}",
    attention="generator.layers.{}",
    modules={
        "class_embedding": "embeddings", "linear": "generator.gen_z", "gain": "scale", "bias": "offset",
        "out_norm": "generator.bn", "out_conv": "generator.conv_to_rgb", "query": "snconv1x1_theta",
        "key": "snconv1x1_phi", "value": "snconv1x1_g", "out": "snconv1x1_o_conv",
        **_numbered("norm", "bn_", 0), **_numbered("conv", "conv_", 0),
    },
    leaves={"running_mean": "running_means", "running_var": "running_vars"},
    norm_eps=1e-4,
)  # fmt: skip
_BIGGAN_PYTORCH = Layout(
    name="BigGAN-PyTorch's BigGAN",
    kind=BigGANGenerator,
    block="blocks.{}.0",
    attention="blocks.{}.1",
    modules={
        "class_embedding": "shared", "out_norm": "output_layer.0", "out_conv": "output_layer.2", "skip": "conv_sc",
        "query": "theta", "key": "phi", "value": "g", "out": "o", **_numbered("norm", "bn", 1),
    },
    leaves={"running_mean": "stored_mean", "running_var": "stored_var", "out_norm.weight": "gain"},
    norm_eps=1e-5,
)  # fmt: skip
_STUDIOGAN = Layout(
    name="StudioGAN's BigGAN",
    kind=BigGANGenerator,
    block="blocks.{}.0",
    attention="blocks.{}.0",
    modules={
        "class_embedding": "shared", "linear": "linear0", "out_norm": "bn4", "out_conv": "conv2d5", "skip": "conv2d0",
        "query": "conv1x1_theta", "key": "conv1x1_phi", "value": "conv1x1_g", "out": "conv1x1_attn",
        **_numbered("norm", "bn", 1), **_numbered("conv", "conv2d", 1),
    },
    leaves={
        "running_mean": "bn.running_mean", "running_var": "bn.running_var", "gamma": "sigma",
        "out_norm.running_mean": "running_mean", "out_norm.running_var": "running_var",
    },
    norm_eps=1e-4,
)  # fmt: skip
LAYOUTS = (
    _HUGGINGFACE_DEEP,
    replace(_BIGGAN_PYTORCH, name="BigGAN-PyTorch's BigGAN-deep", kind=BigGANDeepGenerator),
    replace(_STUDIOGAN, name="StudioGAN's BigGAN-deep", kind=BigGANDeepGenerator),
    _BIGGAN_PYTORCH,
    _STUDIOGAN,
)


class _Entries:
    """A state dict that is used up, entry by entry, so that what is missing and what is left over can be named."""

    def __init__(self, entries: Mapping[str, Tensor], source: str) -> None:
        self.left, self.source, self.layout = dict(entries), source, "a BigGAN"  # until its layout is known

    def fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self.source} looks like {self.layout}, but {problem}")

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            self.fail(f"{name} is missing")
        return self.left.pop(name)

    def raw(self, module: str) -> Tensor | None:
        """A module's weight as it is stored, left where it is."""
        return self.left.get(f"{module}.weight_orig", self.left.get(f"{module}.weight"))

    def shape(self, module: str) -> torch.Size:
        weight = self.raw(module)
        if weight is None:
            self.fail(f"{module}.weight is missing")
        return weight.shape

    def weight(self, module: str) -> Tensor:
        """A weight divided by its spectral norm, if it has one, as the published forward computes it in eval mode.

        sigma = u W v^T, with u and v as PyTorch's hook stores them; BigGAN-PyTorch stores u0 alone, from which
        v = u0 W and u = W v follow, each brought to length 1 (`sv0` is a log of some earlier sigma).
        """
        if f"{module}.weight_orig" in self.left:
            weight = self.take(f"{module}.weight_orig")
            u, v = self.take(f"{module}.weight_u"), self.take(f"{module}.weight_v")
            matrix = weight.flatten(1)
            if (len(u), len(v)) != tuple(matrix.shape):
                self.fail(f"{module}.weight_u and weight_v do not fit its weight")
            return weight / torch.dot(u, matrix @ v)
        weight = self.take(f"{module}.weight")
        if f"{module}.u0" not in self.left:
            return weight
        start, matrix = self.take(f"{module}.u0"), weight.flatten(1)
        self.left.pop(f"{module}.sv0", None)
        if tuple(start.shape) != (1, len(matrix)):
            self.fail(f"{module}.u0 does not fit its weight")
        v = F.normalize(start @ matrix)
        u = F.normalize(v @ matrix.T)
        return weight / (v @ matrix.T @ u.T).squeeze()


def converted(entries: Mapping[str, Tensor], source: str, truncation: float, described: Mapping[str, Any]) -> Backbone:
    """A backbone with the weights of a published state dict.

    Args:
        entries: name -> tensor.
        source: what messages call it.
        truncation: which row of statistics, where there are several.
        described: HuggingFace's `config.json`, which must agree; empty where there is none.
    Raises:
        InputError: a layout that is not known, or not whole.
    """
    file = _Entries(entries, source)
    layout = next((layout for layout in LAYOUTS if _fits(file, layout)), None)
    if layout is None:
        raise InputError(
            f"{source} has the layout of none of {', '.join(layout.name for layout in LAYOUTS)}: its entries are "
            + (", ".join(list(entries)[:3]) + ", ..." if entries else "none")
        )
    file.layout = layout.name
    places, attention = _places(file, layout)
    is_huggingface = layout is _HUGGINGFACE_DEEP
    config = _config(file, layout, places, attention, truncation)
    if is_huggingface and "layers" in described:
        config["norm_eps"] = _held_against(file, config, places, described)
    with torch.device("meta"):
        model = layout.kind(**config)
    embed_dim = config["class_embed_dim"]
    per_class = f"{layout.theirs('class_embedding')}.weight" not in file.left
    weights = {}
    for name, meant in model.state_dict().items():
        module, leaf = name.rsplit(".", 1)
        if leaf == "num_batches_tracked":
            weights[name] = torch.zeros_like(meant, device="cpu")
            continue
        if per_class and module == "class_embedding":
            weights[name] = torch.eye(embed_dim)
            continue
        top, *inner = module.split(".")
        place = places[int(inner.pop(0))] if top == "blocks" else attention
        theirs = layout.theirs(".".join([top, *inner]), place)
        if leaf == "weight" and top != "out_norm":
            value = file.weight(theirs)
        else:
            value = file.take(f"{theirs}.{layout.leaves.get(f'{top}.{leaf}', layout.leaves.get(leaf, leaf))}")
        if leaf.startswith("running_") and value.ndim == 2:
            value = value[round(truncation * (len(value) - 1))]
        if top == "out_conv":
            value = value[: config["out_channels"]]  # BigGAN-deep has more outputs than are looked at
        if per_class and inner and inner[-1] in ("gain", "bias"):
            value = value.T
        if is_huggingface:
            value = _reordered(value, name, embed_dim)
        if leaf == "gamma":
            value = value.reshape(())
        if value.shape != meant.shape:
            file.fail(f"{theirs} has a {leaf} of shape {tuple(value.shape)}, expected {tuple(meant.shape)}")
        weights[name] = value.clone(memory_format=torch.contiguous_format)
    if left := [name for name in file.left if not name.endswith("num_batches_tracked")]:
        file.fail(f"{left[0]} belongs to none of its layers")
    model.load_state_dict(weights, assign=True)
    return model


def _fits(file: _Entries, layout: Layout) -> bool:
    """Whether the file has the first and the last layer and all convolutions of the first block."""
    convs = ("conv1", "conv2", "conv3", "conv4") if layout.kind is BigGANDeepGenerator else ("conv1", "conv2", "skip")
    modules = ["linear", "out_conv", *(f"blocks.{conv}" for conv in convs)]
    return all(file.raw(layout.theirs(module, 0)) is not None for module in modules)


def _places(file: _Entries, layout: Layout) -> tuple[list[int], int | None]:
    """Where blocks lie in their list, and where attention does."""

    def found(module: str, leaf: str) -> list[int]:
        pattern = re.escape(layout.theirs(module, 0) + leaf).replace("0", r"(\d+)", 1)
        return sorted(int(match[1]) for match in (re.fullmatch(pattern, name) for name in file.left) if match)

    is_hooked = f"{layout.theirs('blocks.conv1', 0)}.weight_orig" in file.left
    blocks = found("blocks.conv1", ".weight_orig" if is_hooked else ".weight")
    attention = found("attention", f".{layout.leaves.get('gamma', 'gamma')}")
    if len(attention) > 1:
        file.fail(f"it has {len(attention)} attention layers, expected one or none")
    taken = blocks + attention if layout.block == layout.attention else blocks
    if sorted(taken) != list(range(len(taken))):
        file.fail(f"its blocks are numbered {sorted(taken)}")
    return blocks, attention[0] if attention else None


def _config(
    file: _Entries, layout: Layout, places: list[int], attention: int | None, truncation: float
) -> dict[str, Any]:
    """The arguments of the network that has the file's shapes."""
    is_deep = layout.kind is BigGANDeepGenerator
    step, last_conv = (BLOCKS_PER_STAGE, "conv4") if is_deep else (1, "conv2")
    if len(places) % step:
        file.fail(f"it has {len(places)} blocks, expected two for each doubling of the side")
    widths = [file.shape(layout.theirs(f"blocks.{last_conv}", place))[0] for place in places[step - 1 :: step]]
    linear_rows, linear_columns = file.shape(layout.theirs("linear"))
    gain_shape = file.shape(layout.theirs("blocks.norm1.gain", places[0]))
    embedding = file.raw(layout.theirs("class_embedding"))
    if embedding is None:  # a gain of each class
        num_classes = embed_dim = condition_dim = gain_shape[0]
    else:
        rows, columns = embedding.shape
        num_classes, embed_dim = (columns, rows) if layout is _HUGGINGFACE_DEEP else (rows, columns)
        condition_dim = gain_shape[1]
    in_channels = linear_rows // BOTTOM**2
    num_doublings = len(widths)
    stage = None if attention is None else sum(place <= attention for place in places) // step
    config: dict[str, Any] = {
        "sample_size": BOTTOM << num_doublings,
        "out_channels": 3 if is_deep else file.shape(layout.theirs("out_conv"))[0],
        "num_class_embeds": num_classes,
        "class_embed_dim": embed_dim,
        "block_out_channels": widths,
        "in_channels": None if in_channels == widths[0] else in_channels,
        "attention_resolution": None if stage is None else BOTTOM << stage,
        "norm_eps": layout.norm_eps,
    }
    if is_deep:
        if linear_columns <= embed_dim:
            file.fail(f"its condition of {linear_columns} leaves no latent beside a class embedding of {embed_dim}")
        has_rows = layout is _HUGGINGFACE_DEEP
        return config | {"latent_dim": linear_columns - embed_dim, "truncation": truncation if has_rows else None}
    if layout is _BIGGAN_PYTORCH and f"{layout.theirs('linear')}.sv0" not in file.left:
        config |= {"norm_eps": 1e-4, "out_norm_eps": 1e-5}  # TF Hub's weights, as its converter writes and reads them
    hierarchical = condition_dim > embed_dim
    return config | {
        "latent_dim": linear_columns * (num_doublings + 1) if hierarchical else linear_columns,
        "hierarchical": hierarchical,
    }


def _held_against(file: _Entries, config: Mapping[str, Any], places: list[int], described: Mapping[str, Any]) -> float:
    """HuggingFace's `config.json` says what shapes cannot: which blocks double the side, and eps, which is returned."""
    ups = [layer[0] for layer in described.get("layers", [])]
    alternating = [bool(number % BLOCKS_PER_STAGE) for number in range(len(places))]
    if ups != alternating or described.get("output_dim") != config["sample_size"]:
        file.fail(
            f"config.json beside it describes {described.get('output_dim')} px and {len(ups)} blocks, where its shapes "
            f"make {config['sample_size']} px of {len(places)} blocks, every second one doubling the side"
        )
    return float(described.get("eps", config["norm_eps"]))


def _reordered(value: Tensor, name: str, embed_dim: int) -> Tensor:
    """HuggingFace's order of rows and columns -> ours.

    Their condition is [latent, class embedding], their first linear layer has (row, column, channel) outputs, and
    their class table a column for each class.
    """
    if name == "class_embedding.weight":
        return value.T
    if name == "linear.weight" or name.endswith((".gain.weight", ".bias.weight")):
        value = value.roll(embed_dim, dims=1)
    if name.startswith("linear."):
        return value.unflatten(0, (BOTTOM, BOTTOM, -1)).movedim(2, 0).flatten(0, 2)
    return value
