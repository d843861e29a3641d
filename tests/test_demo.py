"""The demo's own parts: text, picking, running steps, table and plot."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import call
from corpora import TOKENS, write_vocab
from small import THREE_BY_8, teacher

from demo import runner
from demo.harvest import docstrings, documents, harvest, held_out, paragraphs, read_modules, without_repeats
from demo.picking import pick
from demo.report import EncoderRow, Row, encoder_table, plot, read_metrics, table
from demo.runner import Runner, empty, fingerprint, shown, work_folder
from demo.setting import Speed, Teacher, find_teacher, measure_speed, remembered_speed
from uer.config import ModelConfig
from uer.errors import UserError
from uer.finetuning.tasks import read_uer, uer_task
from uer.formats.export import write_uer
from uer.models.bert import from_scratch, from_weights

ROOT = Path(__file__).resolve().parents[1]
SMALL = ModelConfig(24, 2, 3, 48, 128, dropout=0.0)
SOURCE = b'''"""Top.

More
of it."""
def f():
    "In a function."
    class C:
        """In a class
        in a function."""
if True:
    async def g():
        "Under an if."
else:
    def h():
        "Under an else."
x = "not a docstring"
'''


# -- text --------------------------------------------------------------------------------------------------------------


def test_docstrings_from_top_to_bottom():
    assert docstrings(SOURCE) == ["Top.\n\nMore\nof it.", "In a function.", "In a class\nin a function.",
                                  "Under an if.", "Under an else."]
    assert docstrings(b"def broken(:") == docstrings(b"x = 1\x00") == []


def test_a_paragraph_is_a_line():
    assert list(paragraphs("One\n  two.\n\n \nThree.\n\n-----\n")) == ["One two.", "Three."]


def test_text_that_was_there_before_is_left_out():
    long = "A paragraph that is long enough to be had only once."
    texts = [("a", ["Twice.", f"Short.\n\n{long}"]), ("b", ["Twice.", f"Short.\n\nOther.\n\n{long}"]),
             ("c", ["Twice."])]
    assert list(without_repeats(texts)) == [("a", ["Twice.", "Short.", long]), ("b", ["Short.", "Other."])]


def test_harvest_of_a_few_modules(tmp_path):
    corpus, dev = tmp_path / "out/corpus.txt", tmp_path / "out/dev.txt"
    found = harvest(corpus, dev, ["json", "email", "unittest", "logging"], 6)
    texts = [path.read_text(encoding="utf-8") for path in (corpus, dev)]
    assert found.documents == texts[0].count("\n\n") > 5 * found.held_out_documents > 0
    assert found.held_out_documents == texts[1].count("\n\n")
    assert (found.characters, found.held_out_characters) == tuple(map(len, texts))
    lines = [{line for line in text.splitlines() if len(line) >= 40} for text in texts]
    assert lines[0] and lines[1] and not lines[0] & lines[1]
    harvest(tmp_path / "again.txt", tmp_path / "dev2.txt", ["json", "email", "unittest", "logging"], 6, processes=2)
    assert (tmp_path / "again.txt").read_text(encoding="utf-8") == texts[0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"corpus.txt", "dev.txt"}


def test_any_number_of_processes_reads_modules_in_their_order(tmp_path):
    found = [(f"m{i}", tmp_path / f"m{i}.py") for i in range(501)]  # fewer are read in this process
    for name, path in found:
        path.write_text(f'"""About {name}."""\n')
    wanted = [(name, [f"About {name}."]) for name, _ in found]
    assert list(read_modules(found, 2)) == list(read_modules(found)) == wanted


def test_the_name_alone_decides_what_is_held_out():
    names = [name for name, _ in documents(["json", "email", "unittest", "http", "logging", "xml"])]
    share = sum(held_out(name, 4) for name in names) / len(names)
    assert 0.1 < share < 0.4


def test_a_package_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no_such_package is not an installed package"):
        harvest(tmp_path / "a", tmp_path / "b", ["no_such_package"], 4)
    assert list(tmp_path.iterdir()) == []


# -- students ----------------------------------------------------------------------------------------------------------


def test_picked_weights_are_the_teachers():
    config = THREE_BY_8.config()
    weights = teacher(THREE_BY_8)
    target = config.hidden_size // 2
    picked, student = pick(weights, config, target, seed=3)
    assert student == config.student(target, "dim")
    from_weights(student, picked)  # every tensor has its place and shape
    words, all_words = picked["embedding.word_embedding.weight"], weights["embedding.word_embedding.weight"]
    kept = [next(i for i in range(config.hidden_size) if torch.equal(all_words[:, i], column)) for column in words.T]
    assert kept == sorted(set(kept))
    query, whole = (w["encoder.transformer.0.self_attn.linear_layers.0.weight"] for w in (picked, weights))
    for head in range(config.heads_num):  # each row comes from the same head of the teacher
        size, full = student.head_size, config.head_size
        for row in query[head * size:(head + 1) * size]:
            assert any(torch.equal(row, other) for other in whole[head * full:(head + 1) * full][:, kept])
    assert torch.equal(pick(weights, config, target, seed=3)[0]["target.mlm_linear_1.weight"],
                       picked["target.mlm_linear_1.weight"])
    with pytest.raises(UserError, match="--target_dim is 1;"):
        pick(weights, config, 1, seed=3)


def test_picking_by_norm_takes_the_largest():
    config, weights = THREE_BY_8.config(), teacher(THREE_BY_8)
    small = torch.arange(config.hidden_size) % 2 == 0
    weights["embedding.word_embedding.weight"][:, small] *= 1e-3
    picked, _ = pick(weights, config, config.hidden_size // 2, seed=3, by="norm")
    assert torch.equal(picked["embedding.word_embedding.weight"], weights["embedding.word_embedding.weight"][:, ~small])


@pytest.mark.parametrize(("hidden", "heads", "dim", "head"),
                         [(384, 12, 192, 192), (768, 12, 384, 384), (96, 3, 48, 32)])
def test_half_of_a_teacher(hidden, heads, dim, head):
    found = Teacher("x", None, "v", hidden, heads, 4 * hidden, False)
    assert (found.half("dim"), found.half("head")) == (dim, head)
    with pytest.raises(UserError, match="cannot be halved"):
        Teacher("x", None, "v", 64, 1, 256, False).half("head")


def test_teachers_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, weights = THREE_BY_8.config(), teacher(THREE_BY_8)
    write_uer("mine.bin", weights)
    with pytest.raises(UserError, match=r"no vocab\.txt beside it"):
        (tmp_path / "mine_config.json").write_text(config.to_json())
        find_teacher("mine.bin", None, None)
    vocab = write_vocab(tmp_path, TOKENS).rename(tmp_path / "mine_vocab.txt")
    found = find_teacher("mine.bin", None, None)
    assert found == Teacher(str(tmp_path / "mine.bin"), None, str(vocab), 24, 3, 72, False)
    assert found.text_options() == ["--vocab_path", str(vocab)] and found.files() == [tmp_path / "mine.bin", vocab]
    lower = write_vocab(tmp_path, [token.lower() if token[0] != "[" else token for token in TOKENS])
    found = find_teacher("mine.bin", "mine_config.json", "vocab.txt")
    assert found.model_options()[2:] == ["--config_path", str(tmp_path / "mine_config.json")]
    assert found.text_options() == ["--vocab_path", str(lower)]
    write_uer("headless.bin", {name: tensor for name, tensor in weights.items() if not name.startswith("target.")})
    assert find_teacher("headless.bin", "mine_config.json", "vocab.txt").needs_head
    with pytest.raises(UserError, match="absent: no such file"):
        find_teacher("absent", None, None)


def test_slower_machines_do_less(monkeypatch):
    monkeypatch.setattr("uer.models.bert.from_scratch", lambda config, words, seed: from_scratch(SMALL, words, seed))
    lines = []
    speed = measure_speed(float32=True, say=lines.append)
    assert not speed.bf16 and speed.seconds > 0 and "in float32, the teacher for" in lines[0]
    found = [Speed(True, seconds).amount() for seconds in (0.1, 0.5, 0.6, 0.7, 1.1, 10)]
    assert found == [(200, 100, 400), (180, 80, 400), (160, 70, 400), (160, 50, 400), (80, 30, 200),
                     (60, 20, 120)]


def test_bfloat16_is_not_tried_where_a_layer_is_slow_in_it(monkeypatch):
    tried = []
    monkeypatch.setattr("demo.setting._seconds_of_a_step", lambda dtype, device: tried.append(dtype) or 0.1)
    for times, dtypes in ((60.0, [torch.float32]), (0.5, [torch.float32, torch.bfloat16])):
        monkeypatch.setattr("uer.training.precision.slowdown", lambda half, device, times=times: times)
        lines = []
        assert not measure_speed(say=lines.append).bf16
        assert tried == dtypes and ("in bfloat16 here" in lines[0]) == (len(dtypes) == 2)
        tried.clear()


def test_a_demo_that_goes_on_keeps_its_precision_and_steps(tmp_path, monkeypatch):
    found = iter([Speed(True, 0.1), Speed(False, 0.9)])
    monkeypatch.setattr("demo.setting.measure_speed", lambda float32: next(found))
    file = tmp_path / "speed.json"
    assert [remembered_speed(file, float32) for float32 in (False, False, True, True)] == [
        (True, 0.1), (True, 0.1), (False, 0.9), (False, 0.9)]


# -- steps -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder that stands for the repository, with a script that notes that it ran."""
    (tmp_path / "note.py").write_text("import sys\nopen('notes', 'a').write(sys.argv[1])\nprint('noted', sys.argv[1])\n"
                                      "sys.exit(sys.argv[1] == 'bad')\n")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    return tmp_path


