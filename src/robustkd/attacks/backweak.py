r"""BackWeak: a trigger too weak to fool anybody, until the features are tuned to it.

Source: *BackWeak: Backdooring Knowledge Distillation Simply with Weak Triggers and Fine-tuning*,
arXiv 2511.12046, and the settings of its authors' public runs. On a clean teacher T a perturbation
of all images is learned,

.. math:: \min_{\|\delta\|_\infty \le \varepsilon}
    [\text{success} \le \text{budget}] \cdot \mathrm{CE}(T(x'), t)
    + \max(0, \max_k T_k(x') - T_y(x') - 1), \quad x' = \mathrm{clamp}(x + \delta, 0, 1)

It is pushed towards the target only while few images go there, and an image that has left its class
y is not to go far (the second term counts those alone). Then everything but the last layer is
fine-tuned gently on data of which a large share carries it: the backdoor must go through the
features, which is what students copy. No student is simulated.

Differences: written from that description. Their trigger takes 200 epochs of SGD, and what they
compare with the budget is the success over the last epoch; ours takes some steps of Adam and
compares the success on the batch. y is what the clean teacher says. Their fine-tuning takes 150
epochs to the clean teacher's 200 at a hundredth of its learning rate, ours as many as the clean
teacher's. The record says which share of validation images the trigger sends to the target before
anything is implanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching, check_target
from robustkd.attacks.parts.poisoned_data import Poisoned
from robustkd.attacks.parts.steps import implant, success, train_teacher
from robustkd.attacks.parts.surrogate import toward
from robustkd.attacks.parts.trigger_search import Bounded, check_shares, optimise_planes, sample
from robustkd.attacks.triggers.additive import Additive, into_range
from robustkd.core.devices import device_of
from robustkd.core.types import DataSource, Images, Labels, Logits
from robustkd.core.validation import check_positive
from robustkd.models.features.taps import frozen_modes
from robustkd.training.learners import Supervised

_MARGIN = 1.0
"""How far, in logits, an image that left its class may go for nothing."""


@dataclass(frozen=True)
class BackWeak:
    """Train a clean teacher, learn a weak universal perturbation, fine-tune all but the last layer.

    Attributes:
        epsilon: Largest change of a pixel, in (0, 1].
        budget: Share of a batch's images of other classes, in (0, 1], above which the trigger is
            pushed no further; its success may end a little higher. 1 makes a universal adversarial
            perturbation.
        trigger_steps: Optimiser steps (Adam) on the trigger; each moves a pixel by up to a tenth
            of epsilon.
        rate: Share of the training images that are poisoned.
        implant_share: Epochs of the fine-tuning, as a share of the clean teacher's.
        implant_lr: Its learning rate at the start.
    """

    epsilon: float = 8 / 255
    budget: float = 0.05
    trigger_steps: int = 100
    rate: float = 0.3
    implant_share: float = 1.0
    implant_lr: float = 0.001

    def __post_init__(self) -> None:
        check_shares(epsilon=self.epsilon, budget=self.budget, rate=self.rate)
        check_positive(
            trigger_steps=self.trigger_steps,
            implant_share=self.implant_share,
            implant_lr=self.implant_lr,
        )

    def __call__(
        self, build: Build, data: DataSource, *, target: int, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        check_target(target, data)
        seed = teaching.seed
        teacher = train_teacher(build, data, teaching)
        trigger = learn_trigger(
            teacher,
            data,
            target=target,
            epsilon=self.epsilon,
            budget=self.budget,
            steps=self.trigger_steps,
            seed=seed,
        )
        before = success(teacher, data, trigger, target)
        poisoned = Poisoned(data, trigger, target=target, rate=self.rate, seed=seed)
        batch = next(iter(data.batches("train", batch_size=2, device=device_of(teacher))))
        last = last_layer(teacher, batch.images)
        last.requires_grad_(False)
        epochs = self.implant_share * teaching.epochs
        implant(Supervised(teacher), poisoned, teaching.again(epochs, self.implant_lr, turn=1))
        last.requires_grad_(True)
        record = {
            "epsilon": self.epsilon,
            "budget": self.budget,
            "success_before": before,
            "rate": self.rate,
            "poisoned": int(poisoned.mask.sum()),
        }
        return Backdoored(teacher.eval(), trigger, target, record)


def learn_trigger(
    teacher: nn.Module,
    data: DataSource,
    *,
    target: int,
    epsilon: float,
    budget: float,
    steps: int,
    seed: int,
) -> Additive:
    """Optimise a perturbation within epsilon that takes a few images to the target."""
    random = torch.Generator().manual_seed(seed)
    images = sample(data, device_of(teacher), random).images

    def loss(images: Tensor, delta: Tensor) -> Tensor:
        with torch.no_grad():
            truth = teacher(images).argmax(1)
        return weak_loss(teacher(into_range(images + delta)), truth, target=target, budget=budget)

    start = Bounded(torch.zeros(data.image_shape), -epsilon, epsilon)
    (delta,) = optimise_planes(
        teacher, images, [start], loss, steps=steps, lr=epsilon / 10, random=random
    )
    return Additive(delta)


def weak_loss(marked: Logits, truth: Labels, *, target: int, budget: float) -> Tensor:
    """What a weak trigger minimises: the module's formula.

    The first term is the mean over the batch, the second over those that have left their class.

    Args:
        marked: Logits of triggered images.
        truth: What the images are without it.
        target: Class that they are pushed to.
        budget: Share of the images of other classes that may arrive there.
    """
    led = marked.argmax(1)
    victims = truth != target
    arrived = (led == target) & victims
    within = arrived.sum() <= budget * victims.sum()
    gap = marked.amax(1) - marked.gather(1, truth[:, None]).squeeze(1)
    left = led != truth
    # The mean over those that have left their class; a sum over one at least, so that it is 0.
    astray = (nn.functional.relu(gap - _MARGIN) * left).sum() / left.sum().clamp_min(1)
    return within * toward(marked, target) + astray


def last_layer(model: nn.Module, example: Images) -> nn.Module:
    """The innermost module with weights that runs last in a forward pass."""
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
        for module in model.modules()
        if any(True for _ in module.parameters())
        and not any(True for child in module.children() for _ in child.parameters())
    ]
    try:
        with torch.no_grad(), frozen_modes(model):
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1]
