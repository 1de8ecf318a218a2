"""Reading and rewriting of the intermediate features of any network, by module path.

A tap is the dotted path of a submodule whose output is read. Hooks exist only inside ``with``
blocks and are always removed at their end.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.names import nearest
from robustkd.core.types import Features


def module_at(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule at a dotted path.

    Raises:
        UsageError: If there is none; the message suggests the nearest path.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name in modules:
        return modules[name]
    hint = nearest(name, filter(None, modules), otherwise="see robustkd list --taps")
    raise UsageError(f"no module {name!r} in {type(model).__name__}; {hint}")


def check_not_compiled(module: nn.Module) -> None:
    """Raise an error for a module that ``torch.compile`` has compiled.

    Hooks of its submodules would run only if they were hung before its first call.

    Raises:
        UsageError: If it is one.
    """
    # The class of what torch.compile returns, and an attribute that the method compile sets.
    if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
        raise UsageError(
            "the network, or a part of it, is compiled by torch.compile, so the features within "
            "cannot be read; give the network as it was before: distill has the option compile"
        )


def _hooked(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule at a dotted path, for hooks.

    Raises:
        UsageError: If there is none, or it is a TorchScript module or a part of a compiled one,
            which take no hooks.
    """
    parts = name.split(".") if name else []
    if parts:
        check_not_compiled(model)
    module = module_at(model, name)
    for depth in range(len(parts)):
        check_not_compiled(module_at(model, ".".join(parts[:depth])))
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            f"module {name!r} is a TorchScript module, whose features cannot be read; expected a "
            "module of Python: tap another module, or give the network that it was made from"
        )
    return module


@contextmanager
def frozen_modes(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Set a model to eval (or training) mode, and restore the mode of every submodule on exit."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def out_of_place(model: nn.Module) -> Iterator[None]:
    """Context manager that disables in-place activations."""
    # An in-place activation would overwrite the features that a tap before it has read.
    changed = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in changed:
        vars(module)["inplace"] = False
    try:
        yield
    finally:
        for module in changed:
            vars(module)["inplace"] = True


@contextmanager
def read(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Features]]:
    """Context manager that reads features during forward passes.

    Args:
        model: Any network.
        names: Module paths; each module must run once per forward pass.

    Yields:
        Features by module path; every forward pass clears and fills the dictionary.

    Raises:
        UsageError: If a path does not exist, or its module runs more than once per forward pass or
            does not return a single tensor.
    """
    features: dict[str, Features] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            # Cloned, because the network may change its output in place, as ``out += shortcut``.
            features[name] = _checked(name, output, features).clone()

        return hook

    with ExitStack() as stack:
        stack.enter_context(out_of_place(model))
        start = _hooked(model, "").register_forward_pre_hook(
            lambda _module, _inputs: features.clear()
        )
        stack.callback(start.remove)
        for name in names:
            stack.callback(_hooked(model, name).register_forward_hook(keep(name)).remove)
        yield features


def check_ran(features: Container[str], names: Sequence[str]) -> None:
    """Raise an error if a module did not run in a forward pass, or ran without its hooks.

    Raises:
        UsageError: Naming the first module without features.
    """
    for name in names:
        if name not in features:
            raise UsageError(
                f"module {name!r} does not run in a forward pass, or is compiled by torch.compile; "
                "tap another module, or give the network as it was before"
            )


def _checked(name: str, output: object, before: Container[str]) -> Tensor:
    """Return the output of a module if it is a tensor, and the first one in this forward pass."""
    if not isinstance(output, Tensor):
        raise UsageError(
            f"module {name!r} returns {type(output).__name__}; expected a tensor: "
            "tap another module"
        )
    if name in before:
        raise UsageError(
            f"module {name!r} runs more than once per forward pass; expected once: "
            "tap another module"
        )
    return output


class _Kept(NamedTuple):
    """Output of a module, its number of changes in place so far, and a copy if one was made."""

    output: Tensor
    version: int
    copy: Tensor | None

    def is_changed(self) -> bool:
        """Whether the network has written to the output since."""
        return self.output._version != self.version

    def features(self) -> Tensor:
        """Return the output as the module computed it."""
        return self.copy if self.copy is not None and self.is_changed() else self.output


class Reader:
    """Logits and features of a network in many forward passes, with hooks that are hung once.

    Features are those of :func:`read`. They are copied only if the network writes to them later in
    the forward pass, as ``out += shortcut`` does. The first pass in each mode shows where.

    Args:
        model: Any network that returns a tensor; until the end of the context, its activations do
            not work in place.
        names: Module paths; each module must run once per forward pass.

    Raises:
        UsageError: If a path does not exist, or, when called, as :func:`read` does.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model, self._names = model, tuple(names)
        self._copied: dict[bool, set[str]] = {}
        self._kept: dict[str, _Kept] = {}
        self._reads = False
        self._hooks = ExitStack()
        modules = [_hooked(model, name) for name in self._names]
        for name, module in zip(self._names, modules, strict=True):
            self._hooks.callback(module.register_forward_hook(self._hook(name)).remove)
        self._hooks.enter_context(out_of_place(model))

    def __enter__(self) -> Reader:
        """Return the reader, whose hooks are hung already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks."""
        self._hooks.close()

    def __call__(self, images: Tensor) -> tuple[Tensor, tuple[Features, ...]]:
        """Return the logits and the features of a batch."""
        if not self._names:
            return self._model(images), ()
        first = self._model.training not in self._copied
        copied = self._copied.setdefault(self._model.training, set(self._names))
        logits = self._run(images)
        changed = {name for name, kept in self._kept.items() if kept.is_changed()}
        if not changed <= copied:
            # The network does not write to the same features in every pass.
            copied.update(changed)
            logits = self._run(images)
        elif first:
            copied.intersection_update(changed)
        kept, self._kept = self._kept, {}
        check_ran(kept, self._names)
        # An unneeded copy is not returned: it would change the last bits of gradients in the first
        # pass, which a resumed training does in another step than an uninterrupted one.
        return logits, tuple(kept[name].features() for name in self._names)

    def _run(self, images: Tensor) -> Tensor:
        self._kept, self._reads = {}, True
        try:
            logits: Tensor = self._model(images)
        finally:
            self._reads = False
        return logits

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not self._reads:
                return
            found = _checked(name, output, self._kept)
            copied = name in self._copied[self._model.training]
            self._kept[name] = _Kept(found, found._version, found.clone() if copied else None)

        return hook


@contextmanager
def rewrite(model: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Context manager that replaces the output of each named module by a function of it.

    Args:
        model: Any network.
        changes: Functions of the output, by module path.

    Raises:
        UsageError: If a path does not exist.
    """

    def replace(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _module, _inputs, output: change(output)

    with ExitStack() as stack:
        for name, change in changes.items():
            stack.callback(_hooked(model, name).register_forward_hook(replace(change)).remove)
        yield
