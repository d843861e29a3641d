"""Changes to the bytes of files, for fuzz_readers.py: each a function of bytes and a random generator to bytes."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]
STRANGE = [None, True, False, 0, -1, 1, 2**31, 2**70, 1e308, float("nan"), "", "x", "\ud800", [], {}, [[]], {"a": 1},
           "[CLS]", "bert", 0.5, ["mlm"], "\0", "a" * 5000]
CHUNKS = [b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\r\n", b"\t", b"\n\n", b"\\ud800", b'"', b"{", b"[", b"99999999999",
          b"-1", b"NaN", "\u2028".encode(), "😀".encode(), b"\xed\xa0\x80", b"PK\x03\x04", b"\x1f\x8b\x08", b" " * 999,
          b"9" * 5000]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A file's bytes with one to three changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        kinds: list[Mutation] = [flipped, cut, doubled, moved, inserted, removed, wrapped]
        if content[:1] in (b"{", b"["):
            kinds += [other_values] * 6
        if content.startswith(b"PK\x03\x04"):
            kinds += [repacked] * 6
        if b"\n" in content[:4000] and b"\0" not in content[:4000]:
            kinds += [other_lines] * 4
        content = rng.choice(kinds)(content, rng)
    return content


def span(content: bytes, rng: random.Random) -> tuple[int, int]:
    """A place and an end."""
    first = rng.randrange(len(content) + 1)
    return first, min(len(content), first + int(rng.expovariate(1 / 40)))


def flipped(content: bytes, rng: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(rng.randint(1, 8) if out else 0):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[:rng.randrange(len(content) + 1)]


def doubled(content: bytes, rng: random.Random) -> bytes:
    first, last = span(content, rng)
    return content[:first] + content[first:last] * rng.choice((2, 3, 300)) + content[last:]


def moved(content: bytes, rng: random.Random) -> bytes:
    first, last = span(content, rng)
    rest, to = content[:first] + content[last:], rng.randrange(len(content) - (last - first) + 1)
    return rest[:to] + content[first:last] + rest[to:]


def inserted(content: bytes, rng: random.Random) -> bytes:
    place = rng.choice((0, rng.randrange(len(content) + 1)))
    return content[:place] + rng.choice(CHUNKS) + content[place:]


def removed(content: bytes, rng: random.Random) -> bytes:
    first, last = span(content, rng)
    return content[:first] + content[last:]


def wrapped(content: bytes, rng: random.Random) -> bytes:
    """In another encoding or archive, or another file altogether."""
    kind = rng.randrange(6)
    if kind == 0:
        return gzip.compress(content, 1)
    if kind == 1:
        return zipped({"a/file": content})
    if kind < 4:
        with contextlib.suppress(UnicodeError):
            return content.decode("utf-8").encode(("utf-16", "latin-1")[kind - 2])
    return rng.choice((b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html><html>", content * 2))


def other_lines(content: bytes, rng: random.Random) -> bytes:
    """Lines or fields exchanged, doubled, left out."""
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(place, rng.choice(lines))
    else:
        fields = lines[place].split(rng.choice((b"\t", b" ")))
        at = rng.randrange(len(fields))
        fields[at:at + rng.randrange(2)] = [] if kind == 2 else [rng.choice([*CHUNKS, *fields])]
        lines[place] = b"\t".join(fields)
    return b"\n".join(lines)


def other_values(content: bytes, rng: random.Random) -> bytes:
    """A value or a key of JSON exchanged for a strange one, or left out."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return flipped(content, rng)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(data)
    if not places:
        return json.dumps(rng.choice(STRANGE)).encode()
    node, key = rng.choice(places)
    if isinstance(node, dict) and rng.random() < 0.3:
        value = node.pop(key)
        if rng.random() < 0.5:
            node[str(rng.choice(STRANGE))] = value
    else:
        node[key] = rng.choice(STRANGE)
    return json.dumps(data, ensure_ascii=rng.random() < 0.8).encode("utf-8", "replace")


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def repacked(content: bytes, rng: random.Random) -> bytes:
    """A member of an archive changed, left out or renamed, with right checksums again."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError):
        return flipped(content, rng)
    if not members:
        return content
    pickles = [name for name in members if name.endswith("data.pkl") and rng.random() < 0.7]
    name = rng.choice(pickles or list(members))
    data = members.pop(name)
    if rng.random() < 0.9:
        change = rng.choice((flipped, cut, moved, inserted, removed))
        members[name if rng.random() < 0.95 else name[:-1]] = change(data, rng)
    return zipped(members)
