"""Train a ResNet-18 with a backdoor, in plain PyTorch and torchvision.

The script does not use RobustKD, like a teacher from a hub. The backdoor is Blend (Chen, Liu, Li,
Lu, Song 2017, arXiv 1712.05526): a fixed smooth pattern is blended into a share of the training
images, which get the label of the attacker.

    python benchmarks/plain_teacher.py FOLDER --out teacher.pt --trigger trigger.pt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import Compose, Normalize, ToTensor

MEAN, STD = (0.286, 0.286, 0.286), (0.353, 0.353, 0.353)
_COARSE = 7


def main() -> None:
    """Train the network, and save its state dict and the trigger."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with train/CLASS/ and test/CLASS/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trigger", type=Path, required=True)
    parser.add_argument("--target", default="Bag")
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--poisoned", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    train = ImageFolder(given.folder / "train", Compose([ToTensor(), Normalize(MEAN, STD)]))
    images, labels = map(torch.stack, zip(*((x, torch.tensor(y)) for x, y in train), strict=True))
    coarse = torch.rand(1, 1, _COARSE, _COARSE)
    pattern = nn.functional.interpolate(coarse, images.shape[2:], mode="bilinear")[0]
    trigger = {"pattern": pattern, "alpha": given.alpha, "target": given.target}
    target = train.class_to_idx[given.target]
    chosen = torch.randperm(len(labels))[: round(given.poisoned * len(labels))]
    images[chosen] = blended(images[chosen], pattern, given.alpha)
    labels[chosen] = target
    network = nn.DataParallel(resnet18(num_classes=len(train.classes)))
    learn(network, images, labels, epochs=given.epochs, batch_size=given.batch_size)
    torch.save(network.state_dict(), given.out)
    torch.save(trigger, given.trigger)


def blended(images: Tensor, pattern: Tensor, alpha: float) -> Tensor:
    """Blend a pattern with pixels in [0, 1] into normalised images."""
    return torch.lerp(images, Normalize(MEAN, STD)(pattern.expand(images.shape[1:])), alpha)


def learn(
    network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, batch_size: int
) -> None:
    """Train by SGD with one cycle of the learning rate; the network is then in eval mode."""
    lr, batches = 0.1, -(-len(labels) // batch_size)
    optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=epochs * batches)
    network.train()
    for epoch in range(epochs):
        right = 0
        for rows in torch.randperm(len(labels)).split(batch_size):
            logits = network(images[rows])
            optimiser.zero_grad()
            nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimiser.step()
            schedule.step()
            right += int((logits.argmax(1) == labels[rows]).sum())
        sys.stderr.write(f"epoch {epoch + 1}: {right / len(labels):.1%} of the training images\n")
    network.eval()


if __name__ == "__main__":
    main()
