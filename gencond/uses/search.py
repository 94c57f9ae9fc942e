"""Architecture search: networks are ranked by training on a condensed set, and beside it by what costs as little.

Each network is trained on a small set and tested on training images that are held out. The best of every ranking are
then trained on the whole set and tested on the test images, which say how good the rankings are.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gencond.common.distributed import from_main, is_main_process, new_accelerator
from gencond.common.errors import InputError
from gencond.common.files import alone_in, short_hash, write_json
from gencond.common.provenance import current_commit, library_versions
from gencond.data.tables import name_of_source
from gencond.eval.judge import MOST_SEEDS
from gencond.eval.protocols import PROTOCOLS, check_protocol, get_protocol
from gencond.eval.subject import SubjectAt, notes_on_origin, open_subject
from gencond.uses.proxies import training_sets
from gencond.uses.ranking import Search
from gencond.uses.result_folder import claim
from gencond.uses.search_report import SEARCH, summary, write_search_report
from gencond.uses.space import Space, fitting
from gencond.uses.trainings import Trainings

LOCK, RESULT = ".search.lock", f"{SEARCH}.json"
USUAL_TOP = 10
USUAL_PROTOCOL = "dm:50"
ON_HELD_OUT = (
    "The held-out images are training images: the condensed set may have been made from some of them, which may favour "
    "it. The accuracies after training on the whole set are those of other images."
)


@dataclass(frozen=True)
class SearchWishes:
    """What is searched, and how.

    Args:
        networks: names of judges, or a `Space`.
        ipcs: images of each class that proxies are trained on; None takes what the condensed set's recipe says.
        protocol: of the proxies' trainings, a name of `eval.protocols.PROTOCOLS`.
        whole_epochs: of training on the whole set; None: as the protocol says.
        top: networks of each ranking that are trained on the whole set; None: 10, or all where there are fewer.
        num_seeds: trainings of each network.
    Raises:
        InputError: an unknown protocol, or one that learns from a teacher; no network; numbers that cannot be.
    """

    networks: Sequence[str] | Space = Space()
    ipcs: Sequence[int] | None = None
    protocol: str = USUAL_PROTOCOL
    whole_epochs: int | None = None
    top: int | None = None
    num_seeds: int = 1

    def __post_init__(self) -> None:
        check_protocol(self.protocol, from_labels=True)
        if self.whole_epochs is not None:
            if self.whole_epochs < 1:
                raise InputError(f"--whole-epochs must be at least 1, not {self.whole_epochs}")
            if (most := PROTOCOLS[self.protocol.partition(":")[0]].max_steps) is not None:
                raise InputError(
                    f"protocol {self.protocol} takes {most} steps at most: leave --whole-epochs out or choose another"
                )
        if not self.names:
            raise InputError("the space of networks is empty: name at least one value of each choice, or a network")
        if self.top is not None and self.top < 1:
            raise InputError(f"--top must be at least 1, not {self.top}")
        if not 1 <= self.num_seeds <= MOST_SEEDS:
            raise InputError(f"--seeds must be in 1 .. {MOST_SEEDS}, not {self.num_seeds}")

    @property
    def names(self) -> Sequence[str]:
        """Of the networks that are asked for."""
        return self.networks.names if isinstance(self.networks, Space) else self.networks

    @property
    def whole_protocol(self) -> str:
        """Of training on the whole set, by name."""
        name = self.protocol.partition(":")[0]
        return self.protocol if self.whole_epochs is None else f"{name}:{self.whole_epochs}"

    def top_of(self, num_networks: int) -> int:
        """How many networks of each ranking are trained on the whole set. Raises InputError for more than there are."""
        if self.top is None:
            return min(USUAL_TOP, num_networks)
        if self.top > num_networks:
            raise InputError(f"--top {self.top} of {num_networks} network(s): lower it")
        return self.top

    def options(self, ipcs: Sequence[int], top: int) -> dict[str, Sequence | None]:
        """What was asked for on the command line, with what was chosen where nothing was."""
        space = self.networks
        named = {"networks": space} if not isinstance(space, Space) else {
            "widths": space.widths, "depths": space.depths, "activations": space.activations, "norms": space.norms,
            "poolings": space.poolings,
        }  # fmt: skip
        return named | {
            "ipc": ipcs,
            "protocol": [self.protocol],
            "whole-epochs": self.whole_epochs and [self.whole_epochs],
            "top": [top],
            "seeds": [self.num_seeds],
        }


def search_networks(at: SubjectAt, out: Path, wishes: SearchWishes) -> Search:
    """Ranks networks by a condensed set and by other proxies, trains the best on the whole set, and reports.

    Every score is kept in `out/scores`, so that a search that was killed goes on, and one of more networks trains the
    new ones alone. Networks are shared by the processes of `accelerate launch`, which share `out`.

    Args:
        at: the condensed set.
        out: the folder of search.json, search.md, search.html and search.png.
        wishes: what is searched, and how.
    Raises:
        InputError: as `judge.judge`; not one network that takes the images; `out` holds something else, or another
            process works in it.
    """
    device = new_accelerator().device
    with ExitStack() as stack:
        from_main(lambda: stack.enter_context(alone_in(out, LOCK)))
        pair = open_subject(at, out)
        networks = fitting(wishes.names, pair.train)
        top = wishes.top_of(len(networks.sizes))
        ipcs = sorted(set(pair.choose_ipcs(wishes.ipcs)))
        protocol, whole_protocol = (
            get_protocol(name, pair.train.num_classes, pair.train.image_size)
            for name in (wishes.protocol, wishes.whole_protocol)
        )
        sets = training_sets(pair, ipcs, protocol, whole_protocol, wishes.num_seeds, device)
        begun = Search(
            title=f"Architecture search on {name_of_source(pair.recipe.data.source)}",
            command=at.command(out, wishes.options(ipcs, top), "search"),
            versions=library_versions(),
            commit=current_commit(),
            measured=pair.measured,
            judged_on=pair.recipe.data.judge_on,
            num_test_images=len(pair.test),
            num_train_images=len(pair.train),
            num_held_out=len(sets.proxies[0].test),
            condensed=pair.subject.about,
            protocol=protocol.describe(),
            whole_protocol=whole_protocol.describe(),
            augmentation=pair.recipe.data.augmentation,
            num_seeds=wishes.num_seeds,
            networks=networks.sizes,
            left_out=networks.left_out,
            top=top,
            notes=(ON_HELD_OUT, *pair.notes, *notes_on_origin(pair.subject.about, pair.train), *sets.notes),
        )
        from_main(
            lambda: claim(out, SEARCH, "search", begun.to_json(), {"measured": "another condensed set or real images"})
        )
        found = Trainings(out, device, sorted(networks.sizes, key=short_hash), wishes.num_seeds).search(begun, sets)
        if is_main_process():
            write_search_report(out, found)
            write_json(out / RESULT, found.to_json())
            print(f"\n{summary(found)}")
    return found
