"""Static int8 quantisation by onnxruntime, with the recipe chosen on validation images.

Activations are quantised to unsigned and weights to signed bytes, in QDQ format. The best recipe
depends on the network: depthwise networks can lose their accuracy with one scale per tensor, and a
CPU without VNNI adds pairs of products in 16 bits, which overflow unless weights use 7 bits only.
Several recipes are therefore tried, and the most accurate one on validation images is taken.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from robustkd.core.errors import InputError, first_line, printable
from robustkd.core.types import DataSource, Labels, Logits
from robustkd.export.installed import quiet
from robustkd.export.onnx import INPUT, of_the_system, stamp
from robustkd.export.parity import Parity, compare
from robustkd.export.runtime import load_onnxruntime
from robustkd.export.session import OnnxClassifier
from robustkd.models.classifier import Spec
from robustkd.training.inference import predict
from robustkd.training.metrics import Proportion, accuracy

_MOST_IMAGES, _FEWEST_IMAGES = 256, 32
_PIXELS = 1 << 22
_AT_ONCE = 16
_ROOM = 4
"""Most files of the size of the source that a step of the quantisation has on the disk at once."""
_INSTEAD = "export the other files alone with --no-int8 (in Python: int8=False)"


@dataclass(frozen=True)
class Recipe:
    """Settings of one quantisation.

    Attributes:
        per_channel: If True, each output channel of a weight has its own scale.
        reduce_range: If True, weights use 7 bits.
        calibration: Method that determines the range of activations.
        products_only: If True, only convolutions and matrix products are quantised.
    """

    per_channel: bool
    reduce_range: bool
    calibration: Literal["min-max", "percentile", "entropy"] = "min-max"
    products_only: bool = False

    @property
    def name(self) -> str:
        """Short description, e.g. ``per-channel, 7-bit weights, min-max``."""
        scales = "per-channel" if self.per_channel else "per-tensor"
        bits = 7 if self.reduce_range else 8
        only = ", products only" if self.products_only else ""
        return f"{scales}, {bits}-bit weights, {self.calibration}{only}"


RECIPES: tuple[Recipe, ...] = (
    Recipe(per_channel=True, reduce_range=True),
    Recipe(per_channel=True, reduce_range=False),
    Recipe(per_channel=False, reduce_range=True),
    Recipe(per_channel=False, reduce_range=False),
    Recipe(per_channel=True, reduce_range=True, calibration="percentile"),
    Recipe(per_channel=True, reduce_range=True, calibration="entropy"),
    Recipe(per_channel=True, reduce_range=True, products_only=True),
)
"""Recipes in the order in which they are tried; the first of equally accurate ones is taken."""


@dataclass(frozen=True)
class Tried:
    """Result of one recipe on the validation images.

    Attributes:
        recipe: Name of the recipe.
        acc: Accuracy; None if onnxruntime could not apply the recipe.
        parity: Comparison with the student, or None likewise.
        reason: Error of onnxruntime; empty if there was none.
    """

    recipe: str
    acc: Proportion | None
    parity: Parity | None
    reason: str = ""

    def record(self) -> dict[str, object]:
        """The figures as JSON values."""
        return {
            "recipe": self.recipe,
            "validation_acc": self.acc.value if self.acc else None,
            "agreement": self.parity.same.value if self.parity else None,
            "n": self.acc.n if self.acc else None,
            "reason": self.reason,
        }

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key: number of correct predictions, then of predictions equal to the student's."""
        return (self.acc.hits, self.parity.same.hits) if self.acc and self.parity else (-1, -1)


@dataclass(frozen=True)
class Quantised:
    """The chosen recipe, all recipes that were tried, and the number of calibration images."""

    chosen: Tried
    tried: tuple[Tried, ...]
    calibration_images: int

    @property
    def failures(self) -> list[str]:
        """A sentence on each recipe that onnxruntime could not apply."""
        return [
            f"int8: the recipe '{row.recipe}' could not be applied: {printable(row.reason)}"
            for row in self.tried
            if row.acc is None
        ]

    def record(self) -> dict[str, object]:
        """The figures as JSON values."""
        return {
            "chosen": self.chosen.recipe,
            "calibration_images": self.calibration_images,
            "tried": [row.record() for row in self.tried],
        }


def quantise_best(
    source: Path,
    out: Path,
    spec: Spec,
    data: DataSource,
    *,
    student: tuple[Logits, Labels],
    recipes: Sequence[Recipe] = RECIPES,
) -> Quantised:
    """Quantise a float file by every recipe and keep the most accurate result.

    Args:
        source: The float file.
        out: File to write.
        spec: Description of the model, which is stored in the file.
        data: Clean images: ``train`` for calibration, ``validation`` to choose the recipe.
        student: Logits of the student on ``validation``, and the labels.
        recipes: Recipes to try, at least one.

    Raises:
        InputError: If onnxruntime can apply none of them.
        OSError: If a file cannot be written, for example because the disk is full.
    """
    images = calibration_images(data)
    # Within the folder of the export, so that the next one removes what a killed one left.
    with (
        tempfile.TemporaryDirectory(prefix=".robustkd-", dir=out.parent) as folder,
        _temporary_files_in(folder),
    ):
        prepared = _prepared(source, Path(folder) / "prepared.onnx")
        rows, best = [], None
        for number, recipe in enumerate(recipes):
            made = Path(folder) / f"{number}.onnx"
            rows.append(_try(prepared, made, images, recipe, data, student))
            if best is None or rows[-1].rank > best[0].rank:
                best = rows[-1], made
        if best is None or best[0].acc is None:
            reason = rows[0].reason if rows else "no recipe was given"
            raise InputError(f"{source.name} cannot be quantised: {reason}; {_INSTEAD}")
        out.write_bytes(best[1].read_bytes())
    stamp(out, spec)
    return Quantised(best[0], tuple(rows), len(images))


