"""Saving and loading of models as self-describing safetensors files.

The metadata has one JSON object under the key ``robustkd`` with the specification and the
provenance of the model. There is only one key because the writer of the format does not fix the
order of several keys, and equal models must give files that are equal byte for byte.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypedDict

import torch
from torch import Tensor, nn

from robustkd.core.devices import without_values
from robustkd.core.errors import InputError, UsageError, WriteError, quoted
from robustkd.core.files import replacing
from robustkd.core.folders import Folder, refusal
from robustkd.core.layout import read_layout
from robustkd.core.names import composed
from robustkd.core.trees import open_named, readable_path
from robustkd.models.classifier import Classifier, Spec
from robustkd.models.registry import build, check_name

_KEY = "robustkd"
_FORMAT = 1
_LONGEST = 400
Fits: TypeAlias = Callable[[Mapping[str, Tensor], Mapping[str, object]], object]
_LARGEST_SIDE = 4096
_QUICK = 200  # number of layers, or of classes, that are built quickly
# Depth in the name of a network of this package; each layer has at least one tensor.
_LAYERS = re.compile(r"^(?:wrn|pyramidnet|resnet)-([0-9]+)")


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, object]
) -> None:
    """Write tensors and a JSON description to one file, atomically.

    Args:
        path: File to write; its folder is created.
        tensors: Tensors by name.
        description: JSON values.

    Raises:
        WriteError: If the file cannot be written; no temporary file is left behind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = _apart(tensors)
    text = json.dumps({"format": _FORMAT, **description}, sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.touch(exist_ok=False)
            mode = partial.stat().st_mode
            save_file(plain, partial, metadata={_KEY: text})
            # save_file restricts the permissions to the owner; the umask should decide instead.
            partial.chmod(mode)
    except SafetensorError as error:
        raise WriteError(f"{path} cannot be written: {first_line(error)}") from error
    except OSError as error:
        raise refusal(path, error) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU that share no memory, as the format requires."""
    apart: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if memory in used else plain
        used.add(memory)
    return apart


def read_safetensors(
    path: Path, *, links: bool = True, fits: Fits | None = None
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read the tensors and the description of a file from :func:`write_safetensors`.

    Args:
        path: The file.
        links: If True, the path is one that the user gave, which may be a symbolic link within its
            folder. If False, links are refused, as for files that are searched for in a run folder.
        fits: Called with the tensors without their values, and the description, before any value is
            read. It raises an error if they are not the ones that are needed.

    Returns:
        Tensors by name, and the description.

    Raises:
        InputError: If the file is missing, is not in safetensors format, or has no valid
            description.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with _opened(path, links=links) as opened:
            layout, metadata = read_layout(opened)
            description = parse_description(metadata[_KEY], path)
            if fits is not None:
                fits(layout, description)
            with safe_open(readable_path(opened.fileno()), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except KeyError as error:
        raise InputError(
            f"{path} has no {_KEY!r} metadata; expected a file written by robustkd"
        ) from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file: {first_line(error)}"
        ) from error
    return tensors, description


def _opened(path: Path, *, links: bool) -> BinaryIO:
    if links:
        if not path.is_file():
            raise InputError(f"{path} is not a file; expected a model in safetensors format")
        return os.fdopen(open_named(path), "rb")
    with Folder.at(path.parent) as folder:
        return folder.open(path.name)


def is_described(path: Path) -> bool:
    """Return whether a file is a model that :func:`save` wrote, as far as its header tells.

    A file with the suffix of safetensors and a damaged header counts as one, so that loading it
    says what is wrong.
    """
    try:
        return _description_in(path) is not None
    except ValueError:
        return path.suffix == ".safetensors"
    except (InputError, OSError):
        return False


def read_description(path: Path) -> dict[str, object] | None:
    """Read the description in the header of a file; None if it has none or cannot be read.

    Raises:
        InputError: If the description is damaged.
    """
    try:
        text = _description_in(path)
    except (InputError, OSError, ValueError):
        return None
    return None if text is None else parse_description(text, path)


def _description_in(path: Path) -> str | None:
    with _opened(path, links=True) as opened:
        return read_layout(opened)[1].get(_KEY)


def parse_description(text: str, path: Path) -> dict[str, object]:
    """Parse the description in the metadata of a file.

    Args:
        text: JSON text of the description.
        path: The file, for messages.

    Raises:
        InputError: If the text is not a JSON object of the known version.
    """
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file: {first_line(error)}"
        ) from error
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise InputError(f"{path} has metadata of another version; expected format {_FORMAT}")
    return description


def save(
    model: nn.Module, path: str | Path, *, provenance: Mapping[str, object] | None = None
) -> None:
    """Save the weights, the specification and the provenance of a model.

    Equal models and provenances give files that are equal byte for byte.

    Args:
        model: Model to save, a :class:`robustkd.models.Classifier`.
        path: File to write; its folder is created.
        provenance: Origin of the model, in JSON values without times or paths.

    Raises:
        UsageError: If the model is of another type.
        WriteError: If the file cannot be written.
    """
    path = Path(path)
    if not isinstance(model, Classifier):
        raise UsageError(f"model is of type {type(model).__name__}; expected models.Classifier")
    description = {"spec": asdict(model.spec), "provenance": dict(provenance or {})}
    write_safetensors(path, model.state_dict(), description)


def load(path: str | Path, *, arch: str | None = None, links: bool = True) -> Classifier:
    """Load a model that :func:`save` wrote, in eval mode. No code from the file is executed.

    Args:
        path: The file.
        arch: Architecture of the model, which must agree with the file. It is required if the
            architecture is the user's own code (:class:`robustkd.models.OwnCode`), since a file
            cannot name code. If None, the architecture is taken from the file.
        links: Whether the path may be a symbolic link; see :func:`read_safetensors`.

    Returns:
        The model.

    Raises:
        UsageError: If the architecture is unknown.
        InputError: If the file is damaged or has another architecture, or its tensors do not fit
            its description.
    """
    path = Path(path)

    def fits(tensors: Mapping[str, Tensor], description: Mapping[str, object]) -> None:
        check_claim(tensors, description, path, arch=arch)

    return restore(*read_safetensors(path, links=links, fits=fits), path, arch=arch)


def restore(
    tensors: Mapping[str, Tensor],
    description: Mapping[str, object],
    path: Path,
    *,
    arch: str | None = None,
) -> Classifier:
    """Build the model of a description and load its tensors.

    Args:
        tensors: All parameters and buffers by name.
        description: Description from :func:`read_safetensors`.
        path: File that both were read from, for messages.
        arch: Architecture that the description must have; None to accept any.

    Returns:
        The model, in eval mode.

    Raises:
        UsageError: If ``arch`` is unknown.
        InputError: If the description is damaged or has another architecture, or the tensors do
            not fit it.
    """
    spec = check_claim(tensors, description, path, arch=arch)
    check_values(tensors, path)
    model = build(spec, seed=0)
    _check_normalisation(model, tensors, path)
    check_buffers(model, tensors, path)
    model.load_state_dict(dict(tensors))
    return model.eval()


def check_claim(
    tensors: Mapping[str, Tensor],
    description: Mapping[str, object],
    path: Path,
    *,
    arch: str | None = None,
) -> Spec:
    """Check that the names, shapes and types of tensors fit their description, and return its spec.

    The values are not read. Arguments and errors are those of :func:`restore`.
    """
    if arch is not None:
        check_name(arch)
    spec = described_spec(description, path, arch)
    _check_extent(spec, tensors, path)
    try:
        # Built without memory first: a file of 1 kB can claim an architecture of 1 TB.
        with without_values():
            claimed = build(spec, seed=0)
    except (UsageError, RuntimeError, TypeError, OverflowError) as error:
        raise InputError(f"{path} has a damaged model description: {first_line(error)}") from error
    check_keys(claimed, tensors, path, spec.arch)
    return spec


def _check_extent(spec: Spec, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that a description has no more layers or classes than the file has values for.

    A network of thousands of layers takes a minute to build, even without memory for its weights.
    """
    layers = [int(number) for number in _LAYERS.findall(spec.arch)]
    values = sum(tensor.numel() for tensor in tensors.values())
    if max([*layers, 0]) > max(len(tensors), _QUICK) or spec.classes > max(values, _QUICK):
        raise InputError(
            f"{path} describes a {quoted(spec.arch)} with {spec.classes} classes, but has "
            f"{len(tensors)} tensors with {values} values; it is cut off or malicious"
        )
    if max(spec.image_shape) > _LARGEST_SIDE:
        raise InputError(
            f"{path} expects images of shape {spec.image_shape}; expected at most "
            f"{_LARGEST_SIDE} pixels on a side"
        )


def check_fits(
    spec: Spec,
    path: Path,
    *,
    classes: int,
    image_shape: tuple[int, int, int],
    names: tuple[str, ...] = (),
) -> None:
    """Check that a model fits the data.

    Args:
        spec: Specification of the model.
        path: File of the model, for messages.
        classes: Number of classes of the data.
        image_shape: Channels, height and width of the data.
        names: Names of its classes, in the order of the labels; empty to leave them unchecked.

    Raises:
        InputError: If the number or the names of the classes, or the shape of the images differ.
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
    for label, (own, other) in enumerate(zip(spec.class_names, names, strict=False)):
        if composed(own) != composed(other):
            raise InputError(
                f"{path} calls class {label} {quoted(own)}; the data calls it {quoted(other)}: "
                "use the data that it was trained for, with its classes in that order"
            )


def described_spec(description: Mapping[str, object], path: Path, arch: str | None = None) -> Spec:
    """Read the specification of a model from a description.

    Args:
        description: Description from :func:`read_safetensors`.
        path: The file, for messages.
        arch: Architecture that the description must have; None to accept any.

    Raises:
        InputError: If the description is damaged or has another architecture.
    """
    said = description.get("spec")
    try:
        if not isinstance(said, dict):
            raise TypeError("no spec")
        named = str(said["arch"])
        if arch is not None and named != arch:
            raise InputError(
                f"{path} is a model of architecture {quoted(named)}, not {str(arch)!r}: "
                "name the one that it was trained with"
            )
        channels, height, width = said["image_shape"]
        return Spec(
            arch=arch or named,
            classes=int(said["classes"]),
            image_shape=(int(channels), int(height), int(width)),
            mean=tuple(float(v) for v in said["mean"]),
            std=tuple(float(v) for v in said["std"]),
            **_described_files(said),
        )
    except KeyError as error:
        raise InputError(f"{path} has a damaged model description: no {error}") from error
    except (TypeError, ValueError, OverflowError, UsageError) as error:
        raise InputError(f"{path} has a damaged model description: {first_line(error)}") from error


class _Files(TypedDict, total=False):
    class_names: tuple[str, ...]
    crop: float
    resize: str
    interpolation: str


def _described_files(said: Mapping[str, Any]) -> _Files:
    """Return class names and image settings of a description; older files have none of them."""
    found = _Files()
    if "class_names" in said:
        names = said["class_names"]
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise TypeError("class_names is not a list of texts")
        found["class_names"] = tuple(names)
    if "crop" in said:
        found["crop"] = float(said["crop"])
    for field in ("resize", "interpolation"):
        if field in said and not isinstance(said[field], str):
            raise TypeError(f"{field} is of type {type(said[field]).__name__}; expected a text")
    if "resize" in said:
        found["resize"] = said["resize"]
    if "interpolation" in said:
        found["interpolation"] = said["interpolation"]
    return found


def first_line(error: Exception) -> str:
    """First line of an exception's message, shortened."""
    return (str(error).splitlines() or [type(error).__name__])[0][:_LONGEST]


def check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that weights are finite and that variances are not negative.

    Raises:
        InputError: If they are not.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path} has values that are not finite in {name!r}")
        if name.endswith("running_var") and (tensor < 0).any():
            raise InputError(f"{path} has negative variances in {name!r}")


