"""A student as files that run without this package: ONNX, int8, a state dict, ``torch.export``.

Every file is compared with the student it was made from before anything is kept, and what ships is
measured, not what it was made from.
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
