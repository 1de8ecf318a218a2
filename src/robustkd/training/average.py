"""Exponential moving average of the weights of a network in training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    r"""Exponential moving average of the state of a module.

    The average is validated and kept instead of the last state:

    .. math:: \bar\theta_t = d_t \bar\theta_{t-1} + (1 - d_t)\, \theta_t, \qquad
        d_t = \min\left(d, \frac{1 + t}{10 + t}\right)

    at step t, for parameters and floating-point buffers such as the statistics of BatchNorm. Other
    buffers are taken from the last state. In the first steps, :math:`d_t` is smaller, so that the
    initial weights have little influence on the average.

    Source: Polyak and Juditsky 1992, doi 10.1137/0330046; the schedule is that of TensorFlow's
    ExponentialMovingAverage.

    Args:
        module: The module in training. It is not registered as a child.
        decay: Largest decay d, in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self._module, self._decay, self._taken = (module,), decay, 0
        self._mean = {
            name: value.detach().clone()
            for name, value in module.state_dict().items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }

    @torch.no_grad()
    def advance(self) -> None:
        """Update the average with the current state of the module."""
        self._taken += 1
        decay = min(self._decay, (1 + self._taken) / (10 + self._taken))
        now = self._module[0].state_dict()
        for name, mean in self._mean.items():
            mean.lerp_(now[name].to(mean.dtype), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights of the module by the averaged ones while the block lasts."""
        (module,) = self._module
        before = {
            name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in module.state_dict().items()
        }
        module.load_state_dict({**before, **self._mean})
        try:
            yield
        finally:
            module.load_state_dict(before)

    def state(self) -> dict[str, Tensor]:
        """Return the average and the number of steps, for a checkpoint."""
        return {**self._mean, _TAKEN: torch.tensor(self._taken)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the average and the number of steps."""
        self._taken = int(state[_TAKEN])
        for name, mean in self._mean.items():
            mean.copy_(state[name])


_TAKEN = "steps"
