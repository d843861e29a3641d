"""Model files of all kinds: what is wrong is named, nothing runs, nothing half written stays."""

from __future__ import annotations

import json
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import CONFIG, POSITIONS, VOCAB, assert_close, trained, weights, write_vocab
from safetensors.torch import save_file

from uer.config import ModelConfig
from uer.conversion.stage1 import read_checkpoint
from uer.errors import UserError
from uer.files import as_written
from uer.formats import load_model
from uer.formats.export import write_huggingface, write_uer
from uer.formats.storage import PendingFiles, read_tensors, write_via
from uer.models.bert import from_scratch

ROOT = Path(__file__).resolve().parents[1]


def load(path: Path, config: ModelConfig | None = CONFIG, vocab_size: int | None = VOCAB, **options):
    return load_model(path, config=config, vocab_size=vocab_size, **options)


@pytest.mark.parametrize("generation", ["published", "uer-py"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_uer_files_of_both_generations(tmp_path: Path, generation: str, prefix: str):
    path, original = tmp_path / "m.bin", weights(CONFIG)
    write_uer(path, original, generation)
    torch.save({prefix + name: tensor for name, tensor in read_tensors(path).items()}, path)
    names = set(read_tensors(path))
    assert ("embedding.word.embedding.weight" in names) == ("target.mlm.linear_1.bias" in names) == \
        (generation == "uer-py")
    loaded = load(path)
    assert_close(loaded.weights, original, 0)
    assert (loaded.source, loaded.notes) == ("uer", [])


def test_every_wrong_tensor_is_named(tmp_path: Path):
    broken = weights(CONFIG)
    del broken["encoder.transformer.1.self_attn.final_linear.bias"], broken["target.layer_norm.gamma"]
    broken["encoder.transformer.0.layer_norm_2.beta"] = torch.zeros(64)
    broken["encoder.relative_pos_emb.weight"] = torch.zeros(3)
    write_uer(tmp_path / "m.bin", broken)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "m.bin")
    for part in ("missing: encoder.transformer.1.self_attn.final_linear.bias, target.layer_norm.gamma",
                 "unexpected: encoder.relative_pos_emb.weight",
                 "encoder.transformer.0.layer_norm_2.beta is [64] instead of [128]"):
        assert part in str(caught.value)


def test_sizes_are_checked_against_config_and_vocabulary(tmp_path: Path):
    write_uer(tmp_path / "m.bin", weights(CONFIG))
    other = ModelConfig(hidden_size=256, layers_num=3, heads_num=4, feedforward_size=512, max_seq_length=512)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "m.bin", other, 77)
    for part in ("hidden_size is 128 in the file, 256 in the config", "layers_num is 2 in the file, 3",
                 "feedforward_size is 256 in the file, 512", "20 positions, the config's max_seq_length is 512",
                 "60 word embeddings, the vocabulary 77 tokens"):
        assert part in str(caught.value)


def test_word_embeddings_that_belong_to_no_token_are_noted(tmp_path: Path):
    write_uer(tmp_path / "m.bin", weights(CONFIG))
    assert not any("belong" in note for note in load(tmp_path / "m.bin", CONFIG, 60).notes)
    assert any("60 word embeddings, the vocabulary 50 tokens: 10 belong to no token" in note
               for note in load(tmp_path / "m.bin", CONFIG, 50).notes)


def test_the_config_comes_from_beside_the_file_or_the_shapes(tmp_path: Path):
    thin = replace(CONFIG, heads_num=8, layernorm="huggingface", layernorm_eps=1e-12)
    write_uer(tmp_path / "m.bin", weights(thin))
    assert load(tmp_path / "m.bin", None).config == replace(CONFIG, heads_num=2)  # heads of 64
    (tmp_path / "m_config.json").write_text(thin.to_json())
    assert load(tmp_path / "m.bin", None).config == thin
    with pytest.raises(UserError, match="heads_num is 8 there, 2 in the given config"):
        load(tmp_path / "m.bin", CONFIG)
    assert "not as" in load(tmp_path / "m.bin", replace(CONFIG, heads_num=8)).notes[0]


