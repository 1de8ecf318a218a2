"""Public data sets in small: the same files in the same form, with the checksums to match."""

from __future__ import annotations

import csv
import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from tests.data.images.image_files import picture

CIFAR = {
    "cifar-10": (datasets.CIFAR10, 10, "labels"),
    "cifar-100": (datasets.CIFAR100, 100, "fine_labels"),
}
GTSRB_CLASSES, FLOWERS = 43, 102


def write_cifar(root: Path, name: str, monkeypatch, *, by_shade: bool = False) -> Path:
    """Write 1,000 training and 100 test images; the first pixel is the label.

    Other pixels are noise. With ``by_shade``, their brightness depends on the class.
    """
    reader, classes, key = CIFAR[name]
    folder = root / reader.base_folder
    folder.mkdir(parents=True)

    def write(file: str, content: dict) -> str:
        raw = pickle.dumps(content, protocol=2)
        (folder / file).write_bytes(raw)
        return hashlib.md5(raw, usedforsecurity=False).hexdigest()

    def write_images(file: str, n: int, seed: int) -> list[str]:
        pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
        labels = (np.arange(n) % classes).tolist()
        if by_shade:
            shades = 200 * np.array(labels)[:, None] // classes
            pixels = (pixels // 8 + shades).astype(np.uint8)
        pixels[:, 0] = labels
        return [file, write(file, {"data": pixels, key: labels})]

    lists = {"train_list": 1000 // len(reader.train_list), "test_list": 100}
    for attribute, n in lists.items():
        found = [
            write_images(file, n, seed) for seed, (file, _) in enumerate(getattr(reader, attribute))
        ]
        monkeypatch.setattr(reader, attribute, found)
    meta = {reader.meta["key"]: [f"thing {k}" for k in range(classes)]}
    checksum = write(reader.meta["filename"], meta)
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": checksum})
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_gtsrb(root: Path) -> Path:
    """Two training images and one test image of every class, of several sizes."""
    images = root / "gtsrb" / "GTSRB"
    for k in range(GTSRB_CLASSES):
        for i in range(2):
            save(images / "Training" / f"{k:05d}" / f"0000{i}_0.ppm", picture(2 * k + i, 15 + k))
        save(images / "Final_Test" / "Images" / f"{k:05d}.ppm", picture(1000 + k, 20 + k))
    with (root / "gtsrb" / "GT-final_test.csv").open("w", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["Filename", "Width", "Height", "ClassId"])
        table.writerows(
            [f"{k:05d}.ppm", 20 + k, 20 + k, GTSRB_CLASSES - 1 - k] for k in range(GTSRB_CLASSES)
        )
    return root


def write_flowers(root: Path, monkeypatch) -> Path:
    """One image of every class in each official split."""
    folder = root / "flowers-102"
    ids = np.arange(1, 3 * FLOWERS + 1)
    for i in ids:
        save(folder / "jpg" / f"image_{i:05d}.jpg", picture(int(i), 10)[:8])
    tables = {
        "imagelabels.mat": {"labels": (ids - 1) % FLOWERS + 1},
        "setid.mat": {
            name: ids[k * FLOWERS : (k + 1) * FLOWERS]
            for k, name in enumerate(("trnid", "valid", "tstid"))
        },
    }
    files = dict(datasets.Flowers102._file_dict)
    for key, (name, content) in zip(("label", "setid"), tables.items(), strict=True):
        savemat(folder / name, content)
        raw = (folder / name).read_bytes()
        files[key] = (name, hashlib.md5(raw, usedforsecurity=False).hexdigest())
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    return root


def write_tiny(root: Path, classes: int = 3) -> Path:
    """Ten training images and one labelled validation image of each of a few classes."""
    folder = root / "tiny-imagenet-200"
    lines = []
    for k in range(classes):
        name = f"n{k:08d}"
        for i in range(10):
            path = folder / "train" / name / "images" / f"{name}_{i}.JPEG"
            save(path, picture(100 * k + i, 64))
        save(folder / "val" / "images" / f"val_{k}.JPEG", picture(9000 + k, 64))
        lines.append(f"val_{k}.JPEG\t{name}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    save(folder / "test" / "images" / "test_0.JPEG", picture(0, 64))
    return root


def write(name: str, root: Path, monkeypatch) -> Path:
    """Any of them by the name of its source."""
    if name in CIFAR:
        return write_cifar(root, name, monkeypatch)
    if name == "flowers-102":
        return write_flowers(root, monkeypatch)
    return {"gtsrb": write_gtsrb, "tiny-imagenet": write_tiny}[name](root)
