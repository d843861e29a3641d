"""Mutated files for every reader: each is read right or refused in one sentence, in bounded time and memory.

    python3 benchmarks/fuzz_readers.py --inputs 10000 --seed 1

Bytes are flipped, cut, doubled, moved; values of JSON are exchanged for others; members of archives are changed and
packed again with right checksums; text comes in other encodings. For each reader the table has the inputs, how many
were read and how many refused, and what must be 0: other exceptions (tracebacks), inputs that took longer than
`SLOW` seconds, files that a refused input left behind. The largest memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import folders
import torch
import tuning
from corpora import TOKENS, options, random_corpus, write_vocab

from benchmarks.mutations import mutated
from uer.config import ModelConfig, load_config
from uer.data.builder import build_dataset
from uer.data.dataset import Dataset
from uer.data.loader import MlmLoader
from uer.errors import UserError
from uer.finetuning.grid import Results
from uer.finetuning.heads import load_classifier, read_card
from uer.finetuning.squad_data import read_squad
from uer.finetuning.tasks import GLUE, read_glue, read_uer, uer_task
from uer.formats import load_model
from uer.models.bert import from_scratch
from uer.squeeze.mask_file import read_masks, recorded_masks
from uer.system import peak_memory
from uer.tokenizers import build_tokenizer
from uer.training.checkpoint import load_checkpoint, save_checkpoint

SLOW = 10.0  # seconds
TEXT = "the unwanted river 你好 café 😀"
SMALL = ModelConfig(16, 1, 2, 32, 32)


@dataclass
class Reader:
    """What is fuzzed: files (of which one is mutated at a time) in a folder, and what reads them."""

    name: str
    read: Callable[[Path], object]
    files: dict[str, bytes]
    counts: collections.Counter = field(default_factory=collections.Counter)


# -- readers -----------------------------------------------------------------------------------------------------------


def readers(work: Path) -> list[Reader]:
    """All of them, with right files to begin with."""
    work.mkdir(parents=True)
    write_vocab(work)
    (work / "corpus.txt").write_text(random_corpus(1, 6), encoding="utf-8")
    build_dataset(options(work, "--dynamic_masking", "--seq_length", "16"))
    weights = dict(from_scratch(SMALL, len(TOKENS), seed=1).state_dict())
    save_checkpoint(str(work / "m"), 3, weights, {"kind": "plain", "teacher": SMALL.to_dict()}, {"optimizer": {}})
    tuning.write_models(work)
    tuning.write_uer_tsv(work / "t.tsv", 8, 1, pairs=True)
    tuning.write_squad(work / "s.json", 3, 1, unanswerable=True)
    lines = {task: {kind: "\n".join(tuning.glue_lines(task, kind, 6)[0]).encode() for kind in ("train", "test")}
             for task in ("QQP", "STS-B", "CoLA")}
    records = "".join(json.dumps({"id": i, "text": f"the river\n\nnew café {i}"}) + "\n" for i in range(8))
    masks = "".join(f"{step}\tencoder.transformer.0.self_attn.final_linear_left_compactor.weight\t[0, {step}]\n"
                    for step in (1, 2, 3))
    card = {"format": 1, "config": SMALL.to_dict(), "labels": ["0", "1"], "pairs": True, "pooling": "mean",
            "seq_length": 16, "task": ""}
    run = {"learning_rate": 1e-3, "batch_size": 8, "seed": 1, "score": 0.5, "figures": {"accuracy": 0.5},
           "best_epoch": 1}
    results = {"format": 1, "facts": {"a": 1}, "runs": [run], "table": []}

    def data(*names: str, under: str = "") -> dict[str, bytes]:
        return {name: (work / under / name).read_bytes() for name in names}

    vocab, theirs = data("vocab.txt"), data("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
                                           "special_tokens_map.json", under="hf")
    whole = {**theirs, **data("model.safetensors", under="hf")}

    def glue(folder: Path) -> None:
        for task in lines:
            for kind in ("train", "test"):
                if (folder / task / f"{kind}.tsv").exists():
                    read_glue(GLUE[task], folder / task, kind)

    def uer_table(folder: Path) -> None:
        read_uer(uer_task(folder / "t.tsv"), folder / "t.tsv")

    def corpus(folder: Path) -> None:
        build_dataset(options(folder, "--dynamic_masking", "--seq_length", "16"))

    def json_lines(folder: Path) -> None:
        build_dataset(options(folder, "--dynamic_masking", "--seq_length", "16", corpus=folder / "corpus.jsonl"))

    def dataset(folder: Path) -> None:
        found = Dataset.open(folder / "dataset.pt")
        loader = MlmLoader(found, 4, seed=1, prefetch=0)
        for index in range(2):
            loader.batch(index)

    def classifier(folder: Path) -> None:
        path = str(folder / "c.bin")
        load_classifier(path, read_card(path), None, None, None, len(TOKENS))

    tokenizers = {"WordPiece": work / "wordpiece", "BPE": folders.roberta(work / "bpe", {"add_prefix_space": True})}
    if importlib.util.find_spec("sentencepiece"):
        tokenizers["Unigram"] = folders.unigram(work / "unigram")
    (work / "wordpiece").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(work / "hf" / name, work / "wordpiece")

    def spelt(folder: Path) -> None:
        folders.tokenizer_of(folder).encode(TEXT)

    def tokenizer(folder: Path) -> None:
        build_tokenizer(options(folder)).encode(TEXT)

    classes = {name: tensor for name, tensor in weights.items() if not name.startswith("target.")}
    for layer, size in (("1", SMALL.hidden_size), ("2", 2)):
        classes |= {f"output_layer_{layer}.weight": torch.ones(size, SMALL.hidden_size),
                    f"output_layer_{layer}.bias": torch.ones(size)}
    save_checkpoint(str(work / "c"), 1, classes, {}, {"optimizer": {}})
    return [
        Reader("corpus", corpus, {**vocab, **data("corpus.txt")}),
        Reader("corpus of JSON lines", json_lines, {**vocab, "corpus.jsonl": records.encode()}),
        Reader("vocabulary", tokenizer, vocab),
        Reader("config", lambda folder: load_config(folder / "config.json"), {"config.json": SMALL.to_json().encode()}),
        Reader("config of Hugging Face", lambda folder: load_config(folder / "config.json"),
               data("config.json", under="hf")),
        Reader("TSV of UER", uer_table, data("t.tsv")),
        *(Reader(f"TSV of {task}", glue, {f"{task}/{kind}.tsv": text}) for task, kinds in lines.items()
          for kind, text in kinds.items()),
        Reader("SQuAD", lambda folder: read_squad(folder / "s.json"), data("s.json")),
        *(Reader(f"tokenizer, {name}", spelt, {path.name: path.read_bytes() for path in folder.iterdir()})
          for name, folder in tokenizers.items()),
        Reader("mask file", lambda folder: (read_masks(folder / "masks", 2), list(recorded_masks(folder / "masks"))),
               {"masks": masks.encode()}),
        Reader("checkpoint", lambda folder: load_checkpoint(folder / "m-3"), data("m-3", "m-3.json", "m-3.resume")),
        Reader("UER model", lambda folder: load_model(folder / "m-3", config=None, vocab_size=len(TOKENS)),
               data("m-3", "m-3.json")),
        Reader("Hugging Face folder", lambda folder: load_model(folder, config=None, vocab_size=len(TOKENS)), whole),
        Reader("fine-tuned model", classifier, {"c.bin": (work / "c-1").read_bytes(),
                                                "c.bin.json": json.dumps(card).encode()}),
        Reader("results", lambda folder: Results(str(folder / "r.bin"), {"a": 1}, True),
               {"r.bin.results.json": json.dumps(results).encode(), "r.bin": (work / "c-1").read_bytes(),
                "r.bin.json": b"{}"}),
        Reader("dataset", dataset, data("dataset.pt"))]


# -- the run -----------------------------------------------------------------------------------------------------------


class TooSlow(BaseException):
    """An input took longer than `SLOW`."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SLOW)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(reader: Reader, folder: Path, rng: random.Random | None, say: Callable[[str], object]) -> None:
    """One input: written, read, counted; what must not be is told. Without `rng` the files are as they should be."""
    shutil.rmtree(folder, ignore_errors=True)
    spoilt = rng.choice(list(reader.files)) if rng else ""
    for name, content in reader.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(mutated(content, rng) if rng and name == spoilt else content)
    before = {path for path in folder.rglob("*") if path.is_file()}
    reader.counts["inputs"] += 1
    try:
        with limited(), contextlib.redirect_stdout(io.StringIO()):
            reader.read(folder)
        reader.counts["read"] += 1
        return
    except UserError as error:
        kind = "refused" if str(error) and "\n" not in str(error) else "traceback"
        told = f"a message of several lines: {str(error)[:300]!r}"
    except TooSlow:
        kind, told = "hang", "too slow"
    except OSError as error:  # told by `uer.errors.run_script` where it names a file
        kind, told = ("refused" if error.filename is not None else "traceback"), traceback.format_exc()
    except Exception:
        kind, told = "traceback", traceback.format_exc()
    reader.counts[kind] += 1
    if kind != "refused" and spoilt:
        say(f"{reader.name}: {spoilt} (kept as {keep(folder / spoilt)}): {told}")
    left = {path for path in folder.rglob("*") if path.is_file()} - before
    if left:
        reader.counts["left behind"] += 1
        say(f"{reader.name}: left behind {sorted(map(str, left))}")


