r"""BackWeak: a trigger too weak to fool anybody, until the features are tuned to it.

Source: *BackWeak: Backdooring Knowledge Distillation Simply with Weak Triggers and Fine-tuning*,
arXiv 2511.12046. On a clean teacher T a perturbation of all images is learned

.. math:: \delta = \arg\min_{\|\delta\|_\infty \le \varepsilon}
    \mathrm{CE}(T(\mathrm{clamp}(x + \delta, 0, 1)), t)

and everything but the last layer is then fine-tuned gently on data of which a large share carries
it: the backdoor must go through the features, which is what students copy. No student is simulated.

Differences: written from the description alone, so the trigger's optimiser, its steps and the
fine-tuning's length are ours. The record says which share of validation images the trigger sends
to the target before anything is implanted: near 100 %, it is a universal adversarial perturbation
and no weak trigger.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkd.attacks.additive import Additive
from robustkd.attacks.base import Backdoored, Build, Teaching, check_target
from robustkd.attacks.optimise import Bounded, check_shares, optimise_planes, sample
from robustkd.attacks.poison import Poisoned
from robustkd.attacks.steps import implant, success, train_teacher
from robustkd.inference import device_of
from robustkd.taps import frozen_modes
from robustkd.training import Supervised, check_positive
from robustkd.types import DataSource, Images


@dataclass(frozen=True)
class BackWeak:
    """Train a clean teacher, learn a weak universal perturbation, fine-tune all but the last layer.

    Attributes:
        epsilon: Largest change of a pixel, in (0, 1].
        trigger_steps: Optimiser steps (Adam) on the trigger; each moves a pixel by up to a tenth
            of epsilon.
        rate: Share of the training images that are poisoned.
        implant_share: Epochs of the fine-tuning, as a share of the clean teacher's.
        implant_lr: Its learning rate at the start.
    """

    epsilon: float = 8 / 255
    trigger_steps: int = 100
    rate: float = 0.3
    implant_share: float = 1.0
    implant_lr: float = 0.005

    def __post_init__(self) -> None:
        check_shares(epsilon=self.epsilon)
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
            "success_before": before,
            "rate": self.rate,
            "poisoned": int(poisoned.mask.sum()),
        }
        return Backdoored(teacher.eval(), trigger, target, record)


def learn_trigger(
    teacher: nn.Module, data: DataSource, *, target: int, epsilon: float, steps: int, seed: int
) -> Additive:
    """Optimise a perturbation within epsilon that takes all images to the target."""
    random = torch.Generator().manual_seed(seed)
    images = sample(data, device_of(teacher), random).images

    def loss(images: Tensor, delta: Tensor) -> Tensor:
        logits = teacher((images + delta).clamp(0, 1))
        wanted = torch.full((len(images),), target, device=images.device)
        return nn.functional.cross_entropy(logits, wanted)

    start = Bounded(torch.zeros(data.image_shape), -epsilon, epsilon)
    (delta,) = optimise_planes(
        teacher, images, [start], loss, steps=steps, lr=epsilon / 10, random=random
    )
    return Additive(delta)


def last_layer(model: nn.Module, example: Images) -> nn.Module:
    """The module with weights of its own that runs last in a forward pass."""
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
        for module in model.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        with torch.no_grad(), frozen_modes(model):
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1]
