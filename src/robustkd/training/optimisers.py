"""Optimisers by name: SGD with Nesterov momentum, and those of timm."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.validation import check_rates
from robustkd.training.config import SGD, check_optimiser


class _PlainSGD(torch.optim.SGD):
    """SGD of PyTorch whose methods are not decorated for ``torch.compile``.

    The decorators import PyTorch's compiler, which takes longer than importing PyTorch. The
    arithmetic is the same.
    """

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def new_optimiser(
    name: str,
    groups: Sequence[dict[str, Any]],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Create an optimiser.

    SGD has Nesterov momentum and decays all weights. With any other optimiser, biases and the
    weights of normalisation layers, which have one axis or none, are not decayed, as in the
    training scripts of timm.

    Args:
        name: One of :func:`robustkd.training.config.optimiser_names`.
        groups: Groups of parameters, each with ``params`` and its initial ``lr``.
        lr: Initial learning rate of groups without one.
        momentum: Momentum of SGD, and of optimisers of timm that have one.
        weight_decay: Weight decay.

    Raises:
        UsageError: If the name is unknown.
    """
    check_optimiser(name)
    if name == SGD:
        return _PlainSGD(
            list(groups), lr=lr, momentum=momentum, nesterov=True, weight_decay=weight_decay
        )
    from timm.optim import create_optimizer_v2

    divided = [part for group in groups for part in _by_decay(group, weight_decay)]
    made: torch.optim.Optimizer = create_optimizer_v2(
        divided, opt=name, lr=lr, weight_decay=weight_decay, momentum=momentum
    )
    return made


def _by_decay(group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    """Divide a group into parameters that are decayed, and those that are not."""
    parameters: list[nn.Parameter] = group["params"]
    parts = (
        ([p for p in parameters if p.ndim > 1], weight_decay),
        ([p for p in parameters if p.ndim <= 1], 0.0),
    )
    return [{**group, "params": own, "weight_decay": decay} for own, decay in parts if own]


def parameter_groups(
    learner: nn.Module, lr: float, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the parameters to train as groups for :func:`new_optimiser`, one for each rate.

    Args:
        learner: Module whose parameters with ``requires_grad`` are trained.
        lr: Learning rate.
        rates: Learning rates of children of the learner, by name, in place of ``lr``.

    Raises:
        UsageError: If a rate is not above 0, the learner has no child with that name, or there is
            nothing to train.
    """
    check_rates(**{f"rate of {name}": rate for name, rate in rates.items()})
    children = [name for name, _ in learner.named_children()]
    unknown = next((name for name in rates if name not in children), None)
    if unknown is not None:
        raise UsageError(f"rates has the unknown child {unknown!r} of the learner")
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            rate = rates.get(name.partition(".")[0], lr)
            groups.setdefault(rate, []).append(parameter)
    if not groups:
        raise UsageError("there is no weight to train; expected some with requires_grad")
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Remove the gradients of all parameters now, and again when the block ends.

    A caller's backward pass, or an interrupted training, may have left some, which would be added
    to those of the first step.
    """
    module.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        module.zero_grad(set_to_none=True)


_STEP = "step"
"""Number of steps, which optimisers keep on the CPU."""


def optimiser_state(
    optimiser: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the state of an optimiser for a checkpoint: tensors, and JSON values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, object] = {}
    states = {str(k): optimiser.state.get(p, {}) for k, p in enumerate(_parameters(optimiser))}
    for index, group in enumerate(optimiser.param_groups):
        # Some optimisers of timm count the steps of a group.
        states[f"group.{index}"] = {"step": group["step"]} if "step" in group else {}
    for place, state in states.items():
        for name, value in state.items():
            held = tensors if isinstance(value, Tensor) else values
            held[f"{place}.{name}"] = value
    return tensors, values


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, object],
) -> None:
    """Restore what :func:`optimiser_state` returned, on the devices of the parameters."""
    parameters = _parameters(optimiser)
    for key, value in (*tensors.items(), *values.items()):
        index, _, name = key.partition(".")
        if index == "group":
            place, _, name = name.partition(".")
            copied = value.clone() if isinstance(value, Tensor) else value
            optimiser.param_groups[int(place)][name] = copied
            continue
        parameter = parameters[int(index)]
        optimiser.state[parameter][name] = _placed(value, parameter, name)


def _placed(value: object, parameter: nn.Parameter, name: str) -> object:
    """Return a copy of a restored value as the optimiser of this parameter expects it."""
    if not isinstance(value, Tensor):
        return value
    if not value.ndim and (parameter.ndim or name == _STEP):
        return value.clone()
    if value.shape == parameter.shape:
        # The memory format of the parameter is used: sums in another format may round differently.
        like = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
        return like.copy_(value)
    return value.to(parameter.device, copy=True)


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
