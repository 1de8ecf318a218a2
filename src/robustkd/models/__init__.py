"""Architectures by name, and building, saving and loading of models.

>>> model = build(Spec("wrn-10-1", classes=10, image_shape=(1, 16, 16)), seed=0)
>>> parameters(model)
77562
"""

from robustkd.models.architectures.libraries import Preprocessing, preprocessing
from robustkd.models.architectures.own_code import OwnCode
from robustkd.models.classifier import (
    Classifier,
    Normalise,
    Spec,
    pixel_statistics,
    spec_for,
)
from robustkd.models.complexity import macs, parameters
from robustkd.models.description import check_fits
from robustkd.models.model_file import write_safetensors
from robustkd.models.registry import FAMILIES, USUAL_RATE, build, builder, check_name, learning_rate
from robustkd.models.serialization import load, save

__all__ = [
    "FAMILIES",
    "USUAL_RATE",
    "Classifier",
    "Normalise",
    "OwnCode",
    "Preprocessing",
    "Spec",
    "build",
    "builder",
    "check_fits",
    "check_name",
    "learning_rate",
    "load",
    "macs",
    "parameters",
    "pixel_statistics",
    "preprocessing",
    "save",
    "spec_for",
    "write_safetensors",
]
