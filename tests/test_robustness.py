"""What users and shells do to scripts: unset variables, outputs that are inputs, closed pipes, full disks, signals."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import ROOT, TEACHER, call, children, pretrain_options, refused, start

from uer.errors import Stopped, UserError, run_script
from uer.finetuning.heads import read_card
from uer.formats.huggingface_config import parse_config
from uer.formats.storage import read_tensors
from uer.parallel import spawn
from uer.parallel.signals import SIGNALS
from uer.report.writer import Reports
from uer.system import signals_held
from uer.training.lock import only_writer

# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value", "words"), [
    ("resume", "", "--resume is empty; give a value, or leave it out"),
    ("tb_path", "t\udcfc", r"--tb_path 't\udcfc': is not in this locale's encoding; LC_ALL=C.UTF-8"),
    ("pretrained_model_path", "", "--pretrained_model_path is empty"), ("seed", -1, "--seed is -1, a whole number"),
    ("seed", 2**63, "from 0 to 2^63 - 1"), ("dropout", 1, "--dropout is 1.0, a number from 0 to 0.999"),
    ("world_size", 10**20, "at most 65,536 are possible"),
    *(("soft_targets_temperature", value, "a number from 0.001 to 1,000 is needed") for value in (0, 1e-300, 1e300)),
    ("soft_targets_top_k", 0, "--soft_targets_top_k is 0, at least 1")])
def test_values_that_cannot_be_meant(files, tmp_path, capsys, name, value, words):
    options = pretrain_options(files, tmp_path / "m.bin", f"--{name}", value)
    assert words in refused(capsys, tmp_path, "pretrain.py", *options)


@pytest.mark.parametrize(("more", "words"), [
    (["--after_squeeze", "student", "--comp_only"], "with --after_squeeze student none are left"),
    (["--compactor_init", "identity", "--calibration_batches", 4],
     "--calibration_batches needs --compactor_init calibrated"),
    (["--plan", "--dryrun"], "--plan and --dryrun exclude each other"),
    (["--dryrun", "--resume"], "no checkpoint"),
    (["--dryrun", "--tb_path", ROOT / "README.md"], "is a file; a folder is needed")])
def test_options_that_contradict_each_other(files, tmp_path, capsys, more, words):
    options = pretrain_options(files, tmp_path / "m.bin", "--weight_squeeze", "--target_dim", 64, "--compactor_init",
                               "calibrated", *more)
    assert words in refused(capsys, tmp_path, "pretrain.py", *options)


def test_a_name_that_is_too_long(files, tmp_path, capsys):
    message = refused(capsys, tmp_path, "evaluate.py", "--model_path", "x" * 300, "--dataset_path", files / "data.pt")
    assert "xxx: File name too long" in message


# -- stdout, logs, signals, other runs ---------------------------------------------------------------------------------


def test_a_run_goes_on_when_readers_leave_and_other_scripts_end_like_every_command_in_a_pipe(files, tmp_path):
    """All at once, as each takes its time to start."""
    words = ["--model_path", files / "teacher.bin", "--dataset_path", files / "data.pt"]
    run, bare = (pretrain_options(files, tmp_path / name, "--report_steps", 1, total_steps=3) for name in "mn")
    with (start("pretrain.py", *run, "--log_path", "/dev/full") as left,
          start("pretrain.py", *bare, stderr=subprocess.STDOUT) as without_either,
          start("evaluate.py", *words) as piped,
          start("evaluate.py", *words, preexec_fn=lambda: os.close(1)) as without_stdout):
        piped.stdout.close()
        for process in (left, without_either):
            process.stdout.readline()
            process.stdout.close()
        said = [process.stderr.read() for process in (left, piped, without_stdout)]
    assert [process.returncode for process in (left, without_either, piped, without_stdout)] == [0, 0, 141, 0]
    assert (tmp_path / "m-3").exists() and (tmp_path / "n-3").exists() and said[1:] == ["", ""]
    assert "warning: /dev/full cannot be written" in said[0] and "warning: stdout cannot be written" in said[0]
    assert "Traceback" not in said[0] and said[0].count("\n") == 2


@pytest.mark.long
def test_a_run_of_two_processes_with_nowhere_to_write_to(files, tmp_path):
    words = pretrain_options(files, tmp_path / "m", "--world_size", 2)
    with start("pretrain.py", *words, preexec_fn=lambda: [os.close(number) for number in (1, 2)]) as process:
        pass
    assert process.returncode == 0 and (tmp_path / "m-2").exists()


def test_a_run_that_is_done_has_ended_well_whoever_reads_its_last_lines(tmp_path):
    shape = {"hidden_size": 8, "layers_num": 1, "heads_num": 1, "feedforward_size": 8}
    (tmp_path / "m-1.json").write_text(json.dumps({"kind": "plain", "teacher": shape, "layer_sizes": None,
                                                   "mlm_target_dim": None, "target_dim": None}))
    work = ("import sys; from argparse import Namespace; from pathlib import Path; from uer.cli.pretrain import _end; "
            "from uer.errors import run_script; args = Namespace(tb_path=None, mask_path=None, vocab_path='v', "
            "spm_model_path=None, output_model_path='m'); sys.stdin.read(); "
            "run_script(lambda: _end(args, Path(sys.argv[1])))")
    with subprocess.Popen([sys.executable, "-c", work, tmp_path / "m-1"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == 0 and "warning: stdout cannot be written" in said and said.count("\n") == 1


@pytest.mark.parametrize("use", [
    lambda reports: reports.record(1, "train", {"loss": 1.0}), lambda reports: reports.go_on_from(1, "m"),
    lambda reports: reports.histogram(1, "weights", torch.ones(3)), Reports.close])
def test_a_run_goes_on_without_tensorboard_where_its_disk_is_full(capsys, use):
    def full(*values, **options):
        raise OSError(28, "No space left on device")

    reports = Reports(leads=True)
    reports.board = SimpleNamespace(log_dir="logs", add_scalar=full, add_histogram=full, close=full)
    use(reports)
    reports.close()
    assert capsys.readouterr().err == ("warning: TensorBoard's events in logs cannot be written (No space left on "
                                       "device); the run goes on without it\n")


def test_the_threads_of_tensorboard_show_no_traceback(tmp_path):
    work = ("import resource, sys, time; from uer.report.writer import Reports\n"
            "r = Reports(True, tb_path=sys.argv[1])\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "for step in range(200):\n"
            "    r.record(step, 'train', {f'x{i}': 1.0 for i in range(9)}); time.sleep(0.001)\n"
            "r.close(); print('end')")
    done = subprocess.run([sys.executable, "-c", work, tmp_path / "tb"], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == "end\n" and "TensorBoard's events in" in done.stderr
    assert all(line.endswith("the run goes on without it") for line in done.stderr.splitlines()), done.stderr


def test_a_broken_pipe_that_is_not_stdout_is_no_secret(capsys):
    def main():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run_script(main)


def test_a_terminal_that_knows_ascii_only():
    with start("pretrain.py", "--help", env={"PYTHONIOENCODING": "ascii", "COLUMNS": "200"}) as process:
        assert "\\u03bb" in process.stdout.read() and not process.stderr.read()
    assert process.returncode == 0


def test_sigterm_takes_temporary_files_along(files, tmp_path):
    """Sent while a format is being checked, when there are files under temporary names."""
    with start("calibrate.py", "--pretrained_model_path", files / "teacher.bin", "--config_path",
               files / "config.json", "--dataset_path", files / "data.pt", "--vocab_path", files / "vocab.txt",
               "--target_dim", 64, "--output_model_path", tmp_path / "s.bin", "--output_format", "uer",
               "huggingface") as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".*.tmp*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 143 and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_hang_up_ends_all_processes(files, tmp_path):
    options = pretrain_options(files, tmp_path / "m.bin", "--report_steps", 1, total_steps=100_000, world_size=2)
    with start("pretrain.py", *options) as process:
        while "step 1/" not in process.stdout.readline():
            assert process.poll() is None
        started = children(process.pid)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 129 and len(started) >= 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("codes", "code"), [((-2, -2), 130), ((143, 1), 143), ((143, 0), 143)])
def test_signals_wait_while_processes_start(monkeypatch, codes, code):
    """One that came meanwhile ends each process as soon as it can take note, and the run as a signal does."""
    held, ends = [], iter(codes)

    def process(**more) -> SimpleNamespace:
        return SimpleNamespace(exitcode=next(ends), pid=None, is_alive=lambda: False,
                               start=lambda: held.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])))

    context = SimpleNamespace(SimpleQueue=queue.SimpleQueue, Process=process)
    monkeypatch.setattr(spawn.mp, "get_context", lambda method: context)
    with pytest.raises(Stopped) as stopped:
        spawn.spawn(print, SimpleNamespace(ranks=[0, 1]), print, None)
    assert stopped.value.code == code and all(set(SIGNALS) <= signals for signals in held) and len(held) == 2
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with signals_held(SIGNALS), pytest.raises(SystemExit) as end:
            signal.pthread_kill(threading.get_ident(), stopped.value.number)  # to this thread, which holds it
            spawn._child(0, None, lambda *more: pytest.fail("it has begun"), SimpleNamespace(ranks=[0]), print, None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == code


def test_one_run_at_a_time_writes_to_an_output(files, tmp_path, capsys):
    with only_writer(str(tmp_path / "m.bin")):
        message = refused(capsys, tmp_path, "pretrain.py", *pretrain_options(files, tmp_path / "m.bin"))
    assert "another run is writing there" in message
    masked = ["--weight_squeeze", "--target_dim", 64, "--mask_path", tmp_path / "masks.txt"]
    with only_writer(str(tmp_path / "masks.txt"), "mask_path"):
        message = refused(capsys, tmp_path, "pretrain.py", *pretrain_options(files, tmp_path / "m.bin", *masked))
    assert f"--mask_path {tmp_path / 'masks.txt'}: another run is writing there" in message
    with only_writer(str(tmp_path / "logs/metrics.jsonl"), "tb_path"):
        message = refused(capsys, tmp_path, "pretrain.py",
                          *pretrain_options(files, tmp_path / "m.bin", "--tb_path", tmp_path / "logs"))
    assert f"--tb_path {tmp_path / 'logs/metrics.jsonl'}: another run is writing there" in message
    call("pretrain.py", *pretrain_options(files, tmp_path / "m.bin", "--tb_path", tmp_path / "logs"))
    names = sorted(path.name for path in tmp_path.rglob("*") if not path.name.startswith("events"))
    assert names == ["logs", "m.bin-2", "m.bin-2.json", "m.bin-2.resume", "metrics.jsonl"]


def test_resume_says_when_nothing_is_left(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")  # of another job: alone it says nothing
    call("pretrain.py", *pretrain_options(files, tmp_path / "m.bin"))
    assert f"made  {tmp_path}/m.bin-2\n" in capsys.readouterr().out
    call("pretrain.py", *pretrain_options(files, tmp_path / "m.bin", "--resume", total_steps=1))
    assert "nothing is left to do: it is of step 2, --total_steps is 1" in capsys.readouterr().out


# -- files that are not what they should be ----------------------------------------------------------------------------


def test_bytes_spoilt_by_a_disk(files, tmp_path):
    """torch.load does not look at the checksums that torch.save has written."""
    spoilt = bytearray((files / "teacher.bin").read_bytes())
    middle = len(spoilt) // 2
    spoilt[middle:middle + 64] = bytes(64)
    (tmp_path / "t.bin").write_bytes(spoilt)
    torch.load(tmp_path / "t.bin", weights_only=True)
    with pytest.raises(UserError, match=r"the checksum of .* is not what was written"):
        read_tensors(tmp_path / "t.bin")


@pytest.mark.parametrize("content", [b"junk", b"Git", b"PK\x03\x04"])
def test_files_of_few_bytes(tmp_path, content):
    (tmp_path / "t.bin").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_tensors(tmp_path / "t.bin")


@pytest.mark.parametrize("change", [
    lambda x: x.to(torch.float8_e4m3fn), lambda x: x.to(torch.complex64), lambda x: x.to_sparse(),
    lambda x: x.to(torch.int8)])
def test_tensors_of_other_kinds(files, tmp_path, capsys, change):
    weights = torch.load(files / "teacher.bin", weights_only=True)
    name = "target.mlm_linear_1.weight"
    (tmp_path / "t_config.json").write_text(TEACHER.to_json())
    torch.save({**weights, name: change(weights[name])}, tmp_path / "t.bin")
    options = ["--model_path", tmp_path / "t.bin", "--dataset_path", files / "data.pt"]
    assert name in refused(capsys, tmp_path, "evaluate.py", *options)
    torch.save({**weights, name: weights[name].double()}, tmp_path / "t.bin")
    call("evaluate.py", *options)  # a mixture becomes the widest of them


@pytest.mark.parametrize("changed", [{"hidden_act": []}, {"max_position_embeddings": "x"}, {"layer_norm_eps": None}])
def test_hugging_face_configs_of_other_types(changed):
    theirs = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    parse_config(theirs, "here")
    with pytest.raises(UserError, match=f"here: .*{next(iter(changed))}"):
        parse_config({**theirs, **changed}, "here")


@pytest.mark.parametrize("changed", [{"layernorm": []}, {"layernorm": {}}, {"dropout": "x"}])
def test_configs_of_other_types(files, tmp_path, capsys, changed):
    (tmp_path / "c.json").write_text(json.dumps({**json.loads(TEACHER.to_json()), **changed}))
    assert next(iter(changed)) in refused(capsys, tmp_path, "evaluate.py", "--model_path", files / "teacher.bin",
                                          "--config_path", tmp_path / "c.json", "--dataset_path", files / "data.pt")


@pytest.mark.parametrize("changed", [{"teacher": 3}, {"origin": 3}, {"strategy": "x"}, {"mlm_target_dim": "x"}])
def test_checkpoints_with_another_json(files, tmp_path, capsys, changed):
    call("pretrain.py", *pretrain_options(files, tmp_path / "m.bin", total_steps=1))
    beside = tmp_path / "m.bin-1.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **changed}))
    capsys.readouterr()
    message = refused(capsys, tmp_path, "convert.py", "--load_model_path", tmp_path / "m.bin-1",
                      "--output_model_path", tmp_path / "s.bin")
    assert f"not the JSON of a checkpoint: {next(iter(changed))}" in message


@pytest.mark.parametrize("card", [{"config": 3}, {"seq_length": "x"}, {"pooling": "foo"}, {"labels": 7}])
def test_fine_tuned_models_with_another_json(tmp_path, card):
    Path(tmp_path / "c.bin.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=f"not what is beside a fine-tuned model: {next(iter(card))}"):
        read_card(str(tmp_path / "c.bin"))


def test_evaluate_says_what_it_assumes(files, tmp_path, capsys):
    (tmp_path / "t.bin").write_bytes((files / "teacher.bin").read_bytes())
    call("evaluate.py", "--model_path", tmp_path / "t.bin", "--dataset_path", files / "data.pt")
    assert "note: no config beside the file: 2 heads of 64 are assumed" in capsys.readouterr().out
