"""The plan of the house: who imports whom, how long files are, what they are called, and the README's map of it."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 350  # lines of a file
PLAIN_BERT = {"models", "encoders", "embeddings", "layers", "targets"}
SPINE = {"arguments", "config", "errors", "files", "layer_sizes", "sizes", "system"}


def modules() -> dict[str, Path]:
    """Dotted name -> file of the package."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("uer/**/*.py")}
    return {name.removesuffix(".__init__"): path for name, path in files.items()}


def imports() -> dict[str, set[str]]:
    """Module -> the modules that it imports anywhere, in a function or for types alone, too."""
    files = modules()
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[name].update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                graph[name].update(child if (child := f"{node.module}.{alias.name}") in files else node.module
                                   for alias in node.names)
        graph[name] &= set(files)
    return graph


def room(module: str) -> str:
    """The folder of a module of uer/, or its own name where it lies at the top."""
    return module.split(".")[1] if "." in module else module


def test_no_import_runs_in_a_circle():
    left = imports()
    while free := [name for name, wanted in left.items() if not wanted & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"


@pytest.mark.parametrize(("rooms", "allowed"), [
    ({"cpu"}, {"system"}),
    (PLAIN_BERT, PLAIN_BERT | SPINE | {"cpu"}),
    ({"squeeze"}, PLAIN_BERT | SPINE | {"squeeze", "cpu", "formats"}),
    ({"parallel"}, {"parallel", "errors", "system"}),
    ({"tokenizers"}, {"tokenizers", "errors", "files"}),
], ids=lambda value: ",".join(sorted(value)))
def test_a_room_imports_what_lies_below_it(rooms: set[str], allowed: set[str]):
    found = {(name, other) for name, wanted in imports().items() if room(name) in rooms for other in wanted}
    assert not {arrow for arrow in found if room(arrow[1]) not in allowed | rooms}


def test_the_plain_bert_has_no_word_on_cpus():
    for name, path in modules().items():
        if room(name) in PLAIN_BERT:
            assert not re.search(r"\bCPUs?\b", path.read_text(encoding="utf-8")), name


def test_files_are_short():
    files = [path for path in ROOT.rglob("*.py") if not any(part.startswith(".") for part in path.parts[1:])
             and "site-packages" not in path.parts]
    long = {str(path.relative_to(ROOT)): lines for path in files
            if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST}
    assert not long


def alike(one: str, other: str) -> bool:
    """Whether names differ by a letter or by an ending only."""
    short, long = sorted((one, other), key=len)
    if len(short) == len(long):
        return sum(a != b for a, b in zip(short, long)) < 2
    return any(long[:i] + long[i + 1:] == short for i in range(len(long))) or \
        long in {short + ending for ending in ("er", "or", "ers", "ing", "ings")}


def test_no_two_modules_sound_alike():
    paths = [path for path in modules().values() if path.parent.name != "cli"]  # which are called as their scripts
    names = {path.stem for path in paths} | {path.parent.name for path in paths}
    assert not [pair for pair in itertools.combinations(sorted(names), 2) if alike(*pair)]


def test_the_readme_says_where_things_are():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Where things are")[1].split("\n## ")[0]
    named = re.findall(r"^    (  )?(\w+)/ ", section, re.MULTILINE)
    inside, top = ([name for indent, name in named if bool(indent) is wanted] for wanted in (True, False))
    assert sorted(inside) == sorted(path.parent.name for path in ROOT.glob("uer/*/__init__.py"))
    assert all((ROOT / name).is_dir() for name in top)
    kept = {path.parent.name for path in ROOT.glob("*/*") if path.suffix in (".py", ".md", ".json")}
    assert not {name for name in kept if name[0].isalpha()} - set(top)
    scripts = set(re.findall(r"(\w+\.py)\b", section))
    assert {path.name for path in [*ROOT.glob("*.py"), *ROOT.glob("uer/*.py")]} - scripts == {"__init__.py"}
