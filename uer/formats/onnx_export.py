"""ONNX export, with the inputs and outputs that other BERT exports have. Needs onnx, onnxscript and onnxruntime.

int8 is onnxruntime's dynamic quantisation: weights of every product, a scale for each of its outputs, and of the tables
in 7 bits and a sign (all 8 overflow on processors without VNNI); activations in 8 bits, their range found anew for each
batch, so that nothing has to be calibrated.
"""

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
from uer.targets.pooling import pooled

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Interface(nn.Module):
    """input_ids, attention_mask, token_type_ids int64 [batch, seq] -> logits, last_hidden_state.

    An encoder alone has sentence_embedding in the place of logits: pooled, mapped, of length 1, as asked for.
    `normalize`: bring embeddings to length 1; `mapped`: into the teacher's space.
    """

    def __init__(self, model: Bert, normalize: bool = False, mapped: bool = False):
        super().__init__()
        self.model, self.normalize, self.mapped = model, normalize, mapped
        self.pools = model.config.target in ("states", "cls")
        self.output = "sentence_embedding" if model.config.target == "states" else "logits"

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor,
                token_type_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seg = (token_type_ids + 1) * attention_mask
        hidden = self.model.hidden_states(input_ids, seg)
        read = pooled(hidden, seg, self.model.config.pooling) if self.pools else hidden
        said = self.model.target(read) if self.output == "logits" or self.mapped else read
        return nn.functional.normalize(said, dim=-1) if self.normalize else said, hidden


def check_packages() -> None:
    """`UserError` that names what is not installed."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"--output_format onnx: not installed: {', '.join(missing)} (pip install {' '.join(missing)})",
                        page="formats")


def write_onnx(path: Path, interface: Interface, src: torch.Tensor, seg: torch.Tensor) -> None:
    """Export a model in evaluation mode; batch and sequence length stay free.

    Args:
        interface: the model with what it is to give.
        src, seg: an example, int64 [batch, seq].
    """
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("sequence", min=2, max=interface.model.sizes.positions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            interface.eval(), model_inputs(src, seg), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(INPUTS), output_names=[interface.output, "last_hidden_state"],
            dynamic_shapes={name: {0: batch, 1: seq} for name in INPUTS})
    assert program is not None
    sizes = [size for value in program.model.graph.inputs for size in value.shape or ()]
    assert not any(isinstance(size, int) for size in sizes), f"sizes that were to stay free are fixed: {sizes}"
    program.save(str(path), external_data=False)


def quantise(path: Path, output: Path) -> None:
    """Write the int8 version of an ONNX file."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # advice on graphs that are not this one
    try:
        quantize_dynamic(str(path), str(output), op_types_to_quantize=["MatMul", "Gather"], per_channel=True,
                         reduce_range=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


class OnnxModel:
    """An ONNX file as onnxruntime runs it on a CPU, with the arguments of a `Bert`.
    `threads`: that one call may use (default: all cores)."""

    def __init__(self, path: Path, threads: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, src: torch.Tensor, seg: torch.Tensor, output: str | None = None) -> torch.Tensor:
        """src, seg int64 [batch, seq] -> the file's first output, float32 [batch, seq, vocab] say, or another."""
        inputs = dict(zip(INPUTS, (tensor.numpy() for tensor in model_inputs(src, seg))))
        return torch.from_numpy(self.session.run([output] if output else None, inputs)[0])
