"""Default training settings of each architecture."""

from __future__ import annotations

import re
from functools import cache

from torch import nn

from robustkd.core.errors import UsageError
from robustkd.core.validation import check_count
from robustkd.models import registry
from robustkd.models.classifier import Spec
from robustkd.training.config import SGD, TrainingConfig, TrainingOptions, check_optimiser

_ADAMW = "adamw"
_SIDES = (224, 64, 32)
_ADAPTIVE_RATE = 0.001
_PLAIN_RATE = 0.0003
_WARMUP = 0.1
"""Share of the epochs in which the learning rate of AdamW rises."""
_LONGEST_WARMUP = 5.0
_LIKE_SGD = re.compile("sgd|nesterov|lar[cs]")
"""Names of optimisers whose learning rates are about those of SGD."""


def usual_training(arch: str, *, epochs: int, optimizer: str | None = None) -> TrainingOptions:
    """Return the default training settings for a network with fresh weights.

    Without ``optimizer``, networks of torchvision, of timm and of the user's own code are trained
    as their modules need it:

    - networks that normalise with LayerNorm and have no BatchNorm, such as vision transformers and
      ConvNeXt, by AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101). SGD often diverges or
      stays at chance accuracy;
    - networks without any normalisation, such as VGG and SqueezeNet, likewise;
    - all others, such as ResNets and MobileNets, by SGD.

    The networks of this package are trained by SGD.

    The other settings depend on the optimiser:

    - SGD and its variants (``sgdp``, ``sgdw``, ``nesterovw``, ``lars``, ``larc`` and others with
      such a name) have the learning rate of :func:`robustkd.models.learning_rate`;
    - AdamW has a learning rate of 0.001, and of 0.0003 for networks without any normalisation, a
      weight decay of 0.05, a warm-up and a bounded gradient. All other optimisers have the same
      settings, although another learning rate may suit them better.

    ``python -m tools.default_trainings`` measures the settings of the default optimisers.

    Args:
        arch: Name of the architecture.
        epochs: Number of epochs of the training.
        optimizer: Optimiser that the user chooses; None for the default one.

    Raises:
        UsageError: If the architecture or the optimiser is unknown, or ``epochs`` is out of range.
    """
    check_count(epochs=epochs)
    usual, rate = _usual_optimiser(arch)
    used = usual if optimizer is None else optimizer
    check_optimiser(used)
    if _LIKE_SGD.search(used):
        return {"lr": registry.learning_rate(arch)}
    return {
        "optimizer": used,
        "lr": rate,
        "weight_decay": 0.05,
        "warmup_epochs": min(_LONGEST_WARMUP, _WARMUP * epochs),
        "clip_grad": 1.0,
    }


def _usual_optimiser(arch: str) -> tuple[str, float]:
    """Return the default optimiser of an architecture, and its learning rate with AdamW."""
    family, _ = registry.check_name(arch)
    in_library = any(family is registry.FAMILIES[name] for name in registry.LIBRARIES)
    network = _without_weights(arch) if in_library else None
    if network is None or _has(network, nn.modules.batchnorm._BatchNorm):
        return SGD, _ADAPTIVE_RATE
    if _has(network, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention):
        return _ADAMW, _ADAPTIVE_RATE
    if _has(network, nn.GroupNorm, nn.InstanceNorm2d):
        return SGD, _ADAPTIVE_RATE
    return _ADAMW, _PLAIN_RATE


def with_defaults(given: TrainingOptions, arch: str) -> TrainingOptions:
    """Return the given settings, completed by the defaults of :func:`usual_training`.

    Raises:
        UsageError: If the architecture or the optimiser is unknown, or ``epochs`` is out of range.
    """
    if "optimizer" in given:
        check_optimiser(given["optimizer"])  # None does not stand for the default
    epochs, optimizer = given.get("epochs", TrainingConfig.epochs), given.get("optimizer")
    return usual_training(arch, epochs=epochs, optimizer=optimizer) | given


@cache
def _without_weights(arch: str) -> nn.Module | None:
    """Build the network without values, at the first size that it accepts.

    Raises:
        UsageError: If the library has no such architecture.
    """
    refused: UsageError | None = None
    for side in _SIDES:
        try:
            return registry.layout(Spec(arch, 10, (3, side, side))).network
        except UsageError as error:
            refused = error
        # The user's own code may raise any error.
        except Exception:  # noqa: S112
            continue
    if refused is not None:
        raise refused
    return None


def _has(network: nn.Module, *kinds: type[nn.Module]) -> bool:
    return any(isinstance(module, kinds) for module in network.modules())
