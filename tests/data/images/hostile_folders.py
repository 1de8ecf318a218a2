"""Data folders that an attacker, or an accident, may hand over: each case as a recipe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.images.image_files import picture, png, write_splits

COUNTS = {
    "train": {"dark": 40, "light": 40},
    "val": {"dark": 10, "light": 10},
    "test": {"dark": 10, "light": 10},
}
SIDE = 50_000
TRUNCATED = "image file is truncated (# bytes not processed)"
NOT_AN_IMAGE = "not an image of a known format"


def sound(root: Path) -> Path:
    """A folder with nothing wrong, which every case starts from."""
    return write_splits(root, COUNTS)


@dataclass(frozen=True)
class Case:
    """A way to spoil a sound folder.

    Attributes:
        name: What is in it.
        spoil: Does it.
        message: What the one line says after ``robustkd: ``, with {root} for the folder, # for a
            number and @ for a long path; None where the folder is as good as before.
    """

    name: str
    spoil: Callable[[Path], object]
    message: str | None = None


def undecodable(split: str, file: str, reason: str, n: int) -> str:
    return (
        f"data {split}: 1 of {n} images cannot be decoded, the last {file} ({reason}); expected "
        "at most 1%: replace or remove them"
    )


def in_train(content: bytes, name: str = "dark/000.png") -> Callable[[Path], object]:
    return lambda root: (root / "train" / name).write_bytes(content)


def truncate_jpeg(root: Path) -> None:
    path = root / "train" / "dark" / "000.jpg"
    Image.fromarray(picture(0)).save(path, quality=95)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 200])
    (root / "train" / "dark" / "000.png").unlink()


def as_mode(mode: str, kind: str = "png", **options: object) -> Callable[[Path], None]:
    """Save every image of the class ``light`` anew, with what is to be seen unchanged."""

    def convert(root: Path) -> None:
        for path in sorted(root.glob("*/light/*.png")):
            image = Image.open(path).convert(mode)
            path.unlink()
            image.save(path.with_suffix(f".{kind}"), **options)

    return convert


def as_16_bit(root: Path) -> None:
    for path in sorted(root.glob("*/*/*.png")):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(grey * 257).save(path)


def transparent(root: Path) -> None:
    """Light images that are dark where nobody sees it."""
    for path in sorted(root.glob("*/light/*.png")):
        image = Image.open(path).convert("RGB")
        image.paste((10, 10, 10), (0, 0, 12, 16))
        alpha = Image.new("L", image.size, 255)
        alpha.paste(0, (0, 0, 12, 16))
        image.putalpha(alpha)
        image.save(path)


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def only_one_class(root: Path) -> None:
    for split in COUNTS:
        remove(root / split / "light")


def empty_class(root: Path) -> None:
    for split in COUNTS:
        (root / split / "none").mkdir()


def rename_class(name: str) -> Callable[[Path], None]:
    def rename(root: Path) -> None:
        for split in COUNTS:
            (root / split / "light").rename(root / split / name)

    return rename


def link(name: str, goal: str) -> Callable[[Path], None]:
    return lambda root: os.symlink(goal, root / "train" / "dark" / name)


def leave_one_out(split: str) -> Callable[[Path], None]:
    return lambda root: remove(root / split / "light")


def missing_class(part: str) -> str:
    return (
        f"{{root}}/{part} lacks the class 'light' that train has; add it, or move {part} out "
        "of the folder"
    )


def nothing(root: Path) -> None:
    for split in COUNTS:
        shutil.rmtree(root / split)


def only_images(root: Path) -> None:
    nothing(root)
    (root / "000.png").write_bytes(b"")


def capital_extensions(root: Path) -> None:
    for path in sorted(root.glob("*/*/*.png")):
        path.rename(path.with_suffix(".PNG"))


def nest(*names: str) -> Callable[[Path], None]:
    """Folders within each other that need no path as long as their own."""

    def make(root: Path) -> None:
        place = os.open(root / "train" / "dark", os.O_RDONLY)
        for name in names:
            os.mkdir(name, dir_fd=place)
            inner = os.open(name, os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = inner
        os.close(place)

    return make


def many_empty_folders(root: Path) -> None:
    for number in range(10_000):
        (root / "train" / "dark" / str(number)).mkdir()


NO_FOLDERS = "{root} has no folders; expected train/CLASS/ or CLASS/ with images"
NO_IMAGES = (
    "{root}/train/none: no images (.bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .pgm, .png, .pnm, .ppm, "
    ".tif, .tiff, .webp); add some, or remove the class from all splits"
)
COPY = "; replace it by a copy of what is meant"
LEAVES = " is a link that leaves the folder" + COPY

CASES = (
    Case("nothing wrong", Path.exists),
    Case(
        "truncated JPEG",
        truncate_jpeg,
        undecodable("train", "train/dark/000.jpg", TRUNCATED, 80),
    ),
    Case(
        "PNG of 50,000 x 50,000 pixels",
        in_train(png(SIDE, SIDE, bytes(1000))),
        undecodable("train", "train/dark/000.png", "more than 67,108,864 pixels", 80),
    ),
    Case(
        "PNG of 12,000 x 12,000 pixels, all there",
        in_train(png(12_000, 12_000, bytes(12_000 * 12_001 // 8), bits=1, kind=0)),
        undecodable("train", "train/dark/000.png", "12000x12000: more than 67,108,864 pixels", 80),
    ),
    Case(
        "text file named .png",
        in_train(b"not a picture\n"),
        undecodable("train", "train/dark/000.png", NOT_AN_IMAGE, 80),
    ),
    Case(
        "PostScript named .png",
        in_train(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
        undecodable("train", "train/dark/000.png", NOT_AN_IMAGE, 80),
    ),
    Case(
        "empty file named .png",
        in_train(b""),
        undecodable("train", "train/dark/000.png", NOT_AN_IMAGE, 80),
    ),
    Case(
        "text file named .png, in test",
        lambda root: (root / "test" / "dark" / "003.png").write_text("no"),
        undecodable("test", "test/dark/003.png", NOT_AN_IMAGE, 20),
    ),
    Case("nothing at all", nothing, NO_FOLDERS),
    Case("images but no folders", only_images, NO_FOLDERS),
    Case("empty class", empty_class, NO_IMAGES),
    Case("10,000 empty folders in a class", many_empty_folders),
    Case("400 folders within each other", nest(*["d"] * 400)),
    Case(
        "a path longer than the system allows",
        nest(*["d" * 200] * 25),
        "{root}/train/dark/@ cannot be read (File name too long); expected a folder of images",
    ),
    Case("extensions in capitals", capital_extensions),
    Case(
        "one class only",
        only_one_class,
        "data: expected at least two classes, found 'dark'; give a folder that holds one folder "
        "per class",
    ),
    Case("class missing in val", leave_one_out("val"), missing_class("val")),
    Case("class missing in test", leave_one_out("test"), missing_class("test")),
    Case("RGBA images", as_mode("RGBA")),
    Case("RGBA images, dark under what is transparent", transparent),
    Case("grey images", as_mode("L")),
    Case("palette images", as_mode("P")),
    Case("CMYK images", as_mode("CMYK", "jpg", quality=95)),
    Case("16-bit images", as_16_bit),
    Case(
        "link loop between folders",
        link("loop", ".."),
        "{root}/train/dark/loop is a link to something else than a file" + COPY,
    ),
    Case(
        "link to itself",
        link("loop.png", "loop.png"),
        "{root}/train/dark/loop.png is a link to something else than a file" + COPY,
    ),
    Case(
        "link to a file elsewhere",
        link("passwd.png", "/etc/passwd"),
        "{root}/train/dark/passwd.png" + LEAVES,
    ),
    Case(
        "link to a folder elsewhere",
        link("etc", "../../../.."),
        "{root}/train/dark/etc" + LEAVES,
    ),
    Case("link to an image of the folder", link("twice.png", "000.png")),
    Case(
        "FIFO named .png",
        lambda root: os.mkfifo(root / "train" / "dark" / "pipe.png"),
        "{root}/train/dark/pipe.png is neither a file nor a folder" + COPY,
    ),
    Case("class called light<script>", rename_class("light<script>alert(1)<")),
    Case('class called light" onload=', rename_class('light" onload=alert(1) x="')),
    Case("class called light[red]", rename_class("light[red][bold]")),
    Case("class called light..%2f..\\..", rename_class("light..%2f..\\..")),
    Case(
        "class name with newlines",
        rename_class("light\nrobustkd: all is well"),
        "{root}/train: the name of the folder 'light\\nrobustkd: all is well' has characters that "
        "cannot be printed; rename it",
    ),
    Case(
        "class name that steers the terminal",
        rename_class("light\x1b[2J"),
        "{root}/train: the name of the folder 'light\\x1b[2J' has characters that cannot be "
        "printed; rename it",
    ),
    Case(
        "class name that is no text",
        rename_class(os.fsdecode(b"light\xff")),
        "{root}/train: the name of the folder 'light\\udcff' has characters that cannot be "
        "printed; rename it",
    ),
    Case(
        "file name with newlines",
        in_train(b"", "dark/\nrobustkd: all is well.png"),
        undecodable("train", "train/dark/\\nrobustkd: all is well.png", NOT_AN_IMAGE, 81),
    ),
    Case(
        "file name that is no text",
        in_train(b"", os.fsdecode(b"dark/\xff.png")),
        undecodable("train", "train/dark/\\udcff.png", NOT_AN_IMAGE, 81),
    ),
)
