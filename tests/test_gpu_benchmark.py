"""The GPU benchmark at a size for which a CPU does."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).resolve().parents[1] / "benchmarks/gpu_step_time.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("gpu_step_time", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = ["--layers_num", "2", "--hidden_size", "128", "--target_dim", "64", "--vocabulary", "300", "--batch_size", "2",
         "--seq_length", "16", "--turns", "1", "--steps", "2", "--device", "cpu"]


def test_every_figure_is_printed(benchmark, capsys):
    benchmark.main([*SMALL, "--formats", "fp32", "bf16"])
    torch.set_float32_matmul_precision("highest")
    printed = capsys.readouterr().out
    for phase in ("activations", "composed", "squeezed", "plain"):
        rows = re.findall(rf"{phase} +([\d.]+) +([\d.]+)x +([\d,]+) +([\d.]+) +([\d.]+) % +0\.0 +([\d.]+)\n", printed)
        assert len(rows) == 2 and all(float(row[0]) > 0 for row in rows)
    fp32 = dict(re.findall(r"(\w+) +[\d.]+ .*? ([\d.]+)\n", printed.split("bf16:")[0]))
    assert float(fp32["activations"]) == pytest.approx(float(fp32["composed"]), abs=1e-4)  # the same model
    assert re.search(r"fp32, squeezed against activations: [\d.]+x \(aim: 20x\)", printed)
    assert re.search(r"bf16, composed: [\d.]+ % of the matmul peak \(aim: 40 %\)", printed)
    assert len(re.findall(r"squeezed against a plain student's step: [\d.]+x its time \(aim: 1.5x\)", printed)) == 2


def test_model_flops_are_counted_by_hand(benchmark):
    args = benchmark.parse_args([*SMALL, "--layers_num", "1"])
    config = benchmark.teacher_config(args)  # 128 wide, 512 inside; 32 tokens, of which 4 are predicted
    inputs, outputs = 2 * 3 * 128 * 128, 2 * (128 * 128 + 2 * 128 * 512)  # of a position
    attention, head = 2 * (2 * 2 * 16 * 16 * 128), 2 * 4 * (128 * 128 + 128 * 300)
    published = 3 * (32 * inputs + 32 * outputs + attention + head)
    assert benchmark.model_flops(config, args, selected=False) == published
    assert benchmark.model_flops(config, args) == 3 * (32 * inputs + 4 * outputs + attention + head)
    args.layers_num, config = 2, replace(config, layers_num=2)
    assert benchmark.model_flops(config, args) == 3 * (64 * inputs + 36 * outputs + 2 * attention + head)
