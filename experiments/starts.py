#!/usr/bin/env python3
"""What other ways than calibration make of a sentence encoder, each with its map into the teacher's space, or, the
first two, of a classifier.

    random   the student's shape, weights from scratch
    norm     the teacher's dimensions of the largest norm (`demo/picking.py`)
    layers   every second layer, at the teacher's width
    pca      the teacher itself, its vectors cut to --target_dim principal directions: x -> P Pᵀ x

The map of the first three is least squares of the teacher's pooled states on the student's, over the texts that
calibration reads.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from demo.picking import pick
from experiments.peers import every_second_layer
from uer.calibration.moments import Moments, regress
from uer.calibration.student import calibration_batches
from uer.config import ModelConfig
from uer.conversion.outputs import Source, output_paths, write_outputs
from uer.data.dataset import Dataset
from uer.data.loader import MlmBatch
from uer.errors import UserError, run_script
from uer.formats import LoadedModel, load_model
from uer.formats.model_card import CardFacts
from uer.formats.shapes import parameter_count
from uer.models.bert import Bert, from_scratch, from_weights
from uer.parallel.collectives import Place

WAYS = ("random", "norm", "layers", "pca")
OUTPUT = "target.output_layer"

Weights = dict[str, torch.Tensor]


def start(way: str, weights: Weights, config: ModelConfig, width: int, seed: int,
          strategy: str = "dim") -> tuple[Weights, ModelConfig]:
    """A student of a model with these weights, of an encoder before its map is fitted."""
    if way == "layers":
        return every_second_layer(weights, config)
    if way == "norm":
        return pick(weights, config, width, seed, "norm", strategy)
    if way == "random":
        student = config.student(width, strategy)
        return dict(from_scratch(student, len(weights["embedding.word_embedding.weight"]), seed).state_dict()), student
    return dict(weights), config


@torch.no_grad()
def moments_of(teacher: Bert, student: Bert, batches: list[MlmBatch]) -> Moments:
    """Moments of both models' pooled states, x and z."""
    found = Moments(batches[0].src.device, x=teacher.config.hidden_size, z=student.config.hidden_size)
    for batch in batches:
        found.add(x=teacher.pooled(batch.src, batch.seg), z=student.pooled(batch.src, batch.seg))
    return found.share()


def fitted(moments: Moments) -> Weights:
    """The map x ≈ C z + c by least squares."""
    wide, narrow = (part.stop - part.start for part in moments.slices.values())
    found = regress(moments, "z", "x", torch.zeros(wide, narrow, dtype=torch.float64, device=moments.sums.device))
    return {f"{OUTPUT}.weight": found.matrix, f"{OUTPUT}.bias": found.offset}


def projection(moments: Moments, width: int) -> Weights:
    """The map x -> P Pᵀ x on the `width` directions in which x is largest."""
    directions = torch.linalg.eigh(moments.second("x", "x")).eigenvectors[:, -width:]
    return {f"{OUTPUT}.weight": directions @ directions.T, f"{OUTPUT}.bias": torch.zeros_like(directions[:, 0])}


def fit(args: argparse.Namespace, loaded: LoadedModel, weights: Weights, config: ModelConfig) -> Weights:
    """The map that an encoder's student ends with."""
    place = Place(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    teacher, student = (from_weights(*pair).to(place.device).eval()
                        for pair in ((loaded.config, loaded.weights), (config, weights)))
    batches = calibration_batches(Dataset.open([args.dataset_path]), None, args.seed, place, target="states")
    moments = moments_of(teacher, student, batches)
    found = projection(moments, args.target_dim) if args.way == "pca" else fitted(moments)
    return {name: tensor.float().cpu() for name, tensor in found.items()}


def main() -> None:
    """Load, make, fit, write."""
    args = parser().parse_args()
    if (args.dataset_path is None) != args.keep_head or (args.keep_head and args.way not in ("random", "norm")):
        raise UserError("--keep_head is for --way random and norm, everything else needs --dataset_path")
    loaded = load_model(args.pretrained_model_path, config=None, vocab_size=None,
                        target=None if args.keep_head else "states")
    whole = args.target_heads not in (None, loaded.config.heads_num)
    if whole and args.target_heads * loaded.config.head_size != args.target_dim:
        raise UserError(f"--target_heads {args.target_heads}: {loaded.config.heads_num}, or heads of "
                        f"{loaded.config.head_size} that make --target_dim {args.target_dim}, are needed")
    weights, config = start(args.way, loaded.weights, loaded.config, args.target_dim, args.seed,
                            "head" if whole else "dim")
    if not args.keep_head:
        weights |= fit(args, loaded, weights, config)
    facts = CardFacts(name=Path(args.output_model_path).stem, source=args.pretrained_model_path, how=args.way,
                      parameters=parameter_count(weights), command="")
    write_outputs(Source(config, weights, facts, reading=loaded.reading), output_paths(args.output_model_path, ["uer"]))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    out.add_argument("--way", required=True, choices=WAYS)
    out.add_argument("--pretrained_model_path", required=True, metavar="PATH", help="the teacher")
    out.add_argument("--dataset_path", metavar="FILE", help="texts to fit the map on")
    out.add_argument("--keep_head", action="store_true", help="the teacher's own head, and no map (random and norm)")
    out.add_argument("--target_dim", required=True, type=int, metavar="D")
    out.add_argument("--target_heads", type=int, metavar="N",
                     help="as many as the teacher's, narrower ones (default), or whole heads of its own size")
    out.add_argument("--seed", type=int, default=7, help="default: 7")
    out.add_argument("--output_model_path", required=True, metavar="FILE")
    return out


if __name__ == "__main__":
    run_script(main)
