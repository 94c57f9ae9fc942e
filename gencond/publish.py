"""An artefact on the Hub: its files, a picture of its samples, and a model card with what was measured."""

import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import cast

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from gencond.common.errors import InputError, first_line
from gencond.common.files import read_json
from gencond.eval.results import GENCOND, Evaluation, Row
from gencond.eval.subject import judged_artefact
from gencond.eval.wording import markdown_results
from gencond.generator.artefact import Condensed
from gencond.generator.card import model_card
from gencond.generator.dataset import artefact_folder, load
from gencond.generator.loading import HUB_ID

logger = logging.getLogger(__name__)

PICTURE = "samples.png"


def push(path: str | Path, name: str, *, private: bool = False, license: str | None = None) -> str:
    """Puts an artefact on the Hub, in one commit, and returns the commit's address.

    Beside the artefact's own files go a picture of samples and a model card: what it is and, where `path` is a run
    folder that was judged, its scores, also as the `model-index` that the Hub lists. The token is that of
    `hf auth login` or of HF_TOKEN.

    Args:
        path: a run folder or an artefact folder.
        name: `"owner/name"`; the repository is made where there is none, and otherwise gets a commit more.
        private: whether a repository that is made is private.
        license: of the artefact, as the Hub calls licenses: `"mit"`, `"cc-by-4.0"`; None says nothing of it.
    Raises:
        InputError: no artefact at `path`, a name that is none, a Hub that is not reached or refuses.
    """
    if not re.fullmatch(HUB_ID, name):
        raise InputError(f"{name!r} names no repository of the Hub: expected owner/name")
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"no folder {path}: expected a run folder or an artefact folder")
    condensed = load(path)
    folder = artefact_folder(path)
    card = hub_card(condensed, name, _report_of(path, condensed), license)
    with tempfile.TemporaryDirectory() as made:
        for file in (folder / "config.json", *folder.glob("*.safetensors*")):
            shutil.copyfile(file, Path(made) / file.name)
        (Path(made) / "README.md").write_text(str(card), encoding="utf-8")
        condensed.draw(Path(made) / PICTURE)
        return _uploaded(Path(made), name, private)


def hub_card(condensed: Condensed, name: str, report: Evaluation | None, license: str | None) -> ModelCard:
    """The model card of an artefact as the Hub reads it.

    Args:
        report: of the artefact; None: it was not judged.
        license: see `push`.
    """
    rows = () if report is None else report.rows
    card = ModelCard(model_card(condensed, markdown_results(rows) if rows else "", name, PICTURE))
    data = (condensed.config.provenance or {}).get("data") or {}
    source, dataset = str(data.get("source", "")), data.get("on_hub")
    about = cast(ModelCardData, card.data)  # which its class calls by another name
    about.license = license
    about.datasets = [dataset] if dataset else None
    own = [row for row in rows if row.images == GENCOND]
    if report is not None and own:
        about.model_name = name.partition("/")[2]
        about.eval_results = [_result(row, report, dataset or source) for row in own]
    return card


def _result(row: Row, report: Evaluation, dataset: str) -> EvalResult:
    """A row as the Hub lists it."""
    ipc = "fresh images" if row.ipc is None else f"IPC {row.ipc}"
    return EvalResult(
        task_type="image-classification",
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split=report.judged_on,
        metric_type="accuracy",
        metric_name=f"top-1 of {row.network} trained on {ipc} by {row.protocol}, mean of {row.num_seeds}",
        metric_value=round(row.top1.mean, 4),
    )


def _report_of(path: Path, condensed: Condensed) -> Evaluation | None:
    """What a run folder's report says of this artefact; None where it has none, or one of another artefact."""
    file = path / "report.json"
    if not file.is_file():
        logger.info(
            "push: %s was not judged, so its card has no results: `gencond evaluate %s` measures them", path, path
        )
        return None
    report = Evaluation.from_json(read_json(file))
    if (report.measured or {}).get("condensed") != judged_artefact(condensed).key:
        logger.warning("push: %s is of another artefact and is left out", file)
        return None
    return report


def _uploaded(folder: Path, name: str, private: bool) -> str:
    """The address of the commit. Raises InputError where there is none."""
    hub = HfApi()
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Add an artefact of gencond"))
    except LocalTokenNotFoundError:
        raise InputError(f"{name}: no token of the Hub is here: `hf auth login`, or set HF_TOKEN") from None
    except OfflineModeIsEnabled:
        raise InputError(f"{name}: HF_HUB_OFFLINE is set, so nothing is pushed") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        mend = ": `hf auth login`, or set HF_TOKEN to a token that may write there" if status in (401, 403) else ""
        raise InputError(f"{name}: the Hub answers {status} ({first_line(error)}){mend}") from None
    except Exception as error:  # of many kinds, which differ between versions of the library
        raise InputError(f"{name}: the Hub is not reached ({type(error).__name__}: {first_line(error)})") from None
