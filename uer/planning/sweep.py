"""`calibrate.py --sweep` and `--budget`: what shapes of students are worth before any training, side by side."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uer.arguments import check_writable, refuse_overwriting
from uer.calibration.command import Material, check_text, figures_of, gather
from uer.calibration.reducer import Reducer, shape_of
from uer.config import ModelConfig
from uer.errors import UserError
from uer.evaluation.agreement import spelled
from uer.formats.shapes import parameter_count, sizes_of, table_sizes
from uer.formats.storage import write_via
from uer.models.bert import Bert, from_weights
from uer.planning.budget import Budget
from uer.planning.cost import forward_operations
from uer.sizes import Shape
from uer.squeeze.groups import check_teacher, feedforward_target, possible_heads

FORM = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")
MEASURES = ("accuracy", "similarities", "equal predictions", "cosine")  # the first that there is
SECONDS, CALLS = 1.0, 5  # at least, of either of two models that are timed in turns


@dataclass
class Row:
    """A model of the table.

    Attributes:
        parameters: of all of it.
        operations: of the last hidden states of a text of the calls that were timed.
        texts_per_second: so many texts in a call, on this machine.
        speed: the same against the teacher, in turns.
        figures: loss and accuracy on held-out text, or of a teacher without MLM head the agreement with it.
    """

    name: str
    shape: Shape
    parameters: int
    operations: int
    texts_per_second: float
    speed: float
    figures: dict[str, float]

    @property
    def measure(self) -> str:
        """The figure that tells best what it is worth."""
        return next(name for name in MEASURES if name in self.figures)

    @property
    def worth(self) -> float:
        """That figure."""
        return self.figures[self.measure]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.shape._asdict(), "parameters": self.parameters,
                "operations_per_text": self.operations, "texts_per_second": round(self.texts_per_second, 1),
                "speed": round(self.speed, 3), **self.figures}


def sweep(args: argparse.Namespace) -> list[Row]:
    """Print the table, and write it and its picture where that is wanted; its rows, the teacher's first.
    `UserError` for options that do not go together, or shapes that cannot be had."""
    check_sweep(args)
    material = gather(args)
    size, strategy = material.held_out[0].src.shape, args.compactor_mask_strategy
    config, tables = material.loaded.config, table_sizes(material.loaded.weights)
    check_teacher(config)
    shapes = [shape_from(text, config, strategy) for text in " ".join(args.sweep or []).split()]
    if args.budget:
        shapes += Budget(args.budget, config, tables, size[1], args.tie_student).shapes(strategy)
    notes: list[str] = []
    rows: list[Row] = []
    print(f"on {material.where}; texts/s: last hidden states of {size[0]} texts of {size[1]} tokens in a call, "
          f"{material.place.device}, {torch.get_num_threads()} thread(s)")
    for row in compare(material, list(dict.fromkeys(shapes)), args.tie_student, notes.append):
        for line in [*([] if rows else [head(row)]), line_of(row)]:
            print(line, flush=True)
        rows.append(row)
    for note in dict.fromkeys(note for note in notes if not note.startswith("calibrated on")):
        print(note)
    if args.sweep_path:
        lines = "".join(json.dumps(row.to_dict()) + "\n" for row in rows)
        write_via(args.sweep_path, lambda temporary: temporary.write_text(lines, encoding="utf-8"))
        if importlib.util.find_spec("matplotlib"):
            from uer.report.frontier import plot

            plot(picture_path(args.sweep_path), [row.name for row in rows], [row.parameters for row in rows],
                 [row.texts_per_second for row in rows], [row.worth for row in rows], rows[0].measure)
        else:
            print("note: no picture, as matplotlib is not installed (pip install matplotlib)")
    return rows


def check_sweep(args: argparse.Namespace) -> None:
    """Everything that can be known to be wrong before any work."""
    single = ("target_dim", "target_feedforward_size", "target_heads", "layer_sizes", "target_layers", "keep_layers",
              "compactors_path", "output_model_path", "output_format", "keep_embedding_size", "skip_evaluation",
              "allow_missing_head")
    idle = [f"--{name}" for name in single if getattr(args, name)]
    if idle:
        raise UserError(f"{', '.join(idle)}: for one student; --sweep and --budget compare several and write none")
    check_text(args)
    if args.target_vocab and args.dataset_path:
        raise UserError("--target_vocab with several shapes: text is read anew with the words that stay; give it as "
                        "--corpus_path")
    if args.sweep_path:
        written = [args.sweep_path, picture_path(args.sweep_path)]
        refuse_overwriting(args, {"sweep_path": written})
        for path in written:
            check_writable(str(path))


def picture_path(path: str) -> Path:
    """Where the plot goes: beside the table."""
    return Path(path).with_suffix(".png")


def shape_from(text: str, config: ModelConfig, strategy: str) -> Shape:
    """LAYERSxHIDDEN or LAYERSxHIDDENxFEEDFORWARD in a teacher of this config; heads as many or as wide as can be.
    `UserError` where it is not of that form, or larger than the teacher."""
    found = FORM.fullmatch(text)
    if not found:
        raise UserError(f"--sweep {text}: LAYERSxHIDDEN or LAYERSxHIDDENxFEEDFORWARD is needed, like 4x312 or "
                        f"4x312x1200")
    layers, hidden, feedforward = (int(number) if number else None for number in found.groups())
    assert layers is not None and hidden is not None
    whole = shape_of(config)
    if not (1 <= layers <= whole.layers and 2 <= hidden <= whole.hidden):
        raise UserError(f"--sweep {text}: the teacher is {whole.layers}x{whole.hidden}, from which 1 to "
                        f"{whole.layers} layers and 2 to {whole.hidden} dimensions can be had")
    heads = possible_heads(config, hidden)
    if not heads:
        near = min((width for width in range(2, whole.hidden + 1) if possible_heads(config, width)),
                   key=lambda width: abs(width - hidden))
        raise UserError(f"--sweep {text}: {hidden} dimensions cannot be shared out among {config.heads_num} heads or "
                        f"fewer of at most {config.head_size}; {layers}x{near} would do")
    try:
        neurons = feedforward_target(config, hidden, feedforward)
    except UserError as error:
        raise UserError(f"--sweep {text}: {error}") from None
    return Shape(layers, hidden, neurons, heads[-1] if strategy == "dim" else heads[0])


def compare(material: Material, shapes: Sequence[Shape], tied: bool,
            note: Callable[[str], object] = print) -> Iterator[Row]:
    """The teacher, and a student of each shape, deepest first; `note` takes lines on how these came about."""
    loaded = material.loaded
    teacher = from_weights(loaded.config, loaded.weights).to(material.place.device).eval()
    yield measured("teacher", loaded.config, loaded.weights, None, material)
    with closing(Reducer(loaded.config, loaded.weights, loaded.extras, material.batches, tied, note)) as reducer:
        for shape in sorted(shapes, key=lambda shape: -shape.layers):
            student = reducer.student(shape)
            yield measured(shape.name(shape_of(loaded.config)), student.config, student.weights, teacher, material)


def measured(name: str, config: ModelConfig, weights: dict[str, torch.Tensor], teacher: Bert | None,
             material: Material) -> Row:
    """The row of a model with these weights; `teacher` None: it is the teacher itself."""
    device, batch = material.place.device, material.held_out[0].to(material.place.device)
    model = from_weights(config, weights).to(device).eval()
    teacher = model if teacher is None else teacher
    seconds, *theirs = in_turns([model] if teacher is model else [model, teacher], batch.src, batch.seg)
    operations = forward_operations(sizes_of(config, **table_sizes(weights)), batch.src.shape[1])
    return Row(name, shape_of(config), parameter_count(weights), operations,
               len(batch.src) / seconds, theirs[0] / seconds if theirs else 1.0,
               figures_of(model, teacher, material.held_out, device, material.loaded.mapped))


@torch.inference_mode()
def in_turns(models: Sequence[Bert], src: torch.Tensor, seg: torch.Tensor) -> list[float]:
    """Seconds of the fastest call for the last hidden states, of models that take turns."""
    taken: list[list[float]] = [[] for _ in models]
    for model in models:
        model.hidden_states(src, seg)
    while len(taken[0]) < CALLS or sum(map(sum, taken)) < SECONDS * len(models):
        for times, model in zip(taken, models):
            begun = time.perf_counter()
            hidden = model.hidden_states(src, seg)
            if hidden.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
    return [min(times) for times in taken]


# -- words -------------------------------------------------------------------------------------------------------------


def head(row: Row) -> str:
    return (f"{'':<14} {'heads':>5} {'parameters':>11} {'GFLOP/text':>10} {'texts/s':>8} {'speed':>6}"
            + "".join(f" {name:>{max(9, len(name))}}" for name in row.figures))


def line_of(row: Row) -> str:
    figures = "".join(f" {spelled(name, value):>{max(9, len(name))}}" for name, value in row.figures.items())
    return (f"{row.name:<14} {row.shape.heads:>5} {row.parameters / 1e6:>9.1f} M {row.operations / 1e9:>10.3g} "
            f"{row.texts_per_second:>8,.0f} {row.speed:>5.1f}x{figures}")
