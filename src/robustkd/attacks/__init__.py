"""Backdoor attacks and their triggers, for research and for measuring defences.

No module of a defence imports this package, and no module of this package imports a defence.
"""

from robustkd.attacks.base import Attack, Backdoored, Teaching
from robustkd.attacks.parts.poisoned_data import Poisoned
from robustkd.attacks.registry import ATTACKS, find
from robustkd.attacks.triggers.additive import Additive
from robustkd.attacks.triggers.files import TRIGGERS, load_trigger, save_trigger
from robustkd.attacks.triggers.patterns import SIG, BadNets, Blend, MaskedPattern
from robustkd.attacks.triggers.warp import Warp
from robustkd.attacks.two_triggers import TwoTriggers
from robustkd.core.types import Trigger

__all__ = [
    "ATTACKS",
    "SIG",
    "TRIGGERS",
    "Additive",
    "Attack",
    "Backdoored",
    "BadNets",
    "Blend",
    "MaskedPattern",
    "Poisoned",
    "Teaching",
    "Trigger",
    "TwoTriggers",
    "Warp",
    "find",
    "load_trigger",
    "save_trigger",
]