def calibration_images(data: DataSource) -> Float[np.ndarray, "m channels height width"]:
    """Return 32 to 256 clean training images, not augmented; the same ones in every run.

    There are fewer if there are fewer training images. Above 16, the number is a multiple of 16:
    onnxruntime determines percentiles and entropies from batches of equal size only.
    """
    wanted = _PIXELS // math.prod(data.image_shape)
    wanted = min(max(wanted, _FEWEST_IMAGES), _MOST_IMAGES, data.size("train"))
    if wanted > _AT_ONCE:
        wanted -= wanted % _AT_ONCE
    order = torch.Generator().manual_seed(0)
    batch = next(data.batches("train", batch_size=wanted, shuffle=order))
    return np.ascontiguousarray(batch.images.cpu().numpy())


def _try(
    source: Path,
    out: Path,
    images: Float[np.ndarray, "m channels height width"],
    recipe: Recipe,
    data: DataSource,
    student: tuple[Logits, Labels],
) -> Tried:
    try:
        quantise(source, out, images, recipe)
        found, labels = predict(OnnxClassifier(out), data, "validation")
    # The errors of onnxruntime have no common base class.
    except Exception as error:
        _check_written(error, source, out.parent)
        return Tried(recipe.name, None, None, first_line(error))
    return Tried(recipe.name, accuracy(found, labels), compare(student[0], found))


def quantise(
    source: Path,
    out: Path,
    images: Float[np.ndarray, "m channels height width"],
    recipe: Recipe,
) -> None:
    """Quantise a float file to int8 by one recipe.

    Args:
        source: The float file.
        out: File to write.
        images: Clean images in [0, 1] for calibration, as many as :func:`calibration_images` gives.
        recipe: The recipe.
    """
    load_onnxruntime()  # before its parts, so that it sends no data
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "min-max": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    with quiet():
        quantize_static(
            source,
            out,
            _reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"] if recipe.products_only else None,
            per_channel=recipe.per_channel,
            reduce_range=recipe.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[recipe.calibration],
        )


def _reader(images: Float[np.ndarray, "m channels height width"]) -> object:
    class Reader:
        """Calibration reader with ``get_next``, the only method that onnxruntime calls."""

        def __init__(self) -> None:
            self.batches: Iterator[Any] = iter(
                [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]
            )

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


def _prepared(source: Path, out: Path) -> Path:
    """Infer shapes and fold layers, as far as onnxruntime can, and return the new file."""
    load_onnxruntime()
    from onnxruntime.quantization.shape_inference import quant_pre_process

    for options in ({}, {"skip_symbolic_shape": True}):
        try:
            with quiet():
                quant_pre_process(source, out, **options)
        except Exception as error:
            out.unlink(missing_ok=True)
            _check_written(error, source, out.parent)
        else:
            return out
    return source


class _Temporary:
    """Stands for the module ``tempfile`` in modules of onnxruntime.

    Their temporary folders are in the folder that :func:`_temporary_files_in` sets for this thread.
    """

    def TemporaryDirectory(  # noqa: N802 - the name in tempfile
        self,
        suffix: str | None = None,
        prefix: str | None = None,
        dir: str | None = None,  # noqa: A002 - the name in tempfile
        **further: bool,
    ) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(suffix, prefix, dir or _FOLDER.get(), **further)

    def __getattr__(self, name: str) -> object:
        return getattr(tempfile, name)


_FOLDER: ContextVar[str | None] = ContextVar("folder of temporary files", default=None)
_TEMPORARY = _Temporary()


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """Let onnxruntime write its temporary files to a folder, not to that of the system.

    They are as large as the network. There they need no second disk with space, and a killed export
    leaves none of them. Other threads of the process, and other packages, are not affected.
    """
    load_onnxruntime()
    for name in ("quant_utils", "quantize", "shape_inference"):
        module: Any = import_module(f"onnxruntime.quantization.{name}")
        module.tempfile = _TEMPORARY
    before = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(before)


def _check_written(error: Exception, source: Path, folder: Path) -> None:
    """Raise an error of the system if a step failed for lack of space, and not by the network.

    onnxruntime reports no error if it cannot write a file completely, and then fails to read it. So
    the space that it needed is filled, and made free again.

    Raises:
        OSError: If the step failed since a file could not be written.
    """
    if (cause := of_the_system(error)) is not None:
        raise cause from error
    block = bytes(source.stat().st_size)
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_ROOM):
            file.write(block)
            file.flush()
