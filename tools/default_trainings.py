"""Train fresh networks of several families with their default settings, and write their accuracy.

    python -m tools.default_trainings OUT.json --data digits fashion-mnist cifar10=FOLDER

Each network learns from the labels of small parts of these data sets, at 32 x 32 pixels, with no
setting but the number of epochs. A network that stays below the floor in these few epochs is
trained once more with the default number of epochs. A row has the accuracy on test images, the
floor that it should exceed, and the settings. Rows that are in the file are kept, so the command
can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from robustkd import data, models
from robustkd.core.errors import TrainingError
from robustkd.core.files import write_text
from robustkd.core.statistics import wilson
from robustkd.data import InMemory, Labelled
from robustkd.student.distillation import distill
from robustkd.training.config import SGD, TrainingConfig
from robustkd.training.inference import accuracy_on
from robustkd.training.recipes import usual_training

NETWORKS = (
    "wrn-10-1",
    "resnet-20",
    "mobilenet-v2-0.25",
    "torchvision/resnet18",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "timm/efficientnet_lite0",
    "timm/mobilenetv3_small_050",
    "timm/mobilevit_xxs",
    "timm/vit_tiny_patch16_224",
    "timm/deit_tiny_patch16_224",
    "timm/convnext_atto",
    "torchvision/swin_t",
)
SIDE = 32
EPOCHS = 8
"""Fewer than the default, which is used where these are not enough."""
SIZES = {"train": 2000, "validation": 300, "test": 1000}
CHANCE = 0.1
FLOORS = {"digits": 0.6, "fashion-mnist": 0.6}
"""Smallest acceptable accuracy by data set; three times chance for any other."""


def at_side(source: InMemory) -> InMemory:
    """A small part of the data with images of 32 x 32 pixels."""
    sizes = {split: min(most, source.size(split)) for split, most in SIZES.items()}
    some = source.subset(**{k: n for k, n in sizes.items() if n < source.size(k)})

    def enlarged(part: Labelled) -> Labelled:
        pixels = F.interpolate(part.images.float(), size=(SIDE, SIDE), mode="bilinear")
        return Labelled(pixels.round().clamp(0, 255).to(torch.uint8), part.labels)

    return replace(
        some,
        train=enlarged(some.train),
        validation=enlarged(some.validation),
        test=enlarged(some.test),
    )


def row(arch: str, name: str, source: InMemory, epochs: int) -> dict[str, object]:
    """Train one network on one data set."""
    how = usual_training(arch, epochs=epochs)
    network = models.builder(source)(arch, 0)
    started, ending = time.perf_counter(), "finished"
    try:
        distill(network, source, epochs=epochs, seed=0, **how)
    except TrainingError as error:
        ending = str(error)
    accuracy = accuracy_on(network, source, "test").value
    low, high = wilson(accuracy, source.size("test"))
    return {
        "network": arch,
        "data": name,
        "epochs": epochs,
        "optimiser": how.get("optimizer", SGD),
        "rate": how["lr"],
        "test accuracy %": f"{accuracy:.1%} ({low:.1%} to {high:.1%})".replace("%", ""),
        "floor %": floor(name),
        "ending": ending,
        "seconds": round(time.perf_counter() - started),
    }


def floor(name: str) -> int:
    """Return the smallest acceptable accuracy on a data set in percent."""
    return round(100 * FLOORS.get(name, 3 * CHANCE))


def is_enough(found: Mapping[str, object]) -> bool:
    """Return whether the accuracy of a row is above its floor."""
    return float(str(found["test accuracy %"]).split()[0]) >= floor(str(found["data"]))


def with_epochs(found: Mapping[str, object]) -> dict[str, object]:
    """Return a row with its number of epochs, which files of older versions lack."""
    epochs = found.get("epochs", EPOCHS)
    return {"network": found["network"], "data": found["data"], "epochs": epochs, **found}


def main() -> None:
    """Train every network on every data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", required=True, help="NAME, or NAME=FOLDER of images")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    rows = [with_epochs(found) for found in rows]
    for given in options.data:
        name, _, folder = given.partition("=")
        source = at_side(data.load(folder or name))
        for arch in NETWORKS:
            for epochs in (EPOCHS, TrainingConfig.epochs):
                own = [found for found in rows if (found["network"], found["data"]) == (arch, name)]
                if any(found["epochs"] == epochs or is_enough(found) for found in own):
                    continue
                rows.append(row(arch, name, source, epochs))
                write_text(options.out, json.dumps(rows, indent=1) + "\n")
                print(*rows[-1].values(), flush=True)


if __name__ == "__main__":
    main()
