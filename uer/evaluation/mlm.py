"""evaluate.py's work: one model file, one held-out dataset, a few figures."""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import torch

from uer.arguments import check_writable
from uer.config import load_config
from uer.data.dataset import Dataset
from uer.data.loader import MlmLoader
from uer.formats import load_model
from uer.formats.storage import write_json, write_via
from uer.formats.tokenizer_files import text_beside
from uer.models.bert import Bert, from_weights
from uer.progress import tracked
from uer.tokenizers import agreed_rules
from uer.training.objective import evaluate
from uer.training.precision import slow_products


class Figures(NamedTuple):
    """Mean cross entropy (nats a masked token), share of right predictions, masked tokens, parameters, speed."""

    loss: float
    accuracy: float
    predicted: int
    parameters: int
    tokens_per_second: float


def evaluate_file(args: argparse.Namespace) -> Figures:
    """Load, evaluate, print, write.
    `UserError` for a model or dataset that cannot be used, or that do not belong together."""
    if args.output_path:
        check_writable(args.output_path)
    dataset = Dataset.open(args.dataset_path)
    agreed_rules(args, dataset.rules, *text_beside(args.model_path), say=print)
    config = load_config(args.config_path) if args.config_path else None
    loaded = load_model(args.model_path, config=config, vocab_size=dataset.header["vocab_size"])
    for note in loaded.notes:
        print(f"note: {note}")
    dataset.check_positions(loaded.config.max_seq_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for warning in slow_products(torch.bfloat16 if args.bf16 else None, device, training=False):
        print(warning, flush=True)
    loader = MlmLoader(dataset, args.batch_size, seed=0, prefetch=0)
    figures = measure(from_weights(loaded.config, loaded.weights).to(device), loader, device, args.bf16)
    print(f"{args.model_path}: {figures.parameters / 1e6:.1f} M parameters, loss {figures.loss:.4f}, accuracy "
          f"{100 * figures.accuracy:.2f} % of {figures.predicted:,} predictions, "
          f"{figures.tokens_per_second:,.0f} tokens/s")
    if args.output_path:
        write_via(args.output_path, lambda path: write_json(figures._asdict(), path))
    return figures


def measure(model: Bert, loader: MlmLoader, device: torch.device, bf16: bool = False) -> Figures:
    """Figures of a model over a whole dataset; the speed is that of the forward pass, after a batch to warm up."""
    batches = list(loader.sequential())
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        evaluate(model, batches[:1], device)
        begun = time.perf_counter()
        shown = tracked(batches, len(batches), "evaluate", "batches")
        result = evaluate(model, shown, device)  # ends with a read from the device
        seconds = time.perf_counter() - begun
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Figures(*result, parameters, sum(batch.tokens for batch in batches) / seconds)
