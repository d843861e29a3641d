"""Reading and writing files of tensors: nothing that can run code is loaded, nothing half written is left behind."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from uer.errors import UserError
from uer.files import PACKED, UNPACK, followed, head_of, refuse_foreign, temporary_path
from uer.formats.publishing import give_names
from uer.system import sync

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPED = re.compile(r"(?<![^.])(module|_orig_mod|_(fsdp|checkpoint)_wrapped_module)\.")  # DDP, torch.compile, FSDP
ZIP = b"PK\x03\x04"  # torch's own files are such archives
UNSUPPORTED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_tensors(path: str | Path, what: str = "model") -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file or of a torch.save'd state dict, by name, on the CPU.

    What wrappers put into names (`WRAPPED`) is taken out; a state dict that sits inside another dict under `state_dict`
    or `model` is found. Safetensors are known by what they hold, under whatever name. `UserError` where there is no
    such file, or it is damaged, no state dict, or a pickle that wants to run code (the code is not run).
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder, a file is needed here" if path.is_dir() else "no such file"
        raise UserError(f"{what} {path}: {kind}")
    try:
        safe = path.suffix == ".safetensors" or head_of(path)[8:9] == b"{"  # its header, behind the header's length
        data = load_file(path) if safe else torch_load(path, what)
    except SafetensorError as error:
        refuse_foreign(head_of(path), f"{what} {path}", "a file of tensors")
        raise UserError(f"{what} {path}: damaged, truncated or no safetensors file ({error})") from None
    except OSError as error:
        raise UserError(f"{what} {path}: cannot be read ({error.strerror or error})") from None
    return _state_dict(data, f"{what} {path}")


def torch_load(path: Path, what: str) -> Any:
    if path.stat().st_size == 0:
        raise UserError(f"{what} {path}: the file is empty")
    head = head_of(path)
    if not head.startswith(ZIP):
        refuse_foreign(head, f"{what} {path}", "a file of tensors")
    _check_sums(path, what)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = UNSUPPORTED_GLOBAL.search(str(error))
        if found:
            raise UserError(f"{what} {path}: holds pickled code ({found.group(1)}), which is not run; only plain state "
                            f"dicts and safetensors files are loaded") from None
        raise UserError(f"{what} {path}: damaged, or no file of tensors") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before its beginning is looked for in a file that was cut off
            raise
        raise UserError(f"{what} {path}: damaged, truncated or no file of tensors") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, AssertionError,
            UnicodeDecodeError, struct.error, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(f"{what} {path}: damaged, truncated or no file of tensors ({reason})") from None


def _check_sums(path: Path, what: str) -> None:
    """`UserError` where a part of a file of `torch.save` is not what was written: torch.load does not look."""
    try:
        if not zipfile.is_zipfile(path):
            return  # of an older torch, or cut off: torch.load tells
        with zipfile.ZipFile(path) as archive:
            names, spoilt = archive.namelist(), archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(f"{what} {path}: damaged, truncated or no file of tensors ({error})") from None
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(f"{what} {path}: {PACKED[ZIP]}, not a file of tensors; {UNPACK}")
    if spoilt is not None:
        raise UserError(f"{what} {path}: damaged, the checksum of {spoilt} is not what was written (or it was saved "
                        f"without checksums, set_crc32_options(False): then load it with torch and save it again)")


def _state_dict(data: Any, where: str) -> dict[str, torch.Tensor]:
    if isinstance(data, Mapping):
        inner = next((data[key] for key in WRAPPERS if isinstance(data.get(key), Mapping)), None)
        if inner is not None and not any(isinstance(value, torch.Tensor) for value in data.values()):
            data = inner
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: holds a {type(data).__name__}; a state dict (tensors by name) is needed")
    strangers = [name if isinstance(name, str) else f"one called by a {type(name).__name__}"
                 for name, value in data.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if strangers or not data:
        raise UserError(f"{where}: not a state dict; " +
                        (f"these entries are no tensors: {shortened(strangers)}" if data else "it holds nothing"))
    tensors = {WRAPPED.sub("", name): value for name, value in data.items()}
    if len(tensors) < len(data):
        raise UserError(f"{where}: holds tensors twice, as they are and inside a wrapper (module., _orig_mod.); one "
                        f"model is needed")
    strange = [name for name, value in tensors.items() if not _is_plain(value)]
    if strange:
        raise UserError(f"{where}: sparse, quantized, complex or float8 tensors, or ones without values: "
                        f"{shortened(strange)}; plain float16, bfloat16, float32 or float64 ones are needed")
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(f"{where}: not-a-number or infinite values in {shortened(bad)}; the file is damaged")
    return tensors


def written_sha256(path: str | Path) -> str:
    """SHA-256 over the names, sizes and checksums of what a file of torch.save holds: of all its bytes, at no cost."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [(info.filename.partition("/")[2], info.file_size, info.CRC) for info in archive.infolist()]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise UserError(f"{path}: damaged, truncated or no file of torch.save ({error})") from None
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, types and numbers of tensors, in whatever order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def without_shared_prefix(tensors: dict[str, torch.Tensor],
                          known: Callable[[Mapping[str, torch.Tensor]], bool]) -> dict[str, torch.Tensor]:
    """The tensors without what wrappers put in front of all their names (`model.`, `student.bert.`, …).

    Parts are taken off, one after the other, until `known` says that it knows the names; else they stay.
    """
    found = tensors
    while not known(found):
        first = {name.partition(".")[0] for name in found}
        if len(first) != 1 or not all("." in name for name in found):
            return tensors
        found = {name.partition(".")[2]: tensor for name, tensor in found.items()}
    return found


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has numbers in a format that one can compute with."""
    return (tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_complex() or tensor.is_meta)
            and (tensor.dtype in FLOATS or not tensor.is_floating_point()))


def shortened(names: list[str], most: int = 20) -> str:
    """A comma-separated list, cut after `most` names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# -- writing -----------------------------------------------------------------------------------------------------------


