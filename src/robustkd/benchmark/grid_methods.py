"""Methods in a grid: names, or mappings that add a defence to a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from robustkd.benchmark.grid_words import refusal
from robustkd.core.errors import UsageError
from robustkd.core.method_names import NetworkDefence, Side
from robustkd.core.methods import method_name, name_of_losses
from robustkd.pipeline.job import check_method
from robustkd.teacher.defences.registry import find

Weight = Annotated[StrictInt | StrictFloat, Field(gt=0)]


class DefendedMethod(BaseModel):
    """A method with a defence that cleans a network, or with weights of losses of its own.

    Attributes:
        defence: Name of a defence of the registry; None for none.
        on: Network that the defence cleans.
        losses: Weights of the distillation losses by name; None if ``method`` is given.
        method: Name of the method that the defence is added to; None if ``losses`` is given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    defence: StrictStr | None = None
    on: Side = "teacher"
    losses: Annotated[dict[StrictStr, Weight], Field(min_length=1)] | None = None
    method: StrictStr | None = None

    def name(self) -> str:
        """Return the name under which the results are stored.

        Raises:
            UsageError: If a name is unknown, or the parts do not fit together.
        """
        if (self.losses is None) == (self.method is None):
            raise UsageError("methods: expected either losses or method beside a defence")
        known = method_name(self.method) if self.method is not None else self._losses_name()
        if self.defence is None:
            return known
        find(self.defence)
        return NetworkDefence(self.defence, self.on).around(known)

    def _losses_name(self) -> str:
        return name_of_losses({name: float(weight) for name, weight in (self.losses or {}).items()})


def method_in_grid(given: object) -> str:
    """Return the name of a method that a grid gives as a name or as a mapping.

    Args:
        given: A name; or a mapping such as ``{defence: ft-sam, on: teacher, losses: {kd: 1}}``,
            with ``method`` in place of ``losses`` for a method with more than losses.

    Raises:
        UsageError: If a name is unknown, the parts do not fit together, or it has another form.
    """
    if isinstance(given, Mapping):
        name = _validated(given).name()
    elif isinstance(given, str):
        name = method_name(given)
    else:
        raise UsageError(f"methods: {given!r} is no method; expected a name or a mapping")
    check_method(name)
    return name


def _validated(given: Mapping[object, object]) -> DefendedMethod:
    for key in given:
        if not isinstance(key, str):
            known = ", ".join(DefendedMethod.model_fields)
            raise UsageError(f"methods: the key {key!r} is not a string; expected {known}")
    try:
        return DefendedMethod.model_validate(given)
    except ValidationError as error:
        said = refusal(error, given, DefendedMethod.model_fields)
        raise UsageError(f"methods: {said}") from error
