"""Small models, stage-1 checkpoints and mask files on disk, for the tests of formats and conversions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from uer.config import ModelConfig
from uer.formats import shapes
from uer.models.bert import Bert
from uer.squeeze.groups import MaskGroup, build_groups
from uer.squeeze.mask_file import append_masks
from uer.squeeze.master import Master
from uer.squeeze.wiring import masked_compactors

VOCAB = 60
POSITIONS = 20
STEP = 400
CONFIG = ModelConfig(hidden_size=128, layers_num=2, heads_num=2, feedforward_size=256, max_seq_length=POSITIONS)


def weights(config: ModelConfig, seed: int = 0, vocab: int = VOCAB, dtype: torch.dtype = torch.float32,
            ) -> dict[str, torch.Tensor]:
    """Random weights under the published names; gammas near 1."""
    generator = torch.Generator().manual_seed(seed)
    model = Bert(shapes.sizes_of(config, vocab=vocab, positions=config.max_seq_length, segments=3), config)
    return {name: (torch.randn(tensor.shape, generator=generator) * 0.1 + name.endswith("gamma")).to(dtype)
            for name, tensor in model.state_dict().items()}


def write_vocab(path: Path, words: int = VOCAB) -> Path:
    """A WordPiece vocabulary of `words` tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    path.write_text("\n".join([*special, *letters, "the", "cat", "sat"][:words]) + "\n", encoding="utf-8")
    return path


@dataclass
class Trained:
    """A master in the middle of its training, and its files.

    Attributes: `state` (tensors of the checkpoint), `groups` (with masks), `checkpoint`, `masks` (paths).
    """

    config: ModelConfig
    strategy: str
    target: int
    state: dict[str, torch.Tensor]
    groups: dict[str, MaskGroup]
    checkpoint: Path
    masks: Path

    def options(self, output: Path, *more: str) -> list[str]:
        """The command line of a conversion, as the README has it."""
        return ["--load_model_path", str(self.checkpoint), "--layers_num", "2", "--hidden_size", "128",
                "--compactor_mask_strategy", self.strategy, "--mask_path", str(self.masks), "--mask_step", str(STEP),
                "--output_model_path", str(output), *more]


def trained(folder: Path, strategy: str, target: int = 64, *, dropped: float = 1e-7, squeezed: tuple[str, ...] = (),
            k: int = 100, card: bool = True, prefix: str = "", config: ModelConfig = CONFIG) -> Trained:
    """Write a checkpoint whose compactors have moved away from the identity, and its mask file.

    Args:
        dropped: size of the dropped compactor entries.
        squeezed: groups that have left for good (`all`: every one).
        k: the interval whose masks are taken.
        card: write the JSON beside the checkpoint.
        prefix: in front of every name, as DistributedDataParallel leaves it.
    """
    groups = build_groups(config, target, strategy)
    master = Master(config, weights(config), groups)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in master.named_parameters():
            if "compactor" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
        for group in groups.values():
            group.set_keep(group.choose(master.scores(group), k))
        for tensor in masked_compactors(config):
            index = groups[tensor.group].dropped
            if len(index):
                master.parameters[tensor.name].index_fill_(tensor.dim, index, dropped)
    checkpoint, masks = folder / f"stage1.bin-{STEP}", folder / "masks.txt"
    append_masks(masks, STEP, groups.values())
    for group in groups.values():
        if group.name in squeezed or squeezed == ("all",):
            master.squeeze(group)
    state = {name: tensor.clone() for name, tensor in master.state_dict().items()}
    torch.save({prefix + name: tensor for name, tensor in state.items()}, checkpoint)
    if card:
        Path(f"{checkpoint}.json").write_text(json.dumps({
            "format": 1, "step": STEP, "teacher": json.loads(config.to_json()), "strategy": strategy,
            "target_dim": target, "vocab_size": VOCAB, "kind": "wid",
            "squeezed": [group.name for group in groups.values() if group.squeezed]}))
    return Trained(config, strategy, target, state, groups, checkpoint, masks)


def by_hand(case: Trained, scale_queries: bool = True) -> dict[str, torch.Tensor]:
    """The student of an unsqueezed case, straight from the formula, in float64."""
    p = {name: tensor.double() for name, tensor in case.state.items()}
    keep = {name: group.kept_index() for name, group in case.groups.items()}
    rows = p["embedding.emb_compactor.weight"][keep["hidden"]]
    out = {f"embedding.{kind}_embedding.weight": p[f"embedding.{kind}_embedding.weight"] @ rows.T
           for kind in ("word", "position", "segment")}

    def linear(name: str, left: str, right: str, enters: str, leaves: str, scale: float = 1.0) -> None:
        r, c = p[f"{right}.weight"][keep[leaves]], p[f"{left}.weight"][:, keep[enters]]
        out[f"{name}.weight"] = r @ p[f"{name}.weight"] @ c * scale
        out[f"{name}.bias"] = r @ p[f"{name}.bias"] * scale

    def norm(name: str, group: str) -> None:
        for part in ("gamma", "beta"):
            out[f"{name}.{part}"] = p[f"{name}.{part}"][keep[group]]

    norm("embedding.layer_norm", "hidden")
    for i in range(case.config.layers_num):
        attn, ffn = f"encoder.transformer.{i}.self_attn", f"encoder.transformer.{i}.feed_forward"
        fold = (case.target / case.config.hidden_size) ** 0.5 if case.strategy == "dim" and scale_queries else 1.0
        for j in range(3):
            linear(f"{attn}.linear_layers.{j}", f"{attn}.left_compactor.{j}", f"{attn}.right_compactor.{j}", "hidden",
                   f"attention.{i}", fold if j == 0 else 1.0)
        linear(f"{attn}.final_linear", f"{attn}.final_linear_left_compactor", f"{attn}.final_linear_right_compactor",
               f"attention.{i}", "hidden")
        for j, enters, leaves in ((1, "hidden", f"ffn.{i}"), (2, f"ffn.{i}", "hidden")):
            linear(f"{ffn}.linear_{j}", f"{ffn}.linear_{j}_left_compactor", f"{ffn}.linear_{j}_right_compactor",
                   enters, leaves)
            norm(f"encoder.transformer.{i}.layer_norm_{j}", "hidden")
    linear("target.mlm_linear_1", "target.mlm_linear_1_left_compactor", "target.mlm_linear_1_right_compactor",
           "hidden", "mlm")
    norm("target.layer_norm", "mlm")
    out["target.mlm_linear_2.weight"] = (p["target.mlm_linear_2.weight"]
                                         @ p["target.mlm_linear_2_left_compactor.weight"][:, keep["mlm"]])
    out["target.mlm_linear_2.bias"] = p["target.mlm_linear_2.bias"]
    return out


def assert_close(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor], tolerance: float = 2e-6) -> None:
    """The same names, and tensors that differ by rounding only."""
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name].double(), right[name].double(), rtol=0, atol=tolerance, msg=name)