def test_what_says_what_a_file_is_stands_beside_it_or_its_link(tmp_path: Path):
    thin, folder = replace(CONFIG, heads_num=8), tmp_path / "run"
    folder.mkdir()
    write_uer(folder / "m.bin-4", weights(thin))
    (folder / "m.bin-4.json").write_text(json.dumps({"teacher": thin.to_dict()}))
    link = tmp_path / "latest.bin"
    link.symlink_to(folder / "m.bin-4")
    assert load(link, None).config == thin and read_checkpoint(link)[1]["teacher"]["heads_num"] == 8
    (tmp_path / "latest_config.json").write_text(CONFIG.to_json())
    assert load(link, None).config == CONFIG
    (tmp_path / "folder").symlink_to(folder)
    assert as_written(tmp_path / "folder") == tmp_path / "folder"  # as the user calls it


def test_figures_beside_a_file_are_no_config(tmp_path: Path):
    thin = replace(CONFIG, heads_num=8)
    write_uer(tmp_path / "m.bin", weights(thin))
    (tmp_path / "m_config.json").write_text(thin.to_json())
    (tmp_path / "m.bin.json").write_text('{"loss": 4.7, "accuracy": 0.1}')
    assert load(tmp_path / "m.bin", None).config == thin
    assert read_checkpoint(tmp_path / "m.bin")[1]["teacher"]["heads_num"] == 8


def test_a_checkpoint_with_compactors_is_sent_to_convert(tmp_path: Path):
    with pytest.raises(UserError, match=r"compactors.*convert\.py"):
        load(trained(tmp_path, "dim").checkpoint)


def test_tying_is_taken_from_the_config(tmp_path: Path):
    tied = weights(CONFIG)
    del tied["target.mlm_linear_2.weight"]
    write_uer(tmp_path / "m.bin", tied)
    with pytest.raises(UserError, match=r"missing: target\.mlm_linear_2\.weight"):
        load(tmp_path / "m.bin")
    loaded = load(tmp_path / "m.bin", replace(CONFIG, tie_weights=True)).weights
    assert loaded["target.mlm_linear_2.weight"].equal(loaded["embedding.word_embedding.weight"])


def test_a_missing_head_is_made_when_allowed(tmp_path: Path):
    encoder = {name: tensor for name, tensor in weights(CONFIG).items() if not name.startswith("target.")}
    write_uer(tmp_path / "m.bin", encoder)
    with pytest.raises(UserError, match="--allow_missing_head makes one"):
        load(tmp_path / "m.bin")
    made = load(tmp_path / "m.bin", allow_missing_head=True)
    assert made.head_made and "MLM head made" in made.notes[0]
    assert made.weights["target.mlm_linear_2.weight"].equal(encoder["embedding.word_embedding.weight"])
    transform = made.weights["target.mlm_linear_1.weight"]
    assert 0 < (transform - torch.eye(128)).abs().max() < 0.1
    assert transform.equal(load(tmp_path / "m.bin", allow_missing_head=True).weights["target.mlm_linear_1.weight"])
    assert not transform.equal(load(tmp_path / "m.bin", allow_missing_head=True, seed=1)
                               .weights["target.mlm_linear_1.weight"])
    torn = {**encoder, "target.mlm_linear_1.weight": torch.eye(128)}  # half a head is a damaged file
    write_uer(tmp_path / "m.bin", torn)
    with pytest.raises(UserError, match=r"missing: target\.mlm_linear_1\.bias"):
        load(tmp_path / "m.bin", allow_missing_head=True)


def test_half_precision_is_widened_and_double_kept(tmp_path: Path):
    for stored, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32),
                             (torch.float64, torch.float64)):
        write_uer(tmp_path / "m.bin", weights(CONFIG, dtype=stored))
        assert {tensor.dtype for tensor in load(tmp_path / "m.bin").weights.values()} == {expected}


