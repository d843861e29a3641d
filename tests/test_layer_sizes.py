"""--layer_sizes and --budget --uneven: students whose layers differ."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench import CONFIG, assert_same, options, run
from commands import call, refused
from corpora import TOKENS
from test_calibration import batches, config_of, largest_difference, random_teacher, student_of
from tuning import write_uer_tsv
from workers import forking

from uer.calibration.reducer import Reducer, shape_of
from uer.config import ModelConfig, config_from_dict
from uer.errors import UserError
from uer.formats import load_model
from uer.formats.shapes import parameter_count
from uer.layer_sizes import LayerWish, nearest_uniform, read_layer_sizes
from uer.models.bert import from_scratch, from_weights
from uer.sizes import LayerShape, LayerSizes
from uer.squeeze.groups import build_groups, student_config

FOUR_HEADS = config_of(32, 4, 2, 64)
UNEVEN = [{"heads": 1, "feedforward": 20}, {"feedforward": 7}]


# -- config ------------------------------------------------------------------------------------------------------------


def test_a_config_lists_layers_only_where_they_differ():
    assert "uneven_layers" not in CONFIG.to_json()
    assert CONFIG.layers == (LayerSizes(2, 16, 64),) * 2
    uneven = CONFIG.with_layers([LayerShape(1, 20), LayerShape(2, 64)])
    assert uneven.layers == (LayerSizes(1, 16, 20), LayerSizes(2, 16, 64)) and uneven.feedforward_size == 64
    assert config_from_dict(json.loads(uneven.to_json()), "c") == uneven
    assert CONFIG.with_layers([LayerShape(2, 30)] * 2) == replace(CONFIG, feedforward_size=30)
    narrow = CONFIG.with_layers([LayerShape(1, 64)] * 2)  # alike, but with an attention of half the width
    assert narrow.uneven_layers and config_from_dict(json.loads(narrow.to_json()), "c") == narrow
    alike = {**CONFIG.to_dict(), "uneven_layers": [{"heads": 2, "feedforward": 64}] * 2}
    assert config_from_dict(alike, "c") == CONFIG


@pytest.mark.parametrize(("sizes", "words"), [
    ([{"heads": 1, "feedforward": 2}], "uneven_layers has 1 layers, layers_num is 2"),
    ([{"heads": 1}] * 2, "not a list"), ({"heads": 1}, "not a list"),
    ([{"heads": 0, "feedforward": 2}] * 2, "not a list"), ("both", "not a list"),
    ([{"heads": True, "feedforward": 2}] * 2, "not a list")])
def test_configs_that_cannot_be(sizes, words: str):
    with pytest.raises(UserError, match=words):
        config_from_dict({**CONFIG.to_dict(), "uneven_layers": sizes}, "c")


def test_what_is_nearest_with_layers_alike():
    """As many parameters as it can have, in steps of a neuron of each layer."""
    config = ModelConfig(24, 3, 4, 96).with_layers([LayerShape(1, 30), LayerShape(4, 96), LayerShape(6, 10)])
    near = nearest_uniform(config)
    counts = {neurons: sum(tensor.numel() for tensor in from_scratch(
        replace(near, feedforward_size=neurons), 50, 1).state_dict().values()) for neurons in range(1, 97)}
    wanted = sum(tensor.numel() for tensor in from_scratch(config, 50, 1).state_dict().values())
    assert not near.uneven_layers and near.feedforward_size == min(counts, key=lambda n: abs(counts[n] - wanted))
    assert nearest_uniform(config, 12).feedforward_size == 12
    assert nearest_uniform(config.with_layers([LayerShape(1, 1)] * 3)).feedforward_size == 1


# -- calibration -------------------------------------------------------------------------------------------------------


def test_nothing_dropped_is_the_teacher():
    teacher = random_teacher(FOUR_HEADS)
    groups = build_groups(FOUR_HEADS, 32, "dim", layers=[LayerWish(4, 64), LayerWish()])
    assert student_config(FOUR_HEADS, groups) == FOUR_HEADS
    student, _ = student_of(FOUR_HEADS, teacher, groups, batches())
    assert largest_difference(FOUR_HEADS, teacher, student) < 1e-9


@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_layers_alike_are_the_student_that_other_options_give(strategy: str):
    teacher, data, heads = random_teacher(FOUR_HEADS), batches(), 4 if strategy == "dim" else 2
    wanted, _ = student_of(FOUR_HEADS, teacher, build_groups(FOUR_HEADS, 16, strategy, None, 20), data)
    given, _ = student_of(FOUR_HEADS, teacher, build_groups(FOUR_HEADS, 16, strategy,
                                                            layers=[LayerWish(heads, 20)] * 2), data)
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), given.parameters(), strict=True))


def test_what_leaves_of_one_layer_alone_was_nothing():
    """A layer of which half of the neurons and heads say nothing loses them, the other nothing: the teacher still."""
    teacher = random_teacher(FOUR_HEADS)
    layer = "encoder.transformer.1"
    teacher[f"{layer}.feed_forward.linear_2.weight"][:, ::2] = 0
    teacher[f"{layer}.self_attn.final_linear.weight"].view(32, 4, 8)[:, [0, 2]] = 0
    groups = build_groups(FOUR_HEADS, 32, "dim", layers=[LayerWish(), LayerWish(2, 32)])
    assert student_config(FOUR_HEADS, groups).uneven_layers == (LayerShape(4, 64), LayerShape(2, 32))
    student, _ = student_of(FOUR_HEADS, teacher, groups, batches())
    assert student.sizes.layers == (LayerSizes(4, 8, 64), LayerSizes(2, 8, 32))
    assert largest_difference(FOUR_HEADS, teacher, student) < 1e-6


def test_a_reducer_makes_both_kinds_of_one_teacher():
    reducer = Reducer(FOUR_HEADS, random_teacher(FOUR_HEADS), {}, batches(), say=lambda line: None)
    layers = (LayerShape(1, 9), LayerShape(3, 64))
    try:
        student = reducer.student(shape_of(FOUR_HEADS), layers=layers)
        assert student.config.uneven_layers == layers
        assert reducer.student(shape_of(FOUR_HEADS)).calibration is None
    finally:
        reducer.close()


# -- as users do it ----------------------------------------------------------------------------------------------------


def calibrate(bench, *more) -> list:
    return ["--pretrained_model_path", bench / "teacher.bin", "--config_path", bench / "config.json", "--vocab_path",
            bench / "vocab.txt", "--dataset_path", bench / "dynamic.pt", "--calibration_batches", 2, *more]


def wrote(path: Path, data) -> Path:
    path.write_text(json.dumps(data))
    return path


@pytest.fixture(scope="module")
def student(bench, tmp_path_factory) -> Path:
    """An uneven student as calibrate.py writes it."""
    folder = tmp_path_factory.mktemp("uneven")
    call("calibrate.py", *calibrate(bench, "--target_dim", 16, "--layer_sizes", wrote(folder / "sizes.json", UNEVEN),
                                    "--output_model_path", folder / "student.bin", "--skip_evaluation"))
    return folder / "student.bin"


def logits(path) -> torch.Tensor:
    loaded = load_model(path, config=None, vocab_size=None)
    src = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        return from_weights(loaded.config, loaded.weights).eval()(src, torch.ones_like(src))


def test_a_file_has_what_was_asked_for(student, bench, tmp_path, capsys):
    config = load_model(student, config=None, vocab_size=len(TOKENS)).config
    assert config.layers == (LayerSizes(1, 8, 20), LayerSizes(2, 8, 7)) and config.hidden_size == 16
    again = student.with_name("student_config.json")  # says the same as the file that was given
    call("calibrate.py", *calibrate(bench, "--target_dim", 16, "--layer_sizes", again, "--output_model_path",
                                    tmp_path / "again.bin", "--compactors_path", tmp_path / "compactors.pt"))
    assert_same(torch.load(student, weights_only=True), torch.load(tmp_path / "again.bin", weights_only=True))
    assert f"--layer_sizes {again}" in capsys.readouterr().out.splitlines()[-1]


def test_a_student_is_a_model_like_any_other(student, bench, tmp_path, monkeypatch, capsys):
    """evaluate, train with soft labels, plan, resume, convert, fine-tuning's encoder: none knows that it is uneven."""
    monkeypatch.chdir(tmp_path)
    call("evaluate.py", "--model_path", student, "--dataset_path", bench / "dev.pt", "--vocab_path",
         bench / "vocab.txt")
    words = options(bench, "--soft_targets_weight", "0.5", "--soft_targets_teacher", str(bench / "teacher.bin"),
                    total_steps=2, save_checkpoint_steps=1, pretrained_model_path=student,
                    config_path=student.with_name("student_config.json"))
    run([*words, "--plan"])
    count = parameter_count(load_model(student, config=None, vocab_size=None).weights)
    assert re.search(rf"parameters that run +{count / 1e6:.2f} M", capsys.readouterr().out)
    run(words)
    whole = torch.load("model.bin-2", weights_only=True)
    run([*words, "--resume", "model.bin-1"])
    assert_same(whole, torch.load("model.bin-2", weights_only=True))
    call("convert.py", "--load_model_path", "model.bin-2", "--output_model_path", "trained.bin")
    assert "heads 1 2 of 8, feedforward 20 7" in capsys.readouterr().out
    assert torch.equal(logits("trained.bin"), logits("model.bin-2"))
    assert load_model("trained.bin", config=None, vocab_size=None, encoder_only=True).config.uneven_layers


