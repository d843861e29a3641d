#!/usr/bin/env python3
"""Seconds per optimizer step, memory and model FLOP utilisation on a GPU, in float32, bfloat16 and compiled.

The four ways of `step_time.py` (activations, composed, squeezed, plain), with the trainer's own formats, optimizer and
penalty. They take turns in one process. Model FLOPs are those of the plain BERT that the way stands for, forward and
twice that backward: its linear layers on all positions, its attention products, and the head on the predicted
positions, which are also all that the last layer's output and feed-forward are computed for (but with compactors on
activations, as published: on all); composition, compactors and the update are overhead. The peak is the best product
of two square matrices that this process measures in the same format.

    python3 benchmarks/gpu_step_time.py                          # 12 x 768 -> 192, vocabulary 30522, batch 120 x 128
    python3 benchmarks/gpu_step_time.py --formats bf16 --strategy head
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from step_time import (
    COMPACTOR_LEARNING_RATE,
    L2_LAMBDA,
    LEARNING_RATE,
    MID_RUN,
    PHASES,
    W_STEP,
    Batch,
    Sandwich,
    machine,
    predicted_of,
    random_batch,
    random_bert,
    teacher_config,
)

from uer.config import ModelConfig
from uer.squeeze.groups import FREE_INTERVALS, INTERVALS_PER_HEAD, build_groups
from uer.squeeze.master import Master
from uer.squeeze.penalty import build_penalty
from uer.training.compilation import compile_encoder
from uer.training.learner import PlainLearner
from uer.training.optimizers import AdamW, parameter_groups
from uer.training.precision import Precision
from uer.training.wid_learner import WidLearner

FORMATS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "bf16 compiled": torch.bfloat16}
PEAK_SIZE = {"cuda": 8192, "cpu": 512}


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=120, help="instances per step (default: 120)")
    parser.add_argument("--seq_length", type=int, default=128, help="tokens per instance (default: 128)")
    parser.add_argument("--layers_num", type=int, default=12, help="default: 12")
    parser.add_argument("--hidden_size", type=int, default=768, help="the teacher's, in heads of 64 (default: 768)")
    parser.add_argument("--target_dim", type=int, default=192, help="the student's (default: 192)")
    parser.add_argument("--vocabulary", type=int, default=30522, help="default: 30522")
    parser.add_argument("--strategy", choices=("dim", "head"), default="dim", help="default: dim")
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each way (default: 3)")
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn (default: 5)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: the GPU")
    return parser.parse_args(words)


class Way:
    """One of `PHASES`: takes steps in a format that can be changed.

    Args:
        batch: on the device.
    """

    def __init__(self, phase: str, args: argparse.Namespace, batch: Batch):
        self.phase, self.batch, self.precision = phase, batch, Precision(torch.device(args.device))
        self.steps = iter(range(MID_RUN, 1 << 40))
        config = teacher_config(args)
        self.model = config if phase in ("activations", "composed") else config.student(args.target_dim, args.strategy)
        if phase == "plain":
            student = random_bert(args, self.model).to(args.device)
            self.learner = PlainLearner(student, AdamW(parameter_groups(student.named_parameters(), LEARNING_RATE)))
            return
        self.learner = masked_learner(args, config)
        if phase == "squeezed":
            self.learner.squeeze(list(self.learner.groups().values()))
        self.sandwich = Sandwich(self.learner.master) if phase == "activations" else None

    def use(self, name: str) -> None:
        """Change the format to one of `FORMATS`."""
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        self.precision = Precision(self.precision.device, FORMATS[name], "tf32" if name == "tf32" else None)
        if name.endswith("compiled"):
            compile_encoder(self.learner.student)

    def step(self) -> torch.Tensor:
        """One optimizer step; returns its loss."""
        src, seg, positions, labels = self.batch
        self.learner.student.train()
        if self.phase != "activations":
            with self.precision.composing():
                self.learner.prepare()
        loss_of = self.sandwich.loss if self.phase == "activations" else self.learner.student.loss
        more = {} if self.phase == "activations" else {"padded": False}
        with self.precision.products():
            loss = loss_of(src, seg, positions, labels, **more)[0] / len(labels)
        loss.backward()
        with self.precision.composing():
            if self.phase == "activations":
                self.learner.penalty.before_update(next(self.steps))
                self.learner.optimizer.set_factor(1.0)
                self.learner.optimizer.step()
                self.learner.optimizer.zero_grad()
            else:
                self.learner.finish(self._step_number(), 1.0)
        return loss.detach()

    def _step_number(self) -> int:
        """The next step in which no masks are chosen."""
        return next(step for step in self.steps if step % W_STEP)


def masked_learner(args: argparse.Namespace, config: ModelConfig) -> WidLearner:
    """A learner whose schedule is complete, unsqueezed."""
    groups = build_groups(config, args.target_dim, args.strategy)
    weights = {name: tensor.to(args.device) for name, tensor in random_bert(args, config).state_dict().items()}
    tokens = args.batch_size * args.seq_length
    master = Master(config, weights, groups, tokens=tokens, predicted=args.batch_size * predicted_of(args))
    generator = torch.Generator().manual_seed(3)
    k = max(FREE_INTERVALS, INTERVALS_PER_HEAD * config.heads_num)
    for group in groups.values():
        scores = torch.rand(group.size, generator=generator, dtype=torch.float64)
        group.set_keep(group.choose(scores, k).to(args.device))
    optimizer = AdamW(parameter_groups(master.named_parameters(), LEARNING_RATE,
                                       lambda name: COMPACTOR_LEARNING_RATE if "compactor" in name else None))
    return WidLearner(master, optimizer, build_penalty("published", master, optimizer.state, W_STEP, L2_LAMBDA), W_STEP)


# -- measuring ---------------------------------------------------------------------------------------------------------


def model_flops(config: ModelConfig, args: argparse.Namespace, selected: bool = True) -> float:
    """Of a step of a plain BERT, forward and backward; `selected`: the last layer ends with the predicted positions."""
    tokens, d, f = args.batch_size * args.seq_length, config.hidden_size, config.feedforward_size
    predicted = args.batch_size * predicted_of(args)
    inputs = 2 * tokens * 3 * d * d + 4 * tokens * args.seq_length * d  # query, key and value; attention
    outputs = 2 * (d * d + 2 * d * f)  # of a position
    layers = config.layers_num * (inputs + tokens * outputs) - selected * (tokens - predicted) * outputs
    return 3.0 * (layers + 2 * predicted * (d * d + d * args.vocabulary))


def seconds_of(work: Callable[[], object], count: int, device: str) -> float:
    """Seconds of each of `count` calls in a row."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    begun = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - begun) / count


