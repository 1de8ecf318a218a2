"""Captioned pictures for the report, made from the saved arrays of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from robustkd.core.methods import label_of
from robustkd.report.aggregate import place
from robustkd.report.arrays import Array
from robustkd.report.figures import heat_map, heat_scale, picture

_MOST_SAMPLES = 8
_COARSE = 64


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the report with title and caption; ``source`` is a data URI."""

    source: str
    title: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A test image without and with the trigger; ``label`` is its true class, or empty."""

    clean: str
    triggered: str
    label: str


@dataclass(frozen=True, slots=True)
class Guess:
    """Prediction of a model for a triggered image.

    ``right`` says whether it is the true class; None if the true class is unknown.
    """

    name: str
    right: bool | None


@dataclass(frozen=True, slots=True)
class Strip:
    """Samples side by side, with the prediction of every model below each of them.

    If ``coarse``, images have so few pixels that each pixel is drawn as a square.
    """

    samples: Sequence[Sample]
    guesses: Mapping[str, Sequence[Guess]]
    coarse: bool


@dataclass(frozen=True, slots=True)
class AuditPictures:
    """Images without and with the transformation that an audit found, by the name of their row.

    ``most`` is the largest change of a pixel value, in [0, 1].
    """

    rows: Mapping[str, Sequence[str]]
    most: float
    coarse: bool


@dataclass(frozen=True, slots=True)
class Masks:
    """Maps of the detoxification masks by method, on one colour scale from 0 to ``top``."""

    methods: Mapping[str, Sequence[Picture]]
    top: float
    scale: str


def trigger(arrays: Mapping[str, Array]) -> Iterator[Picture]:
    """Pictures of the trigger: its pattern, its mask and its effect, as far as they were saved."""
    if "trigger_pattern" in arrays:
        yield Picture(picture(arrays["trigger_pattern"]), "Pattern", "blended into each image")
    if "trigger_mask" in arrays:
        mask = arrays["trigger_mask"]
        top = float(mask.mean(axis=0).max())
        note = f"opacity of the pattern: mean {mask.mean():.3f}, largest {top:.2f}"
        yield Picture(heat_map(mask, top=top), "Mask", note)
    if "images" in arrays and "triggered" in arrays:
        change = (arrays["triggered"] - arrays["images"]).mean(axis=0)
        most = float(np.abs(change).max())
        gain = 0.5 / most if most > 0 else 0.0
        note = f"mean over the samples, amplified; grey: no change; largest change: {most:.2f}"
        yield Picture(picture(0.5 + gain * change), "Change", note)


def strip(arrays: Mapping[str, Array], classes: Sequence[str] = ()) -> Strip | None:
    """The first samples with the predictions of every model.

    Args:
        arrays: Arrays from `read_arrays`.
        classes: Names of the classes; a class without a name is shown by its number.

    Returns:
        The samples; None unless both clean and triggered images were saved.
    """
    if "images" not in arrays or "triggered" not in arrays:
        return None
    labels = arrays.get("labels")
    names = ["" for _ in arrays["images"]]
    if labels is not None:
        names = [_class(int(label), classes) for label in labels]
    drawn = (map(picture, arrays["images"]), map(picture, arrays["triggered"]), names)
    samples = [Sample(*parts) for parts in islice(zip(*drawn, strict=True), _MOST_SAMPLES)]
    prefix = "predictions/"
    methods = sorted((key[len(prefix) :] for key in arrays if key.startswith(prefix)), key=place)
    guesses = {
        label_of(method): _guesses(arrays[prefix + method], labels, classes) for method in methods
    }
    return Strip(samples, guesses, coarse=max(arrays["images"].shape[2:]) <= _COARSE)


def found(arrays: Mapping[str, Array], who: str) -> AuditPictures | None:
    """Pictures of what the audit of a network found; None unless they were saved."""
    before, after = (arrays.get(f"audit/{who}/{when}") for when in ("before", "after"))
    if before is None or after is None:
        return None
    before, after = before[:_MOST_SAMPLES], after[:_MOST_SAMPLES]
    change = after - before
    most = float(np.abs(change).max())
    gain = 0.5 / most if most > 0 else 0.0
    rows = {"image": before, "transformed": after, "difference, amplified": 0.5 + gain * change}
    return AuditPictures(
        {name: list(map(picture, images)) for name, images in rows.items()},
        most,
        coarse=max(before.shape[2:]) <= _COARSE,
    )


def masks(arrays: Mapping[str, Array]) -> Masks | None:
    """Maps of the detoxification masks, all on one colour scale; None if none was saved."""
    keys = [key for key in arrays if key.startswith("mask/") and key.count("/") > 1]
    if not keys:
        return None
    top = max(float(arrays[key].mean(axis=0).max()) for key in keys)
    methods: dict[str, list[Picture]] = {}
    for key in keys:
        _, method, stage = key.split("/", 2)
        mask = arrays[key]
        shape = "\u00a0\u00d7\u00a0".join(map(str, mask.shape))
        note = f"mean {mask.mean():.3f}, largest {mask.max():.2f}; {shape}"
        drawn = Picture(heat_map(mask, top=top), stage, note)
        methods.setdefault(label_of(method), []).append(drawn)
    return Masks(methods, top, heat_scale())


def _guesses(found: Array, labels: Array | None, classes: Sequence[str]) -> list[Guess]:
    right = [None] * len(found) if labels is None else list(map(bool, found == labels))
    pairs = zip(found, right, strict=True)
    return [Guess(_class(int(k), classes), ok) for k, ok in islice(pairs, _MOST_SAMPLES)]


def _class(number: int, classes: Sequence[str]) -> str:
    return classes[number] if 0 <= number < len(classes) else str(number)
