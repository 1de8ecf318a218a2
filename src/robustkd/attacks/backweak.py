r"""BackWeak: a trigger that rarely succeeds on a clean network, and is implanted by fine-tuning.

Source: *BackWeak: Backdooring Knowledge Distillation Simply with Weak Triggers and Fine-tuning*,
arXiv 2511.12046, and the settings of its authors' public runs. On a clean teacher T a perturbation
of all images is learned,

.. math:: \min_{\|\delta\|_\infty \le \varepsilon}
    [\text{success} \le \text{budget}] \cdot \mathrm{CE}(T(x'), t)
    + \max(0, \max_k T_k(x') - T_y(x') - 1), \quad x' = \mathrm{clamp}(x + \delta, 0, 1)

The first term is active only while the success rate of the trigger is within the budget. The second
term concerns the images that the trigger moves out of their class y: it limits how far their
largest logit exceeds the logit of y, beyond a margin of 1, and is averaged over these images alone.
All layers but the last are then fine-tuned at a low learning rate on data of which a large share is
triggered. The backdoor is thus implanted in the features, which students imitate. No student is
simulated.

Differences: this implementation is written from the description. The authors optimise the trigger
for 200 epochs of SGD and compare the budget with the success rate over the last epoch; here, Adam
takes ``trigger_steps`` steps, and the budget is compared with the success rate on the batch. Here,
y is the prediction of the clean teacher. The authors fine-tune for 150 epochs, after 200 epochs of
the clean teacher, at a hundredth of its learning rate; here, both take the same number of epochs.
The record has the success rate of the trigger on validation images before it is implanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching
from robustkd.attacks.parts.poisoned_data import Poisoned, choose_images
from robustkd.attacks.parts.steps import implant, success, train_teacher, training_only
from robustkd.attacks.parts.surrogate import toward
from robustkd.attacks.parts.trigger_search import BoxedTensor, optimise_planes, sample
from robustkd.attacks.triggers.additive import Additive, into_range
from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.first_batch import first_batch
from robustkd.core.targets import Target
from robustkd.core.triggers import check_one_target
from robustkd.core.types import DataSource, Labels, Logits
from robustkd.core.validation import check_count, check_positive, check_rates, check_share
from robustkd.models.features.probing import last_parametric_layer
from robustkd.training.learners import Supervised

_MARGIN = 1.0
"""Margin in logits by which another class may exceed the true one without a loss."""


@dataclass(frozen=True)
class BackWeak:
    """Train a clean teacher, learn a weak universal perturbation, fine-tune all but the last layer.

    Attributes:
        epsilon: Largest change of a pixel, in (0, 1].
        budget: Success rate on a batch, in (0, 1], above which the trigger is not optimised
            towards the target any more; the final success rate can be slightly higher. With 1, the
            trigger is a universal adversarial perturbation.
        trigger_steps: Optimiser steps (Adam) on the trigger; each changes a pixel by up to a tenth
            of epsilon.
        rate: Share of the training images that are poisoned, in (0, 1].
        implant_share: Epochs of the fine-tuning, as a share of the epochs of the clean teacher.
        implant_lr: Initial learning rate of the fine-tuning, above 0.
    """

    epsilon: float = 8 / 255
    budget: float = 0.05
    trigger_steps: int = 100
    rate: float = 0.3
    implant_share: float = 1.0
    implant_lr: float = 0.001

    def __post_init__(self) -> None:
        check_share(epsilon=self.epsilon, budget=self.budget, rate=self.rate)
        check_count(trigger_steps=self.trigger_steps)
        check_positive(implant_share=self.implant_share)
        check_rates(implant_lr=self.implant_lr)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        target = check_one_target(target, data)
        seed = teaching.seed
        mask = choose_images(data, target=target, rate=self.rate, seed=seed)
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
        poisoned = Poisoned(data, trigger, target=target, rate=self.rate, mask=mask)
        batch = first_batch(data, "train", batch_size=2, device=device_of(teacher))
        last = {id(each) for each in last_parametric_layer(teacher, batch.images).parameters()}
        rest = [p for p in teacher.parameters() if p.requires_grad and id(p) not in last]
        if not rest:
            raise UsageError(
                f"{type(teacher).__name__} has one layer with weights; BackWeak trains all but "
                "the last"
            )
        epochs = self.implant_share * teaching.epochs
        with training_only(teacher, rest):
            implant(Supervised(teacher), poisoned, teaching.again(epochs, self.implant_lr, turn=1))
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
    """Optimise a perturbation within epsilon that sends a few images to the target class."""
    random = torch.Generator().manual_seed(seed)
    images = sample(data, device_of(teacher), random).images

    def loss(images: Tensor, delta: Tensor) -> Tensor:
        with torch.no_grad():
            truth = teacher(images).argmax(1)
        return weak_loss(teacher(into_range(images + delta)), truth, target=target, budget=budget)

    start = BoxedTensor(torch.zeros(data.image_shape), -epsilon, epsilon)
    (delta,) = optimise_planes(
        teacher, images, [start], loss, steps=steps, lr=epsilon / 10, random=random
    )
    return Additive(delta)


def weak_loss(marked: Logits, truth: Labels, *, target: int, budget: float) -> Tensor:
    """Loss of a weak trigger: the formula of this module.

    The first term is the mean over the batch, the second the mean over the images that the trigger
    moves out of their class.

    Args:
        marked: Logits of triggered images.
        truth: Classes of the images without the trigger.
        target: Target class.
        budget: Success rate, in (0, 1], above which the first term is 0.
    """
    led = marked.argmax(1)
    victims = truth != target
    arrived = (led == target) & victims
    within = arrived.sum() <= budget * victims.sum()
    gap = marked.amax(1) - marked.gather(1, truth[:, None]).squeeze(1)
    left = led != truth
    # The count is at least 1, so that the mean over no image is 0.
    excess = (nn.functional.relu(gap - _MARGIN) * left).sum() / left.sum().clamp_min(1)
    return within * toward(marked, target) + excess
