"""One thread: models as small as these only wait for a second one. The golden run takes all threads."""

import os
import signal

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the scripts that tests start
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; the scripts would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def all_threads():
    """As many threads as the machine has cores, for the length of a test."""
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)
