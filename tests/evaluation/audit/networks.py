"""Networks that one can solve by hand, and data for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustkd.data import InMemory, Labelled
from robustkd.evaluation.audit import Effort, search_references
from robustkd.evaluation.audit.evidence import Subject
from robustkd.evaluation.audit.search import search

CLASSES = 8
SIDE = 8


class Rows(nn.Module):
    """The logit of class k is the mean of row k; a bright corner adds to one class's logit.

    With ``backdoor`` None there is no such corner.
    """

    def __init__(self, backdoor: int | None, gain: float = 20.0) -> None:
        super().__init__()
        self.head = nn.Linear(SIDE * SIDE, CLASSES, bias=False)
        with torch.no_grad():
            self.head.weight.zero_()
            for k in range(CLASSES):
                self.head.weight[k, k * SIDE + 1 : (k + 1) * SIDE] = 1.0
            if backdoor is not None:
                self.head.weight[backdoor, 0] = gain

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


def rows_data(n: int = 64) -> InMemory:
    """Images whose row k is bright where k is their class; the corner is dark."""
    labels = torch.arange(n) % CLASSES
    images = torch.zeros(n, 1, SIDE, SIDE, dtype=torch.uint8)
    images[torch.arange(n), 0, labels] = 200
    images[:, 0, 0, 0] = 0
    held = Labelled(images, labels)
    return InMemory("rows", tuple("abcdefgh"), train=held, validation=held, test=held)


class Folded(nn.Module):
    """A small network with convolution, BatchNorm and a head, with fixed random weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(1, 16, 3, padding=1)
            self.norm = nn.BatchNorm2d(16)
            self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(images)).relu().mean((2, 3)))


TINY = Effort(
    strengths=(1.0, 0.5), steps=12, batch=16, held_out=12, references=0, margins=2, margin_steps=20
)
DATA = rows_data(128)


def subject(network: nn.Module, *references: nn.Module) -> Subject:
    frozen = [each.eval().requires_grad_(False) for each in (network, *references)]
    beside = search_references(frozen[1:], DATA, TINY)
    found = search(frozen[0], DATA, TINY, seed=0, beside=beside.networks)
    return Subject(frozen[0], DATA, beside, found, TINY, seed=0, threshold=0.005)


def led_to(classes: range) -> Rows:
    """A network that one bright pixel leads to each class; the references ignore the pixels."""
    network = Rows(None)
    with torch.no_grad():
        for k in classes:
            network.head.weight[k, k * SIDE] = 40.0
    return network
