"""Export of a student for PyTorch: plain state dict and traced program."""

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
from robustkd.models.model_file import write_safetensors

_LIBRARIES = ("torchvision/", "timm/")


def of_a_library(model: Classifier) -> bool:
    """Return whether torchvision or timm can build the network, so that a state dict is useful."""
    return str(model.spec.arch).startswith(_LIBRARIES)


def write_state_dict(model: Classifier, path: Path) -> None:
    """Write the network's tensors under the names that its own library uses.

    Normalisation is not included: the metadata has ``mean`` and ``std``.

    Raises:
        WriteError: If the file cannot be written.
    """
    said = {**description(model.spec), "normalisation": "by the caller: (pixels - mean) / std"}
    write_safetensors(path, model.network.state_dict(), said)


def write_program(model: Classifier, program: ExportedProgram, path: Path) -> None:
    """Write the traced model for ``torch.export.load``; normalisation is included.

    Raises:
        WriteError: If the file cannot be written.
    """
    for node in program.graph.nodes:
        # torch stores source lines of the model there, with local paths.
        node.meta.pop("stack_trace", None)
    content = io.BytesIO()
    said = json.dumps(description(model.spec), sort_keys=True)
    with quiet():
        torch.export.save(program, content, extra_files={KEY: said})
    with replacing(path) as partial:
        partial.write_bytes(content.getvalue())