def test_fine_tuned_and_asked_again(student, bench, tmp_path):
    for name, labels in (("train", True), ("test", False)):
        write_uer_tsv(tmp_path / f"{name}.tsv", 8, 1, labels=labels)
    call("finetune/run_classifier.py", "--pretrained_model_path", student, "--vocab_path", bench / "vocab.txt",
         "--train_path", tmp_path / "train.tsv", "--dev_path", tmp_path / "train.tsv", "--output_model_path",
         tmp_path / "c.bin", "--epochs_num", 1, "--seq_length", 16, "--prediction_path", tmp_path / "given.tsv",
         "--test_path", tmp_path / "test.tsv")
    call("inference/run_classifier_infer.py", "--load_model_path", tmp_path / "c.bin", "--vocab_path",
         bench / "vocab.txt", "--test_path", tmp_path / "test.tsv", "--prediction_path", tmp_path / "again.tsv")
    assert (tmp_path / "given.tsv").read_text() == (tmp_path / "again.tsv").read_text()


def test_uer_and_onnx_are_equal(student, tmp_path):
    pytest.importorskip("onnxscript")
    from uer.formats.onnx_export import OnnxModel

    call("convert.py", "--load_model_path", student, "--output_model_path", tmp_path / "s.bin", "--output_format",
         "uer", "onnx")
    assert torch.equal(logits(student), logits(tmp_path / "s.bin"))
    src = torch.arange(5, 25).view(2, 10)
    torch.testing.assert_close(OnnxModel(tmp_path / "s.onnx")(src, torch.ones_like(src)).flatten(0, 1),
                               logits(student), rtol=0, atol=1e-5)


