"""Wrapper that runs an ONNX file like a PyTorch model, so that the same code measures both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustkd.core.types import Images, Logits
from robustkd.export.onnx import INPUT
from robustkd.export.runtime import load_onnxruntime

_ERRORS_ONLY = 3


class OnnxClassifier(nn.Module):
    """Module that runs an ONNX file by onnxruntime on the CPU, without parameters or gradients.

    Args:
        path: File written by :func:`robustkd.export.export_student`.
        threads: Number of threads of onnxruntime, at least 1.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        super().__init__()
        self.path = path
        self._session = session(path, threads=threads)

    def forward(self, images: Images) -> Logits:
        """Compute the logits of ``images`` (N x C x H x W, float in [0, 1]) on the CPU."""
        pixels = images.detach().cpu().contiguous().numpy()
        (logits,) = self._session.run(None, {INPUT: pixels})
        return torch.from_numpy(logits)


def session(path: Path, *, threads: int) -> Any:  # noqa: ANN401 (onnxruntime is imported late)
    """Create an onnxruntime session on the CPU."""
    runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
