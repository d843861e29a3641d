"""Writing one model in several formats at once: all of them checked before any appears.

Every format is written under temporary names, read back, and its logits compared with the model's on a fixed batch in
float32. Only if all agree do the files get their names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from uer.arguments import check_ending, check_place
from uer.config import ModelConfig
from uer.conversion.int8 import check_dev, write_int8
from uer.conversion.merge import TOLERANCE, probe_batch, student_model
from uer.conversion.sandwich import real_rows
from uer.data.dataset import Dataset
from uer.errors import UserError
from uer.files import FOREIGN_PARTS, as_written, config_path_for, vocab_path_for
from uer.formats import load_model, shapes, stock
from uer.formats.export import check_head, config_text, write_huggingface, write_uer
from uer.formats.file_target import OUTPUT
from uer.formats.model_card import CardFacts, model_card
from uer.formats.onnx_export import Interface, OnnxModel, check_packages, write_onnx
from uer.formats.relatives import one_segment
from uer.formats.sentence import SentenceFacts, write_sentence_files
from uer.formats.storage import PendingFiles, write_json
from uer.formats.tokenizer_files import check_written, drop_vocabularies, vocabulary_files
from uer.tokenizers import TextRules
from uer.tokenizers.beside import FILES
from uer.tokenizers.rules import KEY

UER_FORMATS = {"uer": "published", "uer-py": "uer-py"}
ONNX_ENDINGS = {"onnx": ".onnx", "onnx-int8": "-int8.onnx"}
ENDINGS = (".bin", ".pt", ".pth", ".safetensors", ".onnx")


@dataclass
class Source:
    """A model to be written; its tensors are taken to the CPU, where it is checked.

    Attributes:
        extras: pooler and next-sentence head, which Hugging Face and UER files can hold beside the rest.
        text: how text becomes ids, as far as that is known; with a vocabulary, tokenizer files are written.
        card: what the model card says.
        dev: held-out data on which an int8 file is compared.
        sentence: how an encoder alone embeds sentences; None: nothing says so.
        keep_embedding_size: whether its sentence-transformers folder maps into the teacher's space.
        new_words: whether the vocabulary is the model's own, to be written beside its files.
        bare: whether it has a head that was not trained with the rest.
        reading: how a fine-tuned model reads (`LoadedModel.reading`).
    """

    config: ModelConfig
    weights: dict[str, torch.Tensor]
    card: CardFacts
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    text: TextRules | None = None
    dev: Dataset | None = None
    sentence: SentenceFacts | None = None
    keep_embedding_size: bool = False
    new_words: bool = False
    bare: bool = False
    reading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights, self.extras = ({name: tensor.cpu() for name, tensor in tensors.items()}
                                     for tensors in (self.weights, self.extras))

    @property
    def mapped(self) -> bool:
        """Whether its folder's vectors are those of the map (the teacher's too may have been)."""
        return self.keep_embedding_size or (self.sentence is not None and self.sentence.mapped)


def output_paths(output: str | Path, formats: Sequence[str]) -> dict[str, Path]:
    """Where each format goes.

    uer: the path as given. uer-py: the path as given, or `<name>-uer-py.bin` beside it if `uer` is written as well.
    Where that is a link with nothing beside it that would go there, what it leads to.
    huggingface: a folder, the path without its ending (`<path>-huggingface` if that is taken). onnx: `<name>.onnx`.
    onnx-int8: `<name>-int8.onnx`.
    """
    given, output = str(output), Path(output)
    if not output.name or (given.endswith(os.sep) and set(formats) != {"huggingface"}):
        raise UserError(f"--output_model_path {given}: is a folder; a file name is needed")
    bare = output.with_suffix("") if output.suffix in ENDINGS else output
    paths: dict[str, Path] = {}
    for name in dict.fromkeys(formats):
        if name == "uer":
            paths[name] = as_written(output)
        elif name == "uer-py":
            suffix = output.suffix if output.suffix in ENDINGS else ""
            paths[name] = as_written(output if "uer" not in formats else bare.with_name(f"{bare.name}-uer-py{suffix}"))
        elif name in ONNX_ENDINGS:
            paths[name] = bare.with_name(bare.name + ONNX_ENDINGS[name])
        else:
            taken = output == bare and {"uer", "uer-py"} & set(formats)
            paths[name] = bare.with_name(f"{bare.name}-huggingface") if taken else bare
    return paths


def written_by(paths: Mapping[str, Path], new_words: bool = False) -> list[Path]:
    """The files and folders that writing these formats makes, with the vocabulary where that is new."""
    uer = [path for name, path in paths.items() if name in UER_FORMATS]
    return [*paths.values(), *map(config_path_for, uer), *(Path(f"{path}.json") for path in uer),
            *(vocab_paths(paths) if new_words else ())]


def vocab_paths(paths: Mapping[str, Path]) -> list[Path]:
    """Where the vocabulary goes, if that is new: beside the files, `<name>_vocab.txt`; a folder has its own inside."""
    return list(dict.fromkeys(vocab_path_for(str(path).removesuffix(ONNX_ENDINGS.get(name, "")))
                              for name, path in paths.items() if name != "huggingface"))


def check_kept_size(wanted: bool, formats: Iterable[str], target: str = "states") -> None:
    """`UserError` where --keep_embedding_size says nothing to what is written."""
    if wanted and not {"huggingface", "onnx", "onnx-int8"}.intersection(formats):
        raise UserError("--keep_embedding_size goes with --output_format huggingface or onnx; a UER file has the map "
                        "anyway")
    if wanted and target != "states":
        raise UserError("--keep_embedding_size is for sentence encoders, and this model is none")


def check_outputs(paths: Mapping[str, Path], text: TextRules | None = None) -> None:
    """`UserError` before any long work: packages, tokenizer, names, and folders that cannot be written."""
    if {"onnx", "onnx-int8"} & set(paths):
        check_packages()
    if text is not None and text.vocab is not None and "huggingface" in paths:
        check_written(text)
    for name, path in paths.items():
        if name == "huggingface" and path.exists() and not path.is_dir():
            raise UserError(f"--output_model_path: {path} is a file, but the Hugging Face folder would go there")
        if name in UER_FORMATS:
            check_ending(path)
        if name != "huggingface" and path.is_dir():
            raise UserError(f"--output_model_path: {path} is a folder; a file name is needed for format {name}")
        if path.is_dir() and (others := sorted(file.name for file in path.iterdir()
                                               if FOREIGN_PARTS.fullmatch(file.name))):
            raise UserError(f"--output_model_path: the folder {path} holds {', '.join(others)} of another model, which "
                            f"the new one would seem to have; take it away, or give another folder")
    for place in written_by(paths, new_words=True):
        check_place(place / "config_sentence_transformers.json" if os.path.isdir(place) else place,
                    "--output_model_path")


def write_outputs(source: Source, paths: dict[str, Path]) -> list[str]:
    """Write all formats, check each, then give them their names.

    Returns:
        a line on each file and what its check found.
    Raises:
        UserError: a check that fails; nothing has been written then.
    """
    vocab = source.text.vocab if source.text else None
    if vocab is not None and len(vocab) > len(source.weights[shapes.WORDS]):
        raise UserError(f"{vocab.source}: {len(vocab)} tokens, but the model has {len(source.weights[shapes.WORDS])} "
                        f"word embeddings")
    check_kept_size(source.keep_embedding_size, paths, source.config.target)
    for name in paths:
        check_head(source.config, name)
    if source.dev is not None:
        check_dev(source.dev, source.config, len(source.weights[shapes.WORDS]))
    check = Check(source)
    interface = Interface(student_model(source.config, source.weights).float(),  # onnxruntime lacks GELU in float64
                          source.sentence is not None and source.sentence.normalize, source.mapped)
    with PendingFiles() as pending:
        lines = []
        for name, path in paths.items():
            if name in UER_FORMATS:
                found = put_uer(pending, source, path, UER_FORMATS[name], check)
                lines.append(f"{path}, {config_path_for(path).name}: {found}")
                continue
            temporary = pending.add(path)
            if name == "huggingface":
                lines.append(f"{path}{os.sep}: {_huggingface(source, temporary, path)}")
            elif name == "onnx":
                write_onnx(temporary, interface, check.src, check.seg)
                lines.append(f"{path}: {check.onnx(OnnxModel(temporary), interface)}")
            else:
                lines.append(f"{path}: {write_int8(temporary, interface, source.dev)}")
        if source.text is not None:
            words = vocab_paths(paths) if source.new_words else []
            put_vocabularies(pending, source.text, paths, {
                place: vocabulary_files(source.text)[FILES["bert"]] for place in words})
            lines += map(str, words)
        pending.publish()
    return lines


def put_uer(pending: PendingFiles, source: Source, path: Path, generation: str, check: Check) -> str:
    """Write a UER file with what goes beside it; what reading it back shows, in words."""
    temporary, config = pending.add(path), config_text(source.config, source.weights, generation, source.text)
    write_uer(temporary, {**source.weights, **source.extras}, generation)
    pending.add(config_path_for(path)).write_text(config, encoding="utf-8")
    if source.config.target != "mlm":
        write_json(facts_beside(source), pending.add(f"{path}.json"))
    else:
        pending.drop(f"{path}.json")
    again = load_model(temporary, config=source.config, vocab_size=None, target=None, look_around=False)
    return check(check.logits(again.config, again.weights), "read back")


def put_vocabularies(pending: PendingFiles, text: TextRules, paths: Mapping[str, Path],
                     new: Mapping[Path, bytes]) -> None:
    """Write new vocabularies; those beside UER files that are written over go, where they are not this text's."""
    for name, path in paths.items():
        if name in UER_FORMATS:
            drop_vocabularies(pending, text, path, new)
    for place, content in new.items():
        pending.add(place).write_bytes(content)