def test_compactors_start_a_run(bench, tmp_path, monkeypatch):
    """Of the same layers, and of no others; with a shared out master as with whole ones."""
    monkeypatch.chdir(tmp_path)
    sizes = wrote(tmp_path / "sizes.json", UNEVEN)
    words = ["--target_dim", "16", "--layer_sizes", str(sizes), "--compactors_path", str(tmp_path / "compactors.pt")]
    call("calibrate.py", *calibrate(bench, *words, "--output_model_path", "calibrated.bin", "--skip_evaluation"))
    words += ["--weight_squeeze", "--compactor_init", "calibrated", "--train", "compactors"]
    with forking():
        for name, more in (("model.bin", []), ("shared.bin", ["--shard_master"])):
            run(options(bench, *words, "--world_size", "2", "--gpu_ranks", "0", "1", *more, total_steps=2, batch_size=2,
                        output_model_path=name))
    for name in ("model.bin-2", "shared.bin-2"):
        call("convert.py", "--load_model_path", name, "--output_model_path", f"{name}-student.bin")
    torch.testing.assert_close(logits("model.bin-2-student.bin"), logits("shared.bin-2-student.bin"), rtol=0, atol=1e-5)
    wrote(sizes, [{"heads": 1, "feedforward": 20}, {}])
    with pytest.raises(UserError, match="found for another run; not the same: --layer_sizes"):
        run(options(bench, *words, total_steps=2, output_model_path="other.bin"))