# -- files that are no models ------------------------------------------------------------------------------------------


class Trap:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_pickled_code_is_named_and_not_run(tmp_path: Path):
    torch.save({"embedding.word_embedding.weight": torch.ones(2, 2), "x": Trap(tmp_path / "ran")}, tmp_path / "m.bin")
    with pytest.raises(UserError, match=r"pickled code \(\w+\.mkdir\)"):
        load(tmp_path / "m.bin")
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.bin")
    with pytest.raises(UserError, match=r"pickled code \(torch\.nn\.modules\.linear\.Linear\)"):
        load(tmp_path / "m.bin")


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.999])
def test_truncated_files(tmp_path: Path, suffix: str, keep: float):
    path = tmp_path / f"m{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(weights(CONFIG), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * keep)])
    with pytest.raises(UserError, match=r"damaged|empty"):
        load(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02garbage", b"PK\x03\x04 not a zip", b"\x00" * 100,
                                     b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_files_that_hold_something_else(tmp_path: Path, content: bytes, suffix: str):
    (tmp_path / f"m{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|a Git LFS pointer, not|a zip archive, not"):
        load(tmp_path / f"m{suffix}")


@pytest.mark.parametrize("data, message", [
    ([torch.ones(2)], "holds a list"), ({}, "holds nothing"), ({"step": 3, "lr": 0.1}, "are no tensors: step, lr"),
    ({"weight": torch.ones(2)}, "neither UER's nor Hugging Face's BERT"),
    ({"embedding.word_embedding.weight": torch.tensor([[1.0, float("nan")]])}, "not-a-number .* embedding.word_emb"),
])
def test_dicts_that_are_no_models(tmp_path: Path, data, message: str):
    torch.save(data, tmp_path / "m.bin")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "m.bin")


def test_a_state_dict_inside_another_is_found(tmp_path: Path):
    torch.save({"model": weights(CONFIG), "step": 7}, tmp_path / "m.bin")
    assert_close(load(tmp_path / "m.bin").weights, weights(CONFIG), 0)


