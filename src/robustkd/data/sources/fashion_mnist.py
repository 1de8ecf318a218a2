"""Fashion-MNIST: 70,000 grey images of clothes, 28x28.

Han Xiao, Kashif Rasul and Roland Vollgraf, 2017, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", arXiv:1708.07747.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from robustkd.core.errors import InputError
from robustkd.data.augment import CropFlip
from robustkd.data.in_memory import InMemory
from robustkd.data.labelled import Labelled, stratified_order
from robustkd.data.sources.download import DATA_VARIABLE, downloading
from robustkd.data.sources.idx import read_idx

DEBIAN = Path("/usr/share/datasets/fashion-mnist")

_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_SIDE = 28
_MAX_BYTES = 1 << 26
_LAYOUTS = ("fashion-mnist", "FashionMNIST/raw")
_PARTS = ("train", "t10k")
_STEMS = tuple(f"{part}-{kind}-ubyte" for part in _PARTS for kind in ("images-idx3", "labels-idx1"))
_VALIDATION_PARTS = 12
_SPLIT_SEED = 0


def load_fashion_mnist(root: Path | None = None, *, download: bool = True) -> InMemory:
    """Fashion-MNIST: train 55,000 / validation 5,000 / test 10,000 of 1 x 28 x 28, ten classes.

    The test split is the official one; validation is a fixed twelfth of the official training
    images, with the classes in equal shares.

    Args:
        root: Folder with the four IDX files, gzipped or not, or with them in ``fashion-mnist/`` or
            ``FashionMNIST/raw/``. None searches the folder in the environment variable
            ROBUSTKD_DATA, that of Debian's package dataset-fashion-mnist, and
            ``~/.cache/robustkd``.
        download: If True, torchvision downloads missing files to ``~/.cache/robustkd``; never
            done if ``root`` is given.

    Raises:
        InputError: If files are missing or damaged, have another shape, or do not fit together.
    """
    folder = _search(download) if root is None else _find_in(root)
    official, test = (_read(folder, part) for part in _PARTS)
    order = stratified_order(official.labels, seed=_SPLIT_SEED)
    validation, train = order.tensor_split([len(order) // _VALIDATION_PARTS])
    return InMemory(
        name="fashion-mnist",
        classes=_CLASSES,
        train=official.take(train),
        validation=official.take(validation),
        test=test,
        augmentation=CropFlip(pad=2, flip=True),
    )


def _find_in(root: Path) -> Path:
    """Return the folder with the files within ``root``; no other place is searched."""
    searched = [root, *(root / layout for layout in _LAYOUTS)]
    folder = _first_complete(searched)
    if folder is None:
        missing = [stem for stem in _STEMS if all(_file(place, stem) is None for place in searched)]
        raise InputError(
            f"{root}: no Fashion-MNIST here or in its {' or '.join(_LAYOUTS)}, expected "
            f"{', '.join(missing or _STEMS)} (or .gz); correct --data-root or leave it out"
        )
    return folder


def _search(download: bool) -> Path:
    cache = Path.home() / ".cache" / "robustkd"
    searched = [DEBIAN, *(cache / layout for layout in _LAYOUTS)]
    if chosen := os.environ.get(DATA_VARIABLE):
        searched = [*(Path(chosen) / layout for layout in _LAYOUTS), *searched]
    folder = _first_complete(searched)
    if folder is None and download:
        _download(cache, searched)
        folder = _first_complete(searched)
    if folder is None:
        raise _not_found(searched, "not downloaded")
    return folder


def _download(cache: Path, searched: Sequence[Path]) -> None:
    from torchvision import datasets

    with downloading(lambda reason: _not_found(searched, reason)):
        datasets.FashionMNIST(root=str(cache), download=True)


def _not_found(searched: Iterable[Path], reason: str) -> InputError:
    return InputError(
        f"Fashion-MNIST is in none of {', '.join(map(str, searched))} ({reason}); pass "
        f"--data-root, set {DATA_VARIABLE}, or `apt install dataset-fashion-mnist`"
    )


def _first_complete(folders: Iterable[Path]) -> Path | None:
    for folder in folders:
        if all(_file(folder, stem) for stem in _STEMS):
            return folder
    return None


def _file(folder: Path, stem: str) -> Path | None:
    for name in (stem, f"{stem}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def _read(folder: Path, part: str) -> Labelled:
    """Read the images and labels of one official part, ``train`` or ``t10k``."""
    paths = [_file(folder, stem) or folder / stem for stem in _STEMS if stem.startswith(part)]
    images, labels = (read_idx(path, max_bytes=_MAX_BYTES) for path in paths)
    if images.shape[1:] != (_SIDE, _SIDE) or labels.shape != images.shape[:1]:
        raise InputError(
            f"{paths[0]} and {paths[1].name}: shapes {images.shape} and {labels.shape}, expected "
            f"(N, {_SIDE}, {_SIDE}) and (N,); replace them by the files of one Fashion-MNIST"
        )
    pixels = torch.from_numpy(images).unsqueeze(1)
    return Labelled(pixels, torch.from_numpy(labels).to(torch.int64))
