"""Export of a student to a folder of files that run without this package."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from robustkd.core.errors import UsageError
from robustkd.core.files import check_free, sha256_of, write_json
from robustkd.core.targets import Target
from robustkd.core.triggers import apply_trigger, check_target
from robustkd.core.types import DataSource, Labels, Logits, Split, Trigger
from robustkd.core.usual_state import usual_state
from robustkd.evaluation.measurement import Measured, measure
from robustkd.export import int8 as quantisation
from robustkd.export import parity as parities
from robustkd.export.folder import whole_folder
from robustkd.export.installed import check_installed
from robustkd.export.latency import Running, running
from robustkd.export.machine import machine
from robustkd.export.notes import busy, few, notes
from robustkd.export.onnx import OPSET, description, trace, write_onnx
from robustkd.export.session import OnnxClassifier
from robustkd.export.weights import of_a_library, write_program, write_state_dict
from robustkd.models.checks import check_float32
from robustkd.models.classifier import Classifier
from robustkd.models.complexity import operations, parameters
from robustkd.models.description import check_fits
from robustkd.models.features.taps import frozen_modes
from robustkd.training.inference import check_finite, predict
from robustkd.training.sources import check_source
from robustkd.training.trial import check_classifier

FILES: Final = {
    "onnx": "student.onnx",
    "int8": "student.int8.onnx",
    "program": "student.pt2",
    "state_dict": "state_dict.safetensors",
}
"""Files of an export by kind; the state dict is written for torchvision and timm networks only."""
RECORD: Final = "export.json"
_FORMAT = 1
_MACS = (
    "one multiplication with its addition is one MAC; convolutions, matrix products and attention "
    "of one image, by the formulas of torch's FlopCounterMode; normalisation and activations are "
    "left out"
)


@dataclass
class _Found:
    """Measurements of an export in progress, by kind of file."""

    measured: dict[str, Measured] = field(default_factory=dict)
    parity: dict[str, parities.Parity] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    quantised: quantisation.Quantised | None = None


@usual_state
def export_student(
    student: Classifier,
    data: DataSource,
    out: str | Path,
    *,
    trigger: Trigger | None = None,
    target: Target = 0,
    int8: bool = True,
    max_int8_drop: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, object]:
    """Export a student to ONNX, int8 ONNX, ``torch.export`` and a state dict, and measure them.

    The ONNX file must predict the student's class for at least 99.9 % of the validation images, or
    nothing is written. The int8 recipe is chosen on validation images; test images are only used
    for the measurements at the end.

    Args:
        student: The model; it is not changed.
        data: Clean images of the same classes and shape.
        out: New folder.
        trigger: Trigger of the attack; None if it is unknown.
        target: Target class of the attack; ``next`` for the next class of each image. It has no
            effect without a trigger.
        int8: If True, also quantise to int8.
        max_int8_drop: Largest loss of accuracy of the int8 file compared with the student on the
            test images, a fraction; None for any loss.
        tell: Function that receives one line before each step, and one for each int8 recipe that
            could not be applied.

    Returns:
        The content of ``export.json``.

    Raises:
        UsageError: If a package of the extra is missing, ``out`` is not empty, ``target`` is not
            a class, ``trigger`` is no function or does not return images like those that it is
            given, the student's weights are not of float32, it does not work with the images,
            ``data`` is no data source, or ``max_int8_drop`` is out of range or given without
            ``int8``.
        InputError: If the data does not fit the student, pixels are not in [0, 1], labels are no
            classes, an output of the student is not finite, torch or onnxruntime cannot export it,
            or the folder cannot be written.
        ThresholdError: If the predictions of the ONNX file differ, or the int8 file loses more than
            ``max_int8_drop`` (exit code 5).

    Example:
        >>> import tempfile
        >>> import robustkd
        >>> data = robustkd.load_data("digits", train=100, validation=100, test=100)
        >>> spec = robustkd.Spec("wrn-10-1", 10, data.image_shape)
        >>> student = robustkd.build(spec, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shipped = f"{folder}/shipped"
        ...     record = robustkd.export_student(student, data, shipped, int8=False)
        >>> [file["name"] for file in record["files"].values()]
        ['student.onnx', 'student.pt2']
    """
    out = Path(out)
    parities.check_most(max_int8_drop, int8=int8)
    check_installed()
    check_free(out)
    if not isinstance(student, Classifier):
        raise UsageError(
            f"the student is of type {type(student).__name__}; expected a Classifier, such as load "
            "and run return"
        )
    check_float32(student, "the student")
    check_source(data, splits=())
    check_fits(
        student.spec,
        Path("the student"),
        classes=len(data.classes),
        image_shape=data.image_shape,
        names=tuple(data.classes),
    )
    # The training images are those of the calibration.
    read: tuple[Split, ...] = ("train", "test", "validation") if int8 else ("test", "validation")
    images = check_classifier(student, data, name="the student", splits=read)
    check_target(target, data)
    if trigger is not None:
        apply_trigger(trigger, images.cpu())
    model = copy.deepcopy(student).cpu()
    with frozen_modes(model), whole_folder(out) as folder:
        found = _Found()
        judged = predict(model, data, "validation")
        check_finite(judged[0], "validation images")
        _write(model, folder, judged, data, found, tell)
        if int8:
            tell(f"int8: trying {len(quantisation.RECIPES)} recipes on validation images")
            found.quantised = quantisation.quantise_best(
                folder / FILES["onnx"], folder / FILES["int8"], model.spec, data, student=judged
            )
            for failure in found.quantised.failures:
                tell(failure)
            tried = found.quantised.chosen.parity
            if tried is not None:
                found.parity["int8"] = tried
        tell("measuring: accuracy on test images; latency, load time and memory on this machine")
        _measure(model, folder, data, trigger, target, found)
        if max_int8_drop is not None:
            before, after = found.measured["torch"].acc, found.measured["int8"].acc
            parities.check_drop(before, after, max_int8_drop, FILES["int8"])
        found.running = {kind: running(folder / FILES[kind]) for kind in _onnx_kinds(folder)}
        content = _content(model, folder, data, found)
        write_json(folder / RECORD, content)
    return content


def _write(
    model: Classifier,
    folder: Path,
    judged: tuple[Logits, Labels],
    data: DataSource,
    found: _Found,
    tell: Callable[[str], None],
) -> None:
    """Write every file but int8; the ONNX file is compared before the others are written."""
    tell(f"ONNX: writing opset {OPSET}, and comparing with torch on validation images")
    program = trace(model)
    write_onnx(model, program, folder / FILES["onnx"])
    logits, _ = predict(OnnxClassifier(folder / FILES["onnx"]), data, "validation")
    found.parity["onnx"] = parities.compare(judged[0], logits)
    parities.check(found.parity["onnx"], FILES["onnx"])
    write_program(model, program, folder / FILES["program"])
    if of_a_library(model):
        write_state_dict(model, folder / FILES["state_dict"])


def _measure(
    model: Classifier,
    folder: Path,
    data: DataSource,
    trigger: Trigger | None,
    target: Target,
    found: _Found,
) -> None:
    """Measure student and ONNX files on test images."""
    found.measured["torch"] = measure(model, data, trigger=trigger, target=target)
    for kind in _onnx_kinds(folder):
        file = OnnxClassifier(folder / FILES[kind])
        found.measured[kind] = measure(file, data, trigger=trigger, target=target)


def _onnx_kinds(folder: Path) -> list[str]:
    """Return the kinds of the ONNX files in the folder."""
    return [kind for kind in ("onnx", "int8") if (folder / FILES[kind]).exists()]


def _content(model: Classifier, folder: Path, data: DataSource, found: _Found) -> dict[str, object]:
    files = {kind: folder / name for kind, name in FILES.items() if (folder / name).exists()}
    sizes = {kind: path.stat().st_size for kind, path in files.items()}
    here = machine()
    return {
        "format": _FORMAT,
        "student": {
            **description(model.spec),
            "parameters": parameters(model),
            "macs": operations(model, model.spec.image_shape),
            "macs_convention": _MACS,
        },
        "data": data.name,
        "files": {
            kind: {"name": path.name, "bytes": sizes[kind], "sha256": sha256_of(path)}
            for kind, path in files.items()
        },
        "opset": OPSET,
        "measured": {kind: row.fields() for kind, row in found.measured.items()},
        "parity": {
            kind: {"split": "validation", **row.record()} for kind, row in found.parity.items()
        },
        "int8": found.quantised.record() if found.quantised else None,
        "running": {kind: row.record() for kind, row in found.running.items()},
        "measured_on": "this machine",
        "machine": here,
        "notes": [
            *notes(found.measured["onnx"], found.measured.get("int8"), found.running, sizes),
            *few(found.parity["onnx"].same.n, int8=found.quantised is not None),
            *busy(here),
        ],
    }
