"""What the rows of report.json say, in tables and sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gencond.common.provenance import spoken_starts, spoken_use
from gencond.common.quick_scores import SCORE_EVENT
from gencond.eval.baselines import (
    BASELINES,
    CODEC_REAL,
    HERDING_REAL,
    K_CENTER_REAL,
    KMEANS_KNOWN,
    KMEANS_KNOWN_PACKED,
    KMEANS_PACKED,
    KMEANS_REAL,
    RANDOM_PACKED,
    RANDOM_REAL,
    SAME_NUMBER,
    WHOLE_SET,
    CodecFacts,
)
from gencond.eval.given import TeacherFacts
from gencond.eval.metrics import Likeness
from gencond.eval.outside.lrs import OutsideScores
from gencond.eval.records import Scores
from gencond.eval.results import GENCOND, Cost, Evaluation, Row

NAMES = {
    GENCOND: "gencond (ours)",
    RANDOM_REAL: "random real",
    KMEANS_REAL: "k-means real",
    KMEANS_KNOWN: "k-means of known real",
    HERDING_REAL: "herding real",
    K_CENTER_REAL: "k-center real",
    RANDOM_PACKED: "random real, packed as ours",
    KMEANS_PACKED: "k-means real, packed as ours",
    KMEANS_KNOWN_PACKED: "k-means of known real, packed as ours",
    CODEC_REAL: "AVIF real, same bytes",
    WHOLE_SET: "whole training set",
}
RIVALS = (*SAME_NUMBER, CODEC_REAL)


def kinds(rows: Sequence[Row]) -> dict[str, str]:
    """Kinds of images in a table -> their names for people; what was condensed comes first."""
    condensed = [row.images for row in rows if row.images not in BASELINES]
    return {images: NAMES.get(images, images) for images in dict.fromkeys([*condensed, *BASELINES])}


def percent(scores: Scores) -> str:
    """Scores times 100: their mean and sample deviation; a single one has none."""
    spread = f" ± {100 * scores.std:.1f}" if len(scores.each) > 1 else ""
    return f"{100 * scores.mean:.1f}{spread}"


def spoken_seeds(*counts: int) -> str:
    """What stands in a table's cells, of rows with so many seeds; see `percent`."""
    if set(counts) == {1}:
        return "one seed"
    return f"mean ± std over {' or '.join(map(str, sorted(set(counts), reverse=True)))} seeds"


def _size(*counts: int) -> str:
    """Bytes for people, several in the unit of the largest."""
    unit, digits, name = (1e6, 2, "MB") if max(counts) >= 1e6 else (1e3, 1, "kB")
    return " / ".join(f"{count / unit:.{digits}f}" for count in counts) + f" {name}"


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of top-1 per cent.

    One line for each kind of images, network and protocol (named where there are several); one column for each IPC,
    "fresh" where images are seen once each, and "all" for the whole set.
    """
    ipcs = sorted({row.ipc for row in rows if row.ipc})
    columns = [*ipcs, *(["fresh"] if any(row.mode == "stream" for row in rows) else []), None]
    titles = ["all" if column is None else column if column == "fresh" else f"IPC {column}" for column in columns]
    judges = list(dict.fromkeys((row.network, row.protocol) for row in rows))
    named = [number for number in (0, 1) if len({judge[number] for judge in judges}) > 1]
    header = ["trained on", *(("network", "protocol")[number] for number in named), *titles, "stored"]
    lines = []
    for network, protocol in judges:
        for images, name in kinds(rows).items():
            wanted = (images, network, protocol)
            own = {
                "fresh" if row.mode == "stream" else row.ipc: row
                for row in rows
                if (row.images, row.network, row.protocol) == wanted
            }
            if own:
                cells = [percent(own[column].top1) if column in own else "" for column in columns]
                sizes = sorted({row.num_bytes for row in own.values()})
                lines.append([name, *((network, protocol)[number] for number in named), *cells, _size(*sizes)])
    return header, lines


def summary_table(rows: Sequence[Row]) -> str:
    """The table for a terminal, with a sentence on what it says."""
    return "\n".join([f"{heading(rows)}:", "", *_aligned(*table(rows)), "", *verdicts(rows)])


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = f"| {' | '.join(header)} |\n|{'---|' * len(header)}"
    return "\n".join([head, *(f"| {' | '.join(line)} |" for line in lines)])


def markdown_results(rows: Sequence[Row]) -> str:
    """`table` under its `heading`, in Markdown; empty without rows."""
    return f"{heading(rows)}:\n\n{markdown_table(*table(rows))}" if rows else ""


def _aligned(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table for a terminal."""
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *lines]]
    text.insert(1, "  ".join("-" * width for width in widths))
    return [line.rstrip() for line in text]


