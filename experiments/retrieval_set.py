#!/usr/bin/env python3
"""A retrieval set in BEIR's layout out of questions on paragraphs (SQuAD's JSON): find the paragraph for a question.

    python3 experiments/retrieval_set.py --squad_path xquad.en.json --output_path retrieval [--distractors FILE 3000]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.errors import run_script

SHORTEST = 200  # characters of a distractor


def write_lines(path: Path, texts: Iterable[tuple[str, str]]) -> None:
    """BEIR's JSON lines of (id, text)."""
    path.write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts), encoding="utf-8")


def main() -> None:
    """Read, number, write."""
    args = parser().parse_args()
    articles = json.loads(Path(args.squad_path).read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    corpus = [(f"d{number}", paragraph["context"]) for number, paragraph in enumerate(paragraphs)]
    asked = [(question["question"], f"d{number}") for number, paragraph in enumerate(paragraphs)
             for question in paragraph["qas"]]
    if args.distractors:
        path, most = args.distractors[0], int(args.distractors[1])
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        long = [line for line in lines if len(line) >= SHORTEST]
        corpus += [(f"x{number}", line) for number, line in enumerate(long[::max(1, len(long) // most)][:most])]
    folder = Path(args.output_path)
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", ((f"q{number}", text) for number, (text, _) in enumerate(asked)))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(
        f"q{number}\t{document}\t1\n" for number, (_, document) in enumerate(asked)), encoding="utf-8")
    print(f"{folder}: {len(corpus):,} documents, {len(asked):,} queries")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    out.add_argument("--squad_path", required=True, metavar="FILE")
    out.add_argument("--output_path", required=True, metavar="FOLDER")
    out.add_argument("--distractors", nargs=2, metavar=("FILE", "N"),
                     help="N more documents that answer nothing: lines of a text, spread over it")
    return out


if __name__ == "__main__":
    run_script(main)
