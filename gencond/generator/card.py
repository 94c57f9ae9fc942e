"""The README.md of an artefact: a model card for whoever finds the folder."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gencond.common.provenance import spoken_starts, spoken_use

if TYPE_CHECKING:
    from gencond.generator.artefact import Condensed

LISTED_CLASSES = 12


def model_card(
    condensed: "Condensed", results: str = "", place: str = "path/to/this/folder", picture: str | None = None
) -> str:
    """Markdown with the front matter that the Hub reads.

    Args:
        results: of an evaluation, in Markdown; none leaves the section out.
        place: what `gencond.load` takes to read it.
        picture: a file of samples beside the card.
    """
    made = condensed.config.provenance or {}
    recipe, data = made.get("recipe", {}), made.get("data", {})
    source = _as_text(data.get("source", "a data set"))
    names = [_as_text(name) for name in condensed.class_names]
    listed = ", ".join(names[:LISTED_CLASSES]) + (", ..." if len(names) > LISTED_CLASSES else "")
    kind = "grey" if condensed.channels == 1 else "RGB"
    versions = ", ".join(f"{name} {number}" for name, number in made.get("versions", {}).items())
    facts = {
        "Images": f"{condensed.image_size}x{condensed.image_size} {kind}",
        "Classes": f"{condensed.num_classes}: {listed}",
        condensed.stored.capitalize(): f"{condensed.num_slots} per class"
        + ("; samples beyond them come from a seeded stream" if condensed.largest_ipc is None else "")
        + (f", each cut into {condensed.images_per_slot} images" if condensed.images_per_slot > 1 else ""),
        "Size": f"{condensed.num_bytes:,} bytes ({8 * condensed.num_bytes / condensed.num_classes / 1e6:.3f} "
        f"Mbit per class) in {condensed.config.storage}",
        "Condensed from": f"{data.get('num_images', '?')} training images of {source} "
        f"(fingerprint `{data.get('fingerprint', '?')}`){spoken_use(data)}",
        **({"Codes start from": starts} if (starts := spoken_starts(made)) else {}),
        "Recipe": f"`{_as_text(recipe.get('name', '?'))}`, seed {recipe.get('seed', '?')}; all of it in `config.json`",
        **(
            {"Started from weights": ", ".join(f"{part} `{key}`" for part, key in made["weights"].items())}
            if made.get("weights")
            else {}
        ),
        **({"Appended": "; ".join(map(_appended, made["appended"]))} if made.get("appended") else {}),
        "Made with": f"{versions or '?'}; commit {made.get('commit') or 'unknown'}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    starts_from_images = condensed.largest_ipc is not None and (recipe.get("pixels") or {}).get("init") != "noise"
    tied = (recipe.get("codes") or {}).get("encode_steps") or (recipe.get("objective") or {}).get(
        "representative_weight"
    )
    if starts_from_images:
        memory = (
            "Its images start from real training images and can stay close to them: do not use this set to hide them."
        )
    elif tied:
        memory = (
            "Its learned codes start from real training images: treat the first samples of a class as compressed and "
            "altered copies of training images, and do not use this set to hide them."
        )
    else:
        memory = (
            "Its codes were fitted to what networks see of real images, not to single ones; that alone is no promise "
            "of privacy."
        )
    what = (
        "A data set condensed into a conditional generator by gencond: any number of images per class (IPC) is sampled "
        "from these weights"
        if condensed.largest_ipc is None
        else f"A data set condensed into {condensed.largest_ipc} images per class (IPC) by gencond"
    )
    ipc = condensed.largest_ipc or 10
    shown = f"\n![samples, a class a row]({picture})\n" if picture else ""
    section = f"\n## Results\n\n{results}\n" if results else ""
    return f"""---
library_name: gencond
tags:
- dataset-condensation
- dataset-distillation
- image-classification
pipeline_tag: unconditional-image-generation
---

# {source}, condensed

{what}, and a classifier trained on the samples alone should come close to one trained on the real images.
{shown}
```python
import gencond

condensed = gencond.load("{place}")
images, labels = condensed.sample(ipc={ipc})        # [{ipc * condensed.images_per_slot * condensed.num_classes}, \
{condensed.channels}, {condensed.image_size}, {condensed.image_size}] float in [0, 1], class-major
dataset = condensed.as_dataset(ipc={ipc})           # map-style Dataset; a smaller IPC is a prefix of a larger one
```

| | |
|---|---|
{table}
{section}
## Intended use

Training and comparing classifiers with little data: architecture search, replay in continual learning, quick
experiments. It is not a substitute for the real test set, and what it teaches carries the biases of its source.

## Memorisation

{memory}
"""


def _appended(made: Mapping[str, Any]) -> str:
    """One addition, for people."""
    data, names = made["data"], made["classes"]
    listed = ", ".join(map(_as_text, names[:LISTED_CLASSES])) + (", ..." if len(names) > LISTED_CLASSES else "")
    return f"{data['num_images']} images of {_as_text(data['source'])} (fingerprint `{data['fingerprint']}`): {listed}"


def _as_text(name: str) -> str:
    """A name in Markdown, whatever it is: in one line, of which a table, a tag or emphasis takes nothing away."""
    return re.sub(r"([\\`*|<])", r"\\\1", " ".join(name.split()))