def facts_beside(source: Source) -> dict[str, Any]:
    """The JSON beside a UER file without MLM head, as beside a fine-tuned one."""
    config = source.config
    facts: dict[str, Any] = {"format": 1, "config": config.to_dict(), "pooling": config.pooling,
                             "labels": list(config.labels), **source.reading}
    facts |= {KEY: source.text.to_dict()} if source.text else {}
    return facts | ({"sentence": source.sentence.to_dict()} if source.sentence else {})


def _huggingface(source: Source, temporary: Path, path: Path) -> str:
    segments, told = source.weights[shapes.SEGMENTS], []
    if source.config.cls_act == "relu":
        source = replace(source, weights=one_segment(source.weights))
        if not torch.equal(segments[1], segments[-1]):
            told.append("a DistilBERT has one segment, so a second text is read there as the first, here otherwise")
    config, check = source.config, Check(source, hidden=source.config.target == "states")
    write_huggingface(temporary, config, {**source.weights, **source.extras}, text=source.text, reading=source.reading)
    again = load_model(temporary, config=None, vocab_size=None, target=None)
    found = [check(check.logits(again.config, again.weights), "read back")]
    if stock.available():
        found.append(check(stock.outputs(temporary, check.src, check.seg, config.target,
                                         config.reader), "stock transformers"))
    if config.target == "states":
        dense = {part: source.weights[f"{OUTPUT}.{part}"] for part in ("weight", "bias")}
        plain = SentenceFacts(config.pooling, max_seq_length=source.reading.get("seq_length"))
        write_sentence_files(temporary, source.sentence or plain, config.hidden_size,
                             len(source.weights[shapes.POSITIONS]), dense if source.mapped else None)
    figures = [*source.card.figures, *((f"this folder against the model it was made from ({line.split(':')[0]}), "
                                        f"fixed batch, float32", line.split(": ", 1)[1]) for line in found)]
    card = CardFacts(**{**vars(source.card), "figures": figures, "name": path.name})
    (temporary / "README.md").write_text(model_card(card, source.config), encoding="utf-8")
    bare = source.text is None or source.text.vocab is None
    return "; ".join([*told, *found]) + ("; no tokenizer files, as no --vocab_path was given" if bare else "")


