"""Tiny models and data for the tests of fine-tuning: texts whose label can be learned in a few steps."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from corpora import TOKENS, described, write_vocab

from uer.config import ModelConfig
from uer.formats.export import write_huggingface, write_uer
from uer.models.bert import from_scratch

CONFIG = ModelConfig(hidden_size=16, layers_num=1, heads_num=2, feedforward_size=32, max_seq_length=64, dropout=0.1)
FAST = ["--epochs_num", 2, "--batch_size", 8, "--seq_length", 24, "--learning_rate", 0.01]
GOOD, BAD = ["the river", "new cafe", "lowest run"], ["unwanted want", "running low", "un un"]


def pooler(size: int = CONFIG.hidden_size, seed: int = 3) -> dict[str, torch.Tensor]:
    """A pooler under published names."""
    generator = torch.Generator().manual_seed(seed)
    return {"target.nsp_linear_1.weight": torch.randn(size, size, generator=generator),
            "target.nsp_linear_1.bias": torch.randn(size, generator=generator)}


def write_models(folder: Path) -> dict[str, torch.Tensor]:
    """The same model as a UER file (uer.bin, its config beside it) and as a Hugging Face folder (hf), with a pooler.

    Also the vocabulary. Returns the tensors.
    """
    vocab = write_vocab(folder)
    weights = {name: tensor.detach() * (8 if tensor.dim() == 2 else 1)
               for name, tensor in from_scratch(CONFIG, len(TOKENS), seed=1).state_dict().items()}
    weights |= pooler()
    write_uer(folder / "uer.bin", weights)
    (folder / "uer_config.json").write_text(CONFIG.to_json())
    write_huggingface(folder / "hf", CONFIG, weights, text=described(vocab))
    return weights


def sentence(rng: random.Random, label: int) -> str:
    """Some words that tell the label, and some that do not."""
    words = [rng.choice((BAD, GOOD)[label]), *rng.choices(["a", "b", "c", '"', "d ."], k=rng.randint(1, 6))]
    rng.shuffle(words)
    return " ".join(words)


def write_uer_tsv(path: Path, count: int, seed: int, pairs: bool = False, labels: bool = True) -> Path:
    """UER's TSV."""
    rng = random.Random(seed)
    lines = [["label"] * labels + ["text_a"] + ["text_b"] * pairs]
    for i in range(count):
        lines.append([str(i % 2)] * labels + [sentence(rng, i % 2)] + [sentence(rng, i % 2)] * pairs)
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


# Header (None: there is none) of training and dev files, then of the test file; `A`, `B`, `L` stand for text and label.
LAYOUTS = {
    "CoLA": (None, "S L * A", "index sentence", "I A", "01"),
    "SST-2": ("sentence label", "A L", "index sentence", "I A", "01"),
    "MRPC": ("Quality;#1 ID;#2 ID;#1 String;#2 String", "L I I A B", "index;#1 ID;#2 ID;#1 String;#2 String",
             "I I I A B", "01"),
    "STS-B": ("index genre filename year old_index source1 source2 sentence1 sentence2 score", "I g f y o s t A B L",
              "index genre filename year old_index source1 source2 sentence1 sentence2", "I g f y o s t A B", None),
    "QQP": ("id qid1 qid2 question1 question2 is_duplicate", "I I I A B L", "id question1 question2", "I A B", "01"),
    "MNLI": ("index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
             "sentence2_parse sentence1 sentence2 label1 gold_label", "I p q g b b p p A B x L",
             "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
             "sentence2_parse sentence1 sentence2", "I p q g b b p p A B",
             ("contradiction", "entailment", "neutral")),
    "QNLI": ("index question sentence label", "I A B L", "index question sentence", "I A B",
             ("entailment", "not_entailment")),
    "RTE": ("index sentence1 sentence2 label", "I A B L", "index sentence1 sentence2", "I A B",
            ("entailment", "not_entailment")),
    "WNLI": ("index sentence1 sentence2 label", "I A B L", "index sentence1 sentence2", "I A B", "01"),
}


