"""What is checked of every command line alike: empty values, seeds, outputs that are inputs as well. Needs no torch."""

from __future__ import annotations

import argparse
import errno
import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from uer.errors import UserError
from uer.files import (
    FOREIGN_PARTS,
    PARTS,
    TEXT_PARTS,
    as_written,
    beside_model,
    files_below,
    followed,
    temporary_path,
)

UER_OPTIONS: dict[str, tuple[str, ...]] = {
    "embedding": ("word_pos_seg", "word", "pos", "seg"), "encoder": ("transformer",), "mask": ("fully_visible",),
    "target": ("mlm", "bert", "sp"), "data_processor": ("mlm", "pairs", "bert"), "feed_forward": ("dense",),
    "layernorm_positioning": ("post",), "optimizer": ("adamw",), "fp16_opt_level": ("O0", "O1", "O2", "O3")}
SHAPE = ("target_dim", "compactor_mask_strategy", "target_feedforward_size", "target_heads", "layer_sizes",
         "target_layers", "keep_layers", "tie_student")  # the student's, in pretrain.py and calibrate.py
LISTS = ("embedding", "target")
MODEL = re.compile("(model|teacher|student)_path|_teacher$")  # options that name a model
DATA = re.compile(r"(train|dev|test)\w*\.tsv|diagnostic\.tsv|(corpus|queries)\.jsonl|qrels")  # GLUE's folders, BEIR's
LARGEST_SEED = 2**63 - 1


