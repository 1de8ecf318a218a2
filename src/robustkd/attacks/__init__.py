"""Triggers, and the attacks that implant them: for research, and for nobody's defence to see.

No module of a defence imports this package, and none here imports a defence.
"""

from robustkd.attacks.base import Attack, Backdoored
from robustkd.attacks.files import TRIGGERS, load_trigger, save_trigger
from robustkd.attacks.poison import Poisoned
from robustkd.attacks.table import ATTACKS, find
from robustkd.attacks.triggers import SIG, BadNets, Blend, MaskedPattern, Trigger

__all__ = [
    "ATTACKS",
    "SIG",
    "TRIGGERS",
    "Attack",
    "Backdoored",
    "BadNets",
    "Blend",
    "MaskedPattern",
    "Poisoned",
    "Trigger",
    "find",
    "load_trigger",
    "save_trigger",
]
