"""Saving and loading of models as safetensors files with their specification and provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from robustkd.core.errors import UsageError, first_line
from robustkd.core.usual_state import usual_state
from robustkd.models.checks import (
    check_buffers,
    check_claim,
    check_loadable,
    check_normalisation,
    check_values,
)
from robustkd.models.classifier import Classifier
from robustkd.models.model_file import read_safetensors, write_safetensors
from robustkd.models.registry import build


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
        UsageError: If the model is of another type, or could not be loaded again: its architecture
            is unknown or has other tensors, its weights are not finite numbers of float32, or the
            provenance cannot be written as JSON.
        WriteError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> import robustkd
        >>> spec = robustkd.Spec("wrn-10-1", 10, (1, 8, 8))
        >>> model = robustkd.build(spec, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/model.safetensors"
        ...     robustkd.save(model, file, provenance={"data": "digits"})
        ...     robustkd.load(file).spec == spec
        True
    """
    path = Path(path)
    if not isinstance(model, Classifier):
        raise UsageError(f"model is of type {type(model).__name__}; expected models.Classifier")
    description = {"spec": asdict(model.spec), "provenance": dict(provenance or {})}
    try:
        json.dumps(description)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"provenance is not JSON: {first_line(error)}") from error
    check_loadable(model, description)
    write_safetensors(path, model.state_dict(), description)


@usual_state
def load(path: str | Path, *, arch: str | None = None, links: bool = True) -> Classifier:
    """Load a model that :func:`save` wrote, in eval mode. No code from the file is executed.

    Args:
        path: The file.
        arch: Architecture of the model, which must agree with the file. It is required if the
            architecture is the user's own code (:class:`robustkd.models.OwnCode`), since a file
            cannot name code. If None, the architecture is taken from the file.
        links: Whether the path may be a symbolic link; see
            :func:`robustkd.models.model_file.read_safetensors`.

    Returns:
        The model.

    Raises:
        UsageError: If the architecture is unknown.
        InputError: If the file is damaged or has another architecture, or its tensors do not fit
            its description.

    Example:
        >>> import tempfile
        >>> import robustkd
        >>> spec = robustkd.Spec("wrn-10-1", 10, (1, 8, 8))
        >>> model = robustkd.build(spec, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     robustkd.save(model, f"{folder}/model.safetensors")
        ...     robustkd.load(f"{folder}/model.safetensors").training
        False
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
        description: Description from :func:`robustkd.models.model_file.read_safetensors`.
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
    check_normalisation(model, tensors, path)
    check_buffers(model, tensors, path)
    model.load_state_dict(dict(tensors))
    return model.eval()
