"""The scripts for clusters: the README's recipe in all of them; run with small figures and a stand-in for Slurm."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from commands import children, readme_commands, readme_folder, shell

from uer.training.checkpoint import checkpoint_steps, load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts/cluster").iterdir())
OUTPUT = "models/12-192-reduce-dim-stage1.bin"
SMALL = ("--total_steps 40 --batch_size 4 --accumulation_steps 1 --target_dim 32 --w_step 2 --report_steps 1 "
         "--rendezvous_timeout 60 --penalty fade --compactor_learning_rate 1e-3")
SRUN = """#!/bin/bash
# Two tasks on this machine; SIGUSR1 to both once the file $USR1_AFTER is there.
shift
tasks=()
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" & tasks+=($!)
done
if [ -n "${USR1_AFTER:-}" ]; then
    until [ -e "$USR1_AFTER" ]; do sleep 0.05; kill -0 "${tasks[0]}" || exit 1; done
    kill -USR1 "${tasks[0]}"
fi
worst=0
for task in "${tasks[@]}"; do wait "$task" || worst=$?; done
exit $worst
"""
SCONTROL = """#!/bin/bash
echo "$*" >> scontrol.log
[ "$1" = show ] && printf 'localhost\\nsecond\\n'
exit 0
"""


def folder_with_scripts(folder: Path) -> Path:
    """The README's folder with a dataset, the cluster's scripts and stand-ins for Slurm's commands."""
    readme_folder(folder)
    shutil.copytree(ROOT / "scripts/cluster", folder / "scripts/cluster")
    shell(folder, re.sub(r"--processes_num 32", "--processes_num 1 --seq_length 32", readme_commands()[0]))
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder


def start(folder: Path, line: str, **env: str) -> subprocess.Popen:
    """A line in a shell, as `shell` runs it, without waiting."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(line, shell=True, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **env}, start_new_session=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_readable_by_bash(name):
    done = subprocess.run(["bash", "-n", ROOT / "scripts/cluster" / name], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


def test_eight_gpus_run_the_readmes_command(tmp_path):
    """Word by word, apart from their order, with what is given to the script at the end."""
    echoing(tmp_path)

    def said() -> str:
        run = start(tmp_path, "bash scripts/cluster/eight_gpus.sh --bf16")
        return run.communicate()[0].strip()

    first = said()
    assert first.endswith(" --bf16")
    assert sorted(first.removesuffix(" --bf16").split(" --")) == sorted(readme_commands()[1].split(" --"))
    (tmp_path / "models").mkdir()
    for ending in (".json", ".old", ".old2"):  # no checkpoints, or those that were set aside
        (tmp_path / f"{OUTPUT}-100{ending}").touch()
    assert said() == first
    (tmp_path / f"{OUTPUT}-100").touch()
    assert "--resume" in said()


@pytest.mark.parametrize(("line", "env", "words"), [
    ("torchrun.sh", {}, "--batch_size 120"), ("torchrun.sh", {"NODES": "2", "HEAD": "first:1"}, "--batch_size 60"),
    ("torchrun.sh", {"GPUS": "4"}, "--batch_size 120 --accumulation_steps 2"),
    ("torchrun.sh", {"GPUS": "6"}, "--batch_size 80 --accumulation_steps 2"),
    ("torchrun.sh", {"GPUS": "7"}, "--batch_size 68 --accumulation_steps 2"),
    ("slurm.sbatch", {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"}, "--batch_size 60"),
    ("slurm.sbatch", {"SLURM_NTASKS": "32"}, "--batch_size 30")])
def test_a_step_takes_the_published_instances_on_any_number_of_gpus(tmp_path, line, env, words):
    echoing(tmp_path)
    run = start(tmp_path, f"bash scripts/cluster/{line} --bf16", SLURM_JOB_ID="7", SLURM_JOB_NODELIST="a", **env)
    said = run.communicate()[0]
    assert re.findall(r"--(?:batch_size|accumulation_steps) \d+", said) == words.replace(" --", "|--").split("|"), said


def echoing(folder: Path) -> None:
    """The cluster's scripts, and python3 and Slurm's commands that say what they are given."""
    shutil.copytree(ROOT / "scripts/cluster", folder / "scripts/cluster")
    (folder / "bin").mkdir()
    for name in ("python3", "srun", "scontrol"):
        (folder / "bin" / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (folder / "bin" / name).chmod(0o755)


def test_a_calibrated_start_at_the_end_of_the_scripts(tmp_path):
    """docs/cluster.md: with a rate of the student's own, as the published ones stand before."""
    folder_with_scripts(tmp_path)
    for more, rate in (("", "2e-4"), ("--target relations", "1e-3")):
        printed = shell(tmp_path, f"bash scripts/cluster/eight_gpus.sh {SMALL} --world_size 1 --gpu_ranks 0 --penalty "
                                  f"published --total_steps 1 --compactor_init calibrated {more} "
                                  f"--student_learning_rate {rate} --output_model_path models/calibrated.bin")
        assert "wrote models/calibrated.bin-1" in printed
        course = json.loads((tmp_path / "models/calibrated.bin-1.json").read_text())["course"]
        assert course["student_learning_rate"] == float(rate)


