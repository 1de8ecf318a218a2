"""Published defences within a distillation: against closed forms, and reproducible."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from robustkd import data, models
from robustkd.core.errors import UsageError
from robustkd.core.methods import METHODS
from robustkd.student.distillation import distill
from robustkd.student.renewal import BCU, Renewal, renew
from robustkd.student.retrospection import ABD, Retrospection, divergence
from robustkd.student.safeguard import Safeguard
from robustkd.student.safeguards import SAFEGUARDS, start_safeguard
from robustkd.training.hypergradient import hypergradient
from tests.teacher.defences.networks import Attention

DATA = data.load("digits", train=96, validation=40, test=20)


def net(seed: int) -> models.Classifier:
    return models.build(models.Spec("wrn-10-1", 10, DATA.image_shape), seed=seed)


def learned(name: str, seed: int = 0):
    safeguard = start_safeguard(name, DATA.image_shape, seed=seed)
    settings = {"epochs": 2, "batch_size": 48, "lr": 0.02}
    return distill(
        net(0), DATA, teacher=net(1), losses={"kd": 1.0}, safeguard=safeguard, **settings
    )


def test_a_safeguard_defines_all_methods():
    class Unfinished(Safeguard):
        def begin(self, steps: int) -> None:
            del steps

    with pytest.raises(TypeError, match=r"abstract .*advance.*loss.*prepare"):
        Unfinished()


def test_every_safeguard_has_a_method_and_every_method_a_safeguard():
    named = {how.safeguard for how in METHODS.values() if how.safeguard}
    assert named == set(SAFEGUARDS)
    assert all(row.source for row in SAFEGUARDS.values())


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match=re.escape("unknown safeguard 'bcw'; did you mean 'bcu'?")):
        start_safeguard("bcw", (1, 8, 8), seed=0)


@pytest.mark.parametrize("name", list(SAFEGUARDS))
def test_the_same_seed_gives_the_same_student_and_the_last_epoch_is_kept(name):
    state = torch.get_rng_state()
    one, other = (learned(name) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in one.student.state_dict().items():
        assert torch.equal(value, other.student.state_dict()[key])
    assert one.kept == 2
    plain = learned("")
    assert not torch.equal(one.student.network.stem.weight, plain.student.network.stem.weight)


@pytest.mark.parametrize("name", list(SAFEGUARDS))
def test_the_state_is_stored_and_restored(name):
    network, images = net(0), torch.rand(4, *DATA.image_shape)

    def after(steps: int, safeguard):
        for _ in range(steps):
            safeguard.prepare(network)
            safeguard.loss(network, images)
            safeguard.advance()
        return safeguard

    first = start_safeguard(name, DATA.image_shape, seed=3)
    first.begin(4)
    second = start_safeguard(name, DATA.image_shape, seed=4)
    second.begin(4)
    second.load_state_dict(after(3, first).state_dict())
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)


# BCU.


def test_the_renewed_share_grows_with_depth_and_norms_are_kept():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(8, 64, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.Conv2d(64, 64, 3, bias=False),
        nn.Flatten(),
        nn.Linear(64, 50),
    )
    before = [parameter.clone() for parameter in network.parameters()]
    renew(network, BCU(first=0.1, last=0.4, head=0.2), seed=0)
    changed = [
        float((new != old).float().mean())
        for new, old in zip(network.parameters(), before, strict=True)
    ]
    first, gamma, beta, last, head, bias = changed
    assert (gamma, beta) == (0, 0)
    assert first == pytest.approx(0.1, abs=0.02)
    assert last == pytest.approx(0.4, abs=0.02)
    assert head == pytest.approx(0.2, abs=0.03)
    assert bias > 0


def test_weights_are_renewed_once_and_in_the_middle():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    safeguard = Renewal(BCU(at=0.5, head=1.0), seed=0)
    safeguard.begin(6)
    history = []
    for _ in range(6):
        for _ in range(2):  # a step in two parts
            safeguard.prepare(network)
        history.append(network[1].weight.clone())
        safeguard.advance()
    same = [torch.equal(one, other) for one, other in pairwise(history)]
    assert same == [True, True, False, True, True]


def test_weights_are_renewed_before_the_last_step_at_the_latest():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    before = network[1].weight.clone()
    safeguard = Renewal(BCU(at=0.99, head=1.0), seed=0)
    safeguard.begin(3)
    for _ in range(3):
        safeguard.prepare(network)
        safeguard.advance()
    assert not torch.equal(network[1].weight, before)
    with pytest.raises(UsageError, match=r"^the training has one step; bcu needs at least two"):
        safeguard.begin(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": 1.0}, "at is 1.0; expected above 0 and below 1"),
        ({"last": 0.0}, "last is 0.0; expected above 0 and at most 1"),
    ],
)
def test_shares_out_of_range_are_refused(change, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        BCU(**change)


@pytest.mark.parametrize("make", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_weights_that_are_computed_are_refused_in_the_first_step(make):
    network = nn.Sequential(nn.Flatten(), make(nn.Linear(4, 2)))
    safeguard = Renewal(BCU(), seed=0)
    safeguard.begin(4)
    with pytest.raises(UsageError, match=r"^module '1' computes its weight .*, so bcu cannot"):
        safeguard.prepare(network)


# ABD.


class Linear(nn.Module):
    """Logits of flattened pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(16, 3)

    def forward(self, images):
        return self.layer(images.flatten(1))