def heading(rows: Sequence[Row]) -> str:
    """What a table shows, with the judge where there is one."""
    judges = {(row.network, row.protocol) for row in rows}
    judge = f" of {rows[0].network} under protocol {rows[0].protocol}" if len(judges) == 1 else ""
    seeds = spoken_seeds(*(row.num_seeds for row in rows))
    return f"Top-1 accuracy (%){judge} on real test images, {seeds}"


def _difference(row: Row, other: Row) -> str:
    """Of two rows' means in points, with its standard error where there is one."""
    gap = 100 * (row.top1.mean - other.top1.mean)
    if min(row.num_seeds, other.num_seeds) < 2:
        return f"{gap:+.1f}"
    error = 100 * math.sqrt(sum(one.top1.std**2 / one.num_seeds for one in (row, other)))
    return f"{gap:+.1f} ± {error:.1f}"


def _judged_alike(row: Row, other: Row) -> bool:
    return (row.ipc, row.network, row.protocol) == (other.ipc, other.network, other.protocol)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """One sentence for each IPC and network: how far above or below real images we are.

    With the standard error of the difference of two means over seeds.
    """
    sentences = []
    for row in rows:
        if row.images in BASELINES:
            continue
        if row.mode == "stream":
            sentences.append(
                f"Fresh, {row.network}, {row.protocol}: {row.num_images:,} images were seen, none of them "
                "twice; not to be compared with a fixed IPC."
            )
            continue
        rivals = {
            other.images: _difference(row, other)
            for other in rows
            if other.images in RIVALS and _judged_alike(other, row)
        }
        if rivals:
            gaps = "; ".join(f"{gap} points against {NAMES[name]}" for name, gap in rivals.items())
            sentences.append(f"IPC {row.ipc}, {row.network}, {row.protocol}: {gaps}.")
    sizes = {row.images: row.num_bytes for row in rows}
    ours = max((size for images, size in sizes.items() if images not in BASELINES), default=0)
    if ours > sizes.get(WHOLE_SET, float("inf")):
        sentences.append(
            f"The condensed set ({_size(ours)}) is larger than the whole training set "
            f"({_size(sizes[WHOLE_SET])}): on this data it saves no storage."
        )
    return sentences


def _cut(images_per_slot: int) -> str:
    return "" if images_per_slot == 1 else f", each cut into {images_per_slot} images: IPC counts them before"