def glue_lines(task: str, kind: str, count: int, seed: int = 0) -> tuple[list[str], list[tuple]]:
    """A file's lines in GLUE's layout, and the (text_a, text_b, label) of each example."""
    header, columns, test_header, test_columns, labels = LAYOUTS[task]
    if kind == "test":
        header, columns = test_header, test_columns
    rng = random.Random(f"{task} {kind} {seed}")
    lines = [] if header is None else ["\t".join(header.split(";" if ";" in header else None))]
    found = []
    for i in range(count):
        number = i % (len(labels) if labels else 2)
        label = labels[number] if labels else f"{4.5 * number + rng.random() / 2:.3f}"
        values = {"A": sentence(rng, number % 2), "B": sentence(rng, number % 2), "L": label, "I": str(i)}
        lines.append("\t".join(values.get(column, column) for column in columns.split()))
        found.append((values["A"], values["B"] if " B" in columns else None,
                      None if kind == "test" else number if labels else float(label)))
    return lines, found


def write_glue(folder: Path, task: str, train: int = 24, other: int = 12) -> None:
    """A task's folder: train, dev and test files."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"train": ["train"], "dev": ["dev"], "test": ["test"]}
    if task == "MNLI":
        kinds |= {kind: [f"{kind}_matched", f"{kind}_mismatched"] for kind in ("dev", "test")}
    for kind, names in kinds.items():
        for name in names:
            lines, _ = glue_lines(task, kind, train if kind == "train" else other, seed=names.index(name))
            (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_squad(path: Path, count: int, seed: int, unanswerable: bool = False) -> dict:
    """SQuAD's JSON: the answer is the word behind "the"; without a "the" there is none."""
    rng = random.Random(seed)
    paragraphs = []
    for i in range(count):
        words = rng.choices(["a", "b", "c", "run", "low."], k=rng.randint(20, 60))
        place, answer = rng.randrange(len(words)), rng.choice(["Café", "river", "(cafe)"])
        answers = []
        if not (unanswerable and i % 3 == 0):
            words[place:place] = ["the", answer]
            answers = [{"text": answer, "answer_start": len(" ".join(words[:place + 1])) + 1}]
        entry = {"id": f"q{i}", "question": "the what ?", "answers": answers}
        if unanswerable:
            entry["is_impossible"] = not answers
        paragraphs.append({"context": " ".join(words), "qas": [entry]})
    data = {"version": "v2.0" if unanswerable else "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(data), encoding="utf-8")
    return data


def make_tuned(folder: Path) -> Path:
    """A folder with models, vocabulary and data of every kind; not to be written to."""
    write_models(folder)
    write_uer_tsv(folder / "train.tsv", 64, 1)
    write_uer_tsv(folder / "dev.tsv", 24, 2)
    write_uer_tsv(folder / "pairs.tsv", 32, 3, pairs=True)
    write_uer_tsv(folder / "unlabelled.tsv", 12, 4, labels=False)
    for task in ("CoLA", "MRPC", "STS-B", "MNLI", "RTE", "WNLI"):
        write_glue(folder / "glue" / task, task)
    write_squad(folder / "train.json", 24, 1, unanswerable=True)
    write_squad(folder / "dev.json", 9, 2, unanswerable=True)
    write_squad(folder / "train1.json", 16, 1)
    write_squad(folder / "dev1.json", 6, 2)
    return folder


def options(bench: Path, output: Path, *more, train="train.tsv", dev="dev.tsv") -> list:
    """A command line of run_classifier.py with UER's files."""
    return ["--train_path", bench / train, "--dev_path", bench / dev, "--pretrained_model_path", bench / "uer.bin",
            "--vocab_path", bench / "vocab.txt", "--config_path", bench / "uer_config.json", "--output_model_path",
            output, *FAST, *more]


def results(output: Path) -> dict:
    return json.loads(Path(f"{output}.results.json").read_text())
