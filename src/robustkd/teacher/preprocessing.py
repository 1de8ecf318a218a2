"""Preprocessing of a teacher's images, as files next to its weights or its library state it.

The files are ``config.json`` in the form of timm on the Hugging Face Hub, and
``preprocessor_config.json`` in that of transformers. They may be attacks like the weights: they are
read as plain data of bounded size, and name an architecture of timm at most.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from robustkd.core.errors import InputError, UsageError, quoted
from robustkd.core.json_files import ForeignObject, is_number, read_foreign_json
from robustkd.core.types import INTERPOLATIONS
from robustkd.models.architectures.libraries import CROP_MODES, preprocessing, share

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
BESIDE = "next to the weights"
"""End of the origin of a normalisation that a file next to the weights states."""
ATTACKED = "teacher.safetensors"
"""Name of the teacher's file in the folder of an attack."""
_OF_THE_HUB = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = (*_OF_THE_HUB, ATTACKED)
"""Names of the weights in a folder of the Hugging Face Hub, in order of preference."""

_OF_SEVERAL = re.compile(r"-\d{5}-of-(?!00001\b)\d{5}\.|\.index\.json$")
_ONE_FILE = "expected one: load the model and save it with max_shard_size larger than its weights"
_LARGEST = 4096
_SMALLEST_STD = 1e-6
_LARGEST_STD = 1e3
_NAME = re.compile(r"[A-Za-z0-9_]{1,80}")
# The numbers that transformers writes are those of Pillow.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_LARGEST_CROP = 1.5
_CROPS_FROM = 384
"""Size from which ConvNeXt's images are not cropped in transformers."""
_LEVIT = 224 / 256
"""Ratio of the stated size to that of LeViT's resized images in transformers."""


