#!/usr/bin/env python3
"""Seconds per optimizer step, and memory, of ways to train the same thing.

    published     the teacher with its compactors applied to activations, y = R (W (C x) + b), as the published code has
                  it: torch's linear layers, every layer on every position
    activations   the same with what our models have besides: a last layer that ends with the predicted positions and,
                  on CPUs where it has faster ones, the products of `uer/cpu/products.py`
    composed      weights composed first, then a plain BERT of the teacher's size (before anything has left)
    leaving       the same on average until `hidden` is squeezed: a step of each interval of the mask schedule, where
                  what was masked two intervals ago has decayed and left (--penalty fade)
    squeezed      the same after the squeeze: a plain BERT of the student's size
    teacher       a plain BERT of the teacher's size, without compactors: the limit before the squeeze
    plain         that student alone, without compactors: the limit after it

All: MLM with 15 % predicted positions selected before the vocabulary, scaled-dot-product attention, fused AdamW over
every parameter, and (but for leaving and the last two) the published penalty in mid-run. They take turns in one
process: whatever else the machine does hits them alike; compare ratios of medians. `--products torch` takes torch's own
everywhere. On a busy machine, `--clock cpu --threads 1` counts what this process used instead of what passed. Memory is
measured in a process of its own.

    python3 benchmarks/step_time.py                      # 2 layers x 768, vocabulary 30522, batch 32 x 128
    python3 benchmarks/step_time.py --batch_size 128
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from uer.config import ModelConfig
from uer.cpu import products
from uer.cpu.memory import EVERYTHING, keep_freed_memory
from uer.cpu.products import linear
from uer.models.bert import Bert, initialise
from uer.planning.cost import token_shares
from uer.sizes import BertSizes
from uer.squeeze.groups import BLOCK_INTERVALS, FREE_INTERVALS, INTERVALS_PER_HEAD, build_groups
from uer.squeeze.master import Master
from uer.squeeze.penalty import Penalty, build_penalty
from uer.targets.vocabulary_loss import vocabulary_loss
from uer.training.learner import Learner, PlainLearner
from uer.training.optimizers import AdamW, parameter_groups
from uer.training.wid_learner import WidLearner

PUBLISHED = "published"
LEAVING, DECAY = "leaving", 2  # intervals from when a dimension is masked until it has decayed
PHASES = ("activations", "composed", LEAVING, "squeezed", "teacher", "plain")
STEPS_PER_TURN = {PUBLISHED: 1, "activations": 1, "composed": 1, LEAVING: BLOCK_INTERVALS + DECAY, "squeezed": 3,
                  "teacher": 1, "plain": 3}
W_STEP, L2_LAMBDA, LEARNING_RATE, COMPACTOR_LEARNING_RATE = 500, 20.0, 1e-6, 5e-5
MID_RUN = 20 * W_STEP + 1  # the schedule is complete, no masks are chosen in the steps that follow

Result = TypeVar("Result")
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # src, seg, positions, labels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=32, help="instances per step (default: 32)")
    parser.add_argument("--seq_length", type=int, default=128, help="tokens per instance (default: 128)")
    parser.add_argument("--layers_num", type=int, default=2, help="default: 2")
    parser.add_argument("--hidden_size", type=int, default=768, help="the teacher's, in heads of 64 (default: 768)")
    parser.add_argument("--target_dim", type=int, default=192, help="the student's (default: 192)")
    parser.add_argument("--vocabulary", type=int, default=30522, help="default: 30522")
    parser.add_argument("--strategy", choices=("dim", "head"), default="dim", help="default: dim")
    parser.add_argument("--tokens", choices=("text", "uniform"), default="text",
                        help="as frequent as in text (Zipf's law), or all alike (default: text)")
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each phase (default: 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what to count (default: wall)")
    parser.add_argument("--phases", nargs="+", choices=(PUBLISHED, *PHASES), default=(PUBLISHED, *PHASES),
                        help="default: all")
    parser.add_argument("--products", choices=("fastest", "torch"), default="fastest",
                        help="what multiplies matrices (default: fastest)")
    parser.add_argument("--memory_of", choices=PHASES, help="measure the memory of this phase alone and leave")
    return parser.parse_args()


def teacher_config(args: argparse.Namespace) -> ModelConfig:
    return ModelConfig(args.hidden_size, args.layers_num, args.hidden_size // 64, 4 * args.hidden_size, args.seq_length,
                       dropout=0.0)


def random_bert(args: argparse.Namespace, config: ModelConfig) -> Bert:
    """A BERT from scratch."""
    sizes = BertSizes.uniform(vocab=args.vocabulary, hidden=config.hidden_size, layers=config.layers_num,
                              heads=config.heads_num, feedforward=config.feedforward_size, positions=512)
    model = Bert(sizes, config)
    initialise(model, torch.Generator().manual_seed(1))
    return model


def predicted_of(args: argparse.Namespace) -> int:
    """Positions to predict of an instance: 15 % of its tokens but the first and the last one, as the loader has it."""
    return max(1, round(0.15 * (args.seq_length - 2)))


def random_batch(args: argparse.Namespace, tokens_as: str = "text") -> Batch:
    """Full rows of tokens as frequent as in `text`, or `uniform`; 15 % of each to predict."""
    generator = torch.Generator().manual_seed(2)
    tokens = args.batch_size * args.seq_length
    shares = token_shares(args.vocabulary) if tokens_as == "text" else torch.ones(args.vocabulary)
    src = torch.multinomial(shares, tokens, replacement=True, generator=generator).view(-1, args.seq_length)
    order = torch.rand(src.shape, generator=generator)[:, 1:-1].argsort(1)[:, :predicted_of(args)] + 1
    positions = (order.sort(1).values + args.seq_length * torch.arange(len(src))[:, None]).flatten()
    return src, torch.ones_like(src), positions, src.flatten()[positions]


# -- the four ways -----------------------------------------------------------------------------------------------------


class Sandwich:
    """The teacher with compactors on its activations, on a master's parameters.

    Args:
        selected: whether the last layer computes nothing for positions that nobody is to predict.
    """

    def __init__(self, master: Master, selected: bool = False):
        self.selected = selected
        self.p, self.config = master.parameters, master.config
        self.norms = master.build_student()  # its LayerNorms know the masks
        for name, _ in master.norms:
            norm = self.norms.get_submodule(name)
            norm.gamma, norm.beta = self.p[f"{name}.gamma"], self.p[f"{name}.beta"]

    def linear(self, x: torch.Tensor, name: str, left: str, right: str) -> torch.Tensor:
        """R (W (C x) + b)"""
        p = self.p
        x = linear(linear(x, p[f"{left}.weight"]), p[f"{name}.weight"], p[f"{name}.bias"])
        return linear(x, p[f"{right}.weight"])

    def layer(self, x: torch.Tensor, i: int, positions: torch.Tensor | None = None) -> torch.Tensor:
        """x [batch, seq, hidden] -> the same; of flat positions [n], as many in each row, [batch, n / batch, hidden]"""
        attn, ffn = f"encoder.transformer.{i}.self_attn", f"encoder.transformer.{i}.feed_forward"
        norms = self.norms.encoder.transformer[i]
        wanted = x if positions is None else x.flatten(0, 1)[positions].view(len(x), -1, x.shape[-1])
        projected = (self.linear(y, f"{attn}.linear_layers.{j}", f"{attn}.left_compactor.{j}",
                                 f"{attn}.right_compactor.{j}") for j, y in enumerate((wanted, x, x)))
        q, k, v = (y.unflatten(2, (self.config.heads_num, -1)).transpose(1, 2) for y in projected)
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        attended = self.linear(context, f"{attn}.final_linear", f"{attn}.final_linear_left_compactor",
                               f"{attn}.final_linear_right_compactor")
        x = norms.layer_norm_1(wanted + attended)
        inner = F.gelu(self.linear(x, f"{ffn}.linear_1", f"{ffn}.linear_1_left_compactor",
                                   f"{ffn}.linear_1_right_compactor"))
        return norms.layer_norm_2(x + self.linear(inner, f"{ffn}.linear_2", f"{ffn}.linear_2_left_compactor",
                                                  f"{ffn}.linear_2_right_compactor"))

    def loss(self, src: torch.Tensor, seg: torch.Tensor, positions: torch.Tensor,
             labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Bert.loss`."""
        p = self.p
        word, position, segment = (p[f"embedding.{kind}_embedding.weight"] for kind in ("word", "position", "segment"))
        x = F.embedding(src, word) + position[: src.shape[1]] + F.embedding(seg, segment)
        x = self.norms.embedding.layer_norm(linear(x, p["embedding.emb_compactor.weight"]))
        for i in range(self.config.layers_num):
            last = i == self.config.layers_num - 1
            x = self.layer(x, i, positions if self.selected and last else None)
        x = x.flatten(0, 1) if self.selected else x.flatten(0, 1).index_select(0, positions)
        x = F.gelu(self.linear(x, "target.mlm_linear_1", "target.mlm_linear_1_left_compactor",
                               "target.mlm_linear_1_right_compactor"))
        x = linear(self.norms.target.layer_norm(x), p["target.mlm_linear_2_left_compactor.weight"])
        return vocabulary_loss(x, p["target.mlm_linear_2.weight"], p["target.mlm_linear_2.bias"], labels)


