"""Which instances make up batch i of an epoch: a pure function of (seed, epoch, i, rank), without a table.

The shuffle is a Feistel network: rounds of a keyed hash permute the integers below a power of four, and values
that fall outside the dataset are permuted again until they fall inside ("cycle walking", Black & Rogaway 2002). So
any place of the permuted epoch can be computed by itself, and memory does not depend on the dataset.

Batches are grouped by length inside windows of `WINDOW` global batches: the window's instances are sorted by length,
cut into batches, and the batches are put back in random order.

The last batches. Global batches (of all ranks together) hold batch_size * world_size instances. The rest of an epoch
makes a smaller last batch, spread evenly over the ranks; if it has fewer instances than there are ranks, it shares
with the batch before. So every instance comes once per epoch, and every rank has the same number of batches and
never an empty one. Only with batch_size 1 this cannot be: then the last batch is filled up with the epoch's first
instances, at most world_size - 1 of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from uer.data.masking import generator
from uer.errors import UserError

Lookup = Callable[[np.ndarray], np.ndarray]

WINDOW = 64  # global batches
ORDER = 2  # keeps the random numbers of the order apart from all others
_ROUNDS = 8  # four would do for large datasets


def _mix(values: np.ndarray) -> np.ndarray:
    """A bijective hash of uint64 (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Permutation:
    """A random permutation of 0 … size-1 that is computed where it is asked for."""

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        self._half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._low = (np.uint64(1) << self._half) - np.uint64(1)
        self._keys = generator(ORDER, *key).integers(0, 2**64, size=_ROUNDS, dtype=np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """What stands at these places: int64, the shape of `places`."""
        values = self._once(places.astype(np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while len(outside):
            values[outside] = self._once(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _once(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._low
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._low)
        return (left << self._half) | right


def tail_sizes(size: int, batch_size: int, world_size: int) -> list[int]:
    """Sizes of the last global batches of `size` instances, as far as they are not full."""
    full = batch_size * world_size
    rest = size % full
    if rest == 0:
        return []
    if rest >= world_size:
        return [rest]
    if batch_size == 1 or size < world_size:
        return [world_size]
    together = full + rest
    return [together - together // 2, together // 2]


class Epoch:
    """The batches of one epoch.

    Args:
        size: instances to come.
        at: function from places 0 … size-1 (int64) to the instances that stand there.
        key: of the random order of batches within a window.
        lengths: function from indices (int64) to the instances' lengths, or None for batches of mixed lengths.
    """

    def __init__(self, size: int, batch_size: int, world_size: int, at: Lookup, key: tuple[int, ...],
                 lengths: Lookup | None) -> None:
        self.size, self.at, self._key, self._lengths = size, at, key, lengths
        self._full = batch_size * world_size
        self.batches = -(-size // self._full)
        self._tail = tail_sizes(size, batch_size, world_size)
        self.window = lru_cache(maxsize=2)(self._compute_window)

    def begin_of(self, window: int) -> int:
        """The first place of a window (or behind the last one)."""
        number = min(window * WINDOW, self.batches)
        whole = self.batches - len(self._tail)
        return min(number, whole) * self._full + sum(self._tail[:max(0, number - whole)])

    def _compute_window(self, window: int) -> list[np.ndarray]:
        numbers = range(window * WINDOW, min((window + 1) * WINDOW, self.batches))
        whole = self.batches - len(self._tail)
        begin = self.begin_of(window)
        sizes = [self._full if n < whole else self._tail[n - whole] for n in numbers]
        indices = self.at(np.arange(begin, begin + sum(sizes)) % self.size)
        if self._lengths is None:
            return np.split(indices, np.cumsum(sizes)[:-1])
        indices = indices[np.argsort(self._lengths(indices), kind="stable")]
        batches: list[np.ndarray] = [indices[:0]] * len(sizes)
        start = 0
        for number in generator(ORDER, *self._key, window, 1).permutation(len(sizes)):
            batches[number] = indices[start : start + sizes[number]]
            start += sizes[number]
        return batches


class Rest:
    """What is left of an epoch after some of its batches: the others of the window, then every later place.

    Attributes: `number` of the epoch; `size`, the instances left; `at`, from places 0 … size-1 to instances.
    """

    def __init__(self, number: int, epoch: Epoch, done: int) -> None:
        window, within = divmod(done, WINDOW)
        begun = epoch.window(window)[within:] if within else []
        self._begun = np.concatenate([np.zeros(0, dtype=np.int64), *begun])
        self._epoch, self._next = epoch, epoch.begin_of(window + (within > 0))
        self.number, self.size = number, len(self._begun) + max(0, epoch.size - self._next)

    def at(self, places: np.ndarray) -> np.ndarray:
        """What stands at these places: int64, the shape of `places`."""
        out = np.empty(len(places), dtype=np.int64)
        early = places < len(self._begun)
        out[early] = self._begun[places[early]]
        out[~early] = self._epoch.at(places[~early] - len(self._begun) + self._next)
        return out


class BatchOrder:
    """Batches of one epoch after the other.

    Args:
        size: instances of the dataset.
        batch_size: instances a rank takes at a time.
        lengths: function from indices (int64) to the instances' lengths, or None for batches of mixed lengths.
        after: begin with what is left of an epoch in another order; later epochs are numbered on.
    """

    def __init__(self, size: int, batch_size: int, world_size: int, seed: int, shuffle: bool = True,
                 lengths: Lookup | None = None, after: Rest | None = None) -> None:
        if batch_size < 1:
            raise UserError(f"--batch_size {batch_size}: at least 1 is needed")
        self.size, self.seed, self.batch_size, self.world_size = size, seed, batch_size, world_size
        self.shuffle, self._lengths = shuffle, lengths if shuffle else None
        self.first, self._after = 0, after
        if after is not None:
            self.first, self._after = (after.number, after) if after.size else (after.number + 1, None)
        self._epoch = lru_cache(maxsize=2)(self._compute_epoch)
        self.batches_per_epoch = self._epoch(self.first + 1).batches

    def _compute_epoch(self, number: int) -> Epoch:
        if self._after is not None and number == self.first:
            size, at = self._after.size, self._after.at
        else:
            size, at = self.size, Permutation(self.size, self.seed, number) if self.shuffle else lambda places: places
        return Epoch(size, self.batch_size, self.world_size, at, (self.seed, number), self._lengths)

    def locate(self, index: int) -> tuple[int, int]:
        """(epoch, batch in it) of the index-th batch."""
        begun = self._epoch(self.first).batches
        if index < begun:
            return self.first, index
        epochs, within = divmod(index - begun, self.batches_per_epoch)
        return self.first + 1 + epochs, within

    def batch(self, epoch: int, index: int, rank: int) -> np.ndarray:
        """Indices (int64) of the instances of a rank's batch `index` of this epoch."""
        window, within = divmod(index, WINDOW)
        return self._epoch(epoch).window(window)[within][rank :: self.world_size]

    def rest(self, index: int) -> Rest:
        """What is left of its epoch when `index` batches are done."""
        epoch, within = self.locate(index)
        if within == 0 and epoch > self.first:
            epoch, within = epoch - 1, self._epoch(epoch - 1).batches  # nothing of the one before
        return Rest(epoch, self._epoch(epoch), within)
