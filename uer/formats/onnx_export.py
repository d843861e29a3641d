"""ONNX export, with the inputs and outputs that other BERT exports have. Needs onnx, onnxscript and onnxruntime."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from uer.errors import UserError
from uer.formats.stock import model_inputs
from uer.models.bert import Bert

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18


class _Interface(nn.Module):
    """input_ids, attention_mask, token_type_ids int64 [batch, seq] -> logits, last_hidden_state."""

    def __init__(self, model: Bert):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor,
                token_type_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.model.hidden_states(input_ids, (token_type_ids + 1) * attention_mask)
        return self.model.target(hidden), hidden


def check_packages() -> None:
    """`UserError` that names what is not installed."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"--output_format onnx: not installed: {', '.join(missing)} (pip install {' '.join(missing)})")


def write_onnx(path: Path, model: Bert, src: torch.Tensor, seg: torch.Tensor) -> None:
    """Export a model in evaluation mode; batch and sequence length stay free.

    Args:
        src, seg: an example, int64 [batch, seq].
    """
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("sequence", min=2, max=model.sizes.positions)
    names = ("input_ids", "attention_mask", "token_type_ids")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Interface(model).eval(), model_inputs(src, seg), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(names), output_names=["logits", "last_hidden_state"],
            dynamic_shapes={name: {0: batch, 1: seq} for name in names})
    assert program is not None
    program.save(str(path), external_data=False)


def onnx_logits(path: Path, src: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
    """What onnxruntime computes: [batch, seq, vocab]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = dict(zip(("input_ids", "attention_mask", "token_type_ids"),
                      (tensor.numpy() for tensor in model_inputs(src, seg))))
    return torch.from_numpy(session.run(["logits"], inputs)[0])
