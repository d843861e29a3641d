"""Batches for masked language modelling, made on the CPU ahead of the trainer.

Batch i is a pure function of (seed, i, rank, world size): resuming at a step needs its number alone. Dynamic masks
come from a counter-based generator keyed on the same numbers; static ones from the dataset.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from uer.data.augment import augmented
from uer.data.dataset import Dataset
from uer.data.feed import Feed, order_of
from uer.data.masking import Masker, MaskingOptions, generator
from uer.data.order import BatchOrder
from uer.errors import UserError

DYNAMIC, FIXED, AUGMENT = 3, 4, 5  # keep the random numbers of masks in training and evaluation, and of texts, apart
PAD_MULTIPLE = 8


@dataclass
class MlmBatch:
    """One batch.

    Attributes:
        src: int64 `[batch, seq]`, token ids after masking, filled with the pad id.
        seg: int64 `[batch, seq]`, 1 on tokens, 0 on padding; 2 on the second text of a pair, if one separator stands
            between the two.
        positions: int64 `[n]`, the positions to predict, as row * seq + column, ascending.
        labels: int64 `[n]`, their original ids. n can be 0 when all rows consist of special tokens.
        tokens: number of positions that are not padding.
        masked: whether there are positions to predict; otherwise whole texts are compared.
        of_step: the same of all batches of a step together: units a text; None: of this batch alone.
    """

    src: torch.Tensor
    seg: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    tokens: int = 0
    masked: bool = True
    of_step: torch.Tensor | None = None

    @property
    def units(self) -> int:
        """What the mean of a loss runs over: positions to predict, or texts."""
        return len(self.labels) if self.masked else len(self.src)

    @property
    def units_a_text(self) -> torch.Tensor | float:
        """What makes a text's loss one that is summed over units; of the whole step, however it is split."""
        return self.units / len(self.src) if self.of_step is None else self.of_step

    @property
    def padded(self) -> bool:
        """Whether some positions are padding."""
        return self.tokens < self.seg.numel()

    def to(self, device: torch.device | str) -> MlmBatch:
        """The batch on a device; from pinned memory the copy does not block."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> MlmBatch:
        """The batch in page-locked memory."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MlmBatch:
        src, seg, positions, labels = map(change, (self.src, self.seg, self.positions, self.labels))
        return MlmBatch(src, seg, positions, labels, self.tokens, self.masked)


