"""A model as one safetensors file that describes itself.

The metadata holds one JSON object under the key ``robustkd``: spec and provenance. One key,
because the order of several is not fixed by the format's writer and a file must be the same
byte for byte when the model is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkd.errors import InputError, UsageError
from robustkd.models.classifier import Classifier, Spec
from robustkd.models.table import build

_KEY = "robustkd"
_FORMAT = 1


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON description as one file, beside it first and renamed then."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format": _FORMAT, **description}, sort_keys=True)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, partial, metadata={_KEY: text})
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and description of a file that :func:`write_safetensors` made.

    Raises:
        InputError: If the file is missing, is not safetensors, or does not describe itself.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} is not a file; expected a model in safetensors format")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        description = json.loads(metadata[_KEY])
    except KeyError as error:
        raise InputError(
            f"{path} has no {_KEY!r} metadata; expected a file written by robustkd"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable safetensors file: {reason}") from error
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise InputError(f"{path} has metadata of another version; expected format {_FORMAT}")
    return tensors, description


def save(model: Classifier, path: Path, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Save weights, spec and provenance; the same model gives the same bytes.

    Args:
        model: What to save.
        path: File to write; its folder is made.
        provenance: How the model came about: JSON values, without times or paths.

    Raises:
        InputError: If the file cannot be written.
    """
    description = {"spec": asdict(model.spec), "provenance": dict(provenance or {})}
    write_safetensors(path, model.state_dict(), description)


def load(path: Path) -> Classifier:
    """Read a model that :func:`save` wrote, in eval mode; no code in the file is ever run.

    Raises:
        InputError: If the file is damaged, or its tensors do not fit its own description.
    """
    tensors, description = read_safetensors(path)
    spec = _spec(description.get("spec"), path)
    return _filled(spec, tensors, path)


def load_teacher(
    path: Path, *, arch: str, classes: int, image_shape: tuple[int, int, int]
) -> Classifier:
    """Read a teacher whose architecture the user names; the file's own word must agree.

    Raises:
        UsageError: If the architecture is unknown.
        InputError: If the file is damaged or of another architecture, class count or input.
    """
    tensors, description = read_safetensors(path)
    said = _spec(description.get("spec"), path)
    check_fits(said, path, classes=classes, image_shape=image_shape)
    return _filled(replace(said, arch=arch), tensors, path)


def check_fits(spec: Spec, path: Path, *, classes: int, image_shape: tuple[int, int, int]) -> None:
    """Refuse a model that was made for other data.

    Raises:
        InputError: If its classes are not as many, or its images of another shape.
    """
    if spec.classes != classes:
        raise InputError(
            f"{path} is a model of {spec.classes} classes; the data has {classes}: "
            "use the data that it was trained for"
        )
    if spec.image_shape != image_shape:
        raise InputError(
            f"{path} expects images of shape {spec.image_shape}; the data has {image_shape}: "
            "use the data that it was trained for"
        )


def _spec(said: object, path: Path) -> Spec:
    try:
        if not isinstance(said, dict):
            raise TypeError("no object")
        return Spec(
            arch=str(said["arch"]),
            classes=int(said["classes"]),
            image_shape=tuple(int(v) for v in said["image_shape"]),  # type: ignore[arg-type]
            mean=tuple(float(v) for v in said["mean"]),
            std=tuple(float(v) for v in said["std"]),
        )
    except (KeyError, TypeError, ValueError, IndexError, UsageError) as error:
        raise InputError(f"{path} has a damaged model description: {error}") from error


def _filled(spec: Spec, tensors: Mapping[str, Tensor], path: Path) -> Classifier:
    model = build(spec, seed=0)
    _check_fit(model, tensors, path, spec.arch)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path} has values that are not finite in {name!r}")
    model.load_state_dict(dict(tensors))
    return model.eval()


def _check_fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, arch: str) -> None:
    expected = model.state_dict()
    problems = [
        ("missing", [name for name in expected if name not in tensors]),
        ("unexpected", [name for name in tensors if name not in expected]),
        (
            "misshapen",
            [
                f"{name} {tuple(tensors[name].shape)} for {tuple(expected[name].shape)}"
                for name in expected
                if name in tensors and tensors[name].shape != expected[name].shape
            ],
        ),
        (
            "mistyped",
            [
                f"{name} {tensors[name].dtype} for {expected[name].dtype}"
                for name in expected
                if name in tensors and tensors[name].dtype != expected[name].dtype
            ],
        ),
    ]
    said = [f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in problems if names]
    if said:
        raise InputError(f"{path} does not fit the architecture {arch!r}: {'; '.join(said)}")
