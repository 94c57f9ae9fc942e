"""Reading models that diffusers wrote, strictly: safetensors only, every weight there, none left over."""

import json
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

from gencond.common.errors import InputError, first_line
from gencond.common.ranges import require_finite

HUB_ID = r"[\w.-]+/[\w.-]+"  # owner/name
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"  # of one file, as diffusers calls it

Model = TypeVar("Model", bound="FiniteModel")


class FiniteModel(ModelMixin, ConfigMixin):
    """A diffusers model that is not read with NaN or infinity among its weights or in its config, from any door."""

    if TYPE_CHECKING:  # what diffusers' annotations do not say

        @property
        def config(self) -> Any:
            """What the class was called with; entries are attributes too."""

        @classmethod
        def load_config(cls, *args: Any, **options: Any) -> Any: ...

        @classmethod
        def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any) -> Self: ...

        def to(self, *args: Any, **options: Any) -> Self: ...  # pyright: ignore[reportIncompatibleVariableOverride]

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # not of None, which means nothing here
        cls, pretrained_model_name_or_path: str | os.PathLike[str], output_loading_info: bool = False, **options: Any
    ) -> Any:
        """diffusers' own. Raises InputError for values that are not finite."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **options)
        model, info = cast("tuple[Self, dict[str, Any]]", loaded)  # a pair, since the information is asked for
        try:
            json.dumps(arguments_of(model), allow_nan=False)
        except ValueError:
            raise InputError("config.json holds NaN or infinity: restore the file") from None
        require_finite({name: t for name, t in model.state_dict().items() if name not in info["missing_keys"]})
        return (model, info) if output_loading_info else model


def arguments_of(model: FiniteModel) -> dict[str, Any]:
    """What its class was called with, defaults too: of its config all but diffusers' own entries."""
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def hub_place(source: str) -> tuple[str, str | None] | None:
    """(id, revision) of `owner/name` or `owner/name@revision`; None for what is neither."""
    found = re.fullmatch(rf"({HUB_ID})(@([\w./-]+))?", source)
    return (found[1], found[3]) if found else None


def hub_file(hub_id: str, name: str, revision: str | None = None) -> Path:
    """A file of a Hub repository, from the cache or else from the Hub.

    Raises:
        ConnectionError: see `require_network`.
        Exception: what else the Hub's library raises.
    """
    require_network(hub_id, name, revision)
    return Path(hf_hub_download(hub_id, name, revision=revision))


def require_network(hub_id: str, name: str, revision: str | None = None) -> None:
    """Raise ConnectionError at once where a file is to come from the Hub and there is no network.

    The Hub's library asks six times over 23 s instead, and so for each file. What another question may mend is left
    to it.
    """
    if isinstance(try_to_load_from_cache(hub_id, name, revision=revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(hub_id, name, revision=revision))
    except Exception as error:  # of many kinds, which differ between versions of the library
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, socket.gaierror):
                message = "the Hub's address is not found: is there a network?"
                raise ConnectionError(message) from error
            cause = cause.__cause__ or cause.__context__


def read_model(kind: type[Model], source: str | Path, what: str) -> Model:
    """A model from a folder or a Hub id with or without `@revision`, in eval mode.

    diffusers alone fills missing weights with whatever memory holds, and falls back to pickles.

    Args:
        what: it should be, for the message.
    Raises:
        InputError: unreadable, incomplete, of another layout, or not safetensors.
    """
    try:
        revision = None
        if (place := hub_place(str(source))) and not Path(source).exists():
            source, revision = place
            require_network(source, "config.json", revision)
        model, info = kind.from_pretrained(source, use_safetensors=True, output_loading_info=True, revision=revision)
    except Exception as error:  # diffusers, safetensors and the Hub raise many kinds; all mean the same here
        raise InputError(f"{source} cannot be loaded as {what}: {first_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := info.get(problem):
            first = keys[0] if isinstance(keys[0], str) else keys[0][0]
            raise InputError(f"{source} cannot be loaded as {what}: {problem.replace('_', ' ')}, {first} first")
    return model.eval()
