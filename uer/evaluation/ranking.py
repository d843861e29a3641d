"""What people use sentence encoders for: similarity of two texts (STS), retrieval of documents.

    sts         Pearson's and Spearman's correlation of cosines with scores, from a TSV of two texts and a score
    retrieval   nDCG@10 and recall@100, from BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv
                (Thakur et al. 2021; gain 2^grade − 1 would need grades: the linear gain of trec_eval is taken)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from uer.errors import UserError
from uer.files import read_text
from uer.finetuning.metrics import pearson, spearman
from uer.finetuning.tsv import Table

Embed = Callable[[list[str]], torch.Tensor]
COLUMNS = (("sentence1", "sentence2", "score"), ("text_a", "text_b", "label"), ("text_a", "text_b", "score"))
NEAREST, FOUND = 10, 100
SPLITS = ("test.tsv", "dev.tsv", "train.tsv")


def read_pairs(path: str | Path) -> tuple[list[str], list[str], np.ndarray]:
    """The texts and scores of a TSV: STS-B's own, or one whose header is that of UER (text_a, text_b, label or score).

    Raises:
        UserError: other columns; a score that is no number.
    """
    table = Table(path)
    names = next((names for names in COLUMNS if all(name in table.columns for name in names)), None)
    if names is None:
        table.require(*COLUMNS[0])
    assert names is not None
    first, second, scores = [], [], []
    for number, (a, b, score) in table.select(*names):
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{path}, line {number}: score {score!r}; a number is needed")
        first.append(a)
        second.append(b)
        scores.append(value)
    return first, second, np.array(scores)


def sts(embed: Embed, path: str | Path) -> dict[str, float]:
    """Pearson and Spearman of the cosines with the scores of a TSV."""
    first, second, scores = read_pairs(path)
    cosines = F.cosine_similarity(embed(first).double(), embed(second).double()).numpy()
    return {"pearson": pearson(cosines, scores), "spearman": spearman(cosines, scores)}


def read_beir(folder: str | Path) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, float]]]:
    """Corpus and queries (id -> text), and for each query with judgements the grades of documents.

    Raises:
        UserError: files that are missing or malformed, or judgements of what is not there.
    """
    folder = Path(folder)
    corpus, queries = _texts(folder / "corpus.jsonl"), _texts(folder / "queries.jsonl")
    judged = next((folder / "qrels" / name for name in SPLITS if (folder / "qrels" / name).is_file()), None)
    if judged is None:
        raise UserError(f"{folder / 'qrels'}: none of {', '.join(SPLITS)} is there; BEIR's layout is needed")
    grades: dict[str, dict[str, float]] = {}
    table = Table(judged)
    table.require("query-id", "corpus-id", "score")
    for number, (query, document, grade) in table.select("query-id", "corpus-id", "score"):
        if query not in queries or document not in corpus or not grade.lstrip("-").isdecimal():
            raise UserError(f"{judged}, line {number}: query {query!r}, document {document!r} or grade {grade!r} does "
                            f"not exist")
        grades.setdefault(query, {})[document] = max(0.0, float(grade))
    return corpus, queries, {query: found for query, found in grades.items() if any(found.values())}


def _texts(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            data = json.loads(line)
            found[str(data["_id"])] = f"{data.get('title', '')} {data['text']}".strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}, line {number}: not an object with _id and text") from None
    if not found:
        raise UserError(f"{path}: the file is empty")
    return found


def retrieval(queries_by: Embed, documents_by: Embed, folder: str | Path) -> dict[str, float]:
    """nDCG@10 and recall@100 of a folder, its queries and documents embedded by one model or two."""
    corpus, queries, grades = read_beir(folder)
    if not grades:
        raise UserError(f"{folder}: no query has a document that answers it")
    ids, asked = list(corpus), list(grades)
    documents = documents_by([corpus[name] for name in ids])
    scores = queries_by([queries[name] for name in asked]) @ documents.T
    most = min(FOUND, len(ids))
    best = scores.topk(most, dim=1).indices.tolist()
    ranked = {query: [ids[j] for j in row] for query, row in zip(asked, best)}
    return {f"nDCG@{NEAREST}": float(np.mean([ndcg(ranked[query], grades[query]) for query in asked])),
            f"recall@{FOUND}": float(np.mean([recall(ranked[query], grades[query]) for query in asked]))}


def ndcg(ranked: list[str], grades: Mapping[str, float], most: int = NEAREST) -> float:
    """Σ grade / log2(rank + 1) of the first `most` documents, of what the best order would have."""
    gain = sum(grades.get(name, 0.0) / math.log2(rank + 1) for rank, name in enumerate(ranked[:most], 1))
    best = sorted(grades.values(), reverse=True)[:most]
    return gain / sum(grade / math.log2(rank + 1) for rank, grade in enumerate(best, 1))


def recall(ranked: list[str], grades: Mapping[str, float]) -> float:
    """Share of the documents with a grade above 0 that are among those ranked."""
    wanted = {name for name, grade in grades.items() if grade > 0}
    return len(wanted & set(ranked)) / len(wanted)
