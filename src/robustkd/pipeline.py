"""The main job on one page: an untrusted teacher and clean images in, a student out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from robustkd import models, report, runs
from robustkd.data import split_record
from robustkd.detox import detoxify
from robustkd.distillation import distill
from robustkd.errors import InputError
from robustkd.harden import UniversalPerturbations
from robustkd.inference import accuracy_on, default_device
from robustkd.masking import DetoxifiedTeacher
from robustkd.presets import Preset, preset
from robustkd.types import DataSource

_NEAR_CHANCE = 0.1


@dataclass(frozen=True)
class Made:
    """A student, the teacher it really learnt from, and how it all went.

    Attributes:
        student: The trained network, in eval mode.
        detoxified: The cleaned teacher, where the preset cleans.
        record: Of detoxification and distillation, in JSON values.
        seconds: Wall time of everything.
    """

    student: nn.Module
    detoxified: DetoxifiedTeacher | None
    record: dict[str, Any]
    seconds: float


def make_student(
    teacher: nn.Module,
    student: nn.Module,
    clean: DataSource,
    how: Preset,
    *,
    training: Mapping[str, Any],
    detoxing: Mapping[str, Any] | None = None,
    seed: int = 0,
    label: str = "distil",
    log: Path | None = None,
) -> Made:
    """Clean the teacher, distil it, harden the student: as far as the preset says.

    Args:
        teacher: The untrusted network; it is not changed.
        student: Network with fresh weights; trained in place.
        clean: The user's clean images.
        how: What is cleaned, imitated and withstood.
        training: Further arguments of :func:`robustkd.distillation.distill`, e.g. ``epochs``.
        detoxing: Further arguments of :func:`robustkd.detox.detoxify`, e.g. ``steps``.
        seed: Of everything random.
        label: What the progress line says.
        log: File for one JSON line an epoch.
    """
    started = time.perf_counter()
    record: dict[str, Any] = {}
    source, detoxified = teacher, None
    if how.detox is not None:
        arguments = {
            "precision": training.get("precision", "no"),
            **(detoxing or {}),
            **how.detox,
        }
        cleaned = detoxify(teacher, clean, seed=seed, **arguments)
        source = detoxified = cleaned.teacher
        record["detox"] = asdict(cleaned.record)
    hardening = None
    if how.hardening is not None:
        hardening = UniversalPerturbations(
            len(clean.classes), clean.image_shape, seed=seed, **how.hardening
        )
    learnt = distill(
        student,
        clean,
        teacher=source if how.losses else None,
        losses=how.losses,
        hardening=hardening,
        seed=seed,
        label=label,
        log=log,
        **training,
    )
    record["epochs"] = learnt.epochs
    return Made(learnt.student, detoxified, record, time.perf_counter() - started)


def distill_file(
    teacher_file: Path,
    *,
    arch: str,
    clean: DataSource,
    student_arch: str,
    out: Path,
    method: str = "default",
    training: Mapping[str, Any],
    seed: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> dict[str, Any]:
    """From a teacher's file to a folder with the student, its figures and the report.

    Args:
        teacher_file: The untrusted teacher.
        arch: Its architecture, in the user's word, not the file's.
        clean: The user's clean images.
        student_arch: Architecture of the student.
        out: New folder for the run.
        method: Name of a preset.
        training: Further arguments of :func:`robustkd.distillation.distill`.
        seed: Of everything random; the same seed gives the same student file.
        mean: Of each channel of the pixels that the teacher was trained with; where neither this
            nor the file says it, that which is published for the architecture or that of the
            clean images: whichever makes the teacher more accurate on the validation images.
        std: The standard deviation, likewise.

    Returns:
        The content of ``results.json``.

    Raises:
        UsageError: If a name is unknown, a number out of range, or ``out`` is not empty.
        InputError: If the teacher's file is not what it was said to be, or knows nothing of the
            data.
    """
    how = preset(method)
    models.check_name(student_arch)
    read = models.read_teacher(
        teacher_file,
        arch=arch,
        classes=len(clean.classes),
        image_shape=clean.image_shape,
        mean=mean,
        std=std,
        statistics=lambda: models.pixel_statistics(clean),
        judge=lambda model: accuracy_on(model.to(default_device()), clean, "validation").value,
    )
    teacher = read.model.to(default_device())
    _check_knows(teacher, clean, teacher_file)
    setting = {"data": clean.name, "pair": f"{arch} to {student_arch}", "seed": seed}
    statistics = models.pixel_statistics(clean)
    untrusted = _untriggered_run(setting, clean, "teacher", teacher, 0.0)
    # Now every image has been read once, so that damaged ones stop nothing later.
    folder = runs.new_folder(out)
    if split := split_record(clean):
        runs.write_json(folder / "split.json", split)
    spec = models.Spec(student_arch, len(clean.classes), clean.image_shape, *statistics)
    made = make_student(
        teacher,
        models.build(spec, seed=seed),
        clean,
        how,
        training=training,
        seed=seed,
        log=folder / "metrics.jsonl",
    )
    student = made.student
    provenance = {"method": method, "data": clean.name, "seed": seed, "training": dict(training)}
    models.save(student, folder / "student.safetensors", provenance=provenance)  # type: ignore[arg-type]
    results = {
        "runs": [
            untrusted,
            _untriggered_run(setting, clean, method, student, made.seconds),
        ],
        "environment": runs.environment(),
        "config": {"arch": arch, "student": student_arch, **provenance},
        "records": {
            "teacher_file": read.file.record(),
            **made.record,
            "classes": list(clean.classes),
        },
    }
    runs.write_json(folder / "results.json", results)
    report.write_html(folder)
    return results


def _check_knows(teacher: nn.Module, clean: DataSource, path: Path) -> None:
    """Stop before hours of training when preprocessing or classes are not the teacher's."""
    chance = 1 / len(clean.classes)
    found = accuracy_on(teacher, clean, "validation").value
    if found < chance + _NEAR_CHANCE * (1 - chance):
        raise InputError(
            f"{path} is right on only {found:.1%} of the validation images of {clean.name}, near "
            f"chance ({chance:.1%}): are these its classes, in its order, its kind of images, and "
            "its --mean and --std?"
        )


def _untriggered_run(
    setting: Mapping[str, Any], clean: DataSource, method: str, model: nn.Module, seconds: float
) -> dict[str, Any]:
    """One row of the results; without a trigger there is no success rate to measure."""
    acc = accuracy_on(model, clean, "test")
    return {
        **setting,
        "attack": "trigger unknown",
        "method": method,
        "acc": acc.value,
        "asr": None,
        "ra": None,
        "params": models.parameters(model),
        "seconds": seconds,
        "n_acc": acc.n,
    }