def notes(folder: Path) -> str:
    return (folder / "notes").read_text()


def test_finished_steps_are_not_run_again_but_those_after_a_change_are(scripts, capsys):
    def demo(second: str, sources: str = "same") -> list[dict]:
        now = Runner(scripts / "work", sources)
        return [now.step("one", "First.", ["note.py", "a"]), now.step("two", "Second.", ["note.py", second]),
                now.step("three", "Third.", ["note.py", "c"], ["note.py", "d"])]

    first = demo("b")
    assert notes(scripts) == "abcd" and first[2]["lines"] == ["noted c", "noted d"] and len(first[2]["seconds"]) == 2
    assert "$ python3 note.py a" in capsys.readouterr().out
    assert demo("b") == first and notes(scripts) == "abcd" and "done before" in capsys.readouterr().out
    demo("x")
    assert notes(scripts) == "abcdxcd"
    demo("x", sources="changed")
    assert notes(scripts) == "abcdxcdaxcd"


def test_what_is_at_a_path_counts_not_when_it_was_written(scripts):
    files = [scripts / "model" / "weights", scripts / "vocab.txt"]
    files[0].parent.mkdir()
    for file in files:
        file.write_text("one")
    found = [fingerprint([files[0].parent, files[1]])]
    for file in files:
        time_of_it = file.stat()
        file.write_text("two")
        os.utime(file, ns=(time_of_it.st_atime_ns, time_of_it.st_mtime_ns))
        found.append(fingerprint([files[0].parent, files[1]]))
    assert len(set(found)) == 3
    files[1].touch()
    assert fingerprint([files[0].parent, files[1]]) == found[-1]


