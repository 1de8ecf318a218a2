"""A student for PyTorch alone: its plain state dict, and its traced program."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from torch.export import ExportedProgram

from robustkd.core.files import replacing
from robustkd.export.installed import quiet
from robustkd.export.onnx import KEY, description
from robustkd.models.classifier import Classifier
from robustkd.models.serialization import write_safetensors

_LIBRARIES = ("torchvision/", "timm/")


def of_a_library(model: Classifier) -> bool:
    """Whether torchvision or timm can build the network, so that a plain state dict is of use."""
    return str(model.spec.arch).startswith(_LIBRARIES)


def write_state_dict(model: Classifier, path: Path) -> None:
    """Write the network's tensors under the names that its own library gives them.

    Normalisation is not among them: the metadata says ``mean`` and ``std``.

    Raises:
        WriteError: If the file cannot be written.
    """
    said = {**description(model.spec), "normalisation": "by the caller: (pixels - mean) / std"}
    write_safetensors(path, model.network.state_dict(), said)


def write_program(model: Classifier, program: ExportedProgram, path: Path) -> None:
    """Write the traced model for ``torch.export.load``; normalisation is inside.

    Raises:
        WriteError: If the file cannot be written.
    """
    for node in program.graph.nodes:
        # Source lines of the model, with the paths of this machine.
        node.meta.pop("stack_trace", None)
    content = io.BytesIO()
    said = json.dumps(description(model.spec), sort_keys=True)
    with quiet():
        torch.export.save(program, content, extra_files={KEY: said})
    with replacing(path) as partial:
        partial.write_bytes(content.getvalue())
