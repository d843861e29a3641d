"""The fold: a master of which everything has left becomes the plain student that it composes.

    W_student = R W C        b_student = R b        q · √(new / old head size)

Nothing but the parametrisation changes, so that the student computes what the master's did.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from uer.config import ModelConfig
from uer.squeeze.groups import student_config
from uer.squeeze.master import Master
from uer.squeeze.wiring import EMBEDDING_TABLES, VOCABULARY_LINEAR


@torch.no_grad()
def fold(master: Master, table: torch.Tensor | None = None) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """The student of a master whose groups have left. Every process must call it.

    Args:
        master: its parameters are left as they are; from now on it multiplies the vocabulary's tables out.
        table: of words, [vocab, hidden], to be both embedding and decoder of a tied student.
    Returns:
        the student's config, and its tensors under the published names: its own ones, but for those that no compactor
        precedes or follows, which are the master's.
    """
    master.multiply_out()
    weights = {name: tensor.detach().contiguous() for name, tensor in master.build_student().named_parameters()}
    config = student_config(master.config, master.groups)
    if table is None:
        return config, weights
    shared = table.to(master.like)
    return replace(config, tie_weights=True), {**weights, EMBEDDING_TABLES[0]: shared,
                                               f"{VOCABULARY_LINEAR}.weight": shared}
