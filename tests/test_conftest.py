"""The default run of the tests takes two processes, which take no others."""

from types import SimpleNamespace

import conftest
import pytest
from _pytest.config import Config

ALL, SOME = Config.ArgsSource.TESTPATHS, Config.ArgsSource.ARGS
DEFAULT = {"numprocesses": None, "dist": "no", "markexpr": "not long", "keyword": "", "usepdb": False}


@pytest.mark.parametrize(("option", "source", "cores", "worker", "starts"), [
    (DEFAULT, ALL, 2, None, True), (DEFAULT, ALL, 1, None, False), (DEFAULT, ALL, 2, "gw0", False),
    (DEFAULT, SOME, 2, None, False), *(({**DEFAULT, key: value}, ALL, 2, None, False) for key, value in (
        ("numprocesses", 0), ("markexpr", "long"), ("keyword", "golden"), ("usepdb", True))),
    ({key: value for key, value in DEFAULT.items() if key != "numprocesses"}, ALL, 2, None, False)])
def test_only_the_default_run_starts_processes(monkeypatch, option, source, cores, worker, starts):
    """Those of pytest-xdist have the same command line: each of the two started two, and these two, and so on."""
    monkeypatch.setattr(conftest, "cores", lambda: cores)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    if worker:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    config = SimpleNamespace(option=SimpleNamespace(**option), args_source=source, ArgsSource=Config.ArgsSource)
    conftest.pytest_cmdline_main(config)
    assert vars(config.option) == {**option, **({"numprocesses": 2, "dist": "loadfile", "loadscopereorder": False}
                                                if starts else {})}
