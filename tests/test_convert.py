"""convert.py: the student is what the formula says, in every format; contradictions are refused and leave no file."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import CONFIG, STEP, VOCAB, assert_close, by_hand, trained, weights, write_vocab
from commands import refused

from uer.config import ModelConfig
from uer.conversion.merge import probe_batch, student_model
from uer.errors import UserError
from uer.formats import load_model
from uer.formats.export import write_uer
from uer.squeeze.wiring import masked_compactors
from uer.training.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES = ["dim", "head"]


def convert(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    """convert.py in this process."""
    monkeypatch.syspath_prepend(str(ROOT))
    import convert as script
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, options)])
    script.main()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_student_is_the_formula(tmp_path: Path, monkeypatch, strategy: str):
    case = trained(tmp_path, strategy)
    convert(monkeypatch, *case.options(tmp_path / "out" / "student.bin"))
    assert_close(torch.load(tmp_path / "out" / "student.bin", weights_only=True), by_hand(case))
    written = json.loads((tmp_path / "out" / "student_config.json").read_text())
    assert (written["hidden_size"], written["heads_num"], written["feedforward_size"], written["layers_num"]) == \
        (64, 2 if strategy == "dim" else 1, 128, 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["student.bin", "student_config.json"]


def test_a_tied_teacher_has_an_untied_student(tmp_path: Path, monkeypatch):
    case = trained(tmp_path, "dim", config=replace(CONFIG, tie_weights=True))
    convert(monkeypatch, *case.options(tmp_path / "s.bin"))
    assert_close(torch.load(tmp_path / "s.bin", weights_only=True), by_hand(case))
    assert json.loads((tmp_path / "s_config.json").read_text())["tie_weights"] is False


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_before_amid_and_after_a_squeeze(tmp_path: Path, monkeypatch, strategy: str):
    students = []
    for number, squeezed in enumerate([(), ("hidden", "ffn.1", "attention.0"), ("all",)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        case = trained(folder, strategy, squeezed=squeezed)
        options = case.options(folder / "s.bin")
        if squeezed == ("all",):  # no masks needed any more, nor anything else
            options = ["--load_model_path", case.checkpoint, "--output_model_path", folder / "s.bin"]
        convert(monkeypatch, *options)
        students.append(torch.load(folder / "s.bin", weights_only=True))
    assert_close(students[0], students[1])
    assert_close(students[0], students[2])


def test_a_student_as_wide_as_its_teacher_needs_no_masks(tmp_path: Path, monkeypatch):
    """A calibrated start has none: of `hidden` nothing left, and no shape tells that it is done."""
    case = trained(tmp_path, "dim", CONFIG.hidden_size, squeezed=("all",))
    convert(monkeypatch, "--load_model_path", case.checkpoint, "--output_model_path", tmp_path / "s.bin")
    assert_close(torch.load(tmp_path / "s.bin", weights_only=True), by_hand(case))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_artefacts_of_the_published_code(tmp_path: Path, monkeypatch, strategy: str, prefix: str):
    case = trained(tmp_path, strategy, card=False, prefix=prefix)
    lines = [line.split("\t") for line in case.masks.read_text().splitlines()]
    case.masks.write_text("".join(f"{step}\tmodule.{name}\t{json.loads(entry)[::-1]}\n" for step, name, entry in lines))
    convert(monkeypatch, *case.options(tmp_path / "folded.bin"))
    convert(monkeypatch, *case.options(tmp_path / "kept.bin", "--keep_attention_scale"))
    assert_close(torch.load(tmp_path / "folded.bin", weights_only=True), by_hand(case))
    assert_close(torch.load(tmp_path / "kept.bin", weights_only=True), by_hand(case, scale_queries=False))


def test_the_check_compares_with_what_was_trained(tmp_path: Path, monkeypatch):
    """Without the folded scale the student is another model: the check must see that and write nothing."""
    case = trained(tmp_path, "dim")
    monkeypatch.setattr("uer.squeeze.master.Master.query_scale", lambda *_: 1.0)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"disagrees with the trained model .* nothing was written"):
        convert(monkeypatch, *case.options(tmp_path / "student.bin"))
    assert sorted(tmp_path.iterdir()) == before


def test_a_restless_model_is_checked_in_float64(tmp_path: Path, monkeypatch, capsys):
    """Where scores are large, attention flips on rounding: float32 logits differ by far more than they do exactly."""
    case = trained(tmp_path, "dim")
    factors = {"linear_layers.0.weight": 22.0, "linear_layers.1.weight": 22.0, "linear_layers.2.weight": 12.0,
               "final_linear.weight": 12.0}
    torch.save({name: tensor * next((factors[end] for end in factors if name.endswith(end)), 1.0)
                for name, tensor in case.state.items()}, case.checkpoint)
    convert(monkeypatch, *case.options(tmp_path / "student.bin"))
    said = re.search(r"at 0: largest logit difference (\S+) \(logits up to (\S+),.*\nin float64 by (\S+): it is",
                     capsys.readouterr().out)
    assert float(said[1]) > 1e-4 * float(said[2]) and float(said[3]) < 1e-9
    monkeypatch.setattr("uer.squeeze.master.Master.query_scale", lambda *_: 1.0)
    with pytest.raises(UserError, match=r"disagrees .*\), in float64 by .* nothing was written"):
        convert(monkeypatch, *case.options(tmp_path / "other.bin"))


def test_another_models_config_beside_the_output_does_not_matter(tmp_path: Path, monkeypatch):
    case = trained(tmp_path, "head")
    stranger = ModelConfig(hidden_size=64, layers_num=1, heads_num=4, feedforward_size=64)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(stranger.to_json())
    convert(monkeypatch, *case.options(tmp_path / "out" / "student.bin"))
    assert load_model(tmp_path / "out" / "student.bin", config=None, vocab_size=None).config.heads_num == 1


def test_a_file_that_reads_back_otherwise_is_not_published(tmp_path: Path, monkeypatch):
    case = trained(tmp_path, "dim")
    monkeypatch.setattr("uer.conversion.outputs.write_uer", lambda path, tensors, _: torch.save(
        {name: tensor * 1.001 for name, tensor in tensors.items()}, path))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"self-check \(read back\)"):
        convert(monkeypatch, *case.options(tmp_path / "student.bin", "--output_format", "uer", "huggingface"))
    assert sorted(tmp_path.iterdir()) == before


def test_undecayed_entries_warn_and_are_written(tmp_path: Path, monkeypatch, capsys):
    convert(monkeypatch, *trained(tmp_path, "dim", dropped=0.2).options(tmp_path / "student.bin"))
    said = capsys.readouterr().out
    assert "largest dropped compactor entry 0.2" in said and "WARNING: the dropped entries have not decayed" in said
    convert(monkeypatch, *trained(tmp_path, "dim").options(tmp_path / "student.bin"))
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize("card", [True, False])
def test_masks_amid_the_schedule_make_no_student(tmp_path: Path, monkeypatch, card: bool):
    case = trained(tmp_path, "dim", k=5, card=card)
    with pytest.raises(UserError, match=r"mlm keeps 108 of 128 dimensions, 88 would fit; .* take a later --mask_step"):
        convert(monkeypatch, *case.options(tmp_path / "student.bin"))
    assert not (tmp_path / "student.bin").exists()


def test_all_contradictions_in_one_message(tmp_path: Path, monkeypatch):
    case = trained(tmp_path, "dim")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"hidden_size": 96, "layers_num": 2, "heads_num": 3, "feedforward_size": 256}))
    with pytest.raises(UserError) as caught:
        convert(monkeypatch, "--load_model_path", case.checkpoint, "--layers_num", 3, "--hidden_size", 256,
                "--feedforward_size", 1024, "--heads_num", 4, "--compactor_mask_strategy", "head", "--mask_path",
                case.masks, "--mask_step", 7, "--config_path", other, "--output_model_path", tmp_path / "s.bin")
    for part in ("--layers_num 3, but 2", "--hidden_size 256, but 128", "--feedforward_size 1024, but 256",
                 "--heads_num 4, but 2", "--compactor_mask_strategy head", "--mask_step 7, but",
                 "hidden_size is 96", "heads_num is 3"):
        assert part in str(caught.value)


@pytest.mark.parametrize("tear, message", [
    (lambda state: state.pop("target.mlm_linear_1_right_compactor.weight"), "missing: target.mlm_linear_1_right_comp"),
    (lambda state: state.update({"encoder.layer_norm.gamma": torch.ones(128)}), "unexpected: encoder.layer_norm.gamma"),
    (lambda state: state.update({"embedding.emb_compactor.weight": torch.ones(64, 128)}), "disagree .* group hidden"),
    (lambda state: state.update({"target.layer_norm.beta": torch.ones(64)}), "target.layer_norm.beta is .64. instead"),
])
def test_torn_checkpoints_are_named(tmp_path: Path, monkeypatch, tear, message: str):
    case = trained(tmp_path, "dim")
    tear(case.state)
    torch.save(case.state, case.checkpoint)
    with pytest.raises(UserError, match=message):
        convert(monkeypatch, *case.options(tmp_path / "s.bin"))


def test_the_other_strategy_is_suspected(tmp_path: Path, monkeypatch):
    case = trained(tmp_path, "head", card=False)
    case.strategy = "dim"
    with pytest.raises(UserError, match="other strategy"):
        convert(monkeypatch, *case.options(tmp_path / "s.bin"))


def without(masks: Path, *parts: str) -> None:
    masks.write_text("".join(line + "\n" for line in masks.read_text().splitlines()
                             if not any(part in line for part in parts)))


def test_a_group_that_follows_hidden_may_be_absent(tmp_path: Path, monkeypatch, capsys):
    case = trained(tmp_path, "dim")
    with pytest.raises(UserError, match=r"attention\.1 .* is not there"):  # its own scores say otherwise
        without(case.masks, "1.self_attn")
        convert(monkeypatch, *case.options(tmp_path / "s.bin"))
    for tensor in masked_compactors(case.config):
        if tensor.group == "attention.1":
            case.state[tensor.name] = torch.eye(128).index_fill(tensor.dim, case.groups["hidden"].dropped, 1e-7)
    torch.save(case.state, case.checkpoint)
    convert(monkeypatch, *case.options(tmp_path / "s.bin"))
    assert "attention.1 is not in the mask file; it follows hidden" in capsys.readouterr().out
    without(case.masks, "linear_2_left")
    with pytest.raises(UserError, match=r"ffn\.0 .* is not there; ffn\.1 .* is not there"):
        convert(monkeypatch, *case.options(tmp_path / "s.bin"))


def test_heads_of_an_unknown_size_are_asked_for(tmp_path: Path, monkeypatch):
    config = replace(CONFIG, hidden_size=24, heads_num=3, feedforward_size=48, max_seq_length=12)
    case = trained(tmp_path, "dim", 12, card=False, config=config)
    options = ["--load_model_path", case.checkpoint, "--mask_path", case.masks, "--mask_step", STEP,
               "--output_model_path", tmp_path / "s.bin"]
    with pytest.raises(UserError, match="--heads_num or --config_path"):
        convert(monkeypatch, *options)
    convert(monkeypatch, *options, "--heads_num", 3)
    assert load_model(tmp_path / "s.bin", config=None, vocab_size=VOCAB).config.heads_num == 3


def test_a_plain_model_is_converted_as_it_is(tmp_path: Path, monkeypatch):
    plain, path = weights(CONFIG, seed=3), tmp_path / f"plain.bin-{STEP}"
    torch.save(plain, path)
    Path(f"{path}.json").write_text(json.dumps({"format": 1, "step": STEP, "kind": "plain",
                                                "teacher": json.loads(CONFIG.to_json())}))
    convert(monkeypatch, "--load_model_path", path, "--output_model_path", tmp_path / "x.bin",
            "--output_format", "uer", "uer-py", "huggingface")
    assert_close(torch.load(tmp_path / "x.bin", weights_only=True), plain, 0)
    assert_close(load_model(tmp_path / "x-uer-py.bin", config=None, vocab_size=VOCAB).weights, plain, 0)
    again = load_model(tmp_path / "x", config=None, vocab_size=VOCAB)
    again.weights["embedding.segment_embedding.weight"][0] = plain["embedding.segment_embedding.weight"][0]  # padding
    assert_close(again.weights, plain)


def test_uer_py_names(tmp_path: Path, monkeypatch):
    convert(monkeypatch, *trained(tmp_path, "dim").options(tmp_path / "s.bin", "--output_format", "uer-py"))
    names = set(torch.load(tmp_path / "s.bin", weights_only=True))
    layer = [f"encoder.transformer.{i}.{part}" for i in (0, 1) for part in (
        *(f"self_attn.linear_layers.{j}.{x}" for j in (0, 1, 2) for x in ("weight", "bias")),
        "self_attn.final_linear.weight", "self_attn.final_linear.bias", "layer_norm_1.gamma", "layer_norm_1.beta",
        "feed_forward.linear_1.weight", "feed_forward.linear_1.bias", "feed_forward.linear_2.weight",
        "feed_forward.linear_2.bias", "layer_norm_2.gamma", "layer_norm_2.beta")]
    assert names == {
        "embedding.word.embedding.weight", "embedding.pos.embedding.weight", "embedding.seg.embedding.weight",
        "embedding.layer_norm.gamma", "embedding.layer_norm.beta", *layer, "target.mlm.linear_1.weight",
        "target.mlm.linear_1.bias", "target.mlm.layer_norm.gamma", "target.mlm.layer_norm.beta",
        "target.mlm.linear_2.weight", "target.mlm.linear_2.bias"}
    config = json.loads((tmp_path / "s_config.json").read_text())
    assert (config["embedding"], config["target"], config["max_seq_length"]) == (["word", "pos", "seg"], ["mlm"], 20)


def test_onnx(tmp_path: Path, monkeypatch):
    pytest.importorskip("onnxscript")
    session = pytest.importorskip("onnxruntime").InferenceSession
    convert(monkeypatch, *trained(tmp_path, "head").options(tmp_path / "s.bin", "--output_format", "uer", "onnx"))
    model = load_model(tmp_path / "s.bin", config=None, vocab_size=None)
    src, seg = (tensor[:3, :7].contiguous() for tensor in probe_batch(VOCAB, 20))  # other sizes than it was traced with
    inputs = {"input_ids": src, "attention_mask": (seg > 0).long(), "token_type_ids": (seg - 1).clamp(min=0)}
    found = session(str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"]).run(
        ["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    expected = student_model(model.config, model.weights)(src, seg).detach().view(3, 7, VOCAB)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


def test_onnx_of_float64(tmp_path: Path, monkeypatch):
    """onnxruntime has no GELU of doubles."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    write_uer(tmp_path / "d.bin", {name: tensor.double() for name, tensor in weights(CONFIG).items()})
    (tmp_path / "d_config.json").write_text(CONFIG.to_json())
    convert(monkeypatch, "--load_model_path", tmp_path / "d.bin", "--output_format", "onnx", "--output_model_path",
            tmp_path / "s.bin")
    assert (tmp_path / "s.onnx").exists()