@pytest.mark.long
def test_eight_gpus_as_two_processes(tmp_path):
    folder_with_scripts(tmp_path)
    printed = shell(tmp_path, f"bash scripts/cluster/eight_gpus.sh {SMALL} --world_size 2 --gpu_ranks 0 1")
    assert f"step 40: wrote {OUTPUT}-40" in printed
    printed = shell(tmp_path, f"bash scripts/cluster/eight_gpus.sh {SMALL} --world_size 2 --gpu_ranks 0 1 --dryrun")
    assert "the dry run found nothing wrong" in printed


@pytest.mark.long
def test_slurm_saves_queues_again_and_goes_on(tmp_path):
    folder_with_scripts(tmp_path)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost,second", "SLURM_NTASKS": "2"}
    line = f"bash scripts/cluster/slurm.sbatch {SMALL} --total_steps 400 --save_checkpoint_steps 5"
    first = start(tmp_path, line, USR1_AFTER=f"{OUTPUT}-5", **slurm)
    printed = first.communicate(timeout=180)[0]
    assert first.returncode == 138, printed
    assert (tmp_path / "scontrol.log").read_text() == f"show hostnames localhost,second\nrequeue {os.getpid()}\n"
    step = checkpoint_steps(str(tmp_path / OUTPUT))[-1]
    assert f"step {step}: SIGUSR1 ended the run" in printed and step < 400
    second = start(tmp_path, line, **slurm)
    printed = second.communicate(timeout=180)[0]
    assert second.returncode == 0, printed
    assert f"going on from {OUTPUT}-{step}" in printed and f"step 400: wrote {OUTPUT}-400" in printed
    assert len(checkpoint_steps(str(tmp_path / OUTPUT))) == 5  # --keep_checkpoints


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes through /proc")
def test_torchrun_starts_again_from_the_newest_checkpoint(tmp_path):
    folder_with_scripts(tmp_path)
    run = start(tmp_path, f"exec bash scripts/cluster/torchrun.sh {SMALL} --total_steps 300 --save_checkpoint_steps 5 "
                          f"--shard_master", GPUS="2")
    while not (tmp_path / f"{OUTPUT}-5").exists():
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.05)
    workers = [pid for pid in children(run.pid) if "pretrain.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGKILL)
    printed = run.communicate(timeout=240)[0]
    assert run.returncode == 0, printed
    assert printed.count("going on from") == 1 and f"step 300: wrote {OUTPUT}-300" in printed
    load_checkpoint(tmp_path / f"{OUTPUT}-300")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nccl_at_world_size_one(tmp_path):
    folder_with_scripts(tmp_path)
    printed = start(tmp_path, f"exec bash scripts/cluster/torchrun.sh {SMALL} --bf16", GPUS="1").communicate()[0]
    assert "each step sends" in printed and f"step 40: wrote {OUTPUT}-40" in printed
