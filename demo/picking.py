#!/usr/bin/env python3
"""A student by picking: some of the teacher's dimensions, at random or those of the largest norm; the rest is left out.

What people do who have no better idea, and so what the demo compares with. The same hidden dimensions are picked
everywhere (the residual stream must stay aligned), in every head the same number or whole heads, and of each
feed-forward network and of the MLM head or the classifier its own. Norms are those of the columns of the word table for
the residual stream, of the rows of query, key and value, of the rows of linear_1 times the columns of linear_2 in a
feed-forward network, of the decoder's columns in a head.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.config import ModelConfig
from uer.errors import UserError, run_script

if TYPE_CHECKING:
    import torch


def pick(weights: Mapping[str, torch.Tensor], config: ModelConfig, target_dim: int, seed: int,
         by: str = "random", strategy: str = "dim") -> tuple[dict[str, torch.Tensor], ModelConfig]:
    """The picked student.

    Args:
        weights: a teacher's, under published names.
        config: its config.
        target_dim: hidden size of the student, a multiple of the number of heads (of the size of one, for whole heads).
        seed: of the choice.
        by: random or norm.
        strategy: dim, or head: whole heads.
    Returns:
        weights and config of the student.
    Raises:
        UserError: the target does not fit the teacher.
    """
    import torch

    count, unit = (config.heads_num, "heads") if strategy == "dim" else (config.head_size, "dimensions a head")
    if not 0 < target_dim <= config.hidden_size or target_dim % count:
        raise UserError(f"--target_dim is {target_dim}; a multiple of the teacher's {count} {unit}, up to "
                        f"{config.hidden_size}, is needed")
    student = config.student(target_dim, strategy)
    generator = torch.Generator().manual_seed(seed)

    def some(count: int, norms: torch.Tensor) -> torch.Tensor:
        order = torch.randperm(len(norms), generator=generator) if by == "random" else norms.argsort(descending=True)
        return order[:count].sort().values

    def norm(name: str, dim: int) -> torch.Tensor:
        return weights[f"{name}.weight"].float().norm(dim=dim)

    hidden = some(target_dim, norm("embedding.word_embedding", 0))
    last = [name for name in ("target.mlm_linear_2", "target.output_layer_2") if f"{name}.weight" in weights]
    inner = some(target_dim, norm(last[0], 0)) if last else hidden  # an encoder's map into its own space has no such

    def dimensions(heads: torch.Tensor) -> torch.Tensor:
        """Of a layer's attention; from the norm of each, [heads, head size]."""
        size = config.head_size
        if strategy == "head":
            kept = some(student.heads_num, heads.norm(dim=1))
            return (kept[:, None] * size + torch.arange(size)).flatten()
        return torch.cat([i * size + some(student.head_size, head) for i, head in enumerate(heads)])

    inside, ffn = [], []
    for layer in range(config.layers_num):
        block = f"encoder.transformer.{layer}"
        rows = torch.stack([norm(f"{block}.self_attn.linear_layers.{i}", 1) for i in range(3)]).sum(0)
        inside.append(dimensions(rows.view(config.heads_num, -1)))
        ffn.append(some(student.feedforward_size, norm(f"{block}.feed_forward.linear_1", 1)
                        * norm(f"{block}.feed_forward.linear_2", 0)))

    def rows_and_columns(name: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What is picked along the first and the second dimension of a tensor (None: everything)."""
        if name.startswith("embedding."):
            return (hidden, None) if "layer_norm" in name else (None, hidden)
        if name.startswith("target."):
            part = name.split(".")[1]
            return (None if part in ("mlm_linear_2", "output_layer_2", "output_layer") else inner,
                    inner if part in ("mlm_linear_2", "output_layer_2") else hidden)
        layer = int(name.split(".")[2])
        if "self_attn.linear_layers" in name:
            return inside[layer], hidden
        if "self_attn.final_linear" in name:
            return hidden, inside[layer]
        if "feed_forward.linear_1" in name:
            return ffn[layer], hidden
        return hidden, ffn[layer]  # the second feed-forward layer, and LayerNorms

    picked = {}
    for name, tensor in weights.items():
        for dim, index in enumerate(rows_and_columns(name)[:tensor.dim()]):
            tensor = tensor if index is None else tensor.index_select(dim, index)
        picked[name] = tensor
    return picked, student


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    out.add_argument("--pretrained_model_path", required=True, metavar="PATH", help="teacher, with an MLM head")
    out.add_argument("--config_path", metavar="FILE", help="its config, where there is none beside it")
    out.add_argument("--target_dim", required=True, type=int, metavar="D", help="hidden size of the student")
    out.add_argument("--by", choices=("random", "norm"), default="random", help="default: random")
    out.add_argument("--seed", type=int, default=7, help="default: 7")
    out.add_argument("--output_model_path", required=True, metavar="FILE",
                     help="student to write; its config goes to <name without .bin>_config.json")
    return out


def main() -> None:
    """Load, pick, write."""
    args = parser().parse_args()
    from uer.config import load_config
    from uer.files import config_path_for
    from uer.formats import load_model
    from uer.formats.export import write_uer
    from uer.formats.storage import PendingFiles

    config = load_config(args.config_path) if args.config_path else None
    teacher = load_model(args.pretrained_model_path, config=config, vocab_size=None)
    weights, student = pick(teacher.weights, teacher.config, args.target_dim, args.seed, args.by)
    with PendingFiles() as pending:
        write_uer(pending.add(args.output_model_path), weights, "published")
        pending.add(config_path_for(args.output_model_path)).write_text(student.to_json(), encoding="utf-8")
        pending.publish()
    print(f"{args.output_model_path}: {args.target_dim} of {teacher.config.hidden_size} dimensions, picked by "
          f"{args.by}")


if __name__ == "__main__":
    run_script(main)