@pytest.mark.parametrize("train", ["compactors", "student"])
def test_from_training_to_a_file(bench, student, tmp_path, monkeypatch, train: str):
    """The same start as calibrate.py's; resume bit for bit; other sizes are another run; convert.py merges."""
    monkeypatch.chdir(tmp_path)
    sizes = wrote(tmp_path / "sizes.json", UNEVEN)
    words = ["--weight_squeeze", "--target_dim", "16", "--layer_sizes", str(sizes), "--compactor_init", "calibrated",
             "--calibration_batches", "2", "--train", train]
    run(options(bench, *words, "--plan"))
    run(options(bench, *words, total_steps=2, save_checkpoint_steps=1, learning_rate=0, student_learning_rate=None
                if train == "compactors" else 0, compactor_learning_rate=0))
    call("convert.py", "--load_model_path", "model.bin-2", "--output_model_path", "student.bin")
    torch.testing.assert_close(logits("student.bin"), logits(student), rtol=0, atol=1e-4)
    assert load_model("student.bin", config=None, vocab_size=None).config.uneven_layers == ((1, 20), (2, 7))
    wrote(sizes, [{"heads": 2, "feedforward": 20}, {}])
    with pytest.raises(UserError, match="from another run: layer_sizes"):
        run(options(bench, *words, "--resume", "model.bin-1", total_steps=2))


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "words"), [
    ([{"heads": 1}], "has 1 layers, the student 2; give 2, or --target_layers 1"),
    ([{}] * 3, "has 3 layers, the student 2; give 2"),
    ([{"heads": 3}, {}], "layer 0: heads 3, but the teacher's layers have 2; 2 would do"),
    ([{}, {"feedforward": 65}], "layer 1: feedforward 65, but the teacher's layers have 64; 64 would do"),
    ([{"heads": 0}, {}], "layer 0: heads is 0, a whole number from 1"), ([{"heads": "2"}, {}], "heads is '2'"),
    ([{"heads": True}, {}], "heads is True"), ([{"head": 2}, {}], "layer 0: 'head' is unknown, heads and feedforward"),
    ([1, 2], "layer 0 is 1, an object like"), ([], "a list of one object for each layer"), (7, "a list of one object"),
    ({"hidden_size": 3}, "an object that is no student's config")])
def test_sizes_that_cannot_be(bench, tmp_path, capsys, data, words: str):
    sizes = wrote(tmp_path / "sizes.json", data)
    assert words in refused(capsys, tmp_path, "calibrate.py", *calibrate(
        bench, "--target_dim", 16, "--layer_sizes", sizes, "--output_model_path", tmp_path / "out.bin"))


@pytest.mark.parametrize(("more", "words"), [
    (["--target_dim", 16, "--layer_sizes", "SIZES", "--target_feedforward_size", 9], "leave one of them out"),
    (["--target_dim", 16, "--layer_sizes", "SIZES", "--output_format", "huggingface"],
     "--target_dim 16 --target_heads 2 --target_feedforward_size 5 without --layer_sizes"),
    (["--target_dim", 16, "--layer_sizes", "SIZES", "--output_format", "uer", "uer-py"], "format uer-py: "),
    (["--target_dim", 15, "--layer_sizes", "SIZES"], "14 or 16 would do"),
    (["--target_dim", 16, "--layer_sizes", "nothing.json"], "nothing.json: no such file"),
    (["--target_dim", 16, "--uneven"], "--uneven goes with --budget"),
    (["--sweep", "2x16", "--budget", "0.02M", "--uneven"], "--uneven goes with --budget"),
    (["--budget", "0.02M", "--uneven", "--sweep_path", "x.jsonl"], "--sweep_path goes with"),
    (["--budget", "0.02M", "--uneven", "--layer_sizes", "SIZES"], "--uneven finds the sizes of layers itself"),
    (["--budget", "0.001M", "--uneven", "--target_dim", 16], "with --target_dim 16, a head and a neuron in each layer "
                                                             "need 0.00"),
    (["--budget", "0.02M", "--uneven", "--target_dim", 15], "14 or 16 would do"),
    (["--budget", "0.012M", "--uneven", "--target_dim", 16, "--output_format", "huggingface"],
     "in place of --budget and --uneven: --target_dim 16 --target_heads 2 --target_feedforward_size")])
