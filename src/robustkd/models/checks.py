"""Checks of the tensors in a file against the model that it claims to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robustkd.core.errors import InputError, UsageError, first_line, quoted
from robustkd.models.architectures.libraries import preprocessing
from robustkd.models.architectures.own_code import OwnCode
from robustkd.models.classifier import Classifier, Spec
from robustkd.models.description import described_spec
from robustkd.models.registry import build, check_name, layout

_GREY = "; did you mean --grey, or Reading(channels=1) in Python?"
# Name of a tensor from which a module of torch.nn.utils computes the one that the network has.
_PART = re.compile(
    r"(?P<module>(?:.*\.)?)"
    r"(?:parametrizations\.(?P<new>\w+)\.original[01]?|(?P<old>\w+)_(?:g|v|orig))"
)
_LARGEST_SIDE = 4096
_QUICK = 200  # number of layers, or of classes, that are built quickly
# Depth in the name of a network of this package; each layer has at least one tensor.
_LAYERS = re.compile(r"^(?:wrn|pyramidnet|resnet)-([0-9]+)")


def check_claim(
    tensors: Mapping[str, Tensor],
    description: Mapping[str, object],
    path: Path,
    *,
    arch: str | None = None,
) -> Spec:
    """Check that the names, shapes and types of tensors fit their description, and return its spec.

    The values are not read. Arguments and errors are those of
    :func:`robustkd.models.serialization.restore`.
    """
    if arch is not None:
        check_name(arch)
    spec = described_spec(description, path, arch)
    if ":" in spec.arch and not isinstance(spec.arch, OwnCode):
        raise InputError(
            f"{path} says that its architecture is {quoted(spec.arch)}, which is code; if it is "
            "your own, name it with --arch, or as models.OwnCode in Python"
        )
    _check_extent(spec, tensors, path)
    try:
        # Built without memory first: a file of 1 kB can claim an architecture of 1 TB.
        _check_size(spec, tensors, path)
        claimed = layout(spec)
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


def _check_size(spec: Spec, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that a file for large images has the values of a network for images of usual size.

    Some networks of timm take minutes to build for images of thousands of pixels.
    """
    if "/" not in spec.arch or (usual := preprocessing(spec.arch)) is None:
        return
    _, *sides = usual.image_shape
    channels, *claimed = spec.image_shape
    if max(claimed) <= max(sides):
        return
    smaller = layout(replace(spec, image_shape=(channels, sides[0], sides[1])))
    least = sum(weight.nbytes for weight in smaller.parameters()) // 2
    found = sum(tensor.nbytes for tensor in tensors.values())
    if found < least:
        raise InputError(
            f"{path} describes a {quoted(spec.arch)} for images of {claimed[0]} x {claimed[1]} "
            f"pixels, but has only {found} bytes of values; expected at least {least}: it is cut "
            "off or malicious"
        )


def check_loadable(model: Classifier, description: Mapping[str, object]) -> None:
    """Check, before a model is saved, that its file could be loaded.

    The user's own code is not called again, so its tensors are not compared.

    Args:
        model: The model.
        description: Description of the file, with its specification.

    Raises:
        UsageError: If the architecture is unknown or has other tensors, or a value is not one that
            is read.
    """
    arch, tensors, path = model.spec.arch, model.state_dict(), Path("the model")
    check_float32(model, "the model")
    try:
        if ":" not in arch:
            check_claim(tensors, description, path, arch=arch)
        check_values(tensors, path)
        check_normalisation(Classifier(model.spec, nn.Identity()), tensors, path)
    except InputError as error:
        raise UsageError(f"{error}: load would refuse its file") from error


def check_float32(model: Classifier, name: str) -> None:
    """Check that a model was not converted to another type of numbers.

    Args:
        model: The model.
        name: What it is, for the message.

    Raises:
        UsageError: If it was.
    """
    for tensor in (*model.normalise.buffers(), *model.network.parameters()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UsageError(
                f"{name} has weights of type {tensor.dtype}; expected torch.float32: convert it "
                "with float()"
            )


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


def has_finite_weights(model: nn.Module) -> bool:
    """Return whether all parameters are finite, and all buffers are numbers.

    The values of a buffer may be infinite, as in a mask of attention.
    """
    with torch.no_grad():
        return all(bool(weight.isfinite().all()) for weight in model.parameters()) and not any(
            bool(buffer.isnan().any()) for buffer in model.buffers()
        )


def check_normalisation(model: Classifier, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that mean and standard deviation are those of the description.

    Raises:
        InputError: If they are not.
    """
    for name, value in model.normalise.named_buffers(prefix="normalise"):
        if not torch.equal(tensors[name].cpu(), value):
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
        InputError: If a buffer of integers differs, or one of float numbers by more than rounding
            to float16 or bfloat16.
    """
    computed = {
        name: buffer
        for name, buffer in model.named_buffers()
        if name in tensors and buffer.numel() > 1 and _is_computed(name, buffer)
    }
    # A buffer that differs between two fresh networks is random.
    again = dict(build(model.spec, seed=1).named_buffers()) if computed else {}
    for name, buffer in computed.items():
        halves = (torch.float16, torch.bfloat16) if buffer.is_floating_point() else ()
        types = (buffer.dtype, *halves)
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
        hint = _GREY if _is_for_grey(expected, tensors) else _hint_on_parts(expected, tensors)
        raise InputError(f"{path} does not fit the architecture {arch!r}: {'; '.join(said)}{hint}")


def _hint_on_parts(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Return what to do about weights that are stored in parts; empty if there are none."""
    missing = expected.keys() - tensors.keys()
    for name in tensors:
        part = _PART.fullmatch(name)
        if part is not None and f"{part['module']}{part['new'] or part['old']}" in missing:
            return (
                f"; weights are stored in parts, such as {quoted(name)}: before you save the "
                "network, call remove_parametrizations, remove_weight_norm, remove_spectral_norm "
                "or prune.remove of torch.nn.utils for its modules"
            )
    return ""


def _is_for_grey(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors differ from those of a model only in one input channel for three."""
    if expected.keys() != tensors.keys():
        return False
    pairs = ((tensors[name].shape, expected[name].shape) for name in expected)
    other = [(found, fitting) for found, fitting in pairs if found != fitting]
    return bool(other) and all(
        len(found) > 1
        and (found[1], fitting[1]) == (1, 3)
        and found == (fitting[0], 1, *fitting[2:])
        for found, fitting in other
    )