class Check:
    """Compares logits with those of a source, or with `hidden` states, on the fixed batch, padding aside."""

    def __init__(self, source: Source, hidden: bool = False):
        self.hidden, self.what = hidden, "state" if hidden else "logit"
        self.src, self.seg = probe_batch(len(source.weights[shapes.WORDS]), len(source.weights[shapes.POSITIONS]))
        self.real = real_rows(source.config, self.seg)
        self.expected = self.logits(source.config, source.weights)

    @torch.no_grad()
    def logits(self, config: ModelConfig, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        """Rows as `Bert.forward` has them, or states [batch * seq, hidden], in float32"""
        model = student_model(config, {name: tensor.float() for name, tensor in weights.items()})
        return model.hidden_states(self.src, self.seg).flatten(0, 1) if self.hidden else model(self.src, self.seg)

    @torch.no_grad()
    def onnx(self, exported: OnnxModel, interface: Interface) -> str:
        """The largest difference of what an ONNX file gives, in words; raises like the other."""
        expected, found = interface(*stock.model_inputs(self.src, self.seg))[0], exported(self.src, self.seg)
        if expected.dim() == 2:
            return largest_difference(found, expected, "onnxruntime", self.what)
        return self(found.flatten(0, 1), "onnxruntime")

    def __call__(self, logits: torch.Tensor, how: str) -> str:
        """`largest_difference` from the source's."""
        return largest_difference(logits[self.real], self.expected[self.real], how, self.what)


def largest_difference(found: torch.Tensor, expected: torch.Tensor, how: str, what: str) -> str:
    """The largest difference of what was found, in words.
    `UserError` where it is above the tolerance (relative to the largest number expected, at least 1)."""
    difference, scale = float((found.float() - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(1.0, scale):
        raise UserError(f"self-check ({how}): {what}s differ by {difference:.3g} ({what}s up to {scale:.3g}), more "
                        f"than {TOLERANCE:g} of that; nothing was written")
    return f"{how}: largest {what} difference {difference:.2g} ({what}s up to {scale:.3g})"
