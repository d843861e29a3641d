"""Files as users bring them, in one place: text, JSON, and what a file is that was to be something else.

A byte order mark is skipped; bytes that are no text are named by line; an archive, a Git LFS pointer or a web page is
called what it is. Nothing here needs torch.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from uer.errors import UserError

HEAD = 512  # bytes of a file's beginning that tell what it is
BYTE_ORDER_MARK = "\ufeff"
UNPACK, TAKE_OUT = "unpack it", "take the text out of it"
PARQUET = b"PAR1"


class Foreign(NamedTuple):
    """What a file is, and what to do about it."""

    name: str
    remedy: str


PACKED = {b"\x1f\x8b": "gzip data (.gz, .tar.gz)", b"BZh": "bzip2 data", b"\xfd7zXZ\x00": "xz data",
          b"\x28\xb5\x2f\xfd": "zstd data", b"PK\x03\x04": "a zip archive", b"PK\x05\x06": "an empty zip archive",
          b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!\x1a\x07": "a rar archive"}
BEGINNINGS = {
    **{magic: Foreign(name, UNPACK) for magic, name in PACKED.items()},
    b"version https://git-lfs": Foreign("a Git LFS pointer", "fetch the file that it stands for with  git lfs pull"),
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), Foreign("text in UTF-16", "convert it to UTF-8")),
    PARQUET: Foreign("a Parquet file", TAKE_OUT), b"%PDF-": Foreign("a PDF document", TAKE_OUT)}
CR_ALONE = "a CR alone ends its lines, as on old Macs; save it with LF or CRLF"
TAR = slice(257, 262)  # where a tar archive says "ustar"
SHARD = r"(\.\w+)?(-\d+-of-\d+)?(\.\w+)?"  # of which variant (fp16), which of how many
INDEX = r"(\.index(\.\w+)?\.json)?"
TEXT_PARTS = re.compile(  # of a model's folder: what says how text becomes ids
    r"config\.json|vocab\.(txt|json)|merges\.txt|tokenizer(_config)?\.json|special_tokens_map\.json|"
    r"added_tokens\.json|sentencepiece\.bpe\.model|sentence_[\w-]+_config\.json")
PARTS = re.compile(  # of a model's folder: a new model in there has its own, or none
    rf"{TEXT_PARTS.pattern}|modules\.json|config_sentence_transformers\.json|\d+_(Pooling|Dense|Normalize)|"
    rf"model{SHARD}\.safetensors{INDEX}|pytorch_model{SHARD}\.bin{INDEX}")
FOREIGN_PARTS = re.compile(  # of a model's folder: weights that nothing here writes, and that may be the only ones
    r"adapter_(config\.json|model\.\w+)|tf_model.*\.h5|flax_model.*\.msgpack|rust_model\.ot|onnx|openvino|"
    r"\d+_(Transformer|(Distil|Ro|XLMRo|Camem)?BERTa?)")


def foreign(head: bytes) -> Foreign | None:
    """What a file that begins with these bytes (`HEAD` of them) is, where that is no plain text; None if it may be.

    A file of torch.save is a zip archive as well.
    """
    found = next((found for magic, found in BEGINNINGS.items() if head.startswith(magic)), None)
    if found is None and head[TAR] == b"ustar":
        return Foreign("a tar archive", UNPACK)
    if found is None and head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return Foreign("an HTML page", "download it again")
    return found


def refuse_foreign(head: bytes, where: str, wanted: str) -> None:
    """`UserError` where a file's beginning says that it is something else than `wanted`."""
    found = foreign(head)
    if found is not None:
        raise UserError(f"{where}: {found.name}, not {wanted}; {found.remedy}")


def head_of(path: Path) -> bytes:
    """The first bytes of a file."""
    with open(path, "rb") as file:
        return file.read(HEAD)


def config_path_for(path: str | Path) -> Path:
    """Where the config of a UER file goes: beside it, `<name without .bin>_config.json`."""
    path = Path(path)
    stem = path.stem if path.suffix in (".bin", ".pt", ".pth") else path.name
    return path.parent / f"{stem}_config.json"  # of "." too, which has no name


def vocab_path_for(path: str | Path) -> Path:
    """Where the vocabulary of a UER file goes: beside it, `<name without .bin>_vocab.txt`."""
    config = config_path_for(path)
    return config.with_name(config.name.removesuffix("_config.json") + "_vocab.txt")


def beside_model(path: str | Path) -> list[Path]:
    """What may stand beside a model file or a checkpoint and says what it is, how it came about, how to go on."""
    own, *more = (Path(f"{path}.{ending}") for ending in ("json", "results.json", "resume"))
    if not own.is_file() or {"teacher", "config"}.isdisjoint(read_object(own)):  # else no other config counts
        config = config_path_for(path)
        more += [config] if config.is_file() else [config, config.with_name("config.json")]
    vocab = vocab_path_for(path)
    words = [*map(vocab.with_suffix, (".txt", ".json", ".model")),
             vocab.with_name(vocab.name.removesuffix("vocab.txt") + "merges.txt")]
    return [] if Path(path).is_dir() else [own, *words, *more]


