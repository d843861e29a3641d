#!/usr/bin/env python3
"""Other ways to distil, as objectives of the same trainer: same loader, text, AdamW and schedule as pretrain.py.

    tinybert    general distillation of TinyBERT (Jiao et al. 2020): squared error of the attention scores of every
                layer, of the hidden states through a learnt map, and of the embeddings through another. No MLM head is
                trained.
    distilbert  DistilBERT (Sanh et al. 2019): 5 × soft labels (T = 2, at the positions to predict) + 2 × MLM + 1 ×
                (1 − cosine of the last hidden states). Starts from every second layer of the teacher, so the student is
                half as deep and as wide as the teacher.

The first reads text as it is, without masks. What a map needs is trained with the student and left out of its file.
MiniLMv2's is `pretrain.py --target relations`.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import nn

from uer.config import ModelConfig, parse_with_config
from uer.cpu.denormals import flush_denormals
from uer.data.loader import MlmBatch
from uer.errors import UserError, run_script
from uer.files import config_path_for
from uer.formats import load_model
from uer.formats.export import write_uer
from uer.formats.storage import PendingFiles, tensors_sha256
from uer.models.bert import Bert, from_weights, mlm_loss
from uer.opts import pretrain_parser
from uer.parallel.collectives import Place
from uer.parallel.signals import StopSignals
from uer.report.writer import Reports
from uer.tokenizers.rules import KEY
from uer.training.build_trainer import go_on, half_dtype, load_teacher
from uer.training.checkpoint import find_checkpoint, open_checkpoint, restore_optimizer
from uer.training.course import check_card
from uer.training.learner import PlainLearner
from uer.training.open_data import open_data
from uer.training.optimizers import AdamW, parameter_groups, schedule
from uer.training.precision import Precision
from uer.training.trainer import Run, Trainer

MAPS = "maps."  # what a peer trains beside the student, under its checkpoint's names


class Peer:
    """An `Objective`: a loss per batch, here times the predictions that the trainer divides by.

    Attributes:
        maps: trained with the student, and no part of it.
    """

    def __init__(self, teacher: Bert, student: ModelConfig):
        self.teacher = teacher.eval().requires_grad_(False)
        self.maps = nn.ModuleDict()

    def __call__(self, student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        loss = self.loss(student, batch) * len(batch.labels)
        return loss, torch.stack([loss.detach(), torch.zeros_like(loss)])

    def loss(self, student: Bert, batch: MlmBatch) -> torch.Tensor:
        """Mean loss of a batch."""
        raise NotImplementedError


class TinyBert(Peer):
    def __init__(self, teacher: Bert, student: ModelConfig):
        super().__init__(teacher, student)
        wide = teacher.config.hidden_size
        self.maps["hidden"] = nn.Linear(student.hidden_size, wide)
        self.maps["embedding"] = nn.Linear(student.hidden_size, wide)

    def loss(self, student: Bert, batch: MlmBatch) -> torch.Tensor:
        text, real = unmasked(batch), batch.seg > 0
        with torch.no_grad():
            states, scores = all_states(self.teacher, text, batch)
        mine, attention = all_states(student, text, batch)
        maps = [self.maps["embedding"], *[self.maps["hidden"]] * (len(mine) - 1)]
        both = real[:, None, :, None] & real[:, None, None, :]
        return torch.stack([
            *(mean_square(to(x), y, real[..., None]) for to, x, y in zip(maps, mine, states)),
            *(mean_square(x, y, both) for x, y in zip(attention, scores))]).sum()


class DistilBert(Peer):
    TEMPERATURE, SOFT, HARD, COSINE = 2.0, 5.0, 2.0, 1.0

    def __call__(self, student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        real, padded = (batch.seg > 0).flatten(), batch.tokens < batch.seg.numel()
        with torch.no_grad():
            theirs = self.teacher.hidden_states(batch.src, batch.seg, padded).flatten(0, 1)
            wanted = F.log_softmax(self.teacher.target(theirs[batch.positions]).float() / self.TEMPERATURE, 1)
        mine = student.hidden_states(batch.src, batch.seg, padded).flatten(0, 1)
        logits = student.target(mine[batch.positions])
        hard, correct = mlm_loss(logits, batch.labels)
        soft = F.kl_div(F.log_softmax(logits.float() / self.TEMPERATURE, 1), wanted, reduction="sum", log_target=True)
        cosine = 1 - F.cosine_similarity(mine[real].float(), theirs[real].float()).mean()
        total = (self.SOFT * self.TEMPERATURE**2 * soft + self.HARD * hard
                 + self.COSINE * cosine * len(batch.labels))
        return total, torch.stack([hard.detach(), correct.to(hard.dtype)])


PEERS = {"tinybert": TinyBert, "distilbert": DistilBert}


# -- what they compare -------------------------------------------------------------------------------------------------


def unmasked(batch: MlmBatch) -> torch.Tensor:
    """The token ids before masking, int [batch, seq]."""
    return batch.src.flatten().index_copy(0, batch.positions, batch.labels).view_as(batch.src)


def all_states(model: Bert, src: torch.Tensor, batch: MlmBatch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Embeddings and every layer's output [batch, seq, hidden]; attention scores [batch, heads, seq, seq] of each."""
    mask = (batch.seg > 0)[:, None, None, :] if batch.tokens < batch.seg.numel() else None
    states, scores = [model.embedding(src, batch.seg)], []
    for layer in model.encoder.layers():
        attention = layer.self_attn
        query, key = (split(linear(states[-1]), attention.heads_num) for linear in attention.linears()[:2])
        scores.append(query @ key.transpose(2, 3) / attention.head_size**0.5)
        states.append(layer(states[-1], mask))
    return states, scores


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[batch, seq, heads * size] -> [batch, heads, seq, size]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def mean_square(x: torch.Tensor, y: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean squared difference where `real`, which is broadcast, is True."""
    real = real.expand(x.shape)
    return ((x - y).float().square() * real).sum() / real.sum()


# -- running -----------------------------------------------------------------------------------------------------------


def every_second_layer(weights: dict[str, torch.Tensor], config: ModelConfig) -> tuple[dict, ModelConfig]:
    """The teacher with layers 0, 2, 4, …; weights under published names."""
    block, kept = re.compile(r"encoder\.transformer\.(\d+)\."), {}
    for name, tensor in weights.items():
        layer = block.match(name)
        if layer is None or int(layer[1]) % 2 == 0:
            kept[block.sub(lambda found: f"encoder.transformer.{int(found[1]) // 2}.", name)] = tensor
    return kept, replace(config, layers_num=(config.layers_num + 1) // 2)


def build(args: argparse.Namespace, place: Place, reports: Reports, signals: StopSignals) -> tuple[Trainer, int]:
    """The trainer, and the step after which it is to start."""
    data, dev, text = open_data(args, place, reports)
    vocab_size = data.dataset.header["vocab_size"]
    loaded = load_model(args.teacher_path, config=None, vocab_size=vocab_size)
    teacher = from_weights(loaded.config, loaded.weights).to(place.device)
    if args.objective == "distilbert":
        tensors, config = every_second_layer(loaded.weights, loaded.config)
    else:
        start = load_teacher(argparse.Namespace(**{**vars(args), "objective": "mlm"}), vocab_size)
        tensors, config = start.weights, start.config
    if args.dropout is not None:
        config = replace(config, dropout=float(args.dropout))
    torch.manual_seed(args.seed)  # of the maps
    peer = PEERS[args.objective](teacher, config)
    card = {"kind": "plain", "teacher": config.to_dict(), "teacher_sha256": tensors_sha256(loaded.weights),
            "vocab_size": vocab_size, KEY: text.to_dict()}
    resumed, feeds = None, [data.feed(1)]
    if args.resume:
        path = find_checkpoint(args.output_model_path, args.resume)
        resumed = open_checkpoint(path)
        check_card(resumed[1], card, path)
        feeds = go_on(resumed[1], feeds[0], args, path, reports)
        data.follow(feeds)
        tensors = resumed[0]
        peer.maps.load_state_dict({name.removeprefix(MAPS): x for name, x in tensors.items() if name.startswith(MAPS)})
    student = from_weights(config, {name: x for name, x in tensors.items() if not name.startswith(MAPS)})
    student.maps = peer.maps
    student.to(place.device)
    learner = PlainLearner(student, AdamW(parameter_groups(student.named_parameters(), args.learning_rate)))
    if resumed is not None:
        restore_optimizer(resumed[2]["optimizer"], learner.named_parameters(), learner.optimizer)
        reports.go_on_from(resumed[1]["step"], args.output_model_path)
    run = Run(args.output_model_path, args.total_steps, schedule(args.scheduler, args.total_steps, args.warmup),
              save_checkpoint_steps=args.save_checkpoint_steps, keep_checkpoints=args.keep_checkpoints,
              report_steps=args.report_steps, eval_steps=args.eval_steps, seed=args.seed,
              data_since=feeds[-1].since)
    card["data"] = [asdict(feed) for feed in feeds]
    trainer = Trainer(learner, data, run, place, reports, card, Precision(place.device, half_dtype(args)), signals, dev,
                      peer)
    return trainer, resumed[1]["step"] if resumed else 0


def train(args: argparse.Namespace) -> None:
    """Train what is left of the run, then write the student."""
    flush_denormals()
    place = Place(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with StopSignals() as signals:
        reports = Reports(True, args.log_path, args.tb_path)
        try:
            trainer, start = build(args, place, reports, signals)
            trainer.train(start)
        finally:
            reports.close()
    student = trainer.learner.student
    weights = {name: x.cpu() for name, x in student.state_dict().items() if not name.startswith(MAPS)}
    with PendingFiles() as pending:
        write_uer(pending.add(args.student_path), weights, "published")
        pending.add(config_path_for(args.student_path)).write_text(student.config.to_json(), encoding="utf-8")
        pending.publish()


def peers_parser() -> argparse.ArgumentParser:
    """The command line: pretrain.py's, of which squeezing, processes and plans mean nothing here."""
    out = pretrain_parser()
    out.prog, out.description = "peers.py", (__doc__ or "").splitlines()[0]
    group = out.add_argument_group("peer")
    group.add_argument("--objective", choices=sorted(PEERS), required=True)
    group.add_argument("--teacher_path", required=True, metavar="PATH",
                       help="teacher; --pretrained_model_path is what the student starts from, --config_path alone a "
                            "student from scratch; distilbert needs neither")
    group.add_argument("--student_path", required=True, metavar="FILE", help="the finished student, a UER file")
    return out


def main() -> None:
    args, _ = parse_with_config(peers_parser)
    if args.objective != "distilbert" and not (args.pretrained_model_path or args.config_path):
        raise UserError("--pretrained_model_path or --config_path is needed: what the student starts from")
    if args.learning_rate is None:
        raise UserError("--learning_rate is needed; a grid of some rates tells which")
    train(args)


if __name__ == "__main__":
    run_script(main)
