"""Results are written as they always were, and what was measured before is found again.

`report_before.json` is the report of a tiny run, and the scores below those of tiny comparisons, all written when
results were still plain dictionaries.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gencond.common.errors import InputError
from gencond.config import load_recipe
from gencond.data.images import LabeledImages
from gencond.eval.baselines import CODEC_REAL, KMEANS_REAL, RANDOM_PACKED, RANDOM_REAL, WHOLE_SET, usual_baselines
from gencond.eval.classifier import FreshImages
from gencond.eval.given import GivenNetwork, GivenTeacher
from gencond.eval.networks import build_network
from gencond.eval.protocols import get_protocol
from gencond.eval.records import Scores
from gencond.eval.report_file import ReportFile
from gencond.eval.results import Answer, Evaluation, Question, Row
from gencond.eval.score_cache import ScoreCache
from gencond.eval.scoring import Plan, score_tables
from gencond.eval.subject import Subject, SubjectAndReal

BEFORE = Path(__file__).parent / "report_before.json"
ENCODER = "Pillow 13.0.0, libavif 1.4.2 (dav1d [dec]:1.5.3-0-gb546257, aom [enc]:3.14.1)"


@pytest.fixture
def before() -> Evaluation:
    return Evaluation.from_json(json.loads(BEFORE.read_text()))


def question(**changes) -> Question:
    """What `compare` asked of digits."""
    asked = {
        "images": RANDOM_REAL, "ipc": 1, "network": "convnet2w8", "protocol": get_protocol("dm:3", 10, 8),
        "augmentation": "crop_scale_rotate", "seeds": (0,), "seed": 0, "train": "8d762dddca8ccb9b",
        "test": "ecb3d2485c677b20", "factor": 2, "evaluator": 3,
    }  # fmt: skip
    return Question(**(asked | changes))


def of_budget(**changes) -> Question:
    """What `storage_curve` asked of digits."""
    asked = {
        "images": WHOLE_SET, "ipc": None, "protocol": get_protocol("idc", 10, 8), "seeds": (0, 1), "budget": (64, 5),
        "factor": 1,
    }  # fmt: skip
    return question(**(asked | changes))


def test_an_earlier_report_is_read_and_written_again_byte_for_byte(before: Evaluation) -> None:
    assert json.dumps(before.to_json(), indent=2, ensure_ascii=False) + "\n" == BEFORE.read_text()
    assert {row.mode for row in before.rows} == {"fixed", "stream"} and any(row.codec for row in before.rows)
    assert before.quality and before.memorisation and before.teacher and before.cost


@pytest.mark.parametrize("protocol", ["dm:10", "soft:2"])
def test_rows_of_an_earlier_report_are_not_measured_again(
    protocol: str, before: Evaluation, digits: tuple[LabeledImages, LabeledImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gencond.eval.scoring.encoder_version", lambda: ENCODER)
    monkeypatch.setattr("gencond.eval.scoring.train_and_test", None)  # nobody trains
    train, test = digits
    # k-means chose in pixel space then
    rows = [row for row in before.rows if row.protocol == protocol and row.images != KMEANS_REAL]
    ours = next(row for row in rows if row.images == "gencond")
    network = GivenNetwork(build_network("convnet2w8", 1, 10, 8, seed=0), 1, *train.mean_std, knows_classes=True)
    subject = Subject(lambda ipc: train, None, lambda ipc: ours.num_bytes, None, 1, before.measured["condensed"], {})
    fresh = FreshImages(lambda seed, number: (torch.zeros(0), torch.zeros(0)), batch_size=20, num_steps=10)
    plan = Plan(
        ipcs=[1, 2], networks=["convnet2w8"], protocol=get_protocol(protocol, 10, 8),
        augmentation=before.augmentation, num_seeds=2,
        baselines=[name for name in usual_baselines(1) if name != KMEANS_REAL]
        if protocol == "dm:10"
        else [RANDOM_REAL, WHOLE_SET],
        fresh=fresh if protocol == "dm:10" else None,
        teacher=GivenTeacher("convnet2w8", network, 0.9, ours.teacher, "") if ours.teacher else None,
    )  # fmt: skip
    found, notes = score_tables(subject, train, test, plan, torch.device("cpu"), ScoreCache(before.rows))
    assert not notes and sorted(found, key=lambda row: row.key) == sorted(rows, key=lambda row: row.key)
    assert len(rows) == {"dm:10": 12, "soft:2": 5}[protocol]


def test_kmeans_rows_that_were_chosen_in_pixel_space_leave_a_report(before: Evaluation, tmp_path: Path) -> None:
    plan = Plan([1], ["convnet2w8"], get_protocol("dm:10", 10, 8), before.augmentation, 2)
    file = object.__new__(ReportFile)  # what else it needs are the images of the report
    file.out = tmp_path
    stay = file._rows_that_stay(before, plan)
    assert {row.images for row in before.rows} - {row.images for row in stay} == {KMEANS_REAL}
    assert stay == [row for row in before.rows if row.images != KMEANS_REAL]


@pytest.mark.parametrize(
    ("place", "key", "asked"),
    [
        ("5d1cd15390ea4501", "5c79a40c4b7ff891", question()),
        ("51757de9f25adbf2", "52ae4a200c2709ab", question(images=RANDOM_PACKED)),
        ("a1079e5d5a5de8a9", "4fcb8c33ed05547d", question(images="dm-digits-0-c4b809f1", condensed="a7ef0c67d92f794c")),
    ],
)
def test_a_score_of_an_earlier_comparison_is_found(tmp_path: Path, place: str, key: str, asked: Question) -> None:
    (tmp_path / f"{place}.json").write_text(json.dumps({"row": "r", "key": key, "depends_on": {}, "top1": 0.13}))
    cache = ScoreCache(folder=tmp_path)
    assert cache.get(asked) == Answer(top1=Scores((0.13,), 0.13, 0.0))
    other = replace(asked, protocol=replace(asked.protocol, weight_decay=0.0))
    assert cache.get(other) is None and cache.has_file(other)  # found by name, and not an answer
    assert cache.get(replace(asked, ipc=2)) is None and not cache.has_file(replace(asked, ipc=2))


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        ("c49a5aa309fce33e", of_budget()),
        ("c846f001db6ca62b", of_budget(seed=1)),
        ("2bec48ca071096b7", of_budget(images=CODEC_REAL, num_bytes=7492, qualities=(20, 40, 60, 80), encoder=ENCODER)),
        ("e0db3598fc458a24", of_budget(images="runs/tiny", condensed="f55f2953b65b2dee")),
    ],
)
def test_a_score_of_an_earlier_storage_curve_is_found(tmp_path: Path, place: str, asked: Question) -> None:
    codec = {"qualities": [97], "held_out_top1": {"20": 0.1}, "chosen": 80, "encoder": ENCODER}
    kept = {"row": "r", "seed": 0, "top1": 0.15, "images_seen": 320, "bytes": 7068, "ipc": "19", "steps": 5}
    (tmp_path / f"{place}.json").write_text(json.dumps(kept | {"codec": codec}))
    answer = ScoreCache(folder=tmp_path).get(asked)
    assert (answer.top1.each, answer.num_bytes, answer.num_images, answer.stored) == ((0.15,), 7068, 320, "19")
    assert answer.codec.qualities == (97,) and answer.codec.chosen == 80


@pytest.mark.parametrize("asked", [question(), question(seed=None), of_budget()])
def test_a_question_is_another_where_anything_that_a_score_depends_on_differs(asked: Question) -> None:
    longer = replace(asked.protocol, max_steps=7)
    changes = [
        {"images": WHOLE_SET if asked.images == RANDOM_REAL else RANDOM_REAL}, {"network": "mlp"},
        {"protocol": longer}, {"augmentation": "none"}, {"train": "x"}, {"test": "x"},
        {"condensed": "x", "images": "x"}, {"teacher": "x"}, {"evaluator": 4}, {"images": RANDOM_PACKED},
        {"images": RANDOM_PACKED, "factor": 3}, {"seeds": (0, 1, 2), "seed": 2 if asked.seed is not None else None},
    ]  # fmt: skip
    keys = [replace(asked, **change).key for change in changes]
    assert asked.key not in keys and len(set(keys)) == len(keys)
    in_codec = replace(asked, images=CODEC_REAL, num_bytes=100, qualities=(20,), encoder="a")
    if asked.seed is None or asked.budget:  # photographs stand in tables and curves
        others = [{"num_bytes": 200}, {"qualities": (20, 40)}, {"encoder": "b"}]
        assert len({in_codec.key, *(replace(in_codec, **change).key for change in others)}) == 4


def test_a_question_and_what_was_measured_come_back_from_json(tmp_path: Path) -> None:
    asked = of_budget(protocol=get_protocol("idc", 10, 224))
    assert Question.from_json(json.loads(json.dumps(asked.to_json()))) == asked
    answer = Answer(top1=Scores.of([0.25]), num_bytes=5, num_images=320, stored="1 to 2", seconds=1.5)
    ScoreCache(folder=tmp_path).put(asked, answer, "name")
    assert ScoreCache(folder=tmp_path).get(asked) == answer
    (file,) = tmp_path.iterdir()
    assert Question.from_json(json.loads(file.read_text())["depends_on"]) == asked


def test_a_report_of_an_older_version_holds_the_time_alone(before: Evaluation) -> None:
    content = before.to_json()
    del content["cost"]
    assert Evaluation.from_json(content | {"evaluation_seconds": 4.5}).cost.seconds == 4.5


def test_a_row_in_which_something_is_missing_is_said_in_one_line(before: Evaluation) -> None:
    for name, said in (("bytes", "num_bytes"), ("network", "network"), ("top1_std", "std")):
        content = before.rows[0].to_json()
        del content[name]
        with pytest.raises(InputError, match=f"has no '{said}': it is damaged or of another version, evaluate again"):
            Row.from_json(content)


def test_an_earlier_report_that_cannot_be_read_is_written_anew(
    tmp_path: Path, before: Evaluation, few_digits: LabeledImages, caplog: pytest.LogCaptureFixture
) -> None:
    subject = Subject(lambda ipc: few_digits, None, lambda ipc: 1, None, 1, "k", {})
    pair = SubjectAndReal("x", load_recipe("demo"), None, subject, few_digits, few_digits, ())
    content = before.to_json() | {"measured": pair.measured}
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert pair.earlier(tmp_path).rows == before.rows
    del content["rows"][3]["bits_per_class"]
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert pair.earlier(tmp_path) is None and "written anew: a result has no 'bits_per_class'" in caplog.text
    assert replace(pair, notes=("other",), test=few_digits.subset(torch.arange(5))).earlier(tmp_path) is None


def test_a_deviation_is_that_of_a_sample() -> None:
    scores = Scores.of([0.5, 0.7, 0.9])
    assert scores.mean == pytest.approx(0.7) and scores.std == pytest.approx(0.2)  # sqrt((0.04 + 0 + 0.04) / 2)
    assert Scores.of([0.5]) == Scores((0.5,), 0.5, 0.0)


@pytest.mark.parametrize("change", [{"rows": ["x"]}, {"rows": None}, {"cost": 3}])
def test_a_report_of_another_shape_is_one_line(change: dict) -> None:
    content = json.loads(BEFORE.read_text()) | change
    with pytest.raises(InputError, match="something in it has another kind than it should|lacks|missing"):
        Evaluation.from_json(content)


def test_a_score_that_is_no_list_is_one_line() -> None:
    content = json.loads(BEFORE.read_text())
    content["rows"][0]["top1"] = 0.5
    with pytest.raises(InputError, match="another kind than it should"):
        Evaluation.from_json(content)