def masked_master(args: argparse.Namespace, complete: bool = True) -> tuple[Master, AdamW, Penalty]:
    """A master, its optimizer and penalty: its schedule complete, unsqueezed, dropped entries zero; or at the start."""
    config = teacher_config(args)
    groups = build_groups(config, args.target_dim, args.strategy)
    master = Master(config, random_bert(args, config).state_dict(), groups, tokens=args.batch_size * args.seq_length,
                    predicted=args.batch_size * predicted_of(args))
    generator = torch.Generator().manual_seed(3)
    for group in groups.values() if complete else ():
        k = max(FREE_INTERVALS, INTERVALS_PER_HEAD * config.heads_num)
        group.set_keep(group.choose(torch.rand(group.size, generator=generator, dtype=torch.float64), k))
    optimizer = AdamW(parameter_groups(master.named_parameters(), LEARNING_RATE,
                                       lambda name: COMPACTOR_LEARNING_RATE if "compactor" in name else None))
    kind = "published" if complete else "fade"
    return master, optimizer, build_penalty(kind, master, optimizer.state, W_STEP, L2_LAMBDA)


def leave(learner: WidLearner, k: int) -> None:
    """Bring a learner to interval k of its schedule: who was masked by interval k - `DECAY` has left."""
    for group in learner.groups().values():
        scores = torch.rand(group.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        there = torch.arange(group.size) if group.there is None else group.there
        gone = ~group.choose(scores[there], max(0, k - DECAY))
        group.set_keep(group.choose(scores[there], k))
        learner.master.thin(group, group.staying(gone[there[group.dropped]]), learner.optimizer.state)
    learner.squeeze([])  # builds the student


def by_torch(step: Callable[[], Result]) -> Callable[[], Result]:
    """The step with torch's own products."""
    def run() -> Result:
        with mock.patch.object(products, "convolutions_are_faster", lambda: False):
            return step()
    return run


def build(phase: str, args: argparse.Namespace, batch: Batch) -> Callable[[], float]:
    """A function that makes one optimizer step and returns its loss."""
    src, seg, positions, labels = batch
    if phase in ("teacher", "plain"):
        config = teacher_config(args)
        model = random_bert(args, config if phase == "teacher" else config.student(args.target_dim, args.strategy))
        return LearnerStep(PlainLearner(model, AdamW(parameter_groups(model.named_parameters(), LEARNING_RATE))), batch)

    master, optimizer, penalty = masked_master(args, phase != LEAVING)
    step = iter(range(MID_RUN, MID_RUN + W_STEP - 1))
    if phase in (PUBLISHED, "activations"):
        sandwich = Sandwich(master, selected=phase == "activations")

        def activations_step() -> float:
            loss = sandwich.loss(src, seg, positions, labels)[0] / len(labels)
            loss.backward()
            penalty.before_update(next(step))
            optimizer.set_factor(1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return activations_step

    learner = WidLearner(master, optimizer, penalty, W_STEP)
    if phase == "squeezed":
        learner.squeeze(list(master.groups.values()))
    return LearnerStep(learner, batch)


class LearnerStep:
    """A step of a learner whose masks do not change in it."""

    def __init__(self, learner: Learner, batch: Batch):
        self.learner, self.batch = learner, batch
        self.numbers = iter(range(MID_RUN, MID_RUN + W_STEP - 1))

    def __call__(self) -> float:
        src, seg, positions, labels = self.batch
        self.learner.prepare()
        loss = self.learner.student.loss(src, seg, positions, labels, padded=False)[0] / len(labels)
        loss.backward()
        self.learner.finish(next(self.numbers), 1.0)
        return loss.item()


# -- measuring ---------------------------------------------------------------------------------------------------------


def machine() -> str:
    """CPU model, cores, versions, threads."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return (f"{cpu}, {os.cpu_count()} cores; torch {torch.__version__}, {torch.get_num_threads()} threads; "
            f"Python {platform.python_version()}")


def status_mb(key: str) -> float:
    """A size out of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def page_faults() -> int:
    """Pages that the system has given to this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def report_memory(phase: str, args: argparse.Namespace) -> None:
    """Resident memory of this process after, and its peak during, some steps of a phase."""
    step = build(phase, args, random_batch(args, args.tokens))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    for _ in range(3):
        step()
    print(f"memory of {phase}: {status_mb('VmHWM'):,.0f} MB at the peak of a step, "
          f"{status_mb('VmRSS'):,.0f} MB resident between steps")


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        keep_freed_memory()  # as pretrain.py does
        report_memory(args.memory_of, args)
        return
    keep_freed_memory(EVERYTHING)  # else the large ways, and only they, now and then wait for gigabytes to be cleared
    print(machine())
    print(f"{args.layers_num} layers x {args.hidden_size} -> {args.target_dim} ({args.strategy}), vocabulary "
          f"{args.vocabulary}, batch {args.batch_size} x {args.seq_length}, fp32", flush=True)
    batch = random_batch(args, args.tokens)
    print(f"{len(batch[0].unique())} distinct tokens", flush=True)
    steps = {phase: build(phase, args, batch) for phase in args.phases}
    steps = {phase: by_torch(step) if phase == PUBLISHED or args.products == "torch" else step
             for phase, step in steps.items()}
    first = {phase: step() for phase, step in steps.items()}  # warm-up, and the loss at the start
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {phase: [] for phase in steps}
    faults: dict[str, list[int]] = {phase: [] for phase in steps}
    for _ in range(args.turns):
        for phase, step in steps.items():
            fresh = build(phase, args, batch) if phase == LEAVING else None
            times = []
            for interval in range(STEPS_PER_TURN[phase]):
                if isinstance(fresh, LearnerStep) and isinstance(fresh.learner, WidLearner):
                    leave(fresh.learner, interval)
                    step = by_torch(fresh) if args.products == "torch" else fresh
                before, start = page_faults(), clock()
                step()
                times.append(clock() - start)
                faults[phase].append(page_faults() - before)
            seconds[phase] += [statistics.mean(times)] if phase == LEAVING else times
    medians = {phase: statistics.median(values) for phase, values in seconds.items()}
    references = [phase for phase in (PUBLISHED, "activations") if phase in medians]
    print(f"{'':12} {'s / step':>9}" + "".join(f" {f'than {phase}':>17}" for phase in references)
          + f" {'tokens / s':>11} {'first loss':>11} {'page faults':>11}   ({args.clock} clock, medians)")
    for phase, median in medians.items():
        ratios = "".join(f" {medians[reference] / median:16.2f}x" for reference in references)
        print(f"{phase:12} {median:9.3f}{ratios} {args.batch_size * args.seq_length / median:11,.0f} "
              f"{first[phase]:11.6f} {statistics.median(faults[phase]):11,.0f}", flush=True)
    steps.clear()
    if Path("/proc/self/clear_refs").exists():
        for phase in ("squeezed", "plain"):
            if phase in medians:
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--memory_of", phase], check=True)


if __name__ == "__main__":
    main()
