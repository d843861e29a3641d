"""How fast preprocess.py is, and how much memory it takes.

    python3 benchmarks/preprocess_speed.py --corpus_path corpus.txt --vocab_path vocab.txt

Runs preprocess.py as a user would, with one and with several processes in turn, and takes the best of the rounds of
each: start-up, reading, tokenizing, merging and the final sync included. `--forms` also writes the same documents as
JSON lines and as Parquet; MB are those of the text alone. Then the tokenizer alone on one core, against
the package `tokenizers` in the same process if it is installed, line by line; lines with other ids are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LINES_AT_ONCE = 5000


def preprocess(corpus: str, vocab: str, processes: int, more: list[str]) -> tuple[float, float]:
    """Seconds of a run, and megabytes of the largest process in it."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, str(ROOT / "preprocess.py"), "--corpus_path", corpus, "--vocab_path", vocab]
        line += ["--dataset_path", f"{folder}/d.pt", "--processes_num", str(processes), *more]
        start = time.perf_counter()
        quiet = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
        pid = os.posix_spawn(line[0], line, os.environ, file_actions=[quiet])
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - start
    if status:
        sys.exit(f"preprocess.py failed ({status})")
    return seconds, usage.ru_maxrss / 1024


def written_as(form: str, corpus: str, folder: str) -> str:
    """The corpus in another form, its documents (which blank lines end) as records."""
    if form == "text":
        return corpus
    documents = [text for text in Path(corpus).read_text(encoding="utf-8").split("\n\n") if text.strip()]
    path = f"{folder}/corpus.{form}"
    if form == "parquet":
        from pyarrow import parquet, table

        parquet.write_table(table({"id": list(range(len(documents))), "text": documents}), path)
    else:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(documents))
    return path


def tokenizers_side_by_side(corpus: str, vocab: str) -> None:
    """The two tokenizers on the same lines, alternating; processor seconds."""
    import numpy as np

    from uer.tokenizers import Vocab
    from uer.tokenizers.bert import BertTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    ours = BertTokenizer(Vocab.load(vocab))
    try:
        import tokenizers
    except ImportError:
        sys.stdout.write("the package tokenizers is not installed: no comparison\n")
        return
    theirs = tokenizers.BertWordPieceTokenizer(vocab, lowercase=True)
    lines = Path(corpus).read_text(encoding="utf-8").split("\n")
    seconds, theirs_seconds, different = 0.0, 0.0, 0
    for start in range(0, len(lines), LINES_AT_ONCE):
        part = lines[start : start + LINES_AT_ONCE]
        clock = time.process_time()
        ids, lengths = ours.encode_lines(part)
        middle = time.process_time()
        expected = theirs.encode_batch(part, add_special_tokens=False)
        theirs_seconds += time.process_time() - middle
        seconds += middle - clock
        own = np.split(ids, np.cumsum(lengths)[:-1])
        different += sum(a.tolist() != b.ids for a, b in zip(own, expected))
    size = Path(corpus).stat().st_size / 1e6
    sys.stdout.write(
        f"tokenizer alone, one core: {size / seconds:.1f} MB/s, tokenizers {size / theirs_seconds:.1f} MB/s, "
        f"lines that differ: {different} of {len(lines)}\n"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--corpus_path", required=True)
    parser.add_argument("--vocab_path", required=True)
    parser.add_argument("--processes_num", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forms", nargs="+", choices=("text", "jsonl", "parquet"), default=["text"])
    parser.add_argument("--more", default="--dynamic_masking", help="further options of preprocess.py, as one string")
    args = parser.parse_args()
    cases = [(form, number) for form in args.forms for number in args.processes_num]
    runs: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1) as writer:  # a run's memory counts what forked it: nothing large here
            paths = {form: writer.submit(written_as, form, args.corpus_path, folder).result() for form in args.forms}
        for _ in range(args.rounds):
            for (form, number), results in runs.items():
                results.append(preprocess(paths[form], args.vocab_path, number, args.more.split()))
    size = Path(args.corpus_path).stat().st_size / 1e6
    best = {case: min(seconds for seconds, _ in results) for case, results in runs.items()}
    sys.stdout.write(f"{os.cpu_count()} cores, corpus of {size:.1f} MB, best of {args.rounds} rounds\n")
    for (form, number), results in runs.items():
        memory = max(megabytes for _, megabytes in results)
        sys.stdout.write(
            f"{form}, {number} process(es): {best[form, number]:.2f} s, {size / best[form, number]:.1f} MB/s, "
            f"{best[cases[0]] / best[form, number]:.2f} x the first; largest process {memory:.0f} MB\n"
        )
    tokenizers_side_by_side(args.corpus_path, args.vocab_path)


if __name__ == "__main__":
    main()
