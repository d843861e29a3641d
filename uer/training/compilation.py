"""`--compile`: the student's encoder as one compiled graph for training.

Composition hands the parameters new storage every step and leaves shapes and strides alone, so the graph stays; batches
and lengths are symbols in it. A graph is made for batches with and without padding, before and after the first masks,
and for each new student; evaluation is not compiled.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from collections.abc import Callable

import torch

from uer.errors import UserError
from uer.models.bert import Bert

BACKEND: str | Callable = "inductor"


def check_compiler(device: torch.device) -> None:
    """`UserError` where torch.compile cannot work."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("--compile needs the package triton on GPUs (pip install triton), or leave it out")
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++")):
        raise UserError("--compile needs a C++ compiler on CPUs (g++ or clang++, or the one that CXX names), or leave "
                        "it out")


def compile_encoder(student: Bert) -> None:
    """Compile a student's `encode`; graphs of earlier students are dropped."""
    torch._dynamo.reset()
    gc.collect()  # an earlier student and its `encode` below hold each other, and the gradients' buckets with them
    torch._dynamo.config.optimize_ddp = False  # which would cut the graph at DistributedDataParallel's buckets
    plain = student.encode
    compiled = torch.compile(plain, dynamic=True, backend=BACKEND)

    def encode(src: torch.Tensor, seg: torch.Tensor, padded: bool = True,
               positions: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return (compiled if student.training else plain)(src, seg, padded, positions)

    student.encode = encode  # type: ignore[method-assign]
