"""Architectures by name; one way to build, save and read a model.

>>> model = build(Spec("wrn-10-1", classes=10, image_shape=(1, 16, 16)), seed=0)
>>> parameters(model)
77562
"""

from robustkd.models.classifier import Classifier, Normalise, Spec, pixel_statistics
from robustkd.models.files import check_fits, load, save, write_safetensors
from robustkd.models.own import OwnCode
from robustkd.models.size import macs, parameters
from robustkd.models.table import (
    FAMILIES,
    USUAL_RATE,
    build,
    builder,
    check_name,
    learning_rate,
)
from robustkd.models.teacher import Teacher, TeacherFile, load_teacher, read_teacher
from robustkd.models.zoo import Preprocessing, preprocessing

__all__ = [
    "FAMILIES",
    "USUAL_RATE",
    "Classifier",
    "Normalise",
    "OwnCode",
    "Preprocessing",
    "Spec",
    "Teacher",
    "TeacherFile",
    "build",
    "builder",
    "check_fits",
    "check_name",
    "learning_rate",
    "load",
    "load_teacher",
    "macs",
    "parameters",
    "pixel_statistics",
    "preprocessing",
    "read_teacher",
    "save",
    "write_safetensors",
]