def as_written(path: str | Path) -> Path:
    """A model file, or the one that a link stands for (latest.bin for run.bin-4000) where what says what it is stands
    beside that one alone."""
    path = Path(path)
    alone = path.is_symlink() and not path.is_dir()  # a folder has all of it inside
    beside = [*beside_model(path), path.with_name("config.json")] if alone else []
    return followed(path) if alone and not any(file.exists() for file in beside) else path


def followed(path: str | Path) -> Path:
    """Where what is written at a path goes: where a link stands there, to what it stands for."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def temporary_path(path: Path, ending: str = "tmp") -> Path:
    """Beside a file, the name that it has while it is written; what it ends in stays."""
    return path.with_name(f".{path.stem}.{os.getpid()}.{ending}{path.suffix}")


def files_below(folder: Path, onerror: Callable[[OSError], object] | None = None) -> list[Path]:
    """All names of files in a folder and its subfolders, sorted, hidden ones apart; behind links too, but a folder that
    two links lead to comes once."""
    found, seen = [], set()
    for path, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (real := os.path.realpath(path)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(path, name) for name in files if not name.startswith(".")]
    return sorted(found)


def read_bytes(path: str | Path, what: str = "", wanted: str = "text") -> bytes:
    """A whole file; `UserError` where there is none, or it is known to be something else.

    Args:
        what: an option or a kind of file, in front of the path in messages.
        wanted: what the file should be, in messages.
    """
    path, where = Path(path), f"{what} {path}".strip()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None
    except OSError as error:
        kind = "a folder, a file is needed" if path.is_dir() else f"cannot be read ({error.strerror})"
        raise UserError(f"{where}: {kind}") from None
    refuse_foreign(data[:HEAD], where, wanted)
    return data


def read_text(path: str | Path, what: str = "", wanted: str = "text") -> str:
    """A whole file as text, without byte order mark; line ends stay. Arguments as for `read_bytes`.
    `UserError` where there is no such file, or it is something else than text, has a NUL in it, or is not UTF-8."""
    data, where = read_bytes(path, what, wanted), f"{what} {path}".strip()
    if b"\0" in data:
        raise UserError(f"{where}, line {_line_of(data, data.index(0))}: holds a NUL; text is needed (is the file "
                        f"damaged?)")
    try:
        return data.decode("utf-8").removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}, line {_line_of(data, error.start)}: not UTF-8") from None


def read_lines(path: str | Path, what: str = "", wanted: str = "text") -> list[str]:
    """The lines of a text file, LF or CRLF; no other character ends one (a JSON line may well hold U+2028).
    `UserError` as `read_text`, or where a CR alone ends the lines."""
    text = read_text(path, what, wanted)
    if ends_in_cr(text):
        raise UserError(f"{what} {path}".strip() + f": {CR_ALONE}")
    return [line.removesuffix("\r") for line in without_marks(text).removesuffix("\n").split("\n")]


def without_marks(text: str) -> str:
    """Lines without the byte order marks that they begin with where files that had one were put together."""
    return re.sub(rf"^{BYTE_ORDER_MARK}+", "", text, flags=re.MULTILINE) if BYTE_ORDER_MARK in text else text


def unpacked(path: str | Path) -> str:
    """A file's name without what says how it is packed."""
    return re.sub(r"\.(gz|bz2|xz|zst)$", "", Path(path).name, flags=re.IGNORECASE)


def is_table(path: str | Path) -> bool:
    """Whether a file's name says that its lines are rows of a table, packed or not."""
    return unpacked(path).lower().endswith((".csv", ".tsv"))


def is_csv(path: str | Path) -> bool:
    """Whether it says that the table is CSV."""
    return unpacked(path).lower().endswith(".csv")


def ends_in_cr(text: str) -> bool:
    """Whether the lines of a text end in CR alone, so that it would be one line."""
    return "\n" not in text and re.search(r"\r\S", text) is not None


def begins_with_objects(text: str) -> bool:
    """Whether the first lines of a text, two where it has two, are JSON objects."""
    lines = (line for line in text.split("\n", 50) if line and not line.isspace())
    return all(map(_is_object, [next(lines, ""), *itertools.islice(lines, 1)]))


def _is_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _line_of(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def read_json(path: str | Path, what: str = "", wanted: str = "JSON") -> Any:
    """What a JSON file holds; all its texts can be written again.
    `UserError` as `read_text`, or where it is not JSON, or has halves of characters in it (a lone \\ud83d, say)."""
    text, where = read_text(path, what, wanted), f"{what} {path}".strip()
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if begins_with_objects(text):
            raise UserError(f"{where}: JSON lines, an object a line; one value is needed, {wanted}") from None
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if "\\ud" in text.lower():
        try:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            near = ascii(error.object[max(0, error.start - 30):error.end + 30])
            raise UserError(f"{where}: half of a character (a surrogate without its other half) in {near}; no text has "
                            f"that: write the file again from its source") from None
    return data


def read_object(path: str | Path, what: str = "config") -> dict[str, Any]:
    """The object in a JSON file; `UserError` as `read_json`, or where it holds something else."""
    data = read_json(path, what, "a JSON object")
    if not isinstance(data, dict):
        raise UserError(f"{what} {path}: holds a {type(data).__name__}; a JSON object is needed")
    return data
