"""Export of a classifier to one ONNX file with a description.

The file takes any number of images with pixels in [0, 1]; normalisation is included. Its metadata
has one JSON object in ASCII under the key ``robustkd``, so that class names can contain any
character.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path

import torch
from torch.export import ExportedProgram

from robustkd.core.errors import InputError, first_line
from robustkd.export.installed import quiet
from robustkd.models.classifier import Classifier, Spec

OPSET = 18
"""The lowest opset that torch exports reliably, so that older runtimes can read the file."""
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
KEY = "robustkd"
_FORMAT = 1
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of the system while a file is written, which are not those of an architecture."""


def description(spec: Spec) -> dict[str, object]:
    """Return what a program needs to know to use an exported file, as JSON values.

    If the model has no class names, they are the numbers of the classes.
    """
    return {
        "format": _FORMAT,
        "arch": str(spec.arch),
        "class_names": list(spec.class_names) or [str(label) for label in range(spec.classes)],
        "image_shape": list(spec.image_shape),
        "resize": spec.resize,
        "crop": spec.crop,
        "interpolation": spec.interpolation,
        "pixels": "float32 in [0, 1], N x C x H x W",
        "normalisation": "inside the model",
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def trace(model: Classifier) -> ExportedProgram:
    """Trace a model for any number of images.

    Args:
        model: A model on the CPU, in eval mode.

    Raises:
        InputError: If torch cannot trace it.
    """
    # At least two images: torch treats a batch size of one as a constant.
    images = torch.zeros(2, *model.spec.image_shape)
    dimensions = {"images": {0: torch.export.Dim(BATCH, min=1, max=1 << 20)}}
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=dimensions)
    # Errors of the model's code and of torch, which have no common base class.
    except Exception as error:
        raise _refusal(model, error) from error


def write_onnx(model: Classifier, program: ExportedProgram, path: Path) -> None:
    """Write a traced model as one ONNX file with its description.

    Args:
        model: The model.
        program: Result of :func:`trace`.
        path: File to write.

    Raises:
        InputError: If an operation has no counterpart in ONNX, or the file would be too large.
        OSError: If the file cannot be written.
    """
    try:
        with quiet():
            written = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            if written is None:
                raise RuntimeError("torch wrote no program")
            written.save(path, external_data=False)
            stamp(path, model.spec)
    except Exception as error:  # as in `trace`
        raise of_the_system(error) or _refusal(model, error) from error


def stamp(path: Path, spec: Spec) -> None:
    """Replace the metadata of an ONNX file by a model's description."""
    import onnx

    content = onnx.load(path)
    del content.metadata_props[:]
    content.metadata_props.add(key=KEY, value=json.dumps(description(spec), sort_keys=True))
    content.producer_name, content.doc_string = KEY, ""
    for value in (*content.graph.input, *content.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for node in content.graph.node:
        # torch stores source lines of the model there, with local paths.
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(content)
    onnx.save(content, path)


def of_the_system(error: BaseException | None) -> OSError | None:
    """Return the error of the system, such as a full disk, that led to another error, if any."""
    while error is not None and not (isinstance(error, OSError) and error.errno in _WRITING):
        error = error.__cause__
    return error


def _refusal(model: Classifier, error: Exception) -> InputError:
    return InputError(f"{model.spec.arch} cannot be exported to ONNX: {first_line(error)}")