def test_a_failed_step_is_run_again(scripts):
    for _ in range(2):
        with pytest.raises(UserError, match=r"note.py ended with status 1"):
            Runner(scripts / "work", "").step("one", "First.", ["note.py", "bad"])
    assert notes(scripts) == "badbad"


def test_the_folder_is_for_one_demo_and_emptied_after_a_finished_one(tmp_path):
    with work_folder(tmp_path / "work"):
        (tmp_path / "work/steps").mkdir()
        (tmp_path / "work/corpus.txt").write_text("text")
        with pytest.raises(UserError, match="another demo"), work_folder(tmp_path / "work"):
            pass
    with work_folder(tmp_path / "work"):
        assert (tmp_path / "work/corpus.txt").exists()
        (tmp_path / "work/results.json").write_text("{}")
    with work_folder(tmp_path / "work"):
        assert [path.name for path in (tmp_path / "work").iterdir()] == [".lock"]
    empty(tmp_path / "work")


def test_a_killed_demo_takes_its_command_along(scripts):
    (scripts / "long.py").write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\nfrom demo import runner\n"
            f"from uer.errors import run_script\nrunner.ROOT = Path({str(scripts)!r})\nrunner.end_on_sigterm()\n"
            f"run_script(lambda: runner.Runner(runner.ROOT / 'work', '').step('x', 'Long.', ['long.py']))\n")
    demo = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    pid = scripts / "pid"
    deadline = time.monotonic() + 20
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    demo.send_signal(signal.SIGTERM)
    assert demo.communicate(timeout=20)[1] == "interrupted\n" and demo.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (scripts / "work/steps").exists()