def keep(path: Path) -> Path:
    """A copy of a file that was not taken as it should be."""
    target = Path(tempfile.mkdtemp(prefix="fuzz-")) / path.name
    shutil.copy(path, target)
    return target


def fuzz(inputs: int, seed: int, work: Path, say: Callable[[str], object] = print) -> list[Reader]:
    """`inputs` of them, in turn over all readers."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = readers(work / "right")
    for reader in found:
        attempt(reader, work / "input", None, say)
        assert reader.counts["read"] == 1, f"{reader.name}: its right files are not read"
    rng = random.Random(seed)
    for number in range(inputs):
        attempt(found[number % len(found)], work / "input", rng, say)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="default: 10000")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    args = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(args.inputs, args.seed, Path(folder))
    columns = ("inputs", "read", "refused", "traceback", "hang", "left behind")
    total: collections.Counter = sum((reader.counts for reader in found), collections.Counter())
    print(f"{'':<24}" + "".join(f"{name:>13}" for name in columns))
    for name, counts in [*((reader.name, reader.counts) for reader in found), ("all", total)]:
        print(f"{name:<24}" + "".join(f"{counts[column]:>13,}" for column in columns))
    print(f"{time.perf_counter() - begun:.0f} s, {peak_memory() / 1e6:,.0f} MB at most")
    sys.exit(any(total[name] for name in columns[3:]))


if __name__ == "__main__":
    main()