@dataclass(frozen=True, slots=True)
class Stated:
    """Preprocessing of a teacher's images, as far as it is stated.

    Attributes:
        origin: Where it is stated, for messages.
        arch: Architecture of the weights, ``timm/NAME``, which may be unknown; empty if it is not
            stated.
        image_size: Height and width in pixels.
        crop: Share of the shorter side that is kept; with ``squash``, of both sides.
        resize: One of :data:`robustkd.core.types.RESIZES`.
        interpolation: One of :data:`robustkd.core.types.INTERPOLATIONS`.
        mean: Mean of each channel for pixels in [0, 1], or one for all; empty if not stated.
        std: Standard deviation of each channel, likewise.
    """

    origin: str
    arch: str = ""
    image_size: int | None = None
    crop: float | None = None
    resize: str | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return mean and standard deviation; None if not stated for this many channels."""
        if len(self.mean) not in (1, channels) or len(self.mean) != len(self.std):
            return None
        repeated = channels // len(self.mean)
        return self.mean * repeated, self.std * repeated


def weights_in(teacher: Path) -> Path:
    """Return the weights of a teacher: the file itself, or the one in a folder.

    Folders of the Hub and of attacks have weights.

    Raises:
        InputError: If a folder has no weights, or weights in several files, or the file is one of
            these.
    """
    if not os.path.isdir(teacher):
        if _OF_SEVERAL.search(teacher.name):
            raise InputError(f"{teacher} is one of several files of weights; {_ONE_FILE}")
        return teacher
    for name in WEIGHTS:
        if os.path.lexists(teacher / name):
            return teacher / name
    for name in _OF_THE_HUB:
        if os.path.lexists(teacher / f"{name}.index.json"):
            raise InputError(f"{teacher} has weights in several files; {_ONE_FILE}")
    raise InputError(
        f"{teacher} is a folder without weights; expected {' or '.join(_OF_THE_HUB)} in it, or the "
        "path of a file"
    )


def stated_beside(weights: Path) -> Stated | None:
    """Read what the files next to the weights state; None if they state nothing.

    Raises:
        InputError: If one of them is damaged, or has a value out of range.
    """
    found = None
    if os.path.lexists(weights.parent / CONFIG):
        found = of_timm(read_foreign_json(weights.parent / CONFIG))
    if (found is None or not found.mean) and os.path.lexists(weights.parent / PROCESSOR):
        arch = "" if found is None else found.arch
        found = of_transformers(read_foreign_json(weights.parent / PROCESSOR), arch)
    return found


def published(arch: str) -> Stated | None:
    """Return what torchvision or timm state for the published weights of an architecture.

    Raises:
        UsageError: If the library has no such architecture.
    """
    found = preprocessing(arch)
    if found is None:
        return None
    return Stated(
        f"published for {arch}",
        arch,
        found.image_shape[1] if found.image_shape[1] == found.image_shape[2] else None,
        found.crop,
        found.resize,
        found.interpolation,
        found.mean,
        found.std,
    )


def of_timm(config: ForeignObject) -> Stated | None:
    """Read ``config.json`` as timm writes it; None for the settings of something else.

    Old versions of timm write no inner object. Such a file must name a classifier of timm, since
    settings of any training may have a key "architecture".

    Raises:
        InputError: If a value has another type or is out of range.
    """
    inner = config.inner("pretrained_cfg") or config.inner("default_cfg")
    if inner is None and not _is_of_timm(config.content.get("architecture")):
        return None
    cfg = inner or config
    crop = cfg.number("crop_pct", 0.01, _LARGEST_CROP)
    std = cfg.numbers("std", _SMALLEST_STD, _LARGEST_STD)
    mean = cfg.numbers("mean", 0, 1)
    if len(mean) != len(std):
        raise cfg.wrong("mean", "as many numbers as std")
    mode = cfg.text("crop_mode", tuple(CROP_MODES))
    return Stated(
        CONFIG,
        f"timm/{name}" if (name := config.text("architecture")) else "",
        _side(cfg, "input_size", channels=True),
        None if crop is None else share(crop),
        CROP_MODES[mode] if mode else None,
        cfg.text("interpolation", INTERPOLATIONS),
        mean,
        std,
    )


def stated_architecture(weights: Path, *, flag: str = "--arch") -> str:
    """Return the architecture that ``config.json`` next to the weights states; empty if none.

    Args:
        weights: The weights.
        flag: Flag with which the user names another one, for messages.

    Raises:
        InputError: If timm has no such classifier, or if a file is damaged.
    """
    stated = stated_beside(weights)
    if stated is None or not stated.arch:
        return ""
    name = stated.arch.removeprefix("timm/")
    if not _is_of_timm(name):
        raise InputError(
            f"{weights.parent / CONFIG}: architecture is {quoted(name, 60)}; expected a classifier "
            f"of timm: name the architecture with {flag}"
        )
    return stated.arch


def transformers_advice(weights: Path) -> str:
    """Return what to do about weights next to a ``config.json`` of transformers; empty if none.

    Models of transformers have other names of tensors than those of timm and torchvision.

    Raises:
        InputError: If the file is damaged.
    """
    path = weights.parent / CONFIG
    if not os.path.lexists(path):
        return ""
    content = read_foreign_json(path).content
    named = content.get("architectures")
    first = named[0] if isinstance(named, list) and named else content.get("model_type")
    if not {"model_type", "transformers_version"} & content.keys() or not isinstance(first, str):
        return ""
    shown = first if _NAME.fullmatch(first) else quoted(first, 60)
    return (
        f"{path} is one of transformers ({shown}), whose names of tensors are not read: give "
        "--arch MODULE:FUNCTION with a function that builds this network, as 'Models of "
        "transformers' in docs/guides/networks.md shows"
    )


def _is_of_timm(name: object) -> bool:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        return False
    try:
        preprocessing(f"timm/{name}")
    except UsageError:
        return False
    return True


def of_transformers(config: ForeignObject, arch: str = "") -> Stated | None:
    """Read ``preprocessor_config.json`` as transformers writes it.

    Args:
        config: The file's content.
        arch: Architecture that another file states.

    Raises:
        InputError: If a value has another type or is out of range, or if the channels are in
            another order than red, green, blue.
    """
    if not any(key in config for key in ("size", "crop_size", "image_mean")):
        return None
    if config.flag("do_flip_channel_order"):
        raise config.wrong("do_flip_channel_order", "false, since images are read as RGB")
    image_size, crop, resize = _form(config)
    mean, std = _normalisation(config)
    return Stated(PROCESSOR, arch, image_size, crop, resize, _filter(config), mean, std)


def _form(config: ForeignObject) -> tuple[int | None, float | None, str | None]:
    """Return size, crop and way of resizing.

    With ``crop_size``, images are resized to ``size``, or to ``size / crop_pct`` as for PoolFormer,
    and a centred square is cut out, which is a share of the resized image. Without it, ``size`` is
    the size of the input.
    """
    size = config.content.get("size")
    by_edge = isinstance(size, dict) and "shortest_edge" in size
    side = _side(config, "size")
    if config.flag("do_resize") is False:
        side = None
    cut = _side(config, "crop_size") if config.flag("do_center_crop") is not False else None
    share = config.number("crop_pct", 0.01, 1)
    if cut is not None:
        keeps = share is not None or by_edge or not isinstance(size, dict)
        crop = min(1.0, cut * (share or _enlarged(config)) / side) if side else None
        return cut, crop, "centred-square" if keeps else "squash"
    if side is None:
        return None, share, None
    if share is not None and side < _CROPS_FROM:
        return side, share, "centred-square"
    return side, 1.0, "centred-square" if by_edge and share is None else "squash"


def _enlarged(config: ForeignObject) -> float:
    """Return the ratio of ``size`` to the side to which images are resized."""
    named = config.content.get("image_processor_type", config.content.get("feature_extractor_type"))
    return _LEVIT if isinstance(named, str) and named.startswith("Levit") else 1.0


def _filter(config: ForeignObject) -> str | None:
    number = config.number("resample", 0, len(_FILTERS) - 1)
    if number is None:
        return None
    if not number.is_integer():
        raise config.wrong("resample", f"a whole number from 0 to {len(_FILTERS) - 1}")
    return _FILTERS[int(number)]


def _normalisation(config: ForeignObject) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation for pixels in [0, 1].

    Pixels x in [0, 255] become ``(x * rescale_factor - offset - mean) / std``, where the offset is
    1 if ``rescale_offset`` is set. With ``include_top``, as for EfficientNet, they are divided by
    ``image_std`` once more.
    """
    mean = config.numbers("image_mean", -1, _LARGEST_STD)
    std = config.numbers("image_std", _SMALLEST_STD, _LARGEST_STD)
    if config.flag("do_normalize") is False:
        again, mean, std = std or (1.0,), (0.0,) * max(1, len(std)), (1.0,) * max(1, len(std))
    else:
        again = std
    if len(mean) != len(std):
        raise config.wrong("image_mean", "as many numbers as image_std")
    if config.flag("include_top"):
        std = tuple(one * other for one, other in zip(std, again, strict=True))
    factor, offset = config.number("rescale_factor", 1e-6, 1), config.flag("rescale_offset")
    scale = 1.0 if factor is None else 255 * factor
    if config.flag("do_rescale") is False:
        scale, offset = 255.0, False
    # Rounded, since 255 / 255 is written with an error of the last digit.
    return (
        tuple(float(f"{(value + bool(offset)) / scale:.7g}") for value in mean),
        tuple(float(f"{value / scale:.7g}") for value in std),
    )


def _side(config: ForeignObject, key: str, *, channels: bool = False) -> int | None:
    """Return height and width, which must be equal; None if they are not stated.

    They are written as one number, a list, or an object with ``height`` and ``width`` or
    ``shortest_edge``.
    """
    value = config.content.get(key)
    if value is None:
        return None
    if isinstance(value, dict):
        edges = [value[name] for name in ("height", "width", "shortest_edge") if name in value]
    elif isinstance(value, list):
        edges = value[1:] if channels else value
    else:
        edges = [value]
    sides = [int(edge) for edge in edges if is_number(edge) and edge in range(1, _LARGEST + 1)]
    if len(sides) != len(edges) or len(set(sides)) != 1:
        raise config.wrong(key, f"one size of a square, from 1 to {_LARGEST} pixels")
    return sides[0]