def test_wishes_that_do_not_go_together(bench, student, tmp_path, capsys, more, words: str):
    more = [student.with_name("sizes.json") if word == "SIZES" else word for word in more]
    output = [] if "--sweep" in more else ["--output_model_path", tmp_path / "out.bin"]
    assert words in refused(capsys, tmp_path, "calibrate.py", *calibrate(bench, *more, *output))


def test_what_an_uneven_model_cannot_be(bench, student, tmp_path, monkeypatch, capsys):
    """A teacher of smaller ones, a Hugging Face folder, a file without the config that was written with it."""
    monkeypatch.chdir(tmp_path)
    config = student.with_name("student_config.json")
    as_teacher = ["--pretrained_model_path", student, "--dataset_path", bench / "dynamic.pt", "--vocab_path",
                  bench / "vocab.txt", "--target_dim", 8, "--output_model_path", tmp_path / "out.bin"]
    assert "only one whose layers are alike gives a smaller" in refused(capsys, tmp_path, "calibrate.py", *as_teacher)
    with pytest.raises(UserError, match="only one whose layers are alike gives a smaller"):
        run(options(bench, "--weight_squeeze", "--target_dim", "8", "--compactor_init", "calibrated", total_steps=1,
                    pretrained_model_path=student, config_path=config))
    said = refused(capsys, tmp_path, "convert.py", "--load_model_path", student, "--output_model_path",
                   tmp_path / "out.bin", "--output_format", "huggingface")
    assert "nearest in parameters with layers alike: 2 x 16, 2 heads, feedforward_size 5" in said
    said = refused(capsys, tmp_path, "scripts/convert_bert_from_uer_to_huggingface.py", "--input_model_path", student,
                   "--output_model_path", tmp_path / "out")
    assert "layers there are alike" in said
    Path("bare.bin").write_bytes(student.read_bytes())
    wrote(Path("plain.json"), {key: value for key, value in json.loads(config.read_text()).items()
                               if key != "uneven_layers"})
    plain = config_from_dict(json.loads(Path("plain.json").read_text()), "c")
    with pytest.raises(UserError, match=r"encoder.transformer.0.self_attn.linear_layers.0.weight is \[8, 16\]"):
        load_model("bare.bin", config=plain, vocab_size=None)
    with pytest.raises(UserError, match="the sizes of its layers differ"):
        load_model(student, config=plain, vocab_size=None)
    weights = {name: torch.zeros(sizes) for name, sizes in {
        "embedding.word_embedding.weight": (9, 64), "embedding.position_embedding.weight": (9, 64),
        **{f"encoder.transformer.{i}.feed_forward.linear_1.weight": (i + 3, 64) for i in range(2)}}.items()}
    torch.save(weights, "bare.bin")
    with pytest.raises(UserError, match="no config beside it, and its layers differ in size"):
        load_model("bare.bin", config=None, vocab_size=None, encoder_only=True)


def test_a_run_says_what_the_options_need(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = str(wrote(tmp_path / "sizes.json", UNEVEN))
    for words, needed in (([], "--layer_sizes does nothing without --weight_squeeze"),
                          (["--weight_squeeze", "--target_dim", "16", "--mask_path", "m.txt"],
                           "--layer_sizes needs --compactor_init calibrated"),
                          (["--weight_squeeze", "--target_dim", "16", "--compactor_init", "calibrated",
                            "--target_feedforward_size", "9"], "--layer_sizes says it of each")):
        with pytest.raises(UserError, match=needed):
            run(options(bench, *words, "--layer_sizes", sizes, total_steps=1))
    with pytest.raises(UserError, match=r"nothing\.json: no such file"):  # before the teacher is looked for
        run(options(bench, "--weight_squeeze", "--target_dim", "16", "--compactor_init", "calibrated", "--layer_sizes",
                    "nothing.json", total_steps=1, pretrained_model_path="absent.bin"))
    assert read_layer_sizes(None) is None
    assert read_layer_sizes(sizes) == [LayerWish(1, 20), LayerWish(None, 7)]
