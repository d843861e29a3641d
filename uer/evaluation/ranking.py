"""What people use sentence encoders for: similarity of two texts (STS), retrieval of documents.

    sts         Pearson's and Spearman's correlation of cosines with scores, from a table of two texts and a score
    retrieval   nDCG@10 and recall@100 by the model's own similarity, from BEIR's layout: corpus.jsonl, queries.jsonl,
                qrels/<split>.tsv
                (Thakur et al. 2021; gain 2^grade − 1 would need grades: the linear gain of trec_eval is taken)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from uer.errors import UserError
from uer.files import read_lines
from uer.finetuning.metrics import pearson, spearman
from uer.finetuning.tasks import NUMBER
from uer.finetuning.tsv import Table
from uer.targets.pooling import cosines

Embed = Callable[[list[str]], torch.Tensor]
COLUMNS = (("sentence1", "sentence2", "score"), ("text_a", "text_b", "label"), ("text_a", "text_b", "score"))
NEAREST, FOUND = 10, 100
HALF = re.compile("[\ud800-\udfff]")  # a surrogate without its other half, which JSON can spell
SPLITS = ("test.tsv", "dev.tsv", "train.tsv")
COMPARED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {  # [n, width], [m, width] -> [n, m]
    "cosine": cosines,
    "dot": lambda queries, documents: queries @ documents.T,
    "euclidean": lambda queries, documents: -torch.cdist(queries, documents),
    "manhattan": lambda queries, documents: -torch.cdist(queries, documents, p=1)}


def read_pairs(path: str | Path) -> tuple[list[str], list[str], np.ndarray]:
    """The texts and scores of a table: STS-B's own, or one with UER's columns (text_a, text_b, label or score).
    `UserError` for other columns, a score that is no number, and one score for all."""
    table = Table(path)
    names = next((names for names in COLUMNS if all(name in table.columns for name in names)), None)
    if names is None:
        table.require(*COLUMNS[0])
    assert names is not None
    first, second, scores = [], [], []
    for number, (a, b, score) in table.select(*names):
        value = number_of(score)
        if value is None:
            raise UserError(f"{path}, line {number}: score {score!r}; a number is needed")
        if not (a.strip() and b.strip()):
            raise UserError(f"{path}, line {number}: a text is empty")
        first.append(a)
        second.append(b)
        scores.append(value)
    if len(set(scores)) < 2:
        raise UserError(f"{path}: all scores are {scores[0]:g}; nothing correlates with that")
    return first, second, np.array(scores)


def number_of(text: str) -> float | None:
    """A finite number as text; None: it is none."""
    value = float(text) if NUMBER.fullmatch(text.strip()) else math.nan
    return value if math.isfinite(value) else None


def sts(embed: Embed, path: str | Path) -> dict[str, float]:
    """Pearson and Spearman of the cosines with the scores of a table."""
    first, second, scores = read_pairs(path)
    cosines = F.cosine_similarity(embed(first).double(), embed(second).double()).numpy()
    return {"pearson": pearson(cosines, scores), "spearman": spearman(cosines, scores)}


def read_beir(folder: str | Path) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, float]]]:
    """Corpus and queries (id -> text), and for each query with judgements the grades of documents.
    `UserError` for files that are missing or malformed, or judgements of what is not there."""
    folder = Path(folder)
    corpus, queries = _texts(folder / "corpus.jsonl"), _texts(folder / "queries.jsonl")
    judged = next((folder / "qrels" / name for name in SPLITS if (folder / "qrels" / name).is_file()), None)
    if judged is None:
        raise UserError(f"{folder / 'qrels'}: none of {', '.join(SPLITS)} is there; BEIR's layout is needed")
    grades: dict[str, dict[str, float]] = {}
    table = Table(judged)
    table.require("query-id", "corpus-id", "score")
    for number, (query, document, told) in table.select("query-id", "corpus-id", "score"):
        where, grade = f"{judged}, line {number}", number_of(told)
        if query not in queries:
            raise UserError(f"{where}: there is no query {query!r} in {folder / 'queries.jsonl'}")
        if document not in corpus:
            raise UserError(f"{where}: there is no document {document!r} in {folder / 'corpus.jsonl'}")
        if grade is None:
            raise UserError(f"{where}: grade {told!r}; a number is needed")
        if grades.setdefault(query, {}).setdefault(document, max(0.0, grade)) != max(0.0, grade):
            raise UserError(f"{where}: document {document!r} has another grade for query {query!r} further up")
    return corpus, queries, {query: found for query, found in grades.items() if any(found.values())}


def _texts(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            name, title, text = data["_id"], data.get("title") or "", data["text"] or ""
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{path}, line {number}: not an object with _id and text") from None
        if isinstance(name, bool) or not isinstance(name, str | int) or not (isinstance(title, str) and
                                                                             isinstance(text, str)):
            raise UserError(f"{path}, line {number}: _id, title or text is no text")
        if found.setdefault(str(name), whole := f"{title} {text}".strip()) != whole:
            raise UserError(f"{path}, line {number}: _id {name!r} has another text further up")
        if HALF.search(whole):
            raise UserError(f"{path}, line {number}: half of a character, {HALF.findall(whole)[0]!a}, in the text")
    if not found:
        raise UserError(f"{path}: the file is empty")
    return found


def retrieval(queries_by: Embed, documents_by: Embed, folder: str | Path,
              similarity: str | None = None) -> dict[str, float]:
    """nDCG@10 and recall@100 of a folder, its queries and documents embedded by one model or two.

    A document with the query's own id is the query itself (in ArguAna and Quora), and not found, as in BEIR's own
    evaluation; unless it is judged to answer it.
    `similarity`: what their vectors are compared by, of `COMPARED` (default: cosine).
    """
    corpus, queries, grades = read_beir(folder)
    if not grades:
        raise UserError(f"{folder}: no query has a document that answers it")
    ids, asked = list(corpus), list(grades)
    documents = documents_by([corpus[name] for name in ids])
    asked_for = queries_by([queries[name] for name in asked])
    with torch.autocast(documents.device.type, enabled=False):  # what is compared differs by less than half tells
        scores = COMPARED[similarity or "cosine"](asked_for, documents)
    places = {name: j for j, name in enumerate(ids)}
    for i, query in enumerate(asked):
        if query in places and query not in grades[query]:
            scores[i, places[query]] = -math.inf
    most = min(FOUND, len(ids))
    best = scores.topk(most, dim=1).indices.tolist()
    ranked = {query: [ids[j] for j in row] for query, row in zip(asked, best)}
    return {f"nDCG@{NEAREST}": float(np.mean([ndcg(ranked[query], grades[query]) for query in asked])),
            f"recall@{FOUND}": float(np.mean([recall(ranked[query], grades[query]) for query in asked]))}


def ndcg(ranked: list[str], grades: Mapping[str, float]) -> float:
    """Σ grade / log2(rank + 1) of the first `NEAREST` documents, of what the best order would have."""
    gain = sum(grades.get(name, 0.0) / math.log2(rank + 1) for rank, name in enumerate(ranked[:NEAREST], 1))
    best = sorted(grades.values(), reverse=True)[:NEAREST]
    return gain / sum(grade / math.log2(rank + 1) for rank, grade in enumerate(best, 1))


def recall(ranked: list[str], grades: Mapping[str, float]) -> float:
    """Share of the documents with a grade above 0 that are among those ranked."""
    wanted = {name for name, grade in grades.items() if grade > 0}
    return len(wanted & set(ranked)) / len(wanted)
