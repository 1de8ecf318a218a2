"""Default training settings of each architecture."""

from __future__ import annotations

from functools import cache

from torch import nn

from robustkd.core.devices import without_values
from robustkd.core.errors import UsageError
from robustkd.models import registry
from robustkd.models.classifier import Spec
from robustkd.training.config import TrainingConfig, TrainingOptions

_LIBRARIES = ("torchvision", "timm", "own-code")
_SIDES = (224, 64, 32)
_LIBRARY_RATE = 0.02
"""About the rate of torchvision's recipes, 0.1 for 256 images, for batches of 64 images."""
_ADAPTIVE_RATE = 0.001
_PLAIN_RATE = 0.0003
_WARMUP = 0.1
"""Share of the epochs in which the learning rate of AdamW rises."""
_LONGEST_WARMUP = 5.0


def usual_training(arch: str, *, epochs: int) -> TrainingOptions:
    """Return the default training settings for a network with fresh weights.

    For networks of torchvision, of timm and of the user's own code, they depend on the modules:

    - networks that normalise with LayerNorm and have no BatchNorm, such as vision transformers and
      ConvNeXt, are trained by AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with a learning
      rate of 0.001, a weight decay of 0.05, a warm-up and a bounded gradient. SGD at the usual rate
      diverges or stays at chance accuracy;
    - networks without any normalisation, such as VGG and SqueezeNet, likewise at 0.0003;
    - all others, such as ResNets and MobileNets, by SGD at 0.02.

    The networks of this package are trained by SGD at 0.1, and MobileNets at 0.02.

    ``python -m tools.default_trainings`` measures these settings.

    Args:
        arch: Name of the architecture.
        epochs: Number of epochs of the training.

    Raises:
        UsageError: If the architecture is unknown.
    """
    family, _ = registry.check_name(arch)
    rate = registry.learning_rate(arch)
    in_library = any(family is registry.FAMILIES[name] for name in _LIBRARIES)
    network = _without_weights(arch) if in_library and rate == registry.USUAL_RATE else None
    if network is None:
        return {"lr": rate}
    if _has(network, nn.modules.batchnorm._BatchNorm):
        return {"lr": _LIBRARY_RATE}
    if _has(network, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention):
        return _adaptive(_ADAPTIVE_RATE, epochs)
    if _has(network, nn.GroupNorm, nn.InstanceNorm2d):
        return {"lr": _LIBRARY_RATE}
    return _adaptive(_PLAIN_RATE, epochs)


def _adaptive(rate: float, epochs: int) -> TrainingOptions:
    """Return the settings of AdamW."""
    return {
        "optimizer": "adamw",
        "lr": rate,
        "weight_decay": 0.05,
        "warmup_epochs": min(_LONGEST_WARMUP, _WARMUP * epochs),
        "clip_grad": 1.0,
    }


def with_defaults(given: TrainingOptions, arch: str) -> TrainingOptions:
    """Return the given settings, completed by the defaults of :func:`usual_training`.

    Raises:
        UsageError: If the architecture is unknown.
    """
    return usual_training(arch, epochs=given.get("epochs", TrainingConfig.epochs)) | given


@cache
def _without_weights(arch: str) -> nn.Module | None:
    """Build the network without weights, at the first size that it accepts.

    Raises:
        UsageError: If the library has no such architecture.
    """
    refused: UsageError | None = None
    for side in _SIDES:
        try:
            with without_values():
                return registry.build(Spec(arch, 10, (3, side, side)), seed=0).network
        except UsageError as error:
            refused = error
        # The user's own code may raise any error on the meta device, where tensors have no values.
        except Exception:  # noqa: S112
            continue
    if refused is not None:
        raise refused
    return None


def _has(network: nn.Module, *kinds: type[nn.Module]) -> bool:
    return any(isinstance(module, kinds) for module in network.modules())