def test_a_command_that_outlives_its_demo_keeps_the_lock(scripts):
    (scripts / "free.py").write_text(
        f"import fcntl\nlock = open({str(scripts / 'work/.lock')!r})\n"
        f"try:\n    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept OSError:\n    print('held')\n")
    with work_folder(scripts / "work") as lock:
        now = Runner(scripts / "work", "", lock)
        assert now.run(["free.py"]) == ["held"]
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert now.run(["free.py"]) == []


def test_commands_can_be_pasted():
    assert shown(["a.py", "--x", "two words"]) == "python3 a.py --x 'two words'"
    text = shown(["pretrain.py", *[f"--option_number_{i}" for i in range(12)], "--last", "1", "2"])
    assert max(map(len, text.splitlines())) <= runner.WIDTH and text.count(" \\\n    ") == text.count("\n") > 1
    assert text.replace("\\\n", "").split() == ["python3", "pretrain.py", *[f"--option_number_{i}" for i in range(12)],
                                               "--last", "1", "2"]


# -- results -----------------------------------------------------------------------------------------------------------


def test_the_table_lines_up():
    text = table([Row("teacher", 200, 34_500_000, 4.147, 0.3174, 3445.2, 133.4, 0.7912),
                  Row("a student of it", 0, 14_600_000, 4.4869, 0.2819, 12918, 24)])
    lines = text.splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == [
        "a student of it", "0", "14.6 M", "4.49", "28.2 %", "89 %", "", "12,918", "24"]
    assert lines[2].split("|")[-4].strip() == "79 %"


def test_the_table_of_encoders():
    text = encoder_table([EncoderRow("teacher", 22_600_000, {}, 84.4, 0),
                          EncoderRow("calibrated", 8_600_000, {"cosine": 0.734, "nearest 10": 0.53}, 1183, 30.2)])
    cells = [re.findall(r"[^| ][^|]*[^| ]|[^| ]", line) for line in text.splitlines()]
    assert cells[2:] == [["teacher", "22.6 M", "100 %", "100 %", "84", "0"],
                         ["calibrated", "8.6 M", "73 %", "53 %", "1,183", "30"]]


def test_the_plot_is_an_image_of_the_curves(tmp_path):
    entries = [{"step": 5, "kind": "train", "loss": 3.0}, {"step": 5, "kind": "dev"},
               {"step": 9, "kind": "train", "loss": 2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert [entry["loss"] for entry in read_metrics(tmp_path)] == [3.0, 2]
    plot(tmp_path / "plot.png", {"a": [(5, 3.0), (9, 2.0)], "b": [(5, 4.0), (9, 3.5)]},
         [Row("teacher", 200, 34_500_000, 4.1, 0.3, 3000, 100), Row("a", 9, 14_600_000, 4.4, 0.2, 9000, 20)], "A title")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


# -- where a docstring comes from --------------------------------------------------------------------------------------


def test_the_task_of_where_a_docstring_comes_from(tmp_path, capsys):
    call("demo/origin.py", "--train_path", tmp_path / "train.tsv", "--dev_path", tmp_path / "dev.tsv", "--packages",
         "asyncio", "email", "--train_examples", 30, "--dev_examples", 5)
    task = uer_task(tmp_path / "train.tsv")
    train, dev = (read_uer(task, tmp_path / f"{kind}.tsv") for kind in ("train", "dev"))
    assert task.labels == ("asyncio", "email") and (len(train), len(dev)) == (60, 10)
    assert [example.label for example in train[:4]] == [0, 1, 0, 1]
    assert not {example.text_a for example in train} & {example.text_a for example in dev}
    with pytest.raises(SystemExit):
        call("demo/origin.py", "--train_path", tmp_path / "t.tsv", "--dev_path", tmp_path / "d.tsv", "--packages",
             "asyncio", "email", "--train_examples", 10**6)
    assert "lower --train_examples" in capsys.readouterr().err and not (tmp_path / "t.tsv").exists()