class MlmLoader:
    """Batches of one rank.

    Args:
        batch_size: instances a rank takes at a time (see `uer.data.order` for the last batches of an epoch).
        masking: how to mask a dynamic dataset; None: as its header says. A static dataset is masked already.
        group_by_length: batches of instances of similar length; which instances meet changes, nothing else.
        prefetch: batches that `stream` makes ahead; 0 makes them when asked.
        shuffle: False: file order, every epoch.
        pin_memory: streamed batches are page-locked.
        masked: False: the text as it is, with nothing to predict.
        augment: without masks, the share of texts that `batch` makes others of (see `augmented`).

    Raises:
        UserError: masking options for a static dataset that was masked otherwise.
    """

    def __init__(self, dataset: Dataset, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1,
                 masking: MaskingOptions | None = None, group_by_length: bool = True, prefetch: int = 4,
                 shuffle: bool = True, pin_memory: bool = False, masked: bool = True, augment: float = 0.0) -> None:
        self.dataset, self.batch_size, self.group_by_length = dataset, batch_size, group_by_length
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.prefetch, self.pin_memory, self.masked, self.augment = prefetch, pin_memory, masked, augment
        header = dataset.header
        built = MaskingOptions.from_dict(header["masking"])
        if not dataset.dynamic and masking not in (None, built):
            raise UserError(f"{dataset.paths[0]}: its masks are static, so masking options have no effect here; leave "
                            f"them out, or build the dataset with  preprocess.py --dynamic_masking")
        self.masking = masking or built
        self._masker = Masker(self.masking, vocab_size=header["vocab_size"], special_ids=header["special_ids"],
                              mask_id=header["mask_id"], continues=dataset.continues)
        self._fixed: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}  # (first instance, how many): masks
        lengths = dataset.lengths if group_by_length else None
        self._order, self._part = BatchOrder(len(dataset), batch_size, world_size, seed, shuffle, lengths), 0
        self.batches_per_epoch = self._order.batches_per_epoch

    def batch(self, index: int) -> MlmBatch:
        """The index-th batch of this rank, counted from the start of training (or of the last of `follow`'s feeds)."""
        epoch, within = self._order.locate(index)
        indices = self._order.batch(epoch, within, self.rank)
        part = (self._part,) if self._part else ()
        return self._assemble(indices, (DYNAMIC, self.seed, epoch, within, self.rank, *part))

    def feed(self, accumulation_steps: int) -> Feed:
        """What decides which instances a step takes that has so many batches of each rank."""
        return Feed(self.dataset.sha256, len(self.dataset), self.batch_size, accumulation_steps, self.world_size,
                    self.seed, self.group_by_length, self.masking.to_dict())

    def follow(self, feeds: Sequence[Feed]) -> None:
        """Go on where other feeds left off: this loader's own is the last of them."""
        self._order, self._part = order_of(feeds, self.dataset.lengths), len(feeds) - 1

    def stream(self, start: int = 0) -> Generator[MlmBatch, None, None]:
        """Batches `start`, `start + 1`, … without end, made ahead by a thread.

        What goes wrong in the thread is raised here; closing the generator ends the thread.
        """
        if self.prefetch < 1:
            yield from map(self._ready, itertools.count(start))
            return
        made: queue.Queue[MlmBatch | BaseException] = queue.Queue(self.prefetch)
        stopped = threading.Event()

        def put(item: MlmBatch | BaseException) -> None:
            while not stopped.is_set():
                try:
                    return made.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for index in itertools.count(start):
                    if stopped.is_set():
                        return
                    put(self._ready(index))
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, name="mlm-loader", daemon=True)
        thread.start()
        try:
            while True:
                item = made.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()

    def sequential(self) -> Iterator[MlmBatch]:
        """One pass in file order with fixed masks: the same batches at every call, the last one may be smaller.

        Of several ranks each takes every world_size-th batch. Masks hang on the instance alone, not on seed, batch size
        or ranks: what one program says of held-out text stands beside what another says.
        """
        starts = range(0, len(self.dataset), self.batch_size)
        for number in range(self.rank, len(starts), self.world_size):
            end = min(starts[number] + self.batch_size, len(self.dataset))
            yield self._assemble(np.arange(starts[number], end), (FIXED,))

    def _ready(self, index: int) -> MlmBatch:
        batch = self.batch(index)
        return batch.pin_memory() if self.pin_memory else batch

    def _assemble(self, indices: np.ndarray, key: tuple[int, ...]) -> MlmBatch:
        rows = self.dataset.instances(indices)
        tokens, lengths, header = rows.values["tokens"].astype(np.int64), rows.lengths, self.dataset.header
        seconds = self.dataset.seconds(indices) if self.dataset.pairs else None
        if self.augment and key[0] == DYNAMIC and not self.masked:
            tokens, lengths = augmented(tokens, lengths, self.augment, generator(AUGMENT, *key[1:]),
                                        header["seq_length"], seconds, header.get("separators", 0))
        starts = np.cumsum(lengths) - lengths
        if not self.masked:
            chosen = shown = np.zeros(0, dtype=np.int64)
        elif self.dataset.dynamic:
            joined = rows.values.get("joined")
            joined = None if joined is None else joined.astype(bool)
            if key[0] == FIXED:
                at = int(indices[0]), len(indices)
                if at not in self._fixed:
                    self._fixed[at] = self._masked_alone(indices, tokens, lengths, joined)
                chosen, shown = self._fixed[at]
            else:
                chosen, shown = self._masker(tokens, lengths, generator(*key), joined)
        else:
            masks = self.dataset.masks(indices)
            chosen = np.repeat(starts, masks.lengths) + masks.values["mask_positions"]
            shown = masks.values["mask_tokens"]
        width = min(-(-int(lengths.max()) // PAD_MULTIPLE) * PAD_MULTIPLE, header["seq_length"])
        target = np.arange(len(tokens)) + np.repeat(np.arange(len(lengths)) * width - starts, lengths)
        labels = tokens[chosen]
        tokens[chosen] = shown
        src = np.full(len(lengths) * width, header["pad_id"], dtype=np.int64)
        seg = np.zeros(len(lengths) * width, dtype=np.int64)
        src[target], seg[target] = tokens, 1
        if seconds is not None and header["separators"] == 1:
            seg[target] += np.arange(len(tokens)) >= np.repeat(starts + seconds, lengths)
        shape = (len(lengths), width)
        return MlmBatch(torch.from_numpy(src).view(shape), torch.from_numpy(seg).view(shape),
                        torch.from_numpy(target[chosen]), torch.from_numpy(labels), len(tokens), self.masked)

    def _masked_alone(self, indices: np.ndarray, tokens: np.ndarray, lengths: np.ndarray,
                      joined: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """As a `Masker`, but each instance by random numbers of its own."""
        ends = np.cumsum(lengths)
        parts = [(end - length, self._masker(tokens[end - length:end], lengths[i:i + 1], generator(FIXED, int(index)),
                                             None if joined is None else joined[end - length:end]))
                 for i, (index, length, end) in enumerate(zip(indices, lengths, ends))]
        return np.concatenate([start + chosen for start, (chosen, _) in parts]), \
            np.concatenate([shown for _, (_, shown) in parts])
