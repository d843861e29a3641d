"""--output_format onnx-int8: close to the model, a fraction of its size, its accuracy told; refused where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import VOCAB, trained
from test_convert import convert

from uer.conversion.merge import probe_batch, student_model
from uer.errors import UserError
from uer.formats import load_model


def test_without_the_format_held_out_data_do_nothing(tmp_path: Path, monkeypatch):
    with pytest.raises(UserError, match="--dev_path does nothing without --output_format onnx-int8"):
        convert(monkeypatch, *trained(tmp_path, "dim").options(tmp_path / "s.bin", "--dev_path", "dev.pt"))


def test_it_is_close_to_the_model(tmp_path: Path, monkeypatch, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from uer.formats.onnx_export import OnnxModel

    case = trained(tmp_path, "dim")
    convert(monkeypatch, *case.options(tmp_path / "s.bin", "--output_format", "uer", "onnx", "onnx-int8"))
    assert "int8, " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("s*.onnx")) == ["s-int8.onnx", "s.onnx"]
    model = load_model(tmp_path / "s.bin", config=None, vocab_size=None)
    src, seg = (tensor[:3, :7].contiguous() for tensor in probe_batch(VOCAB, 20))
    expected = student_model(model.config, model.weights)(src, seg).detach().view(3, 7, VOCAB)
    apart = (OnnxModel(tmp_path / "s-int8.onnx")(src, seg) - expected).abs()
    assert 0 < apart.mean() < 0.05 * expected.std()


def test_a_model_that_8_bits_destroy_is_refused(tmp_path: Path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    import uer.conversion.int8 as module

    monkeypatch.setattr(module.OnnxModel, "__call__", lambda self, src, seg: torch.randn(*src.shape, VOCAB))
    case = trained(tmp_path, "dim")
    with pytest.raises(UserError, match="does not survive 8 bits"):
        convert(monkeypatch, *case.options(tmp_path / "s.bin", "--output_format", "onnx-int8"))
    assert not list(tmp_path.glob("s*.onnx"))