def _check_normalisation(model: Classifier, tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, value in model.normalise.named_buffers(prefix="normalise"):
        if not torch.equal(tensors[name], value):
            raise InputError(
                f"{path} has values of {name!r} that differ from its description; expected equal "
                "values"
            )


def check_buffers(model: Classifier, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check buffers that the architecture itself computes, such as tables of indices.

    An index outside of its table would crash a run on an accelerator, or read other memory. Buffers
    that a training changes are not checked: statistics, counters, and buffers that are constant in
    a fresh network.

    Args:
        model: Fresh network of the architecture.
        tensors: Tensors by their names in the model.
        path: The file, for messages.

    Raises:
        InputError: If a buffer differs by more than rounding to float16 or bfloat16.
    """
    computed = {
        name: buffer
        for name, buffer in model.named_buffers()
        if name in tensors and buffer.numel() > 1 and _is_computed(name, buffer)
    }
    # A buffer that differs between two fresh networks is random.
    again = dict(build(model.spec, seed=1).named_buffers()) if computed else {}
    for name, buffer in computed.items():
        types = (buffer.dtype, torch.float16, torch.bfloat16)
        rounded = (buffer.to(kind).to(buffer.dtype) for kind in types)
        if torch.equal(again[name], buffer) and not any(
            torch.equal(tensors[name], value) for value in rounded
        ):
            raise InputError(
                f"{path} has other values in {name!r} than its architecture computes; it is "
                "damaged, or made for another input size"
            )


def _is_computed(name: str, buffer: Tensor) -> bool:
    if not buffer.is_floating_point():
        return True
    return "running" not in name and bool((buffer != buffer.flatten()[0]).any())


def check_keys(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, arch: str) -> None:
    """Check that the names, shapes and types of tensors are those of a model.

    Raises:
        InputError: If they are not; the message lists up to three tensors per kind of problem.
    """
    check_names(model.state_dict(), tensors, path, arch)


def check_names(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path, arch: str
) -> None:
    """Raise the errors of :func:`check_keys` for the state dict of a model."""
    problems = [
        ("missing", [name for name in expected if name not in tensors]),
        ("unexpected", [quoted(name) for name in tensors if name not in expected]),
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
