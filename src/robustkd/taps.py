"""Reading and rewriting the intermediate features of any network, by module path.

A tap is the dotted path of a submodule; what it reads is that submodule's output. Hooks live
inside ``with`` blocks and are always removed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustkd.errors import UsageError
from robustkd.types import Features, Images


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The submodule at a dotted path.

    Raises:
        UsageError: If there is none; the nearest path is named.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name in modules:
        return modules[name]
    near = difflib.get_close_matches(name, [path for path in modules if path], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"no module {name!r} in {type(model).__name__}{hint}")


@contextmanager
def frozen_modes(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Hold a model in eval (or train) mode, and give every submodule its own mode back."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def _out_of_place(model: nn.Module) -> Iterator[None]:
    # An in-place activation would overwrite the features that a tap just before it has read.
    changed = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in changed:
        module.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]


@contextmanager
def read(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Features]]:
    """Read features while the model runs.

    Args:
        model: Any network.
        names: Module paths; each must run once in a forward pass.

    Yields:
        A dictionary that each forward pass empties and fills again: path to features.

    Raises:
        UsageError: If a path does not exist, runs twice in a pass, or gives no single tensor.
    """
    features: dict[str, Features] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise UsageError(f"module {name!r} gives no single tensor; tap another module")
            if name in features:
                raise UsageError(f"module {name!r} runs twice in a pass; tap another module")
            # A copy: the network itself may go on in place, as in ``out += shortcut``.
            features[name] = output.clone()

        return hook

    with ExitStack() as stack:
        stack.enter_context(_out_of_place(model))
        start = model.register_forward_pre_hook(lambda _module, _inputs: features.clear())
        stack.callback(start.remove)
        for name in names:
            stack.callback(module_at(model, name).register_forward_hook(keep(name)).remove)
        yield features


@contextmanager
def rewrite(model: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Replace the output of each named module by a function of it while the block lasts.

    Raises:
        UsageError: If a path does not exist.
    """

    def replace(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _module, _inputs, output: change(output)

    with ExitStack() as stack:
        for name, change in changes.items():
            stack.callback(module_at(model, name).register_forward_hook(replace(change)).remove)
        yield


def stages(model: nn.Module, example: Images) -> tuple[str, ...]:
    """Find the stage outputs of a convolutional network by probing.

    For every spatial resolution above 1 x 1, the last module through which all information
    passes: with its output held, the logits no longer depend on the input. Where such a module
    is an activation, the module before it is taken if it is such a bottleneck as well, so that
    features before ReLU are read where the network has them.

    Args:
        model: Any network on images.
        example: Two or more different images, N x C x H x W.

    Returns:
        Module paths in the order in which they run, one per resolution.

    Raises:
        UsageError: If there are fewer than two images, if the network tells none of them from
            the next, or if no stage is found.
    """
    if len(example) < 2:
        raise UsageError(f"probing needs at least 2 images; got {len(example)}")
    with torch.no_grad(), frozen_modes(model):
        if torch.equal(model(example), model(example.roll(1, dims=0))):
            raise UsageError("probing needs different images; the logits of all given are the same")
        levels = _levels(model, example)
        found = [_last_bottleneck(model, names, example) for names in levels]
    taps = tuple(name for name in found if name is not None)
    if not taps:
        raise UsageError(f"no stage found in {type(model).__name__}; name the taps yourself")
    return taps


def _levels(model: nn.Module, example: Images) -> list[list[str]]:
    """Paths of modules that ran once, grouped by the resolution of their output, in order."""
    ran: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                ran.append((name, tuple(output.shape[2:])))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(note(name)).remove)
        model(example)
    names = [name for name, _ in ran]
    levels: dict[tuple[int, ...], list[str]] = {}
    for name, resolution in ran:
        if names.count(name) == 1 and max(resolution) > 1:
            levels.setdefault(resolution, []).append(name)
    return list(levels.values())


def _last_bottleneck(model: nn.Module, names: list[str], example: Images) -> str | None:
    last: str | None = None
    for name in reversed(names):
        if _holds_all(model, name, example):
            last = name
            if not _is_activation(module_at(model, name)):
                return last
        elif last is not None:
            return last
    return last


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == nn.ReLU.__module__


def _holds_all(model: nn.Module, name: str, example: Images) -> bool:
    """Whether the logits of other images become those of ``example`` when the tap is held."""
    with read(model, [name]) as features:
        logits = model(example)
        held = features[name]
    others = example.roll(1, dims=0)
    with _out_of_place(model), rewrite(model, {name: lambda _output: held}):
        return torch.equal(model(others), logits)
