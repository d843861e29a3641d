"""Reading what a run left: metrics.jsonl, and the mask file and the newest checkpoint's card where they are."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uer.errors import UserError

KINDS = ("hidden", "attention", "ffn", "mlm", "cls")  # groups, the layers' taken together
Curve = list[tuple[int, float]]


@dataclass
class Run:
    """A run as its log tells it.

    Attributes:
        train, dev, masks, squeeze, fold, model: the lines of each kind, by step.
        facts: what the run started with ({} in logs that do not say).
        card: of its newest checkpoint ({} if there is none).
        following: the command that its end named.
        stable: (step, share) by group, of a mask file, for logs that do not say it.
    """

    name: str
    train: list[dict[str, Any]]
    dev: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)
    squeeze: list[dict[str, Any]] = field(default_factory=list)
    fold: list[dict[str, Any]] = field(default_factory=list)
    model: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    following: str = ""
    stable: dict[str, Curve] = field(default_factory=dict)

    @property
    def figure(self) -> str:
        """What stands under `accuracy`: that, or what a target without labels is judged by."""
        return str(self.facts.get("figure") or self.card.get("figure") or "accuracy")

    @property
    def last_step(self) -> int:
        return self.train[-1]["step"]

    def curve(self, kind: str, key: str) -> Curve:
        """(step, value) of the lines that have a number there."""
        return [(line["step"], line[key]) for line in getattr(self, kind) if is_number(line.get(key))]

    def kept(self) -> dict[str, Curve]:
        """Kind of group -> (step, share of the teacher's dimensions kept); layers averaged."""
        found: dict[str, dict[int, int]] = {}
        for line in self.train:
            for key, value in line.items():
                if key.startswith("kept/"):
                    found.setdefault(key.removeprefix("kept/"), {})[line["step"]] = value
        for line in self.masks:
            for name, group in line["groups"].items():
                found.setdefault(name, {})[line["step"]] = group["kept"]
        sizes = {name: self.facts.get("groups", {}).get(name, [max(steps.values())])[0]
                 for name, steps in found.items()}
        shares = {name: sorted((step, kept / sizes[name]) for step, kept in steps.items())
                  for name, steps in found.items()}
        return by_kind(shares)

    def stability(self) -> dict[str, Curve]:
        """Kind of group -> (step, share of the dropped dimensions that were dropped at the update before)."""
        found: dict[str, Curve] = {}
        for line in self.masks:
            for name, group in line["groups"].items():
                if is_number(group.get("stable")):
                    found.setdefault(name, []).append((line["step"], group["stable"]))
        return by_kind(found or self.stable)

    def norms(self) -> dict[str, list[tuple[int, list[float]]]]:
        """Kind of group -> (step, sorted column norms in bins); layers averaged."""
        found: dict[str, list[tuple[int, list[float]]]] = {}
        for line in self.masks:
            rows: dict[str, list[list[float]]] = {}
            for name, group in line["groups"].items():
                rows.setdefault(kind_of(name), []).append(group["norms"])
            for kind, layers in rows.items():
                found.setdefault(kind, []).append((line["step"], [sum(x) / len(x) for x in zip(*layers)]))
        return found


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def kind_of(group: str) -> str:
    """hidden, attention, ffn, mlm or cls: a group's name without the layer."""
    return group.partition(".")[0]


def by_kind(curves: dict[str, Curve]) -> dict[str, Curve]:
    """Curves of groups -> curves of kinds of group, in the order of `KINDS`: means of the layers at each step."""
    found = {kind: [curve for name, curve in curves.items() if kind_of(name) == kind] for kind in KINDS}
    return {kind: together(layers) for kind, layers in found.items() if any(layers)}


def together(curves: Sequence[Curve]) -> Curve:
    """The mean of curves at each step that one of them has."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            values.setdefault(step, []).append(value)
    return [(step, sum(x) / len(x)) for step, x in sorted(values.items())]


# -- files -------------------------------------------------------------------------------------------------------------


def read_run(path: str, name: str, mask_path: str | None = None) -> Run:
    """The run whose --tb_path this is (or whose metrics.jsonl).

    Args:
        mask_path: its mask file; None: where the log says that it is, if it is there.
    Raises:
        UserError: no log there, or one with a line that is none of ours, or without a single training report.
    """
    file = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    lines = [line for line in current(read_lines(file)) if line["kind"] not in ("train", "dev") or (
        is_number(line["loss"]) and is_number(line["accuracy"]))]  # a run whose loss is lost may still report that
    train, dev, masks, squeeze, fold, model = ([line for line in lines if line["kind"] == kind]
                                               for kind in ("train", "dev", "masks", "squeeze", "fold", "model"))
    if not train:
        raise UserError(f"{file}: no training report in there (yet); a run writes one every --report_steps")
    run = Run(name, train, dev, masks, squeeze, fold, model)
    run.facts = next((line["start"] for line in reversed(run.model) if "start" in line), {})
    run.following = next((str(line.get("next", "")) for line in reversed(lines) if line["kind"] == "end"), "")
    run.card = newest_card(run.facts.get("output"))
    mask_file = mask_path or run.facts.get("mask_path")
    if mask_file and (mask_path or Path(mask_file).exists()):
        run.stable = mask_stability(mask_file)
    return run


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last one that is still being written is left out."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give the --tb_path of a run of pretrain.py") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a text file in UTF-8; the metrics.jsonl of a run is needed") from None
    texts = text.split("\n")
    unfinished = texts.pop()
    lines = [_line(line, f"{file}, line {number}") for number, line in enumerate(texts, 1) if line.strip()]
    try:
        return [*lines, _line(unfinished, "")]
    except UserError:
        return lines


def _line(text: str, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        raise UserError(f"{where}: not JSON ({text[:40]!r}); was it a run of pretrain.py that wrote it?") from None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or not isinstance(line.get("kind"), str):
        raise UserError(f"{where}: a JSON object with a step and a kind is needed, not {text[:40]!r}")
    if not isinstance(line.get("start", {}), dict):
        raise UserError(f"{where}: start must be a JSON object, not {text[:40]!r}")
    wanted = {"train": ("loss", "accuracy"), "dev": ("loss", "accuracy"), "masks": ("groups",), "squeeze": ("groups",),
              "model": ("parameters", "operations")}
    missing = [key for key in wanted.get(line["kind"], ()) if key not in line]
    if missing:
        raise UserError(f"{where}: a line of kind {line['kind']} without {', '.join(missing)}")
    strange = [f"{key} {line[key]!r}" for key in ("loss", "accuracy") if line["kind"] in ("train", "dev")
               and not isinstance(line[key], (int, float))]
    if strange:
        raise UserError(f"{where}: {', '.join(strange)}; a number is needed")
    return line


def current(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last run in there, without what it did over when it was resumed: lines after the step it went on from.

    Others may have written to the same folder in between; runs are known by where their checkpoints go.
    """
    kept: list[dict[str, Any]] = []
    runs: dict[str | None, list[dict[str, Any]]] = {}
    for line in lines:
        step = line["step"]
        if "start" in line:
            output = line["start"].get("output")
            kept = [other for other in runs.get(output, kept) if other["step"] <= step] if step else []
            runs[output] = kept
        elif line["kind"] == "train" and any(other["kind"] == "train" and other["step"] >= step for other in kept):
            kept[:] = [other for other in kept if other["step"] < step]
        kept.append(line)
    return kept


def newest_card(output: str | None) -> dict[str, Any]:
    """What the newest checkpoint <output>-<step> says about itself; {} where there is none to be read."""
    if not output:
        return {}
    names = ((re.fullmatch(re.escape(Path(output).name) + r"-(\d+)\.json", file.name), file)
             for file in Path(output).parent.glob("*.json"))
    steps = {int(match[1]): file for match, file in names if match}
    try:
        card = json.loads(steps[max(steps)].read_text(encoding="utf-8")) if steps else {}
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def mask_stability(path: str) -> dict[str, Curve]:
    """Group -> (step, share of the dimensions dropped before that are still dropped), of a mask file."""
    from uer.squeeze.mask_file import recorded_masks

    found: dict[str, Curve] = {}
    before: dict[str, set[int]] = {}
    for step, compactor, dropped in recorded_masks(path):
        name = group_of(compactor)
        if before.get(name):
            found.setdefault(name, []).append((step, len(before[name] & set(dropped)) / len(before[name])))
        before[name] = set(dropped)
    return found


def group_of(compactor: str) -> str:
    """The group that a compactor scores, from its published name."""
    if compactor.startswith("target."):
        return "mlm" if "mlm_linear" in compactor else "cls"
    layer = compactor.split(".")[2]
    if "feed_forward" in compactor:
        return f"ffn.{layer}"
    return f"attention.{layer}" if "final_linear" in compactor else "hidden"


def names_for(paths: Sequence[str]) -> list[str]:
    """A name for each run: the shortest end of its folder's path that tells it from the others."""
    parts = [(path.parent if path.name == "metrics.jsonl" else path).parts for path in
             (Path(path).absolute() for path in paths)]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the same run is named twice: {', '.join(paths)}")