def test_absent_files_and_folders(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.bin")
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load(tmp_path)
    with pytest.raises(UserError, match="model_type 'gpt2'"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        save_file({"bert.embeddings.x": torch.ones(1)}, tmp_path / "model.safetensors")
        load(tmp_path)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_an_error_leaves_no_trace(tmp_path: Path):
    (tmp_path / "a.bin").write_text("old")
    with pytest.raises(RuntimeError), PendingFiles() as pending:
        pending.add(tmp_path / "a.bin").write_text("new")
        pending.add(tmp_path / "folder").mkdir()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"] and (tmp_path / "a.bin").read_text() == "old"


def test_a_folder_is_replaced_file_by_file(tmp_path: Path):
    (tmp_path / "f").mkdir()
    for name in ("config.json", "mine.txt"):
        (tmp_path / "f" / name).write_text("old")
    write_via(tmp_path / "f", lambda folder: write_huggingface(folder, CONFIG, weights(CONFIG)))
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"config.json", "mine.txt", "model.safetensors"}
    assert (tmp_path / "f" / "mine.txt").read_text() == "old"
    assert json.loads((tmp_path / "f" / "config.json").read_text())["max_position_embeddings"] == POSITIONS
    assert {path.name for path in tmp_path.iterdir()} == {"f"}


@pytest.fixture
def run(monkeypatch, capsys):
    """A script in this process, in another folder: (exit code, stdout, stderr). Without transformers' help."""
    def inner(script: str, *options: object, cwd: Path) -> tuple[int, str, str]:
        monkeypatch.setattr("uer.formats.stock.available", lambda: False)
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()
    return inner


def test_a_file_without_a_head_becomes_an_encoder(tmp_path: Path, run):
    """Stock names of a BertModel, and nothing of a head that nobody trained."""
    config = replace(CONFIG, layernorm="huggingface", layernorm_eps=1e-12)
    write_uer(tmp_path / "e.bin", {name: x for name, x in weights(config).items() if not name.startswith("target.")})
    (tmp_path / "e_config.json").write_text(config.to_json())
    code, out, err = run("convert_bert_from_uer_to_huggingface.py", "--input_model_path", "e.bin",
                         "--output_model_path", "hf", "--vocab_path", write_vocab(tmp_path / "v.txt"), cwd=tmp_path)
    assert code == 0 and "largest state difference" in out, err
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == ["BertModel"]
    assert not [name for name in read_tensors(tmp_path / "hf/model.safetensors") if "cls." in name]


@pytest.mark.parametrize("target", [{"target": "states", "outputs": CONFIG.hidden_size}, {
    "target": "cls", "outputs": 2, "labels": ("no", "yes"), "pooling": "first"}, {"target": "tokens", "outputs": 3}])
def test_a_folder_without_mlm_head_becomes_a_uer_file(tmp_path: Path, run, target):
    """An encoder, classifier or tagger, as what reads such folders takes it."""
    config = replace(CONFIG, layernorm="huggingface", layernorm_eps=1e-12, **target)
    write_huggingface(tmp_path / "hf", config, from_scratch(config, VOCAB, 1).state_dict())
    words = ["convert_bert_from_huggingface_to_uer.py", "--input_model_path", "hf", "--output_model_path", "n.bin"]
    code, _, err = run(*words, "--type", "mlm", cwd=tmp_path)
    assert code == 2 and "--allow_missing_head makes one" in err and not (tmp_path / "n.bin").exists()
    code, out, err = run(*words, cwd=tmp_path)
    assert code == 0 and "--task agreement" in out, err
    there, here = (load_model(tmp_path / name, config=None, vocab_size=None, target=None) for name in ("hf", "n.bin"))
    assert here.config == there.config and here.config.target == config.target
    assert_close(here.weights, there.weights, 0)


def test_the_two_scripts_are_inverse(tmp_path: Path, run):
    """UER -> Hugging Face -> UER."""
    config = replace(CONFIG, heads_num=4, layernorm="huggingface", layernorm_eps=1e-12)
    write_uer(tmp_path / "m.bin", weights(config))
    (tmp_path / "m_config.json").write_text(config.to_json())
    vocab = write_vocab(tmp_path / "v.txt")
    code, out, err = run("convert_bert_from_uer_to_huggingface.py", "--input_model_path", "m.bin",
                         "--output_model_path", "hf", "--layers_num", 2, "--type", "mlm", "--vocab_path", "v.txt",
                         cwd=tmp_path)
    assert code == 0 and "read back: largest logit difference" in out, err
    code, _, err = run("convert_bert_from_huggingface_to_uer.py", "--input_model_path", "hf", "--output_model_path",
               "deep/n.bin", "--layers_num", 2, "--type", "mlm", cwd=tmp_path)
    assert code == 0, err
    again = load(tmp_path / "deep" / "n.bin", None)
    assert again.config == config
    again.weights["embedding.segment_embedding.weight"][0] = \
        weights(config)["embedding.segment_embedding.weight"][0]  # the padding row has no counterpart
    assert_close(again.weights, weights(config), 3e-7)
    assert (tmp_path / "deep" / "n_vocab.txt").read_bytes() == vocab.read_bytes()
    code, _, err = run("convert_bert_from_huggingface_to_uer.py", "--input_model_path", "hf", "--output_model_path",
                       "x.bin", "--type", "bert", cwd=tmp_path)
    assert code == 2 and "use --type mlm" in err and not (tmp_path / "x.bin").exists()


def test_what_a_nameless_error_says_is_not_lost(tmp_path):
    """One without a number says nothing but its words, which a name in it would hide."""
    with pytest.raises(OSError, match="odd data"), PendingFiles() as pending:
        pending.add(tmp_path / "model.bin")
        raise OSError("odd data")
