"""Small vocabularies and corpora for the tests of tokenizers and data."""

from __future__ import annotations

import random
from argparse import Namespace
from pathlib import Path

import numpy as np

from uer.data.builder import build_dataset
from uer.data.dataset import Dataset
from uer.data.options import preprocess_parser
from uer.tokenizers import TextRules, agreed_rules

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "un", "want", "run", "low", "lowest", "new", "river", "cafe", "The", "Run", "naïve", "你", "好", "世"]
PIECES = ["##ed", "##able", "##ing", "##er", "##est", "##s", "##a", "##b", "##c"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789", *".,;:!?'\"()-[]", "é", "ß", "σ"]
TOKENS = [*SPECIALS, *WORDS, *PIECES, *LETTERS]


def write_vocab(folder: Path, tokens: list[str] = TOKENS, end: str = "\n") -> Path:
    """A vocabulary file; `end` ends its lines."""
    path = folder / "vocab.txt"
    path.write_bytes("".join(token + end for token in tokens).encode("utf-8"))
    return path


def random_corpus(seed: int, documents: int, longest_line: int = 40) -> str:
    """Documents of one to six lines of random words, a blank line (or several) after each."""
    rng = random.Random(seed)
    vocabulary = ["the", "unwanted", "running", "lowest", "new", "river", "xyz", "café", "你好世", "low,", "(run)"]
    text = ""
    for _ in range(documents):
        for _ in range(rng.randint(1, 6)):
            text += " ".join(rng.choices(vocabulary, k=rng.randint(1, longest_line))) + "\n"
        text += rng.choice(["\n", "\n", " \t\n\n"])
    return text


def options(folder: Path, *more: str, corpus: str | Path | None = None) -> Namespace:
    """Parsed options of preprocess.py for folder/corpus.txt, folder/vocab.txt and folder/dataset.pt."""
    paths = ["--corpus_path", str(corpus or folder / "corpus.txt"), "--vocab_path", str(folder / "vocab.txt")]
    return preprocess_parser().parse_args([*paths, "--dataset_path", str(folder / "dataset.pt"), *more])


def described(vocab: str | Path, *more: str) -> TextRules:
    """What a vocabulary, with what stands beside it, and options say."""
    return agreed_rules(preprocess_parser().parse_args(["--corpus_path", "-", "--vocab_path", str(vocab), *more]))


def build(folder: Path, text: str | bytes, *more: str) -> Dataset:
    """Write corpus and vocabulary, build, open."""
    (folder / "corpus.txt").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    write_vocab(folder)
    build_dataset(options(folder, *more))
    return Dataset.open(folder / "dataset.pt")


def instances(dataset: Dataset) -> list[list[int]]:
    """All instances as lists."""
    rows = dataset.instances(np.arange(len(dataset)))
    return [part.tolist() for part in np.split(rows.values["tokens"], np.cumsum(rows.lengths)[:-1])]
