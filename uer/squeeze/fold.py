"""The fold: a master of which everything has left becomes the plain student that it composes.

    W_student = R W C        b_student = R b        q · √(new / old head size)

Nothing but the parametrisation changes, so that the student computes what the master's did.
"""

from __future__ import annotations

import torch

from uer.config import ModelConfig
from uer.squeeze.groups import student_config
from uer.squeeze.master import Master


@torch.no_grad()
def fold(master: Master) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """The student of a master whose groups have left. Every process must call it.

    Args:
        master: its parameters are left as they are; from now on it multiplies the vocabulary's tables out.
    Returns:
        the student's config, and its tensors under the published names: its own ones, but for those that no compactor
        precedes or follows, which are the master's.
    """
    master.multiply_out()
    weights = {name: tensor.detach().contiguous() for name, tensor in master.build_student().named_parameters()}
    return student_config(master.config, master.groups), weights
