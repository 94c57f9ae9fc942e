"""The library as calls, which the command line makes too: condense, append, judge, and use what is condensed."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from gencond.common.errors import InputError, require_count
from gencond.common.files import alone_in
from gencond.condensing.append import growth
from gencond.condensing.checks import recipe_to_append_by
from gencond.condensing.run import condense as condense_images
from gencond.condensing.tracking import require_tracker
from gencond.config import Recipe, load_recipe, parse_recipe, to_dict
from gencond.data.load import data_source, load_data
from gencond.eval.judge import Wishes, judge
from gencond.eval.networks import build_network
from gencond.eval.protocols import check_protocol
from gencond.eval.results import Evaluation
from gencond.eval.subject import SubjectAt
from gencond.generator.artefact import Condensed
from gencond.generator.dataset import load
from gencond.plan import kept_plan, planned_recipe
from gencond.uses.continual import (
    RECIPE,
    USUAL_IPC,
    USUAL_ORDERS,
    USUAL_PROTOCOL,
    USUAL_ROWS,
    USUAL_STEPS,
    Continual,
    ContinualWishes,
    learn_continually,
)
from gencond.uses.continual_report import summary, write_continual_report
from gencond.uses.ranking import Search
from gencond.uses.search import USUAL_PROTOCOL as USUAL_SEARCH_PROTOCOL
from gencond.uses.search import SearchWishes, search_networks
from gencond.uses.space import Space

REPORT_LOCK = ".report.lock"


def condense(
    data: str | Path | None,
    out: str | Path,
    recipe: str | Path | Recipe | None = None,
    *,
    minutes: SupportsFloat | None = None,
    overrides: str | Sequence[str] = (),
    pretrained: str | Path | None = None,
    track: str | None = None,
) -> Condensed:
    """Condenses a set of images, and returns the artefact in eval mode on the CPU.

    The same call goes on with an unfinished run in `out`, and loads a finished one. The device is chosen by accelerate.

    Args:
        data: a folder with one folder of images per class, a folder of WebDataset shards or of parquet files, a folder
            that `save_to_disk` of Hugging Face wrote, a set of its Hub (`hf:owner/name[:config][@revision]`), an .npz
            file, or a named set (`digits`, `mnist`, `fashion_mnist`, `cifar10`, `cifar100`); None takes what the recipe
            says.
        out: the run folder. The artefact lies in its folder `condensed`.
        recipe: a name with its variants, as in `"dm:fashion_mnist:quick"`, a YAML file, or a `Recipe`; None plans the
            default method for these images and `minutes`.
        minutes: that a run of the default method may take, without evaluation; None: 30.
        overrides: changes to the recipe, as on the command line: `["condense.num_steps=100", "data.image_size=64"]`.
        pretrained: a folder with a pretrained generator of the recipe's shape; None pretrains one as the recipe says.
        track: a tracker that hears of losses, rates, quick scores and samples: `"tensorboard"`, `"wandb"`,
            `"trackio"` or another that accelerate knows; None: nobody does.
    Returns:
        `CondensedDataset`, a generator with its codes, or `CondensedPixels`, where the recipe learns pixels.
    Raises:
        InputError: an unknown recipe or field, images that cannot be read, parts of the recipe that fit neither the
            images nor each other, another run in `out`.
    """
    require_path(out, "out")
    if pretrained is not None:
        require_path(pretrained, "pretrained")
    if data is not None and not isinstance(data, str | Path):
        raise InputError(f"data is a path or the name of a named set, not {type(data).__name__}")
    require_tracker(track)
    overrides = listed(overrides, "overrides", str)
    source = None if data is None else data_source(str(data))
    if minutes is not None and recipe is not None:
        raise InputError("minutes plan the default method: leave the recipe out")
    if recipe is None:
        recipe = planned_recipe(source, minutes, overrides, Path(out))
    elif isinstance(recipe, Recipe):
        recipe = parse_recipe(to_dict(recipe), recipe.name, overrides, source)
    else:
        recipe = load_recipe(str(recipe), overrides, source)
    train, _ = load_data(recipe.data)
    check_protocol(recipe.evaluate.protocol)  # what the run will be judged by has to fit before it starts
    for network in recipe.evaluate.networks:
        build_network(network, train.channels, train.num_classes, train.image_size, seed=0)
    return condense_images(recipe, train, Path(out), None if pretrained is None else Path(pretrained), track=track)


def append(
    path: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    more_images: bool = False,
    overrides: str | Sequence[str] = (),
    track: str | None = None,
) -> Condensed:
    """Appends classes to an artefact, which stays as it is, and returns the artefact that has grown.

    The generator stays, and so do all images of the classes that nothing new is known of, bit for bit. It is learned as
    the artefact was: by its recipe, in as many steps. The same call goes on with an unfinished run in `out`.

    Args:
        path: a run folder, an artefact folder or a Hub id, of a generator.
        data: the new images, as of `condense`; one class is enough. They are brought to the artefact's size.
        out: the run folder. The artefact that has grown lies in its folder `condensed`.
        more_images: whether classes of the new images may be the artefact's: those are learned again, from the new
            images and the artefact's own samples.
        overrides: changes to the recipe: `["condense.num_steps=100"]`.
        track: as of `condense`.
    Raises:
        InputError: an artefact that nothing can be appended to, images of other channels, classes that it has already,
            another run in `out`; whatever `condense` raises.
    """
    for given, name in ((path, "path"), (data, "data"), (out, "out")):
        require_path(given, name)
    if Path(out).resolve() in (Path(path).resolve(), Path(path).resolve().parent):
        raise InputError(f"{out} is what is appended to, which stays as it is: choose another --out")
    require_tracker(track)
    onto = load(path)
    recipe = recipe_to_append_by(onto, data_source(str(data)), listed(overrides, "overrides", str))
    new, _ = load_data(recipe.data, fewest_classes=1)
    return condense_images(recipe, new, Path(out), growth=growth(onto, new, more_images), track=track)


def evaluate(
    path: str | Path,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    ipc: SupportsIndex | Sequence[SupportsIndex] | None = None,
    protocol: str | None = None,
    networks: str | Sequence[str] | None = None,
    num_seeds: int | None = None,
    baselines: str | Sequence[str] | None = None,
    augmentation: str | None = None,
    normalised_by: tuple[Sequence[float], Sequence[float]] | None = None,
    factor: int = 1,
    quality: str | None = None,
    stream: bool = False,
    teacher: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Evaluation:
    """Trains classifiers on a condensed set and on the baselines, tests them on real images, and writes a report.

    Args:
        path: a run folder, an artefact folder or a Hub id; or the set of another method: a folder of images or shards,
            .npz, .safetensors, .pt.
        data: the real images, as of `condense`; None takes those that the artefact was made from.
        out: the folder of report.json, report.md and report.html; None takes `path`, which then is a run folder. Rows
            of an earlier report there are kept, and reused where they answer the same question.
        ipc: images per class to judge at; None takes what the recipe says.
        protocol: how classifiers are trained, a name of `gencond.eval.protocols.PROTOCOLS` (`"dm:200"` is `dm` with 200
            epochs); None takes what the recipe says.
        networks: names of classifiers (`"convnet3"`, `"resnet18"`, a timm model); None takes what the recipe says.
        num_seeds: classifiers of each network; None takes what the recipe says.
        baselines: names of `gencond.eval.baselines.BASELINES`; None takes all that mean something, `[]` none.
        augmentation: operations that leave the class as it is; None takes what the recipe says.
        normalised_by: mean and standard deviation per channel, of another method's floats.
        factor: images of another method are cut into factor x factor.
        quality: a network for FID and its kin: `"inception"`, a judge or a timm model; None leaves them out.
        stream: whether classifiers are also trained on fresh images, none of them seen twice.
        teacher: a network whose answers are learned, for protocol `soft`.
        image_column, label_column: of the real images, where they are read from tables; None: as the recipe says.
    Returns:
        What report.json holds. Each of its `rows` says what was asked, and `top1`, in [0, 1], as mean, std and each.
    Raises:
        InputError: nothing to judge at `path`, real images of other classes or another size, an unknown protocol,
            network or baseline, another evaluation at work in `out`.
    """
    require_path(path, "path")
    if out is not None:
        require_path(out, "out")
    ipcs, names = listed(ipc, "ipc", Integral), listed(networks, "networks", str)
    for name, given in (("ipc", ipcs), ("networks", names)):
        if given == []:
            raise InputError(f"{name} is empty: leave it out to take what the recipe says")
    folder = report_folder(path, out)
    with alone_in(folder, REPORT_LOCK):
        real = None if data is None else str(data)
        at = SubjectAt(str(path), real, normalised_by, factor, image_column, label_column)
        wishes = Wishes(
            ipcs=ipcs and [int(each) for each in ipcs],
            protocol=protocol,
            networks=names,
            num_seeds=num_seeds,
            baselines=listed(baselines, "baselines", str),
            augmentation=augmentation,
            quality=quality,
            stream=stream,
            teacher=teacher,
        )
        return judge(at, folder, wishes)


def continual(
    data: str | Path,
    out: str | Path,
    recipe: str | Path | Recipe | None = None,
    *,
    minutes: SupportsFloat | None = None,
    overrides: str | Sequence[str] = (),
    steps: int = USUAL_STEPS,
    ipc: int = USUAL_IPC,
    rows: Sequence[str] = USUAL_ROWS,
    orders: int = USUAL_ORDERS,
    num_seeds: int = 1,
    network: str | None = None,
    protocol: str = USUAL_PROTOCOL,
) -> Continual:
    """Compares memories for continual learning: classes come in steps, and of those before there is a memory alone.

    Args:
        data, recipe, minutes, overrides: as of `condense`; the minutes are those of condensing all classes once. Every
            step of every order is condensed by this recipe, or appended.
        out: the folder of continual.json, continual.md, continual.html and continual.png, and of all that is made; the
            same call goes on with what is unfinished there.
        steps: in which the classes come.
        ipc: images of each class that memories of a number hold.
        rows: baselines, `"gencond"` (each step's classes condensed alone), `"gencond_grown"` (one generator that
            grows), or other recipes.
        orders: orders of the classes.
        num_seeds: classifiers of each step of an order.
        network: of the classifiers; None takes what the recipe says.
        protocol: of their training.
    Returns:
        What continual.json holds; `accuracy(row, step)`, in [0, 1], is the mean and deviation over the orders.
    Raises:
        InputError: more steps than classes, a memory larger than the data, a row that is unknown or does not fit,
            something else in `out`; whatever `condense` raises.
    """
    for given, name in ((data, "data"), (out, "out")):
        require_path(given, name)
    rows, overrides = listed(rows, "rows", str), listed(overrides, "overrides", str)
    wishes = ContinualWishes(
        steps=require_count(steps, "steps"),
        ipc=require_count(ipc, "ipc"),
        rows=rows,
        orders=require_count(orders, "orders"),
        num_seeds=require_count(num_seeds, "num_seeds"),
        network=network,
        protocol=protocol,
    )
    source = data_source(str(data))
    if minutes is not None and recipe is not None:
        raise InputError("minutes plan the default method: leave the recipe out")
    if recipe is None:
        made = kept_plan(Path(out) / RECIPE, source, minutes, overrides)
    elif isinstance(recipe, Recipe):
        made = parse_recipe(to_dict(recipe), recipe.name, overrides, source)
    else:
        made = load_recipe(str(recipe), overrides, source)
    options = {
        "steps": [steps], "ipc": [ipc], "rows": rows, "orders": [orders], "seeds": [num_seeds],
        "network": network and [network], "protocol": [protocol],
    }  # fmt: skip
    words = ["gencond", "continual", "--data", str(data), "--out", str(out)]
    words += ["--recipe", made.name] if recipe is not None else ["--minutes", f"{made.minutes:g}"]
    for name, values in options.items():
        words += [] if values is None else [f"--{name}", *map(str, values)]
    found = learn_continually(made, Path(out), wishes, shlex.join([*words, *overrides]), write_continual_report)
    print(f"\n{summary(found)}")
    return found


def search(
    path: str | Path,
    out: str | Path,
    data: str | Path | None = None,
    *,
    ipc: SupportsIndex | Sequence[SupportsIndex] | None = None,
    networks: str | Sequence[str] | None = None,
    widths: SupportsIndex | Sequence[SupportsIndex] | None = None,
    depths: SupportsIndex | Sequence[SupportsIndex] | None = None,
    activations: str | Sequence[str] | None = None,
    norms: str | Sequence[str] | None = None,
    poolings: str | Sequence[str] | None = None,
    protocol: str | None = None,
    whole_epochs: int | None = None,
    top: int | None = None,
    num_seeds: int = 1,
    normalised_by: tuple[Sequence[float], Sequence[float]] | None = None,
    factor: int = 1,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Search:
    """Ranks networks by training them on a condensed set and on its rivals, and trains the best on the whole set.

    The same call goes on with a search that was killed, and one of more networks trains the new ones alone.

    Args:
        path, data, normalised_by, factor, image_column, label_column: the condensed set and the real images, as of
            `evaluate`.
        out: the folder of search.json, search.md, search.html and search.png.
        ipc: images per class to rank by; None takes what the recipe says.
        networks: names of classifiers, as of `evaluate`, instead of a space of ConvNets.
        widths, depths, activations, norms, poolings: of the ConvNets; None takes all of 32, 64, 128, 256; 1 to 4;
            sigmoid, relu, leaky_relu; none, batch, layer, instance, group; none, max, avg: 720 networks.
        protocol: how networks are trained, as of `evaluate`, but from labels; None: `dm:50`.
        whole_epochs: of training on the whole set; None: as the protocol says.
        top: networks of each ranking that are trained on the whole set; None: 10, or all where there are fewer.
        num_seeds: trainings of each network.
    Returns:
        What search.json holds. Its `verdicts` say for each proxy which network it picks, what that reaches on the test
        set, and how its ranking agrees with that of the whole set.
    Raises:
        InputError: as `evaluate`; no network that takes the images; another search or anything else in `out`.
    """
    require_path(path, "path")
    require_path(out, "out")
    names = listed(networks, "networks", str)
    given = {
        "widths": listed(widths, "widths", Integral),
        "depths": listed(depths, "depths", Integral),
        "activations": listed(activations, "activations", str),
        "norms": listed(norms, "norms", str),
        "poolings": listed(poolings, "poolings", str),
    }
    choices = {name: values for name, values in given.items() if values is not None}
    if names is not None and choices:
        raise InputError(f"{' and '.join(choices)} are of a space of ConvNets: leave out these or the networks by name")
    ipcs = listed(ipc, "ipc", Integral)
    if ipcs == []:
        raise InputError("ipc is empty: leave it out to take what the recipe says")
    real = None if data is None else str(data)
    at = SubjectAt(str(path), real, normalised_by, factor, image_column, label_column)
    wishes = SearchWishes(
        networks=Space(**choices) if names is None else names,
        ipcs=ipcs and [int(each) for each in ipcs],
        protocol=protocol or USUAL_SEARCH_PROTOCOL,
        whole_epochs=None if whole_epochs is None else require_count(whole_epochs, "whole_epochs"),
        top=None if top is None else require_count(top, "top"),
        num_seeds=require_count(num_seeds, "num_seeds"),
    )
    return search_networks(at, Path(out), wishes)


def require_path(given: Any, name: str) -> None:
    """Raises InputError for what is no path, or an empty one, which would be the folder that one happens to be in."""
    if not isinstance(given, str | Path) or not str(given):
        raise InputError(f"{name} is {given!r}: expected a path")


def listed(given: Any, name: str, kind: type) -> Any:
    """A single value as a list of it; None as it is. Raises InputError for values of another kind."""
    if given is None:
        return None
    values = [given] if isinstance(given, kind) else given
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise InputError(f"{name} is {given!r}: expected a list")
    values = list(values)
    if wrong := [value for value in values if not isinstance(value, kind)]:
        raise InputError(f"{name} holds {wrong[0]!r}: expected {'whole numbers' if kind is Integral else 'texts'}")
    return values


def report_folder(path: str | Path, out: str | Path | None = None) -> Path:
    """Where the report of a condensed set goes. Raises InputError where `out` is None and `path` is no run folder."""
    folder = Path(path if out is None else out)
    if out is None and not (folder / "recipe.yaml").is_file():
        raise InputError(
            f"{path} is no run folder: name a folder for the report with --out, and with --data the real images "
            "where the set does not know them"
        )
    return folder
