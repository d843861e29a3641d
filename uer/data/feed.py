"""What decides which instances a step takes: recorded in every checkpoint, compared when a run goes on from one.

Where something of it has changed and that is wanted, the run goes on with what is left of the epoch: every instance
still comes once. Another dataset begins at its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from uer.data.order import BatchOrder, Lookup, tail_sizes
from uer.errors import UserError
from uer.made_from import differences

OPTION = "--allow_changed_data"
WORDS = {"batch_size": "--batch_size", "accumulation_steps": "--accumulation_steps", "world_size": "--world_size",
         "seed": "--seed", "group_by_length": "grouping by length", "masking": "masking"}


@dataclass(frozen=True)
class Feed:
    """What decides which instances the steps after `since` take, and how they are masked."""

    dataset: str  # SHA-256
    instances: int
    batch_size: int
    accumulation_steps: int
    world_size: int
    seed: int
    group_by_length: bool
    masking: dict[str, Any]
    since: int = 0

    def differences(self, found: Feed) -> list[str]:
        """What is not as it was, in words."""
        out = [] if found.dataset == self.dataset else [
            f"--dataset_path ({found.instances:,} instances with SHA-256 {found.dataset[:12]}… there, "
            f"{self.instances:,} with {self.dataset[:12]}… here)"]
        same = ("batch_size", "world_size") if self._global_batches() == found._global_batches() else ()
        return out + differences(vars(found), vars(self), {key: name for key, name in WORDS.items() if key not in same})

    def _global_batches(self) -> tuple[int, list[int]]:
        """What decides the batches of all processes together: twice as many of half the size make the same."""
        return self.batch_size * self.world_size, tail_sizes(self.instances, self.batch_size, self.world_size)


def went_on(recorded: Any, now: Feed, step: int, allowed: bool, where: str) -> tuple[list[Feed], str]:
    """The feeds of a run that goes on after `step`, the last one its own, and what is to be said of it ("": nothing).

    Args:
        recorded: `data` of the checkpoint's card; None in checkpoints that do not say.
        allowed: whether something may have changed.
        where: names the checkpoint.
    Raises:
        UserError: something has changed, and that is not allowed.
    """
    if recorded is None:
        return [now], f"{where} does not say in which order its data came; the options are taken to be the same"
    try:
        feeds = [Feed(**entry) for entry in recorded]
        changed = now.differences(feeds[-1])
    except (TypeError, IndexError):
        raise UserError(f"--resume: {where}: what it says of its data is not what pretrain.py writes") from None
    if not changed:
        return [*feeds[:-1], replace(now, since=feeds[-1].since)], ""
    if not allowed:
        raise UserError(f"--resume: {where} is of a run with other data: {'; '.join(changed)}. Give the same, or "
                        f"{OPTION} to go on with what is left of the epoch (of another dataset: with its beginning)")
    feeds.append(replace(now, since=step))
    if now.dataset != feeds[-2].dataset:
        return feeds, f"other data from step {step + 1:,} on, from their beginning: {'; '.join(changed)}"
    return feeds, (f"other data from step {step + 1:,} on, with the instances that are left of the epoch: "
                   f"{'; '.join(changed)}")


def order_of(feeds: Sequence[Feed], lengths: Lookup | None) -> BatchOrder:
    """The order in which the last feed goes on.
    `lengths`: of the dataset's instances, for feeds that group by them."""
    first = max((i for i in range(1, len(feeds)) if feeds[i].dataset != feeds[i - 1].dataset), default=0)
    order, before = None, feeds[first]
    for feed in feeds[first:]:
        rest = order.rest((feed.since - before.since) * before.accumulation_steps) if order else None
        order = BatchOrder(feed.instances, feed.batch_size, feed.world_size, feed.seed,
                           lengths=lengths if feed.group_by_length else None, after=rest)
        before = feed
    assert order is not None
    return order
