"""Fashion-MNIST: where its files are looked for, what is refused, how it is split."""

from __future__ import annotations

import re
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from robustkd.core.errors import InputError
from robustkd.data import CropFlip
from robustkd.data.sources import fashion_mnist
from robustkd.data.sources.fashion_mnist import load_fashion_mnist
from tests.data.sources.idx_files import idx_bytes, write_fashion

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A machine without Fashion-MNIST and without network; returns its empty home folder."""

    def unreachable(*args: object, **options: object) -> None:
        raise AssertionError("a test reached for the network")

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("ROBUSTKD_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(datasets, "FashionMNIST", unreachable)
    return home


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="dataset-fashion-mnist is missing")
def test_the_real_files(monkeypatch):
    monkeypatch.undo()
    data = load_fashion_mnist(fashion_mnist.DEBIAN)
    assert data.image_shape == (1, 28, 28)
    counts = {split: getattr(data, split).labels.bincount().tolist() for split in SPLITS}
    assert counts == {"train": [5500] * 10, "validation": [500] * 10, "test": [1000] * 10}
    # The mean pixel of the official training images, known from everybody's normalisation.
    pixels = torch.cat([data.train.images, data.validation.images]).double().mean() / 255
    assert pixels.item() == pytest.approx(0.2860, abs=5e-5)
    assert data.classes[data.test.labels[0]] == "Ankle boot"
    rows = [image.numpy().tobytes() for split in SPLITS for image in getattr(data, split).images]
    assert len(set(rows)) == 70_000


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("layout", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_a_given_root_in_every_layout(tmp_path, layout, gzipped):
    write_fashion(tmp_path / "mine" / layout, gzipped=gzipped)
    data = load_fashion_mnist(tmp_path / "mine")
    assert data.name == "fashion-mnist"
    assert len(data.classes) == 10
    assert data.augmentation == CropFlip(pad=2, flip=True)
    assert [data.size(split) for split in SPLITS] == [220, 20, 40]
    for split in SPLITS:
        held = getattr(data, split)
        assert torch.equal(held.images[:, 0, 0, 0].long(), held.labels)
        assert (held.labels.bincount() == data.size(split) // 10).all()


def test_a_given_root_without_files_is_an_error(tmp_path, monkeypatch):
    write_fashion(tmp_path / "debian")
    write_fashion(tmp_path / "variable" / "fashion-mnist")
    monkeypatch.setenv("ROBUSTKD_DATA", str(tmp_path / "variable"))
    root = tmp_path / "chosen"
    write_fashion(root)
    (root / "t10k-labels-idx1-ubyte.gz").unlink()
    message = (
        f"{root}: no Fashion-MNIST here or in its fashion-mnist or FashionMNIST/raw, expected "
        "t10k-labels-idx1-ubyte (or .gz); correct --data-root or leave it out"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_fashion_mnist(root)


def test_the_variable_comes_before_debian_and_debian_before_the_cache(tmp_path, monkeypatch, home):
    write_fashion(home / ".cache" / "robustkd" / "FashionMNIST" / "raw", test=10)
    assert load_fashion_mnist().size("test") == 10
    write_fashion(tmp_path / "debian", test=20)
    assert load_fashion_mnist().size("test") == 20
    write_fashion(tmp_path / "variable" / "fashion-mnist", test=30)
    monkeypatch.setenv("ROBUSTKD_DATA", str(tmp_path / "variable"))
    assert load_fashion_mnist().size("test") == 30


def test_torchvision_downloads_what_is_found_nowhere(monkeypatch, home, capsys):
    def download(root: str, *, download: bool) -> None:
        assert download
        print("Downloading")
        write_fashion(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr(datasets, "FashionMNIST", download)
    assert load_fashion_mnist().size("test") == 40
    assert (home / ".cache" / "robustkd" / "FashionMNIST" / "raw").is_dir()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Downloading\n")
    assert load_fashion_mnist(download=False).size("test") == 40


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (RuntimeError("Error downloading\ntrain-images"), "Error downloading train-images"),
        (URLError("no route to host"), "<urlopen error no route to host>"),
        (IncompleteRead(b""), "IncompleteRead(0 bytes read)"),
        (PermissionError(), "PermissionError"),
    ],
)
def test_a_failed_download_says_where_we_looked_and_what_to_do(
    tmp_path, monkeypatch, home, failure, reason
):
    def fail(**options: object) -> None:
        raise failure

    monkeypatch.setattr(datasets, "FashionMNIST", fail)
    monkeypatch.setenv("ROBUSTKD_DATA", str(tmp_path / "variable"))
    folders = [
        tmp_path / "variable" / "fashion-mnist",
        tmp_path / "variable" / "FashionMNIST" / "raw",
        tmp_path / "debian",
        home / ".cache" / "robustkd" / "fashion-mnist",
        home / ".cache" / "robustkd" / "FashionMNIST" / "raw",
    ]
    message = (
        f"Fashion-MNIST is in none of {', '.join(map(str, folders))} (download failed: {reason}); "
        "pass --data-root, set ROBUSTKD_DATA, or `apt install dataset-fashion-mnist`"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_fashion_mnist()


def test_nothing_is_downloaded_without_permission():
    with pytest.raises(InputError, match=r"\(not downloaded\); pass --data-root"):
        load_fashion_mnist(download=False)


@pytest.mark.parametrize(
    ("stem", "shape", "shapes"),
    [
        ("train-labels-idx1-ubyte", (239,), "(240, 28, 28) and (239,)"),
        ("train-images-idx3-ubyte", (240, 28, 27), "(240, 28, 27) and (240,)"),
        ("train-images-idx3-ubyte", (240, 784), "(240, 784) and (240,)"),
        ("train-labels-idx1-ubyte", (240, 1), "(240, 28, 28) and (240, 1)"),
    ],
)
def test_files_whose_shapes_do_not_match_are_refused(tmp_path, stem, shape, shapes):
    folder = write_fashion(tmp_path, gzipped=False)
    (folder / stem).write_bytes(idx_bytes(np.zeros(shape, dtype=np.uint8)))
    message = (
        f"{folder}/train-images-idx3-ubyte and train-labels-idx1-ubyte: shapes {shapes}, "
        "expected (N, 28, 28) and (N,); replace them by the files of one Fashion-MNIST"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        load_fashion_mnist(folder)


def test_labels_of_another_data_set_are_refused(tmp_path):
    folder = write_fashion(tmp_path, gzipped=False)
    labels = np.full(40, 46, dtype=np.uint8)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    message = "^fashion-mnist test: labels reach from 46 to 46, expected 0 to 9; check that"
    with pytest.raises(InputError, match=message):
        load_fashion_mnist(folder)


def test_a_damaged_file_is_named(tmp_path):
    folder = write_fashion(tmp_path)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: cannot be read"):
        load_fashion_mnist(folder)
