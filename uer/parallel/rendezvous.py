"""How processes find each other, and hear of each other's end.

They meet at a key-value store that the process of rank 0 keeps (under torchrun: its agent). Every rank registers there;
rank 0 waits for all of them and tells everybody, by name, who has not come. While they train, a thread in each process
leaves a sign of life there, and looks for the word that another has failed: nobody waits in a collective for a
process that is gone.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple
from uuid import uuid4

from torch.distributed import PrefixStore, Store, TCPStore

from uer.errors import UserError

BEAT = 2.0  # seconds between signs of life
LOST_AFTER = 20  # signs that may fail to appear: everybody knows within a minute
PATIENCE = 10.0  # seconds that others get to hear a verdict


class Meeting(NamedTuple):
    """Where processes meet.

    Attributes:
        host, port: of the store.
        hosted: whether something else than rank 0 keeps the store.
        attempt: tells the restarts of a run apart.
        timeout: seconds to wait for everybody.
    """

    host: str
    port: int
    hosted: bool
    attempt: int
    timeout: float

    @property
    def url(self) -> str:
        return f"tcp://{self.host}:{self.port}"


def open_store(meeting: Meeting, rank: int) -> PrefixStore:
    """The store, kept by this process or by another; `UserError` where none is found."""
    keeps = rank == 0 and not meeting.hosted
    try:
        _probe(meeting, listen=keeps)  # first without the store, which floods the console where it fails
        store = TCPStore(meeting.host, meeting.port, None, keeps, timedelta(seconds=meeting.timeout),
                         wait_for_workers=False)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if keeps:
            raise UserError(f"--master_ip {meeting.url}: this process, rank 0, cannot listen there ({reason}); give "
                            f"the address of this machine and a port that is free") from None
        raise UserError(f"rank {rank} found nobody at {meeting.url} in {meeting.timeout:g} s: rank 0 has to run there; "
                        f"start the machine with rank 0, and give its address as --master_ip on every machine "
                        f"({reason})") from None
    return PrefixStore(f"attempt {meeting.attempt}", store)


def job_of(store: PrefixStore) -> str:
    """A name that a launcher's agent, which keeps the store, has for all attempts of its job and for no other job."""
    return store.underlying_store.compare_set("job", "", uuid4().hex).decode()


def _probe(meeting: Meeting, listen: bool) -> None:
    """`OSError` where the port is taken, or where nobody listens in time."""
    if listen:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", meeting.port))
        return
    deadline = time.monotonic() + meeting.timeout
    while True:
        try:
            socket.create_connection((meeting.host, meeting.port), timeout=meeting.timeout).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def meet(store: Store, meeting: Meeting, rank: int, world_size: int) -> None:
    """Return once all ranks are here.
    `UserError` where some are missing when the time is up (named), or this rank is here already."""
    if store.add(f"here/{rank}", 1) > 1:
        raise UserError(f"rank {rank} is there already: each machine names its own ranks in --gpu_ranks, and a run of "
                        f"its own needs a --master_ip of its own")
    if rank == 0:
        others = range(1, world_size)
        _until(lambda: all(store.check([f"here/{other}"]) for other in others), meeting.timeout)
        missing = [other for other in others if not store.check([f"here/{other}"])]
        store.set("missing", " ".join(map(str, missing)) or "none")
        if missing:
            _until(lambda: store.add("heard", 0) >= len(others) - len(missing), PATIENCE)
    else:
        if not _until(lambda: store.check(["missing"]), meeting.timeout + PATIENCE):
            raise UserError(f"rank {rank} waited {meeting.timeout:g} s at {meeting.url} and rank 0 did not come")
        store.add("heard", 1)
    absent = store.get("missing").decode()
    if absent != "none":
        raise UserError(f"these ranks of {world_size} did not come to {meeting.url} in {meeting.timeout:g} s: "
                        f"{absent}; start their machine with --world_size {world_size} --gpu_ranks {absent} "
                        f"--master_ip {meeting.url}, or give a longer --rendezvous_timeout")


def _until(done: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is done, or the time is up; whether it is done."""
    deadline = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


class Watch:
    """Signs of life, and the end of all processes when one has failed.

    Args:
        meeting, rank, world_size: as above.
        end: called with a sentence in a thread of its own when another process has failed; must end this process.
    """

    def __init__(self, meeting: Meeting, rank: int, world_size: int, end: Callable[[str], None]):
        self.rank, self.world_size, self.end = rank, world_size, end
        self.keeps = rank == 0 and not meeting.hosted
        self.store = open_store(meeting._replace(hosted=True), rank)  # a connection of its own: others may be waiting
        self._over = threading.Event()
        self._seen: dict[int, tuple[int, int]] = {}
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """This process is about to leave in peace."""
        self._over.set()
        self._thread.join(PATIENCE)  # a thread inside the store must not outlive the interpreter

    def tell(self, message: str) -> bool:
        """Tell the others that this process fails; returns whether it was the first to do so.

        Who keeps the store waits a while for all to have heard: without it torch floods their consoles.
        """
        self._over.set()
        message = f"rank {self.rank}: {message}"
        try:
            first = self.store.compare_set("failed", "", message).decode() == message
            self.store.add("leaving", 1)
            if self.keeps:
                _until(lambda: self.store.add("leaving", 0) >= self.world_size, PATIENCE)
            return first
        except RuntimeError:
            return True

    def cause(self) -> str | None:
        """Why others have gone, waiting a while for the word; None where nobody says."""
        self._over.set()
        try:
            if not _until(lambda: self.store.check(["failed"]), PATIENCE):
                return None
            self.store.add("leaving", 1)
            return self.store.get("failed").decode()
        except RuntimeError:
            return None

    def _work(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self.store.add(f"alive/{self.rank}", 1)
                if self.rank == 0:
                    self._look_around()
                failed = self.store.get("failed").decode() if self.store.check(["failed"]) else None
            except RuntimeError:
                failed = "the process that keeps the store (rank 0, or the launcher's agent) is gone"
            if failed and not self._over.wait(BEAT):  # an orderly end may just be under way
                with suppress(RuntimeError):
                    self.store.add("leaving", 1)
                self.end(failed)
                return

    def _look_around(self) -> None:
        """Tell everybody of a process that has not given a sign of life for some time."""
        for other in range(1, self.world_size):
            count = self.store.add(f"alive/{other}", 0)
            before, silent = self._seen.get(other, (count, 0))
            silent = silent + 1 if count == before else 0
            self._seen[other] = (count, silent)
            if silent >= LOST_AFTER:
                self.store.compare_set("failed", "", f"rank {other}: no sign of life for {BEAT * LOST_AFTER:.0f} s; it "
                                                     f"was killed, or its machine is gone")


def end_process(message: str) -> None:
    """Say why and end this process at once, whatever it waits for."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(1)