def words_of(protocol: Mapping[str, Any]) -> str:
    """A protocol in one line."""
    shown = {name: value for name, value in protocol.items() if name != "name" and value not in (None, "", [], ())}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def quality_table(panel: Likeness) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of the quality panel of `metrics.compare_sets`."""
    names = list(panel.condensed)
    lines = [
        [label, *(f"{values[name]:.3g}" for name in names)]
        for label, values in (("condensed", panel.condensed), ("held-out real images", panel.held_out_real))
    ]
    return ["", *(name.upper() if name in ("fid", "kid") else name for name in names)], lines


def about_answers(rows: Sequence[Row], class_names: Sequence[str]) -> list[str]:
    """Sentences where rows do not say how classifiers answered in each class, and on classes without test images."""
    sentences, unknown = [], sum(row.answered is None for row in rows)
    if unknown:
        sentences.append(
            f"Answers class by class are unknown of {unknown} of {len(rows)} rows, which an older version measured: "
            "move report.json away and evaluate again to have them."
        )
    asked = next((row.answered.asked for row in rows if row.answered), ())
    if untested := [name for name, count in zip(class_names, asked, strict=False) if not count]:
        some = f" and {len(untested) - 5} more" if len(untested) > 5 else ""
        sentences.append(f"No test images show {', '.join(untested[:5])}{some}.")
    return sentences


def about_likeness(content: Evaluation) -> list[str]:
    """Sentences on the quality panel and on memorisation, for what of them was measured."""
    sentences = []
    if panel := content.quality:
        low = min(panel.diversity.items(), key=lambda item: item[1], default=None)
        sentences.append(
            f"Features of {panel.extractor}; {panel.num_syn} samples and {panel.num_floor} held-out real "
            f"images, each against {panel.num_real} real ones. Both FID and KID depend on the number of images."
        )
        if low:
            sentences.append(f"Least diverse class: {low[0]}, {100 * low[1]:.0f} % of the spread of real images.")
        if panel.collapsed:
            sentences.append(f"Nearly the same image again and again: {', '.join(panel.collapsed)}.")
    if found := content.memorisation:
        sentences.append(
            f"Nearest training image, in pixels: {100 * found.median_syn:.1f} % of the range away from a sample "
            f"(median of {found.num_syn:.0f}), {100 * found.median_held_out:.1f} % from a held-out real image; "
            f"{100 * found.share_nearer:.0f} % of the samples are nearer to one than 95 % of held-out images are."
        )
    return sentences


def outside_table(entries: Sequence[OutsideScores]) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of an outside judge's scores, times 100: one line for each network, setting and IPC."""
    measured = {
        "HLR ↓": "hlr", "IOR ↑": "ior", "LRS ↑": "lrs", "condensed": "condensed", "random real": "random_real",
        "whole set": "whole_set",
    }  # fmt: skip
    lines = [
        [
            entry.network,
            str(entry.epochs),
            str(entry.learning_rate or "searched"),
            str(entry.ipc),
            *(percent(getattr(entry, name)) for name in measured.values()),
        ]
        for entry in entries
    ]
    return ["network", "epochs", "learning rate", "IPC", *measured], lines


def about_outside(entries: Sequence[OutsideScores]) -> list[str]:
    """Sentences on what an outside judge's scores mean, what they leave out, and how they came about."""
    runs = " or ".join(str(count) for count in sorted({entry.num_eval for entry in entries}))
    first = entries[0]
    return [
        f"By {first.judge}, run as its {first.dataset} on {first.num_images['train']:,} training and "
        f"{first.num_images['test']:,} test images; everything times 100, mean ± std over the evaluations ({runs}).",
        "HLR: how far the whole set is ahead of the condensed one. IOR: how far the condensed set is ahead of random "
        "real images. LRS: (e^a - 1/e) / (e - 1/e), a = (IOR - HLR) / 2, of fractions; 26.9 where both are 0.",
        "Every accuracy is the best of every tenth epoch on the test set, and learning rates are searched on the test "
        "set, for random real images always and for the condensed set where none is given: optimistic on all sides, "
        "and not to be compared with other tables.",
        "Its whole set trains without augmentation and with its own learning rate, 0.01, a tenth from epoch 100 on; "
        "its seeds come from the clock, so that a second run differs.",
        *dict.fromkeys(
            f"Each stored image is cut into {entry.images_per_slot}; random real images are as many as those stored."
            for entry in entries
            if entry.images_per_slot > 1
        ),
        *dict.fromkeys(f"The judge is patched: {'; '.join(entry.patches)}." for entry in entries),
        *dict.fromkeys(f"Settings: {entry.settings}." for entry in entries),
        *dict.fromkeys(
            f"Ran with {', '.join(f'{name} {number}' for name, number in entry.versions.items())} on "
            f"{entry.device}: {entry.command}"
            for entry in entries
        ),
        f"It took {sum(entry.seconds for entry in entries):.0f} s in all.",
    ]


def outside_summary(entries: Sequence[OutsideScores]) -> str:
    """An outside judge's table for a terminal, and what to know of it."""
    return "\n".join([*_aligned(*outside_table(entries)), "", *about_outside(entries)])


def _codec_facts(rows: Sequence[Row], num_classes: int) -> list[tuple[str, str]]:
    """How many photographs stand in the codec's rows of the first network, and how they are stored."""
    held = {
        f"{row.num_images // num_classes} random real images of each class in {row.num_bytes:,} bytes, "
        f"{about_codec(row.codec)}": row.ipc
        for row in reversed(rows)
        if row.images == CODEC_REAL and row.network == rows[0].network and row.codec and row.num_images and row.ipc
    }
    return [(f"AVIF from IPC {ipc} on", text) for text, ipc in sorted(held.items(), key=lambda item: item[1])]


