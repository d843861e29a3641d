#!/usr/bin/env python3
"""Texts per second and latency of models in use, in torch and, where installed, in ONNX and int8.

    python3 benchmarks/inference.py --teacher teacher.bin --student student.bin

Both are UER files or Hugging Face folders. What is asked of them: of encoders the pooled and normalised vector, of
classifiers, taggers and readers their logits, of models with an MLM head the last hidden states. The ways take turns
on the same random texts without padding, some calls each, after a pause in which the threads of the one before go to
sleep: torch's and onnxruntime's go on turning for a while after a call. Medians (p50) and 95th percentiles (p95) of the
wall clock of a call.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from uer.conversion.merge import probe_batch, student_model
from uer.errors import UserError, run_script
from uer.formats import load_model
from uer.formats.onnx_export import INPUTS, Interface, OnnxModel, check_packages, quantise, write_onnx
from uer.formats.stock import model_inputs
from uer.models.bert import Bert

TURNS = 3
PAUSE = 0.2  # seconds
Way = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True, metavar="PATH")
    parser.add_argument("--student", required=True, metavar="PATH")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 32], help="texts in a call (default: 1 32)")
    parser.add_argument("--seq_length", type=int, nargs="+", default=[16, 64, 128], help="default: 16 64 128")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way and shape (default: 2)")
    return parser.parse_args(words)


def load(path: str) -> Bert:
    """A model in evaluation mode, with what stands on its encoder."""
    loaded = load_model(path, config=None, vocab_size=None, target=None)
    return student_model(loaded.config, loaded.weights)


def interface_of(model: Bert) -> tuple[Interface, str]:
    """The model as its ONNX file gives it, and which of the outputs is asked for."""
    interface = Interface(model, normalize=model.config.target == "states")
    return interface, "last_hidden_state" if model.config.target == "mlm" else interface.output


def torch_way(model: Bert) -> Way:
    interface, output = interface_of(model)
    if output == "last_hidden_state":
        return model.hidden_states
    return lambda src, seg: interface(*model_inputs(src, seg))[0]


def onnx_files(models: dict[str, Bert], folder: str) -> dict[str, tuple[Path, str]]:
    """way -> file and output; {} where the packages are not installed."""
    try:
        check_packages()
    except UserError as error:
        print(error)
        return {}
    import onnx.utils

    found = {}
    for name, model in models.items():
        interface, output = interface_of(model)
        whole, exact, int8 = (Path(folder) / f"{name}-{kind}.onnx" for kind in ("whole", "exact", "int8"))
        write_onnx(whole, interface, *probe_batch(model.sizes.vocab, model.sizes.positions))
        onnx.utils.extract_model(str(whole), str(exact), list(INPUTS), [output])
        quantise(exact, int8)
        found |= {f"{name}, ONNX": (exact, output), f"{name}, int8": (int8, output)}
    return found


def onnx_way(path: Path, output: str, threads: int) -> Way:
    model = OnnxModel(path, threads)
    return lambda src, seg: model(src, seg, output)


@torch.inference_mode()
def measure(ways: dict[str, Way], src: torch.Tensor, seg: torch.Tensor, seconds: float) -> dict[str, torch.Tensor]:
    """way -> seconds of its calls [calls], at least 2 a turn."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS):
        for name, way in ways.items():
            time.sleep(PAUSE)
            way(src, seg)
            until = time.perf_counter() + seconds / TURNS
            while time.perf_counter() < until or len(taken[name]) < 2 * (turn + 1):
                begun = time.perf_counter()
                way(src, seg)
                taken[name].append(time.perf_counter() - begun)
    return {name: torch.tensor(times) for name, times in taken.items()}


def main() -> None:
    args = parse_args()
    models = {"teacher": load(args.teacher), "student": load(args.student)}
    for name, model in models.items():
        encoder = sum(p.numel() for key, p in model.named_parameters() if not key.startswith("target."))
        print(f"{name}: {len(model.sizes.layers)} layers x {model.sizes.hidden}, {encoder / 1e6:.1f} M parameters "
              f"without a head")
    print(f"\n{'threads':>7} {'batch':>5} {'tokens':>6}  {'':14}{'p50, ms':>9}{'p95, ms':>9}{'texts/s':>9}"
          f"{'of teacher':>12}")
    with tempfile.TemporaryDirectory() as folder:
        files = onnx_files(models, folder)
        for threads in args.threads:
            torch.set_num_threads(threads)
            ways = {name: torch_way(model) for name, model in models.items()}
            ways |= {name: onnx_way(*file, threads) for name, file in files.items()}
            for batch in args.batch_size:
                for seq in args.seq_length:
                    src = torch.randint(100, models["student"].sizes.vocab, (batch, seq))
                    times = measure(ways, src, torch.ones_like(src), args.seconds)
                    medians = {name: float(found.median()) for name, found in times.items()}
                    for name, found in times.items():
                        print(f"{threads:7} {batch:5} {seq:6}  {name:14}{1e3 * medians[name]:9.2f}"
                              f"{1e3 * float(found.quantile(0.95)):9.2f}{batch / medians[name]:9,.0f}"
                              f"{medians['teacher'] / medians[name]:11.1f}x", flush=True)


if __name__ == "__main__":
    run_script(main)