def matmul_peak(name: str, device: str) -> float:
    """FLOP/s of the best square product in a format."""
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    size = PEAK_SIZE[device.partition(":")[0]]
    a, b = (torch.randn(size, size, device=device, dtype=FORMATS[name] or torch.float32) for _ in range(2))
    seconds_of(lambda: a @ b, 3, device)
    return 2 * size**3 / min(seconds_of(lambda: a @ b, 5, device) for _ in range(5))


def peak_memory(device: str) -> float:
    """GB held at most since the last call; 0 on a CPU."""
    if not device.startswith("cuda"):
        return 0.0
    held = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return held


def measure(name: str, ways: dict[str, Way], args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """way -> (seconds per step, model FLOP utilisation) in a format, printed as a table."""
    for way in ways.values():
        way.use(name)
    for _ in range(2):  # warm-up, compilation
        losses = {phase: way.step().item() for phase, way in ways.items()}
    seconds: dict[str, list[float]] = {phase: [] for phase in ways}
    memory = dict.fromkeys(ways, 0.0)
    for _ in range(args.turns):
        for phase, way in ways.items():
            peak_memory(args.device)
            seconds[phase].append(seconds_of(way.step, args.steps, args.device))
            memory[phase] = max(memory[phase], peak_memory(args.device))
    peak = matmul_peak(name, args.device)
    print(f"\n{name}: products of two matrices reach {peak / 1e12:.1f} TFLOP/s")
    print(f"{'':12} {'ms / step':>10} {'speed-up':>9} {'tokens / s':>11} {'TFLOP/s':>9} {'of peak':>8} {'all, GB':>8} "
          f"{'loss':>9}")
    out = {}
    for phase, way in ways.items():
        median = statistics.median(seconds[phase])
        rate = model_flops(way.model, args, selected=phase != "activations") / median
        out[phase] = (median, rate / peak)
        print(f"{phase:12} {1e3 * median:10.2f} {statistics.median(seconds['activations']) / median:8.1f}x "
              f"{args.batch_size * args.seq_length / median:11,.0f} {rate / 1e12:9.2f} {100 * rate / peak:6.1f} % "
              f"{memory[phase]:8.1f} {losses[phase]:9.5f}", flush=True)
    return out


def main(words: list[str] | None = None) -> None:
    args = parse_args(words)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "no GPU"
    print(f"{name}; {machine()}")
    print(f"{args.layers_num} layers x {args.hidden_size} -> {args.target_dim} ({args.strategy}), vocabulary "
          f"{args.vocabulary}, batch {args.batch_size} x {args.seq_length}; all four ways are in memory", flush=True)
    batch = tuple(tensor.to(args.device) for tensor in random_batch(args))
    ways = {phase: Way(phase, args, batch) for phase in PHASES}  # type: ignore[arg-type]
    print()
    results = {format_: measure(format_, ways, args) for format_ in FORMATS if format_ in args.formats}
    print()
    if "fp32" in results:
        times = {phase: seconds for phase, (seconds, _) in results["fp32"].items()}
        print(f"fp32, squeezed against activations: {times['activations'] / times['squeezed']:.1f}x (aim: 20x)")
    for format_, figures in results.items():
        if format_.startswith("bf16"):
            print(f"{format_}, composed: {100 * figures['composed'][1]:.1f} % of the matmul peak (aim: 40 %)")
        print(f"{format_}, squeezed against a plain student's step: "
              f"{figures['squeezed'][0] / figures['plain'][0]:.2f}x its time (aim: 1.5x)")


if __name__ == "__main__":
    main()