def test_outputs_that_cannot_be_are_refused_first(tmp_path: Path, monkeypatch):
    options = trained(tmp_path, "dim").options
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        convert(monkeypatch, *options(tmp_path / "file" / "s.bin"))
    with pytest.raises(UserError, match="is a folder"):
        convert(monkeypatch, *options(tmp_path))
    for name in ("s.safetensors", "s.onnx"):  # which would be read in vain, or be that of another format
        with pytest.raises(UserError, match=f"no {Path(name).suffix} file but torch's"):
            convert(monkeypatch, *options(tmp_path / name, "--output_format", "uer-py"))
    vocab = write_vocab(tmp_path / "v.txt")
    vocab.write_text(vocab.read_text() + "one more")
    with pytest.raises(UserError, match="61 tokens, but the model has 60"):
        convert(monkeypatch, *options(tmp_path / "s.bin", "--output_format", "huggingface", "--vocab_path",
                                      str(vocab)))
    card = next(tmp_path.glob("*.json"))
    card.write_text(json.dumps({**json.loads(card.read_text()), "vocab_sha256": "abc"}))
    with pytest.raises(UserError, match=r"in --vocab_path .* and in checkpoint .*: another vocabulary"):
        convert(monkeypatch, *options(tmp_path / "s.bin", "--vocab_path", str(write_vocab(tmp_path / "v.txt"))))
    assert not (tmp_path / "s").exists() and not (tmp_path / "s.bin").exists()


