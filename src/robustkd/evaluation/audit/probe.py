"""Probe student: a short ordinary distillation, for backdoors that become active in students.

Some teachers resist their own trigger, so that no test of the teacher finds it, and the backdoor
becomes active in a distilled student: ADBA(FT) (after Ge et al. 2021, doi 10.1145/3474085.3475254)
and SCAR (Chen et al. 2025, arXiv 2509.23871). A small student is distilled from the teacher without
any defence, and audited as the teacher is.
"""

from __future__ import annotations

from torch import nn

from robustkd.core.errors import UsageError
from robustkd.core.methods import METHODS
from robustkd.core.types import DataSource
from robustkd.evaluation.audit.references import Limited, epoch_size, reference_architecture
from robustkd.models import builder, learning_rate
from robustkd.student.distillation import distill

_LOSSES = dict(METHODS["mix"].losses)
_BY_LOGITS = {"kd": 1.0}


def probe_student(teacher: nn.Module, data: DataSource, *, images: int, seed: int) -> nn.Module:
    """Distil a small student from a teacher, without a defence.

    Args:
        teacher: The teacher, frozen and in eval mode.
        data: Clean images.
        images: Number of images that the student sees, over all epochs.
        seed: Seed of the weights and of the order.

    Returns:
        The student, frozen and in eval mode. It has the architecture of the references, and learns
        from logits alone if no stages are found in the teacher.
    """
    arch = reference_architecture(data.image_shape)
    student = builder(data)(arch, seed)
    epoch = epoch_size(data, images)
    for losses in (_LOSSES, _BY_LOGITS):
        try:
            distill(
                student,
                Limited(data, epoch),
                teacher=teacher,
                losses=losses,
                seed=seed,
                label="probe student",
                epochs=max(1, round(images / epoch)),
                batch_size=min(64, max(8, epoch // 8)),
                lr=learning_rate(arch),
            )
            break
        except UsageError:
            if losses is _BY_LOGITS:
                raise
    return student.requires_grad_(False)
