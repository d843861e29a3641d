"""What tests share: folders to work from, not to be written to, and how many threads there are.

One thread: models as small as these only wait for a second one. The golden run takes all threads.
"""

import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch
from bench import make_bench
from commands import make_files
from sentence_folder import make_encoder
from tuning import make_tuned

from uer.arguments import offered

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the scripts that tests start
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; the scripts would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup's: kept here, but a handler is not inherited
    signal.signal(signal.SIGHUP, lambda number, frame: None)

LIMIT, LONG_LIMIT = 300, 1800  # seconds of a test, whatever it waits for


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The default run takes two processes where pytest-xdist and a second core are there; `-n 0`: one.

    The processes that pytest-xdist starts come by here as well, with the same command line and no number: they, and
    what they start, must not start others, which would start others, without end.
    """
    option = config.option
    default = (config.args_source == config.ArgsSource.TESTPATHS and option.markexpr == "not long"
               and not option.keyword and not option.usepdb)
    below_another = "PYTEST_XDIST_WORKER" in os.environ
    if default and getattr(option, "numprocesses", 0) is None and not below_another and cores() > 1:
        option.numprocesses, option.dist, option.loadscopereorder = 2, "loadfile", False


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.fixture(autouse=True)
def limit(request):
    """A test that waits for ever fails instead, and what it has started ends."""
    def over(number, frame):
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        raise TimeoutError(f"no end after {seconds} s")

    seconds = LONG_LIMIT if request.node.get_closest_marker("long") else LIMIT
    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def denormals():
    """As they were, whatever a script did to its process; and no script is at work."""
    yield
    torch.set_flush_denormal(False)
    offered.clear()


@pytest.fixture
def all_threads():
    """As many threads as the machine has cores, for the length of a test."""
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """For pretrain.py in this process."""
    return make_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """For the scripts as users call them."""
    return make_files(tmp_path_factory.mktemp("scripts"))


@pytest.fixture
def teacher(tmp_path):
    """A folder of sentence-transformers with a random encoder."""
    return make_encoder(tmp_path)


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """For fine-tuning."""
    return make_tuned(tmp_path_factory.mktemp("tuning"))
