"""The README.md of an exported folder: what it is, from which teacher, how, sizes, figures, command."""

from __future__ import annotations

from dataclasses import dataclass, field

from uer.config import ModelConfig
from uer.formats.stock import CLASSES


@dataclass
class CardFacts:
    """What a card says beyond the sizes.

    Attributes:
        name: of the model.
        source: the file that it was made from.
        how: a sentence or two on how it came about.
        teacher: the teacher's config, if it is a student.
        parameters: number of parameters.
        figures: (what, value) of everything that was measured.
        command: the command that wrote the folder.
    """

    name: str
    source: str
    how: str
    parameters: int
    command: str
    teacher: ModelConfig | None = None
    figures: list[tuple[str, str]] = field(default_factory=list)


TASKS = {"mlm": "fill-mask", "states": "sentence-similarity", "cls": "text-classification",
         "tokens": "token-classification", "reader": "question-answering"}
SIZES = (("layers", "layers_num"), ("hidden size", "hidden_size"), ("heads", "heads_num"),
         ("feed-forward size", "feedforward_size"))


def model_card(facts: CardFacts, config: ModelConfig) -> str:
    """Markdown with the front matter that model hubs read."""
    models = [("this model", config)] + ([("teacher", facts.teacher)] if facts.teacher else [])
    said = "reader" if config.reader else config.target
    library, kind = "sentence-transformers" if said == "states" else "transformers", CLASSES[said]
    use = ["from sentence_transformers import SentenceTransformer", "",
           'embeddings = SentenceTransformer("<this folder>").encode(["a text", "another"])'] \
        if library == "sentence-transformers" else \
        [f"from transformers import {kind}, AutoTokenizer", "",
         f'model = {kind}.from_pretrained("<this folder>")',
         'tokenizer = AutoTokenizer.from_pretrained("<this folder>")']
    lines = [
        "---", f"library_name: {library}", f"pipeline_tag: {TASKS[said]}", "tags:", "- bert",
        *(["- weight-inherited-distillation"] if facts.teacher else []), "---", "",
        f"# {facts.name}", "", facts.how, "", f"Made from `{facts.source}`.", "",
        "| | " + " | ".join(name for name, _ in models) + " |", "|---" * (len(models) + 1) + "|",
        *(f"| {label} | " + " | ".join(str(getattr(sizes, key)) for _, sizes in models) + " |"
          for label, key in SIZES),
        "", f"Parameters: {facts.parameters:,}.", "", "## Measured", "",
        *(f"- {what}: {value}" for what, value in facts.figures), "",
        "## Use", "", "```python", *use, "```", "",
        "## Command", "", "```", facts.command, "```", ""]
    return "\n".join(lines)