def retrospection(**settings) -> Retrospection:
    safeguard = Retrospection(ABD(share=1.0, **settings), (1, 4, 4), seed=0)
    safeguard.begin(10)
    return safeguard


def test_the_gradient_of_the_loss_is_the_hypergradient():
    network, images = Linear(), torch.rand(8, 1, 4, 4)
    safeguard = retrospection(portion=0.5, limit=1e9)
    safeguard.loss(network, images).backward()
    delta = safeguard.delta.clone().requires_grad_()
    plain = network(images).detach()
    inner = 0.001 * delta.square().sum() - divergence(network(images + delta), plain)
    outer = divergence(network(images[:4] + delta), plain[:4]) / 2
    weights = list(network.parameters())
    found = hypergradient(inner, outer, [delta], weights, steps=5, step_size=0.1).total()
    for weight, expected in zip(weights, found, strict=True):
        torch.testing.assert_close(weight.grad, expected)


def test_attention_can_be_differentiated_twice():
    network, images = Attention(3), torch.rand(8, 1, 8, 8)
    safeguard = Retrospection(ABD(share=1.0), (1, 8, 8), seed=0)
    safeguard.begin(10)
    safeguard.loss(network, images).backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in network.parameters())


def test_the_norm_of_the_gradient_is_bounded():
    network, images = Linear(), torch.rand(8, 1, 4, 4)
    retrospection(portion=1.0, limit=1e-3).loss(network, images).backward()
    found = torch.cat([weight.grad.flatten() for weight in network.parameters()]).norm()
    assert float(found) == pytest.approx(1e-3, rel=1e-4)


def test_the_value_of_the_loss_is_the_divergence():
    network, images = Linear(), torch.rand(8, 1, 4, 4)
    safeguard = retrospection(portion=1.0)
    value = float(safeguard.loss(network, images).detach())
    with torch.no_grad():
        p, q = network(images).softmax(1), network(images + safeguard.delta).softmax(1)
    assert value == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)


def test_the_perturbation_grows_the_divergence_within_its_bound():
    network, images = Linear(), torch.rand(8, 1, 4, 4)
    safeguard = retrospection(radius=0.2)
    values = []
    for _ in range(6):
        values.append(float(safeguard.loss(network, images).detach()))
        assert float(safeguard.delta.square().mean().sqrt()) <= 0.2 + 1e-6
    assert values[-1] > values[0]


def test_nothing_is_added_before_the_start():
    network, images = Linear(), torch.rand(4, 1, 4, 4)
    safeguard = Retrospection(ABD(share=0.25), (1, 4, 4), seed=0)
    safeguard.begin(8)
    active = []
    for _ in range(8):
        active.append(float(safeguard.loss(network, images).detach()) > 0)
        safeguard.advance()
    assert active == [False] * 6 + [True] * 2


def test_a_portion_out_of_range_is_refused():
    with pytest.raises(UsageError, match=re.escape("portion is 2.0; expected above 0")):
        ABD(portion=2.0)