@pytest.mark.parametrize("form", ["uer", "huggingface"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, capsys, form):
    case = trained(tmp_path, "dim")
    (tmp_path / "s.bin").write_text("as it was")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        said = refused(capsys, tmp_path, "convert.py", *case.options(tmp_path / "s.bin", "--output_format", form))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"error: {tmp_path}/s{'.bin' if form == 'uer' else ''}: " in said and "for want of room perhaps" in said
    assert (tmp_path / "s.bin").read_text() == "as it was"
    for folder in (".", "/"):
        assert "is a folder; a file name is needed" in refused(capsys, tmp_path, "convert.py", *case.options(folder))


def test_what_stands_beside_a_checkpoint_is_of_it(tmp_path: Path, monkeypatch, capsys):
    """A JSON of another file is refused; without one, heads of the usual size are assumed, and that is said."""
    config = replace(CONFIG, heads_num=4)
    first, second = (save_checkpoint(str(tmp_path / "m.bin"), step, {**weights(config), "target.mlm_linear_2.bias":
                                     torch.full((VOCAB,), float(step))}, {"kind": "plain", "teacher": config.to_dict()},
                                     {"optimizer": {}}) for step in (1, 2))
    options = ["--load_model_path", second, "--output_model_path", tmp_path / "s.bin"]
    convert(monkeypatch, *options)
    assert "4 heads" in (said := capsys.readouterr().out) and "assumed" not in said
    first.rename(second)
    with pytest.raises(UserError, match=r"m.bin-2: not the file that m.bin-2.json was written with"):
        convert(monkeypatch, *options)
    Path(f"{second}.json").unlink()
    convert(monkeypatch, *options)
    assert "2 heads" in (said := capsys.readouterr().out) and "heads of 64 dimensions are assumed" in said
    convert(monkeypatch, *options, "--heads_num", 4)
    assert "4 heads" in (said := capsys.readouterr().out) and "assumed" not in said


def test_the_command_from_any_folder_without_optional_packages(tmp_path: Path, capsys):
    case = trained(tmp_path, "dim")
    vocab = write_vocab(tmp_path / "v.txt")
    blocked = ("import sys, runpy; sys.modules.update(dict.fromkeys(('transformers', 'onnx', 'onnxruntime')));"
               f"sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['convert.py', *sys.argv[1:]];"
               "import uer.formats.stock as stock; stock.available = lambda: False;"
               f"runpy.run_path({str(ROOT / 'convert.py')!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", blocked, *case.options(Path("s.bin"), "--output_format", "uer",
                           "huggingface", "--vocab_path", str(vocab))], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "largest logit difference" in done.stdout and (tmp_path / "s" / "model.safetensors").is_file()
    card = (tmp_path / "s" / "README.md").read_text()
    assert "| hidden size | 64 | 128 |" in card and "--mask_step 400" in card
    assert "--mask_step 9" in refused(capsys, tmp_path, "convert.py",
                                      *case.options(tmp_path / "t.bin", "--mask_step", "9"))
