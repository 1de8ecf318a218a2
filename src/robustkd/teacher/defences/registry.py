"""Registry of the defences that clean a network; a new defence is one file and one row here.

Its name is also in :data:`robustkd.core.known_names.DEFENCES`.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustkd.core.known_names import unknown_defence
from robustkd.teacher.defences.anp import ANP
from robustkd.teacher.defences.base import Defence
from robustkd.teacher.defences.bti_dbf import BTIDBF
from robustkd.teacher.defences.clp import CLP
from robustkd.teacher.defences.detox_defence import Detoxification
from robustkd.teacher.defences.fine_pruning import FinePruning
from robustkd.teacher.defences.fine_tuning import FineTuning
from robustkd.teacher.defences.fst import FST
from robustkd.teacher.defences.ft_sam import FTSAM
from robustkd.teacher.defences.i_bau import IBAU
from robustkd.teacher.defences.nad import NAD
from robustkd.teacher.defences.rnp import RNP
from robustkd.teacher.defences.sau import SAU
from robustkd.teacher.defences.universal import UniversalTraining


@dataclass(frozen=True)
class DefenceRow:
    """One row of the registry.

    Attributes:
        defence: The defence with its defaults; ``dataclasses.replace`` changes them.
        summary: Description in one line.
        source: Authors, venue and year.
    """

    defence: Defence
    summary: str
    source: str


DEFENCES: dict[str, DefenceRow] = {
    "detox": DefenceRow(
        Detoxification(),
        "masks on the features, which lower their variance",
        "Chen et al., Applied Soft Computing 2024",
    ),
    "ft": DefenceRow(FineTuning(), "fine-tuning on clean images; a control", "common baseline"),
    "ft-sam": DefenceRow(
        FTSAM(), "fine-tuning against perturbations of the weights", "Zhu et al., ICCV 2023"
    ),
    "clp": DefenceRow(
        CLP(), "prunes channels with an outlying Lipschitz constant", "Zheng et al., ECCV 2022"
    ),
    "anp": DefenceRow(
        ANP(), "prunes channels that are sensitive to perturbation", "Wu and Wang, NeurIPS 2021"
    ),
    "i-bau": DefenceRow(
        IBAU(), "unlearns one universal perturbation by hypergradients", "Zeng et al., ICLR 2022"
    ),
    "fine-pruning": DefenceRow(
        FinePruning(), "prunes channels that are inactive on clean images", "Liu et al., RAID 2018"
    ),
    "nad": DefenceRow(NAD(), "distils the attention of a fine-tuned copy", "Li et al., ICLR 2021"),
    "sau": DefenceRow(
        SAU(),
        "unlearns perturbations that fool the network before and after",
        "Wei et al., NeurIPS 2023",
    ),
    "fst": DefenceRow(
        FST(), "fine-tunes with a new classifier unlike the old one", "Min et al., NeurIPS 2023"
    ),
    "rnp": DefenceRow(
        RNP(), "unlearns the clean task and prunes what does not recover", "Li et al., ICML 2023"
    ),
    "bti-dbf": DefenceRow(
        BTIDBF(),
        "inverts a trigger by the features that the task does not need",
        "Xu et al., ICLR 2024",
    ),
    "universal": DefenceRow(
        UniversalTraining(),
        "adversarial training against one perturbation of all images",
        "Shafahi et al., AAAI 2020",
    ),
}
"""Defences by name; contract tests run over them."""


def find(name: str) -> DefenceRow:
    """Return the row of a defence.

    Raises:
        UsageError: If the name is unknown; the message suggests the nearest one.
    """
    if name in DEFENCES:
        return DEFENCES[name]
    raise unknown_defence(name)