class PendingFiles:
    """Files and folders that are written under temporary names beside their targets and appear together, or not at all.

    A folder that is there is written to from within, as it may be on a disk of its own; it keeps what is no part of a
    model (`uer.files.PARTS`), and nothing of the model that it was. A link that is a target stays, and what it leads to
    is written.

        with PendingFiles() as pending:
            save(pending.add(target))     # anything raised here leaves no trace
            pending.publish()
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[Path, Path]] = []
        self._dropped: list[Path] = []
        self._flushed = False

    def __enter__(self) -> PendingFiles:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        for temporary, target in reversed(self._pairs):
            if isinstance(error, OSError) and error.errno and str(error.filename or temporary).startswith(
                    str(temporary)):
                error.filename = str(target)  # which is the name that the reader knows
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)

    def add(self, target: str | Path) -> Path:
        """The temporary name to write `target` under (the ending stays); its folder is made.
        `UserError` where the folder cannot be made or written."""
        target = Path(target)
        if target.exists() and not (target.is_file() or target.is_dir()):
            raise UserError(f"output {target}: is neither a file nor a folder, and would be replaced by one")
        target = followed(target)
        temporary = temporary_path(target.absolute())
        if target.is_dir():
            temporary = target.absolute() / temporary.name
        parent = temporary.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output {target}: the folder {parent} cannot be made ({error.strerror})") from None
        if not os.access(parent, os.W_OK):
            raise UserError(f"output {target}: the folder {parent} cannot be written")
        if temporary.is_dir():  # of a process of this number that was ended
            shutil.rmtree(temporary)
        self._pairs.append((temporary, target))
        self._flushed = False
        return temporary

    def drop(self, path: str | Path) -> None:
        """What would no longer be true once the others are there: removed along with their appearing."""
        self._dropped.append(Path(path))

    def flush(self) -> None:
        """See everything to the disk: what can fail, for want of room say, fails here."""
        for temporary, _ in self._pairs:
            for file in (sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]):
                sync(file)
        self._flushed = True

    def publish(self) -> None:
        """Flush everything and give it its names."""
        if not self._flushed:
            self.flush()
        give_names(self._pairs, self._dropped)
        for parent in {target.absolute().parent for _, target in self._pairs}:
            sync(parent)


def write_via(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write one file whole or not at all: `write` gets a temporary name beside it."""
    with PendingFiles() as pending:
        write(pending.add(path))
        pending.publish()


def old_ending(paths: Sequence[str | Path]) -> str:
    """The first of `.old`, `.old2`, … under which none of these is there yet."""
    endings = (f".old{number if number > 1 else ''}" for number in itertools.count(1))
    return next(ending for ending in endings if not any(Path(f"{path}{ending}").exists() for path in paths))


def reason(error: Exception, path: str | Path) -> str:
    """Why a file could not be written, and what room there is."""
    words = getattr(error, "strerror", None) or str(error).splitlines()[0][:160]
    return f"{words}; {shutil.disk_usage(Path(path).absolute().parent).free / 1e6:,.0f} MB are free there"


def contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as files want them: on the CPU, contiguous, none sharing memory with another."""
    out, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        if tensor.data_ptr() in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        out[name] = tensor
    return out


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """What torch and safetensors raise where a file cannot be written, as the `OSError` that it is."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        words = str(error).splitlines()[0][:160]
        raise OSError(errno.EIO, f"not all of it could be written, for want of room perhaps ({words})",
                      str(path)) from None


def save_state_dict(tensors: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """torch.save, tensors only."""
    with _writing(path):
        torch.save(contiguous(tensors), path)


def save_safetensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """A .safetensors file as transformers expects it."""
    with _writing(path):
        save_file(contiguous(tensors), path, metadata={"format": "pt"})
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # the library writes for the owner alone


def write_json(data: Any, path: Path) -> None:
    """Indented UTF-8 JSON; a byte of a file's name that is no text (a lone surrogate in Python) becomes its escape."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
