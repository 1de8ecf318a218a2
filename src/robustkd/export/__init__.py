"""Export of students to ONNX, int8 ONNX, a state dict and ``torch.export``.

The files run without this package. The ONNX file is compared with the student before anything is
kept, and the exported files themselves are measured.
"""

from robustkd.export.parity import LEAST_AGREEMENT, Parity, compare
from robustkd.export.run import FILES, export_student
from robustkd.export.session import OnnxClassifier

__all__ = [
    "FILES",
    "LEAST_AGREEMENT",
    "OnnxClassifier",
    "Parity",
    "compare",
    "export_student",
]
