"""The public sets: where they are looked for, what torchvision's readers give, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from robustkd import data
from robustkd.core.errors import InputError, UsageError
from robustkd.data import CropFlip, InMemory, Pictures, Reading, ZoomFlip
from tests.data.sources import official_files

TITLES = {
    "cifar-10": ("CIFAR-10", "cifar-10-batches-py"),
    "cifar-100": ("CIFAR-100", "cifar-100-python"),
    "gtsrb": ("GTSRB", "gtsrb"),
    "flowers-102": ("Flowers-102", "flowers-102"),
    "tiny-imagenet": ("Tiny-ImageNet", "tiny-imagenet-200"),
}


class OfflineError(Exception):
    """Not a failure that a download may have."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A machine without any of the sets and without network; returns its empty home folder."""

    def unreachable(*args: object, **options: object) -> None:
        raise OfflineError

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("ROBUSTKD_DATA", raising=False)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    return home


@pytest.fixture(params=TITLES)
def name(request) -> str:
    return request.param


def opened(name: str, root: Path | None = None) -> InMemory | Pictures:
    return data.open_source(name, root=root)


def counts(source: InMemory | Pictures) -> list[int]:
    return [source.size(split) for split in ("train", "validation", "test")]


SIZES = {
    "cifar-10": [900, 100, 100],
    "cifar-100": [900, 100, 100],
    "gtsrb": [43, 43, 43],
    "flowers-102": [102, 102, 102],
    "tiny-imagenet": [27, 3, 3],
}


def test_a_given_root_holds_the_folder_or_is_it(name, tmp_path, monkeypatch):
    root = official_files.write(name, tmp_path / "mine", monkeypatch)
    source = opened(name, root)
    assert source.name == name
    assert counts(source) == SIZES[name]
    inner = root / TITLES[name][1]
    assert counts(opened(name, inner)) == SIZES[name]
    monkeypatch.chdir(inner)
    assert counts(opened(name, Path())) == SIZES[name]


def test_the_variable_comes_before_the_cache(name, tmp_path, monkeypatch, home):
    cache = home / ".cache" / "robustkd"
    official_files.write(name, cache, monkeypatch)
    assert counts(opened(name)) == SIZES[name]
    monkeypatch.setenv("ROBUSTKD_DATA", str(tmp_path / "nothing"))
    assert counts(opened(name)) == SIZES[name]
    chosen = tmp_path / "chosen" / TITLES[name][1]
    chosen.parent.mkdir()
    (cache / TITLES[name][1]).rename(chosen)
    monkeypatch.setenv("ROBUSTKD_DATA", str(chosen.parent))
    assert counts(opened(name)) == SIZES[name]


