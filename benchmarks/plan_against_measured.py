#!/usr/bin/env python3
"""What `pretrain.py --plan` counts against what `step_time.py`'s phases take: ratios of time, and bytes.

Four phases of `step_time.py` (compactors on activations as published, composed, squeezed, the plain student) take
turns in one process. The plan knows products only; the part of a step that works entry by entry (LayerNorm,
activations, penalty, AdamW) is not in its ratios, and this says how much that matters. Memory: the tensors of
parameters and moments to the byte, and the peak of a process of its own above what torch and Python take.

    python3 benchmarks/plan_against_measured.py                       # 2 layers x 384 to 96, 8,000 words, 16 x 128
    python3 benchmarks/plan_against_measured.py --batch_size 64
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import step_time
import torch

from uer.planning.cost import Cost, Step, plain_cost
from uer.planning.wid_cost import activations_cost, wid_cost

POSITIONS, SEGMENTS = 512, 3
PHASES = (step_time.PUBLISHED, "composed", "squeezed", "plain")
MEMORY_PHASES = ("composed", "squeezed", "plain")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=16, help="instances per step (default: 16)")
    parser.add_argument("--seq_length", type=int, default=128, help="tokens per instance (default: 128)")
    parser.add_argument("--layers_num", type=int, default=2, help="default: 2")
    parser.add_argument("--hidden_size", type=int, default=384, help="the teacher's, in heads of 64 (default: 384)")
    parser.add_argument("--target_dim", type=int, default=96, help="the student's (default: 96)")
    parser.add_argument("--vocabulary", type=int, default=8000, help="default: 8000")
    parser.add_argument("--strategy", choices=("dim", "head"), default="dim", help="default: dim")
    parser.add_argument("--turns", type=int, default=5, help="timed turns of each phase (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu", help="what to count (default: cpu)")
    parser.add_argument("--memory_of", choices=(*MEMORY_PHASES, "nothing"), help=argparse.SUPPRESS)
    return parser.parse_args()


def planned(args: argparse.Namespace) -> dict[str, Cost]:
    """The cost of each phase as `step_time.build` sets it up."""
    config = step_time.teacher_config(args)
    tables = {"vocab": args.vocabulary, "positions": POSITIONS, "segments": SEGMENTS}
    step = Step(args.batch_size, args.seq_length)
    groups = step_time.masked_master(args)[0].groups
    costs = {step_time.PUBLISHED: activations_cost(config, tables, groups, step),
             "composed": wid_cost(config, tables, groups, step)}
    for group in groups.values():
        group.squeezed = True
    student = config.student(args.target_dim, args.strategy)
    return {**costs, "squeezed": wid_cost(config, tables, groups, step), "plain": plain_cost(student, tables, step)}


def measured(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step of each phase."""
    batch = step_time.random_batch(args)
    steps = {phase: step_time.build(phase, args, batch) for phase in PHASES}
    for step in steps.values():
        step()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {phase: [] for phase in steps}
    for _ in range(args.turns):
        for phase, step in steps.items():
            for _ in range(step_time.STEPS_PER_TURN[phase]):
                start = clock()
                step()
                seconds[phase].append(clock() - start)
    return {phase: statistics.median(values) for phase, values in seconds.items()}


def report_peak(phase: str, args: argparse.Namespace) -> None:
    """Print the peak memory of this process, in bytes, during some steps of a phase (or of a tiny model)."""
    if phase == "nothing":
        args = argparse.Namespace(**{**vars(args), "batch_size": 1, "seq_length": 8, "layers_num": 1, "vocabulary": 64,
                                     "hidden_size": 64, "target_dim": 32})
    step = step_time.build("plain" if phase == "nothing" else phase, args, step_time.random_batch(args))
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        step()
    print(round(step_time.status_mb("VmHWM") * 2**20))


def peak(phase: str) -> int:
    """Peak bytes of a process that runs a phase."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--memory_of", phase], check=True,
                          capture_output=True, text=True, env={**os.environ, "MALLOC_ARENA_MAX": "1"})
    return int(done.stdout)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        report_peak(args.memory_of, args)
        return
    print(step_time.machine())
    print(f"{args.layers_num} layers x {args.hidden_size} -> {args.target_dim} ({args.strategy}), vocabulary "
          f"{args.vocabulary}, batch {args.batch_size} x {args.seq_length}, fp32", flush=True)
    costs, seconds = planned(args), measured(args)
    print(f"{'':12}{'GFLOP':>9}{'s / step':>10}{'GFLOP / s':>11}{'planned':>9}{'measured':>10}   ({args.clock} clock)")
    for phase, cost in costs.items():
        planned_ratio = costs[step_time.PUBLISHED].all_operations / cost.all_operations
        print(f"{phase:12}{cost.all_operations / 1e9:9.2f}{seconds[phase]:10.3f}"
              f"{cost.all_operations / 1e9 / seconds[phase]:11.1f}{planned_ratio:8.2f}x"
              f"{seconds[step_time.PUBLISHED] / seconds[phase]:9.2f}x")
    master, optimizer, _ = step_time.masked_master(args)
    held = sum(parameter.nbytes for _, parameter in master.named_parameters())
    moments = sum(state[key].nbytes for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))
    assert (held, moments) == (costs["composed"].memory["weights"], costs["composed"].memory["optimizer"])
    del master, optimizer
    if Path("/proc/self/clear_refs").exists():
        nothing = peak("nothing")
        for phase in MEMORY_PHASES:
            print(f"memory of {phase}: planned {costs[phase].memory['peak'] / 2**20:,.0f} MiB, measured "
                  f"{(peak(phase) - nothing) / 2**20:,.0f} MiB above a process with a tiny model")


if __name__ == "__main__":
    main()
