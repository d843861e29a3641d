#!/usr/bin/env python3
"""SQuAD's JSON in two parts by article, and questions and paragraphs of the first as JSON lines, pairs to learn from.

    python3 experiments/squad_split.py --squad_path xquad.en.json --articles 40 --output_path squad
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.errors import UserError, run_script
from uer.finetuning.squad_data import read_squad


def main() -> None:
    """Read, split, write `train.json`, `dev.json`, `pairs.jsonl`."""
    args = parser().parse_args()
    read_squad(args.squad_path)  # refuses what is no such file
    data = json.loads(Path(args.squad_path).read_text(encoding="utf-8"))
    if not 0 < args.articles < len(data["data"]):
        raise UserError(f"--articles {args.articles}: the file has {len(data['data'])}, and both parts need one")
    folder, parts = Path(args.output_path), {"train": data["data"][:args.articles], "dev": data["data"][args.articles:]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, articles in parts.items():
        (folder / f"{name}.json").write_text(json.dumps({**data, "data": articles}), encoding="utf-8")
    pairs = [{"question": entry["question"], "context": paragraph["context"]}
             for article in parts["train"] for paragraph in article["paragraphs"] for entry in paragraph["qas"]]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    print(f"{folder}: {len(parts['train'])} and {len(parts['dev'])} articles, {len(pairs):,} pairs")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    out.add_argument("--squad_path", required=True, metavar="FILE")
    out.add_argument("--articles", type=int, required=True, metavar="N", help="articles of the first part")
    out.add_argument("--output_path", required=True, metavar="FOLDER")
    return out


if __name__ == "__main__":
    run_script(main)
