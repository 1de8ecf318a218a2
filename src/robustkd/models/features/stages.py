"""Detection of the stages of any network from its autograd graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.first_batch import first_batch
from robustkd.core.types import DataSource, Images
from robustkd.core.validation import check_names
from robustkd.models.features.layout import layout_of
from robustkd.models.features.taps import check_not_compiled, frozen_modes, module_at, out_of_place

_Output: TypeAlias = tuple[torch.autograd.graph.Node, int]
_ACTIVATIONS = (nn.ReLU.__module__, "timm.layers.activations", "timm.layers.activations_me")
_QUARTERS = 4


def stages(model: nn.Module, example: Images) -> tuple[str, ...]:
    """Find the modules whose outputs are the stages of a network, by running it once.

    A bottleneck is a module through which all information passes: in the autograd graph, every path
    from the pixels to the logits goes through its output. The last bottleneck of every resolution
    above 1 x 1 is a stage. If it is an activation and the module before it is also a bottleneck,
    the latter is the stage, so that features are read before ReLU where the network has them. If
    all bottlenecks have the same resolution, as in a vision transformer, the repeated blocks are
    divided into four stages.

    Args:
        model: Any network on images, with convolutional features (N x C x H x W or N x H x W x C)
            or tokens (N x T x C); see :mod:`robustkd.models.features.layout`.
        example: One or more images, N x C x H x W; their content does not matter.

    Returns:
        Module paths in the order of execution.

    Raises:
        UsageError: If no stage is found, or the network or a part of it is compiled.
    """
    for module in model.modules():
        check_not_compiled(module)
    with frozen_modes(model):
        order, levels = _levels(model, example[:2])
    lasts = [(last, level) for level in levels if (last := _last_bottleneck(model, level))]
    if not lasts:
        raise UsageError(
            f"no stage found in {type(model).__name__}; give the module paths of its stages as taps"
        )
    if len(lasts) == 1:
        return _quarters(model, *lasts[0])
    return tuple(sorted((last for last, _ in lasts), key=order.index))


def check_taps(**taps: Sequence[str] | None) -> None:
    """Raise an error for an argument that is neither None nor a list of module paths.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, given in taps.items():
        if given is not None:
            check_names(**{name: given})
            if not given:
                raise UsageError(f"{name} is empty; expected at least one module path, or None")


def taps_of(
    model: nn.Module, data: DataSource, given: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return given taps, those that a network names in ``taps``, or the stages found in it.

    Args:
        model: Any network on images.
        data: Images of the right shape.
        given: Module paths that take precedence; None for none.

    Raises:
        UsageError: If the network names none and no stage is found.
    """
    named = given if given is not None else getattr(model, "taps", None)
    if named is not None:
        return tuple(named)
    batch = first_batch(data, "validation", batch_size=2, device=device_of(model))
    return stages(model, batch.images)


class _Level(NamedTuple):
    """Names of all modules with the same output resolution, and of the bottlenecks among them."""

    names: list[str]
    bottlenecks: list[str]


def _levels(model: nn.Module, example: Images) -> tuple[list[str], list[_Level]]:
    """Return all modules in the order in which they finish, and the levels of the network.

    A level contains only modules that run once. Of several modules with the same output, it
    contains the innermost one.
    """
    ran: list[tuple[str, _Output, tuple[int, int]]] = []
    image = (example.shape[2], example.shape[3])

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            # An output with the shape of the images is still an image, e.g. a normalised one.
            if not isinstance(output, Tensor) or output.shape == example.shape:
                return
            if output.ndim < 3 or len(output) != len(example):
                return
            layout = layout_of(tuple(output.shape[1:]), image)
            if layout is not None and output.grad_fn is not None:
                ran.append((name, (output.grad_fn, output.output_nr), layout.size))

        return hook

    pixels = example.detach().clone().requires_grad_()
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(out_of_place(model))
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                stack.callback(module.register_forward_hook(note(name)).remove)
        logits = model(pixels)
    everything = _bottlenecks(logits, pixels)
    times = Counter(name for name, _, _ in ran)
    seen: set[_Output] = set()
    levels: dict[tuple[int, int], _Level] = {}
    for name, output, size in ran:
        if times[name] > 1 or max(size) == 1 or output in seen:
            continue
        seen.add(output)
        level = levels.setdefault(size, _Level([], []))
        level.names.append(name)
        if output in everything:
            level.bottlenecks.append(name)
    return [name for name, _, _ in ran], list(levels.values())


def _bottlenecks(logits: Tensor, pixels: Tensor) -> set[_Output]:
    """Outputs in the autograd graph that are on every path from ``pixels`` to ``logits``.

    If the outputs are sorted so that each comes after all outputs that use it, these are the ones
    that no edge passes over.
    """
    if logits.grad_fn is None:
        return set()
    root: _Output = (logits.grad_fn, logits.output_nr)
    order, inputs = _towards(root, pixels)
    place = {output: index for index, output in enumerate(order)}
    found, furthest = set(), 0
    for index, output in enumerate(order):
        if furthest <= index:
            found.add(output)
        furthest = max([furthest, *(place[used] for used in inputs[output])])
    return found


def _towards(root: _Output, pixels: Tensor) -> tuple[list[_Output], dict[_Output, list[_Output]]]:
    """Sort the outputs between ``pixels`` and ``root``, users first; also return their inputs."""
    inputs: dict[_Output, list[_Output]] = {}
    finished: list[_Output] = []
    leads: dict[_Output, bool] = {}
    # Depth-first search with an explicit stack: networks can exceed Python's recursion limit.
    pending = [(root, False)]
    while pending:
        output, done = pending.pop()
        if done:
            used = [other for other in inputs[output] if leads[other]]
            inputs[output] = used
            leads[output] = bool(used) or getattr(output[0], "variable", None) is pixels
            if leads[output]:
                finished.append(output)
        elif output not in inputs:
            inputs[output] = [(node, k) for node, k in output[0].next_functions if node is not None]
            pending.append((output, True))
            pending.extend((other, False) for other in inputs[output])
    return finished[::-1], inputs


def _last_bottleneck(model: nn.Module, level: _Level) -> str | None:
    last: str | None = None
    for name in reversed(level.names):
        if name in level.bottlenecks:
            last = name
            if not _is_activation(module_at(model, name)):
                return last
        elif last is not None:
            return last
    return last


def _quarters(model: nn.Module, last: str, level: _Level) -> tuple[str, ...]:
    """Last block of each quarter of the most frequent blocks; ``last`` alone if there are few."""
    kinds = Counter(type(module_at(model, name)) for name in level.bottlenecks)
    kind, count = kinds.most_common(1)[0]
    if count < _QUARTERS:
        return (last,)
    blocks = [name for name in level.bottlenecks if type(module_at(model, name)) is kind]
    return (*(blocks[k * count // _QUARTERS - 1] for k in range(1, _QUARTERS)), last)


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ in _ACTIVATIONS