def add_uer_options(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    """Options of UER's scripts that have one right value here; under names of their own, as configs have them too."""
    group = parser.add_argument_group("what scripts written for UER may say")
    for name, values in UER_OPTIONS.items():
        if name not in without:
            group.add_argument(f"--{name}", dest=f"uer_{name}", choices=values, help="changes nothing",
                               nargs="+" if name in LISTS else None)


offered: set[str] = set()  # the options of the script at work, as `checked` saw them last


def hint(option: str, words: str) -> str:
    """Words that name an option to take, where the script at work has it; "" elsewhere."""
    return words if not offered or option in offered else ""


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """The options, unless a value is empty (a shell variable that is not set, say), no text, or a seed out of range.

    A path that begins with ~ is in the home folder: shells leave it so in --option=~/file, and JSON files do.

    Raises:
        UserError: all such values.
    """
    offered.clear()
    offered.update(vars(args))
    problems = [f"--{name} is empty; give a value, or leave it out" for name, value in vars(args).items()
                if any(isinstance(one, str) and not one.strip() for one in _values(value))]
    problems += [f"--{name} {one!a}: is not in this locale's encoding; LC_ALL=C.UTF-8 may be what is needed, or "
                 f"another name" for name, value in vars(args).items() for one in _values(value)
                 if isinstance(one, str) and name != "corpus_path" and re.search("[\ud800-\udfff]", one)]
    problems += [f"--{name} is {seed}, a whole number from 0 to 2^63 - 1 is needed" for name in ("seed", "seeds")
                 for seed in _values(getattr(args, name, None)) if seed is not None and not 0 <= seed <= LARGEST_SEED]
    if problems:
        raise UserError("; ".join(problems))
    for name, value in vars(args).items():
        if _is_path(name) and value is not None:
            setattr(args, name, [*map(_at_home, value)] if isinstance(value, list) else _at_home(value))
    return args


def outside(args: argparse.Namespace, names: Iterable[str], right: Callable[[float], bool], needed: str) -> list[str]:
    """The options of which a value is given that is not `right`, in words; `needed` says what would be."""
    return [f"--{name} is {value}, {needed}" for name in names for value in _values(getattr(args, name))
            if value is not None and not right(value)]


def too_small(args: argparse.Namespace, names: Iterable[str], least: int = 1) -> list[str]:
    """The options with a value below the `least`, in words."""
    return outside(args, names, lambda value: value >= least, f"at least {least} is needed")


def not_from_zero(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """The options with a value that is no finite number from 0, in words."""
    return outside(args, names, lambda value: 0 <= value < float("inf"), "a number from 0 is needed")


def no_shares(args: argparse.Namespace, names: Iterable[str], most: float = 1.0) -> list[str]:
    """The options with a value that is none from 0 to `most`, in words."""
    return outside(args, names, lambda value: 0 <= value <= most, f"a number from 0 to {most:g} is needed")


def check_length(seq_length: int | None, positions: int, least: int = 3) -> None:
    """`UserError` where --seq_length is given and a model of so many positions cannot read such texts."""
    if seq_length is not None and not least <= seq_length <= positions:
        raise UserError(f"--seq_length is {seq_length}; a number from {least} to the model's {positions} positions is "
                        f"needed")


def refuse_overwriting(args: argparse.Namespace, outputs: Mapping[str, Iterable[str | Path | None]]) -> None:
    """`UserError` where a file that would be written is given as another option's value, is one of a folder that is
    given, or says what a model is that is given. `outputs`: option -> the files and folders that it makes the script
    write."""
    read = [(name, one) for name, value in vars(args).items() if _is_path(name) for one in _values(value)
            if isinstance(one, str)]
    corpora = dict[str, set[tuple[int, int]]]()
    for option, paths in outputs.items():
        for path in (path for path in paths if path is not None):
            for name, other in read:
                if name != option and _same(path, other):
                    raise UserError(f"--{option}: {path} would be written, but it is --{name} as well; choose another "
                                    f"name")
                if name != option and MODEL.search(name) and any(
                        _same(path, file) for file in beside_model(as_written(other))):
                    raise UserError(f"--{option}: {path} would be written, where it is said what the model --{name} "
                                    f"{other} is; choose another name")
                if name != option and _is_of(path, name, other, corpora):
                    raise UserError(f"--{option}: {path} would be written, but --{name} {other} reads a file of that "
                                    f"name there; choose another name")
                if name != option and _holds(path, other):
                    raise UserError(f"--{option}: the model in the folder {path} would be written anew, but --{name} "
                                    f"reads from it; choose another name")


def typed_again(parser: argparse.ArgumentParser, args: argparse.Namespace, names: Sequence[str] | None = None,
                without: Sequence[str] = ()) -> list[str]:
    """The words that give options of a command line again, as far as they are not as usual, and change anything.
    `names`: of the options (default: all but `without`)."""
    words: dict[str, list[str]] = {}  # two spellings of an option: the first
    for action in parser._actions:
        name, value = action.dest, getattr(args, action.dest, action.default)
        if name.startswith("uer_") or name in (*words, *without) or name not in (names or [name]):
            continue
        if value != action.default:
            words[name] = [action.option_strings[0], *(map(str, _values(value)) if action.nargs != 0 else ())]
    return [word for option in words.values() for word in option]


def _is_path(option: str) -> bool:
    return option.endswith(("_path", "_dir", "_teacher")) or option in ("resume", "layer_sizes", "target_vocab")


def _at_home(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _values(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _same(path: str | Path, other: str | Path) -> bool:
    """Whether two names are of one file, which need not exist."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.abspath(path) == os.path.abspath(other)


def _holds(folder: str | Path, file: str) -> bool:
    """Whether a file lies in a folder that is a model's, or is a part that a new model there would take away."""
    model = os.path.isfile(Path(folder) / "config.json") and os.path.isfile(file) and _same(folder, os.path.dirname(
        os.path.abspath(file)))
    return model or any(PARTS.fullmatch(name) for name in _within(Path(folder), file))


def _within(folder: Path, path: str | Path) -> set[str]:
    """By which names a path, and what it stands for, lies in a folder or below it."""
    path, real = Path(path).absolute(), Path(os.path.realpath(folder))
    places = (Path(os.path.realpath(path.parent)) / path.name, Path(os.path.realpath(path)))
    return {place.relative_to(real).parts[0] for place in places
            if os.path.isdir(folder) and place != real and place.is_relative_to(real)}


def _is_of(path: str | Path, option: str, given: str, corpora: dict[str, set[tuple[int, int]]]) -> bool:
    """Whether what would be written at a path is a file that is read of a folder which an option names, or of the one
    that its file is a part of; or would be read there from then on. `corpora`: what has been listed."""
    folder, there = Path(given), os.path.exists(path)
    if option == "corpus_path":
        if there and given not in corpora:
            roots = [folder] if folder.exists() else map(Path, glob.glob(given, recursive=True))
            corpora[given] = set(map(_identity, itertools.chain.from_iterable(
                files_below(root) if root.is_dir() else [root] for root in roots)))
        return there and _identity(Path(path)) in corpora[given]
    if option in ("data_dir", "test_path"):
        return there and any(map(DATA.fullmatch, _within(folder, path)))
    if not (MODEL.search(option) or option == "vocab_path"):
        return False
    alone = not folder.is_dir()
    folder = folder.parent if alone else folder
    if not folder.is_dir() or (alone and not PARTS.fullmatch(Path(given).name)):
        return False
    text = option == "vocab_path" and (alone or not there)  # weights beside a vocabulary are not read with it
    linked = list[str]()
    if there:
        with suppress(OSError):  # a folder that may be entered and not listed
            linked = [file.name for file in folder.iterdir() if file.is_symlink() and _same(path, file)]
    names = {*_within(folder, path), *linked}
    return any(map((TEXT_PARTS if text else PARTS).fullmatch, names)) or (  # what lies in onnx/ is not read
        not text and any(map(FOREIGN_PARTS.fullmatch, names & {Path(path).name})))


def _identity(path: Path) -> tuple[int, int]:
    """What two names of one file have in common; (0, 0) of a link that leads nowhere."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def check_writable(path: str, whole: bool = True) -> None:
    """Make the folder of an output; `UserError` where it cannot be written, or names a folder.
    `whole`: a file is written under another name first, so that a device will not do."""
    if path.endswith(os.sep):
        raise UserError(f"{path}: a folder's name; give a file's")
    folder = followed(path).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: its folder cannot be made ({error.strerror})") from None
    check_place(path, whole=whole)


def check_place(path: str | Path, option: str = "", whole: bool = True) -> None:
    """`UserError` where a file cannot be written at a path, or in the folder above that is there; makes nothing.
    `option`: in front of the path in messages."""
    where, place = f"{option} {path}".strip(), followed(path).absolute()
    try:
        if os.path.islink(place):
            raise UserError(f"{where}: is a link that leads to itself; give another name")
        if os.path.isdir(path):
            raise UserError(f"{where}: cannot be written there, where a folder is; give a file's name")
        if os.path.exists(path) and not os.path.isfile(path):
            if whole:
                raise UserError(f"{where}: is neither a file nor a folder, and would be replaced by one; give a file's "
                                f"name")
            return
        folder = next(parent for parent in place.parents if parent.exists())
        probe = folder / temporary_path(place, "try").name  # as long as the name that it will have meanwhile
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_WRONLY))
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{where}: the name is too long, or leaves no room for what is added to it on the way; "
                            f"give a shorter one") from None
        raise UserError(f"{where}: cannot be written there ({error.strerror}); give a file in a folder that you may "
                        f"write to") from None


def check_ending(path: str | Path) -> None:
    """`UserError` where a UER file would have another format's ending, by which it would be read in vain."""
    if Path(path).suffix in (".safetensors", ".onnx"):
        raise UserError(f"--output_model_path {path}: what goes there is no {Path(path).suffix} file but torch's; give "
                        f"it another ending, .bin say")
