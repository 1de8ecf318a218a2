"""Outputs of a student and of its frozen teacher in the steps of a distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.types import Features, Images
from robustkd.models.features import taps
from robustkd.models.features.folding import folded
from robustkd.student.terms import Outputs
from robustkd.training.compiling import Compiled, Run
from robustkd.training.processes import ONE, Processes


class Watch(nn.Module):
    """Module that returns the logits and the stage features of a network.

    Its hooks are hung once, since hanging them in every step takes longer; ``closing`` removes
    them.

    Args:
        model: The network.
        names: Module paths of the stages.
        closing: Removes all hooks at its end.
        compiled: Mode, training or not, in which the network is compiled; None for none.
        processes: Processes that train together.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        closing: ExitStack,
        compiled: bool | None = None,
        processes: Processes = ONE,
    ) -> None:
        super().__init__()
        self.model = model
        self._read = closing.enter_context(taps.Reader(model, names))
        self._compiled = None
        if compiled is not None:
            hooks = closing.enter_context(ExitStack())
            run = hooks.enter_context(_traced(model, names))
            self._compiled = Compiled(
                run,
                self._read,
                processes,
                name="student" if compiled else "teacher",
                failed=hooks.close,
            )
        self._mode = compiled

    def forward(self, images: Images) -> Outputs:
        """Return logits and features of a batch."""
        if self._compiled is not None and self.model.training is self._mode:
            return Outputs(*self._compiled(images))
        return Outputs(*self._read(images))


@contextmanager
def _traced(model: nn.Module, names: Sequence[str]) -> Iterator[Run]:
    """Yield a function for logits and features whose hooks the compiler can follow."""
    with taps.read(model, names) as features:

        def run(images: Tensor) -> tuple[Tensor, tuple[Features, ...]]:
            logits = model(images)
            found = tuple(features[name] for name in names)
            features.clear()
            return logits, found

        yield run


def teaching(
    teacher: nn.Module,
    names: Sequence[str],
    images: Images,
    closing: ExitStack,
    processes: Processes = ONE,
    *,
    compiled: bool = False,
) -> Callable[[Images], Outputs]:
    """Return the teacher as a function, so that it is not trained or saved with the learner.

    The function computes the outputs without BatchNorm layers where it can, which are equal up to
    rounding; see :func:`robustkd.models.features.folding.folded`.

    Args:
        teacher: The network. It is in eval mode until ``closing`` restores its modes.
        names: Module paths of the stages whose features are returned.
        images: Some images, on which the outputs are compared.
        closing: Removes all hooks at its end.
        processes: Processes that train together; all use the same layers.
        compiled: If True, the network is compiled.
    """
    closing.enter_context(taps.frozen_modes(teacher))
    device = device_of(teacher)
    short = _shortened(teacher, names, images.to(device), processes)
    watched = Watch(short, names, closing, False if compiled else None, processes)

    @torch.no_grad()
    def teach(images: Images) -> Outputs:
        shown: Outputs = watched(images.to(device))
        # The loop chooses the device of the images; the teacher stays on its own device.
        return Outputs(
            shown.logits.to(images.device),
            tuple(features.to(images.device) for features in shown.features),
        )

    return teach


def _shortened(
    teacher: nn.Module, names: Sequence[str], images: Images, processes: Processes
) -> nn.Module:
    """Return the teacher with folded layers if all processes can fold them, or the teacher."""
    short = folded(teacher, names, images)
    able = processes.gather(torch.tensor([int(short is not None)]))
    return short if short is not None and bool(able.all()) else teacher
