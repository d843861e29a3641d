"""Mutated files for every reader: read right or refused in one sentence, see benchmarks/fuzz_readers.py."""

from __future__ import annotations

import pytest

from benchmarks.fuzz_readers import fuzz
from uer.system import peak_memory

MORE_MEMORY = 500e6  # bytes


@pytest.mark.parametrize(("inputs", "seed"), [(400, 11), pytest.param(10_000, 12, marks=pytest.mark.long)])
def test_no_file_makes_a_reader_fail(tmp_path, inputs, seed):
    said: list[str] = []
    before = peak_memory()
    readers = fuzz(inputs, seed, tmp_path, said.append)
    assert not said, said[0]
    counts = [reader.counts for reader in readers]
    assert sum(count["inputs"] for count in counts) == inputs + len(readers)
    assert all(count["read"] and count["refused"] and not count["traceback"] + count["hang"] + count["left behind"]
               for count in counts)
    assert peak_memory() - before < MORE_MEMORY
