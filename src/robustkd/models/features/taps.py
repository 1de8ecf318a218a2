"""Reading and rewriting the intermediate features of any network, by module path.

A tap is the dotted path of a submodule; what it reads is that submodule's output. Hooks live
inside ``with`` blocks and are always removed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.types import Features


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
def out_of_place(model: nn.Module) -> Iterator[None]:
    """Switch off in-place computation of activations while the block lasts."""
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
        stack.enter_context(out_of_place(model))
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