def test_a_given_root_without_files_is_an_error(name, tmp_path, monkeypatch, home):
    official_files.write(name, home / ".cache" / "robustkd", monkeypatch)
    title, folder = TITLES[name]
    with pytest.raises(InputError) as caught:
        opened(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: no {title} here, expected the folder {folder} with ")
    assert message.endswith("; correct --data-root or leave it out")


@pytest.mark.parametrize("failure", [URLError("no route\nto host"), RuntimeError("no mirror")])
def test_a_failed_download_is_reported_in_one_line(name, failure, tmp_path, monkeypatch, home):
    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr("urllib.request.urlopen", fail)
    monkeypatch.setenv("ROBUSTKD_DATA", str(tmp_path))
    title, folder = TITLES[name]
    reason = " ".join(str(failure).split())
    message = (
        f"{title} is in none of {tmp_path / folder}, {home / '.cache' / 'robustkd' / folder} "
        f"(download failed: {reason}); pass --data-root or set ROBUSTKD_DATA to the folder that "
        f"holds {folder}"
    )
    if name == "gtsrb":
        message = message.replace(reason, "REASON")
    with pytest.raises(InputError) as caught:
        opened(name)
    assert reason.split()[0].strip("<") in str(caught.value)
    assert str(caught.value) == message.replace("REASON", reason)


def test_a_download_prints_its_progress_to_stderr(monkeypatch, home, capsys):
    def fetch(url: str, root: str, *, filename: str, md5: str) -> None:
        print("Downloading")
        official_files.write_cifar(Path(root), "cifar-10", monkeypatch)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    assert counts(opened("cifar-10")) == SIZES["cifar-10"]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Downloading\n")
    assert (home / ".cache" / "robustkd" / "cifar-10-batches-py").is_dir()


@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
def test_cifar_has_the_contents_of_its_files(name, tmp_path, monkeypatch):
    source = data.load(name, root=official_files.write_cifar(tmp_path, name, monkeypatch))
    classes = 10 if name == "cifar-10" else 100
    assert source.classes == tuple(f"thing {k}" for k in range(classes))
    assert source.augmentation == CropFlip(pad=4, flip=True)
    for split in ("train", "validation", "test"):
        held = getattr(source, split)
        assert torch.equal(held.images[:, 0, 0, 0].long(), held.labels)
        assert (held.labels.bincount() == source.size(split) // classes).all()
    pixels = [image.numpy().tobytes() for image in source.train.images]
    assert len(set(pixels)) == 900


@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
def test_a_pickle_with_another_checksum_is_never_opened(name, tmp_path, monkeypatch):
    root = official_files.write_cifar(tmp_path, name, monkeypatch)
    canary = tmp_path / "canary"
    file = next((root / TITLES[name][1]).glob("*train*"), None)
    file = file or root / TITLES[name][1] / "data_batch_1"
    file.write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    title, folder = TITLES[name]
    message = f"^{re.escape(str(root / folder))} holds no intact {title} \\(Dataset not found or c"
    with pytest.raises(InputError, match=message):
        opened(name, root)
    assert not canary.exists()


def test_gtsrb_labels_and_pixels(tmp_path):
    source = data.open_source("gtsrb", root=official_files.write_gtsrb(tmp_path))
    assert source.classes == tuple(f"{k:05d}" for k in range(43))
    assert source.image_shape == (3, 32, 32)
    assert source.augmentation == CropFlip(pad=4, flip=False)
    assert source.parts["test"].labels.tolist() == list(range(42, -1, -1))
    assert source.parts["test"].name(7) == "GTSRB/Final_Test/Images/00007.ppm"
    batch = next(source.batches("test", batch_size=43))
    pixels = np.array(Image.open(tmp_path / "gtsrb" / source.parts["test"].name(12)))
    assert pixels.shape == (32, 32, 3)
    assert torch.equal(batch.images[12] * 255, torch.from_numpy(pixels).permute(2, 0, 1).float())


def test_gtsrb_s_table_cannot_lead_out_of_the_folder(tmp_path):
    root = official_files.write_gtsrb(tmp_path)
    table = root / "gtsrb" / "GT-final_test.csv"
    table.write_text(table.read_text().replace("00003.ppm", "../../../../secret.ppm"))
    with pytest.raises(InputError, match=r"holds no intact GTSRB \(a file of the list is outside"):
        opened("gtsrb", root)


def test_flowers_are_in_their_official_splits(tmp_path, monkeypatch):
    source = data.open_source(
        "flowers-102", root=official_files.write_flowers(tmp_path, monkeypatch)
    )
    assert source.classes == tuple(datasets.Flowers102.classes)
    assert source.image_shape == (3, 224, 224)
    assert source.augmentation == ZoomFlip()
    for k, split in enumerate(("train", "validation", "test")):
        assert source.parts[split].labels.tolist() == list(range(102))
        assert source.parts[split].name(0) == f"jpg/image_{102 * k + 1:05d}.jpg"


def test_tiny_imagenet_s_labelled_images_are_the_test(tmp_path):
    source = data.open_source("tiny-imagenet", root=official_files.write_tiny(tmp_path))
    assert source.classes == ("n00000000", "n00000001", "n00000002")
    assert source.image_shape == (3, 64, 64)
    assert source.parts["test"].labels.tolist() == [0, 1, 2]
    assert source.parts["train"].name(0).startswith("train/n00000000/images/n00000000_")


def test_encoded_sets_load_into_memory_in_part(tmp_path):
    source = data.load("gtsrb", root=official_files.write_gtsrb(tmp_path), train=43, test=43)
    assert isinstance(source, InMemory)
    assert [source.size(split) for split in ("train", "validation", "test")] == [43, 43, 43]


def test_choices_that_a_set_does_not_offer_are_refused(tmp_path, monkeypatch):
    for name, choice, message in (
        ("digits", {"image_size": 32}, "image_size is 32; digits does not support this option"),
        ("digits", {"flip": False}, "flip is False; digits does not support this option"),
        (
            "gtsrb",
            {"classes": tmp_path},
            f"classes is {tmp_path}; gtsrb does not support this option",
        ),
        ("flowers-102", {"split": tmp_path}, f"split is {tmp_path}; flowers-102 does not support"),
    ):
        root = None
        if name != "digits":
            root = official_files.write(name, tmp_path / name, monkeypatch)
        with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
            data.open_source(name, root=root, reading=Reading(**choice))