def about_codec(codec: CodecFacts) -> str:
    """The quality of a codec's row, how it was chosen, and what encoded it."""
    qualities = " to ".join(str(codec.qualities[at]) for at in ((0, -1) if len(codec.qualities) > 1 else (0,)))
    tried = ", ".join(f"{quality}: {100 * share:.1f} %" for quality, share in codec.held_out_top1.items())
    how = f" ({codec.chosen} was best on held-out training images, one seed: {tried})" if tried else ""
    finer = ", made finer by bytes that were left over" if codec.qualities != (codec.chosen,) else ""
    return f"quality {qualities}{finer}{how}, {codec.encoder}"


def _log_entry(cost: Cost | None) -> dict[str, Any]:
    """What an evaluation took, as a stage of a run."""
    return {"stage": "evaluation, all rows", **(asdict(cost) if cost else {})}


def _costs(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Of each stage of a log: its time, and the most memory that was seen."""
    seconds: dict[str, float] = {}
    memory: dict[str, int] = {}
    for entry in log:
        if "seconds" in entry:
            stage = "quick scores" if entry.get("event") == SCORE_EVENT else entry["stage"]
            seconds[stage] = seconds.get(stage, 0.0) + entry["seconds"]
            memory[stage] = max(memory.get(stage, 0), entry.get("memory", 0))
    return [
        (stage, f"{value:.1f} s" + (f", {memory[stage] / 1e9:.2f} GB of memory" if memory[stage] else ""))
        for stage, value in seconds.items()
    ]


def _teacher_facts(teacher: TeacherFacts | None) -> list[tuple[str, str]]:
    """Of a protocol that learns a teacher's answers."""
    if teacher is None:
        return []
    trained = f", trained {teacher.trained}" if teacher.trained else ", given"
    said = (
        f"{teacher.name}{trained}: {100 * teacher.top1:.1f} % of the test images; it answers every batch anew, "
        f"for every row alike, and its {teacher.bytes:,} bytes are not counted in what is stored"
    )
    return [("Teacher", said)]


def facts(content: Evaluation, log: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """What the numbers rest on: section -> (name, value)."""
    made, rows = content.condensed, content.rows
    data = made.get("data", {})
    judged_on = (
        "Judged on",
        f"{content.num_test_images} real images of the {content.judged_on} set"
        + (": settings may be chosen by it" if content.judged_on != "test" else ""),
    )
    how: list[tuple[str, str]] = [judged_on]
    if rows:
        how += [
            ("Selection", "none: the last iterate of every training"),
            (
                "Mode",
                "fixed: k images of each class drawn once"
                + ("; fresh: every image is seen once" if any(row.mode == "stream" for row in rows) else ""),
            ),
            ("Seeds", f"{rows[0].num_seeds}; random real images are drawn anew for each"),
            *_codec_facts(rows, len(content.class_names)),
            *((f"Protocol {row['name']}", words_of(row)) for row in content.protocols),
            *_teacher_facts(content.teacher),
            ("Augmentation", content.augmentation),
        ]
    return {
        "How it was judged": how,
        "What was condensed": [
            ("Training images", f"{data.get('num_images', '?')} of {data.get('source', '?')}{spoken_use(data)}"),
            ("Fingerprint", str(data.get("fingerprint", "?"))),
            (
                made.get("stored", "learned codes").capitalize(),
                f"{made['num_slots']} per class" + _cut(made.get("images_per_slot", 1)),
            ),
            (
                "Stored",
                f"{made['bytes']:,} bytes, {8 * made['bytes'] / len(content.class_names) / 1e6:.3f} Mbit per class"
                + (f", in {made['storage']}" if "storage" in made else ""),
            ),
            *([("Codes start from", starts)] if (starts := spoken_starts(made)) else []),
            ("Recipe", made["recipe"]["name"] if "recipe" in made else "unknown, and so is what it was chosen by"),
        ],
        "Cost": [
            *_costs([*log, _log_entry(content.cost)]),
            ("what must be stored", f"{made['bytes']:,} bytes"),
        ],
        "To reproduce": [
            ("Command", content.command),
            ("Commit", str(content.commit or "unknown")),
            ("Versions", ", ".join(f"{name} {number}" for name, number in content.versions.items())),
        ],
    }
