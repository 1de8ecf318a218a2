"""Record a user's journey in a terminal of 80 columns: ``python -m tools.journey``.

It makes a small folder of images and a teacher, trained by plain PyTorch and saved by timm as a
folder of the Hugging Face Hub, and then types the commands from ``robustkd list`` to ``robustkd
export``. All that they show is written to docs/results/journey.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F

from robustkd import data
from robustkd.core.types import Split
from tools.terminal import COLUMNS, Recording, record

PAGE = Path("docs/results/journey.md")
CLASSES = ("zero", "one", "two", "three")
SIZE = 32
MEAN, STD = (0.3,) * 3, (0.35,) * 3
_SPLITS: dict[Split, tuple[str, int]] = {
    "train": ("train", 80),
    "validation": ("val", 25),
    "test": ("test", 25),
}
_RUN = "--data images --student wrn-10-1 --no-flip --epochs 20"
JOURNEY = (
    ("What there is", "list"),
    ("A small student", "list --students --max-params 100k --image 3 32 32"),
    ("The teacher, measured on the images", "evaluate teacher --data images"),
    ("A plan, without writing anything", f"distill teacher {_RUN} --dry-run"),
    ("The run", f"distill teacher {_RUN} --out run"),
    ("The student, measured again", "evaluate run --data images"),
    ("Files for other programs", "export run --data images --out shipped"),
)
"""Heading and arguments of each command."""
_START = f"""\
# A journey in the terminal

<!-- Written by `python -m tools.journey`. Do not edit. -->

All commands from a first look to a student that other programs can load, and all that they show in
a terminal of {COLUMNS} columns without its colours. `images` has {len(CLASSES)} classes of
handwritten digits with {_SPLITS["train"][1]} training images each; `teacher` is a folder with
`config.json` and `model.safetensors` as timm saves it for the Hugging Face Hub. It has no backdoor:
if the audit calls it suspicious, this is a false alarm, as is possible with so few images.
"""


def make_images(root: Path) -> None:
    """Write some of the bundled digits as PNG files in folders of splits and classes."""
    source = data.load("digits")
    for split, (name, most) in _SPLITS.items():
        written = dict.fromkeys(range(len(CLASSES)), 0)
        for batch in source.batches(split, batch_size=1):
            label = int(batch.labels)
            if label not in written or written[label] == most:
                continue
            folder = root / name / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = batch.images[0, 0].mul(255).round().to(torch.uint8).numpy()
            image = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            image.convert("RGB").save(folder / f"{written[label]:03}.png")
            written[label] += 1


def make_teacher(folder: Path, images: Path, *, epochs: int = 12) -> None:
    """Train a small network of timm on the images, and save it as a folder of the Hub."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=len(CLASSES))
    source = data.load_folder(images).in_memory()
    optimiser = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in source.batches("train", batch_size=32, shuffle=order):
            pixels = (batch.images - MEAN[0]) / STD[0]
            # The data counts its classes in alphabetical order, as torchvision does.
            loss = F.cross_entropy(network(pixels), batch.labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    config = {"input_size": (3, SIZE, SIZE), "crop_pct": 1.0, "mean": MEAN, "std": STD}
    timm.models.save_for_hf(
        network.eval(), str(folder), safe_serialization=True, data_config=config
    )


def travel(folder: Path, journey: Sequence[tuple[str, str]] = JOURNEY) -> Iterator[str]:
    """Type the commands in a folder; yield a section of the page for each.

    Raises:
        RuntimeError: If a command fails.
    """
    source = str(Path(data.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    for heading, words in journey:
        command = [sys.executable, "-m", "robustkd.cli", *shlex.split(words)]
        shown = record(command, folder=folder, environment=environment)
        if shown.code:
            raise RuntimeError(f"robustkd {words}: exit code {shown.code}\n{shown.end}")
        yield _section(heading, f"robustkd {words}", shown)


def _section(heading: str, command: str, shown: Recording) -> str:
    parts = [f"\n## {heading}\n", _block(f"$ {command}\n{shown.end}")]
    if "--out run" in command:
        parts.append("At half of its time it showed:\n")
        parts.append(_block("\n".join(shown.meanwhile.splitlines()[-6:])))
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text}\n```\n"


def main(words: Sequence[str] | None = None) -> None:
    """Make the files, record the journey and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.journey", description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    page: Path = parser.parse_args(words).page
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images")
        torch.set_num_threads(1)  # as the commands, so that every machine trains the same teacher
        make_teacher(folder / "teacher", folder / "images")
        page.write_text(_START + "".join(travel(folder)))


if __name__ == "__main__":
    main()
