"""Processes started from here: their messages are gathered, and one that fails ends all."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import torch.multiprocessing as mp

from uer.errors import Stopped, UserError
from uer.parallel.collectives import LostPeers
from uer.parallel.signals import SIGNALS
from uer.system import ended_by, signals_handled, signals_held

GRACE = 5.0  # seconds that the others get after one has failed


class Failure(NamedTuple):
    """What a process said at its end."""

    rank: int
    kind: str  # "user": a UserError; "error": anything else it raised; "lost": it saw others go
    text: str


def spawn(run: Callable, plan: Any, worker: Callable, args: argparse.Namespace) -> None:
    """Start a process for each of `plan.ranks` and wait for all of them.

    Args:
        run: `run(index, plan, worker, args, end)`, what a process does.
    Raises:
        UserError: the mistake that a process found, or what became of it.
        Stopped: signals ended the run.
        SystemExit: a process raised something else; its traceback has been printed.
    """
    context = mp.get_context("spawn")
    said = context.SimpleQueue()
    processes = [context.Process(target=_child, args=(index, said, run, plan, worker, args), name=f"rank {rank}")
                 for index, rank in enumerate(plan.ranks)]
    with _passing_signals_on(processes):
        try:
            with signals_held(SIGNALS):  # until they can take note
                for process in processes:
                    process.start()
            killed, failures = _wait(processes, said)
        except BaseException:  # a signal that is not passed on, say: nobody would watch the processes any more
            for process in processes:
                if process.is_alive():
                    process.kill()
            raise
    codes = {rank: process.exitcode or 0 for rank, process in zip(plan.ranks, processes) if process not in killed}
    if any(codes.values()):
        _tell(codes, failures)


def _wait(processes: list, said: Any) -> tuple[list, list[Failure]]:
    """Return once all processes have ended; soon after one has failed, the others are killed.

    Returns:
        the processes killed here, and what was said, first things first.
    """
    failures: list[Failure] = []
    killed: list = []
    deadline = None
    while running := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in running], timeout=0.1)
        while not said.empty():
            failures.append(said.get())
        if deadline is None and any(process.exitcode not in (None, 0) for process in processes):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            killed += [process for process in running if process not in killed]
            for process in running:
                process.kill()
    while not said.empty():
        failures.append(said.get())
    return killed, failures


def _tell(codes: dict[int, int], failures: list[Failure]) -> None:
    """Raise what ended the run: first what a process found itself, then what became of one, then what others saw."""
    own = [failure for failure in failures if failure.kind != "lost"]
    if own and own[0].kind == "user":
        raise UserError(own[0].text)
    if own:
        sys.stderr.write(f"{own[0].text}error: rank {own[0].rank} failed with this; all processes were ended\n")
        sys.exit(1)
    told = {failure.rank for failure in failures}
    for rank, code in codes.items():
        if code < 0 and -code not in SIGNALS and rank not in told:
            name = ended_by(code)
            why = " (out of memory, perhaps: see the system's log)" if name == "SIGKILL" else ""
            raise UserError(f"rank {rank} was ended by {name}{why}; all processes were ended; --resume goes on from "
                            f"the newest checkpoint, if there is one")
    for code in codes.values():
        if (number := code - 128 if code > 0 else -code) in SIGNALS:
            raise Stopped(number)
    raise UserError(failures[0].text if failures else f"rank {next(r for r, c in codes.items() if c)} ended without a "
                                                      f"word; all processes were ended")


def _child(index: int, said: Any, run: Callable, plan: Any, worker: Callable, args: argparse.Namespace) -> None:
    rank = plan.ranks[index]

    def end(message: str) -> None:
        said.put(Failure(rank, "lost", message))
        os._exit(1)

    for number in SIGNALS:
        signal.signal(number, _leave)
    try:
        with signals_held(SIGNALS, False):
            run(index, plan, worker, args, end)
    except Stopped as stopped:
        sys.exit(stopped.code)
    except UserError as error:
        said.put(Failure(rank, "user", str(error)))
        sys.exit(2)
    except LostPeers as error:
        said.put(Failure(rank, "lost", str(error)))
        sys.exit(1)
    except Exception:
        said.put(Failure(rank, "error", traceback.format_exc()))
        sys.exit(1)


def _leave(number: int, frame: object) -> None:
    """End before there is anything to save; Ctrl-C comes twice, from the terminal and from the parent."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def _passing_signals_on(processes: list) -> AbstractContextManager[None]:
    """Hand signals for a clean end to the processes, which decide together when to end."""
    def forward(number: int, frame: object) -> None:
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    return signals_handled(dict.fromkeys(SIGNALS, forward))
