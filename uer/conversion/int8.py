"""The int8 ONNX file of a model, and how far it is from the model in float32."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from uer.config import ModelConfig
from uer.conversion.merge import probe_batch
from uer.data.dataset import Dataset
from uer.data.loader import MlmLoader
from uer.errors import UserError
from uer.formats.onnx_export import Interface, OnnxModel, quantise, write_onnx
from uer.formats.stock import model_inputs
from uer.models.bert import Bert
from uer.training.objective import logits_of

BATCH_SIZE = 16
LARGEST_SHARE = 0.2  # of the logits' standard deviation that they may differ by on average; 0.02 to 0.07 are usual


def check_dev(dev: Dataset, config: ModelConfig, words: int) -> None:
    """`UserError` where held-out data do not fit a model."""
    if config.target != "mlm":
        raise UserError("--dev_path is a dataset of masked words, and this model has no MLM head to judge by it")
    if dev.header["vocab_size"] != words:
        raise UserError(f"--dev_path: built with {dev.header['vocab_size']:,} words, the model has {words:,}")
    dev.check_positions(config.max_seq_length)


def write_int8(path: Path, interface: Interface, dev: Dataset | None) -> str:
    """Write the file and compare it with the model.

    Args:
        interface: the model with what it is to give.
        dev: held-out data for the accuracy of both; None: logits of a fixed batch are compared.
    Returns:
        what was found, in words.
    Raises:
        UserError: logits that are another model's.
    """
    model = interface.model
    src, seg = probe_batch(model.sizes.vocab, model.sizes.positions)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        exact = Path(folder) / "float.onnx"
        write_onnx(exact, interface, src, seg)
        quantise(exact, path)
        sizes = f"{path.stat().st_size / 1e6:.1f} MB of {exact.stat().st_size / 1e6:.1f} MB"
    int8 = OnnxModel(path)
    found = [f"int8, {sizes}", _difference(interface, int8, src, seg)]
    if dev is not None and model.config.target == "mlm":
        found.append(_accuracy(model, int8, dev))
    return "; ".join(found)


@torch.no_grad()
def _difference(interface: Interface, int8: OnnxModel, src: torch.Tensor, seg: torch.Tensor) -> str:
    expected, found = interface(*model_inputs(src, seg))[0], int8(src, seg)
    if expected.dim() == 3:  # of every position, padding aside
        expected, found = expected[seg > 0], found[seg > 0]
    apart, spread = (found - expected).abs(), float(expected.std())
    if not float(apart.mean()) <= LARGEST_SHARE * spread:
        raise UserError(f"self-check (int8): logits differ by {apart.mean():.3g} on average, their standard deviation "
                        f"is {spread:.3g}: this model does not survive 8 bits; nothing was written, take "
                        f"--output_format onnx")
    return (f"logits differ by {apart.max():.2g} at most, by {apart.mean():.2g} on average (their standard deviation: "
            f"{spread:.2g})")


@torch.no_grad()
def _accuracy(model: Bert, int8: OnnxModel, dev: Dataset) -> str:
    right = torch.zeros(3, dtype=torch.long)  # float32, int8, both alike
    predicted = 0
    for batch in MlmLoader(dev, BATCH_SIZE, seed=0, prefetch=0).sequential():
        eight_bits = int8(batch.src, batch.seg).flatten(0, 1)[batch.positions]
        best = [logits.argmax(1) for logits in (logits_of(model, batch), eight_bits)]
        right += torch.stack([(best[0] == batch.labels).sum(), (best[1] == batch.labels).sum(),
                              (best[0] == best[1]).sum()])
        predicted += len(batch.labels)
    float32, eight, alike = (100 * count / max(1, predicted) for count in right.tolist())
    return (f"held-out accuracy {float32:.2f} % in float32, {eight:.2f} % in int8, {alike:.1f} % of {predicted:,} "
            f"predictions alike")
