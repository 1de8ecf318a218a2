"""An ONNX file as a classifier, so that every measurement of a model measures the file as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustkd.core.types import Images, Logits
from robustkd.export.onnx import INPUT

_ERRORS_ONLY = 3


class OnnxClassifier(nn.Module):
    """Runs an ONNX file by onnxruntime on the CPU; it has no parameters and no gradients.

    Args:
        path: A file of :func:`robustkd.export.export_student`.
        threads: Threads of onnxruntime, at least 1.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        super().__init__()
        self.path = path
        self._session = session(path, threads=threads)

    def forward(self, images: Images) -> Logits:
        """Logits of ``images`` (N x C x H x W, float in [0, 1]), on the CPU."""
        pixels = images.detach().cpu().contiguous().numpy()
        (logits,) = self._session.run(None, {INPUT: pixels})
        return torch.from_numpy(logits)


def session(path: Path, *, threads: int) -> Any:  # noqa: ANN401 (onnxruntime is imported late)
    """An onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
