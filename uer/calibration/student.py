"""From options and a teacher to a calibrated student."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch

from uer.calibration.calibrate import Calibration, Calibrator
from uer.calibration.compactors_file import load_compactors, made_for
from uer.calibration.depth import Depths, layers_to_keep
from uer.calibration.lengths import by_length
from uer.calibration.stream import Stream, double_teacher
from uer.calibration.targets import calibrate_target
from uer.calibration.tying import check_tied
from uer.config import ModelConfig
from uer.data.dataset import Dataset
from uer.data.loader import MlmBatch, MlmLoader
from uer.data.options import masking_options
from uer.parallel.collectives import Place, take_leaders
from uer.progress import Progress
from uer.report.writer import Reports
from uer.squeeze.groups import MaskGroup

INSTANCES = 16  # per calibration batch
BATCHES = {"mlm": 4}  # by default; for other targets, whose instances are short:
MORE_BATCHES = 64


def calibration_batches(dataset: Dataset, count: int | None, seed: int, place: Place, masking=None,
                        target: str = "mlm") -> list[MlmBatch]:
    """This process's share of the first `count` batches of `INSTANCES` instances, put together by length; the same
    instances for any world size. `count`: None: as many as usually do for the teacher's `target`. All but MLM read the
    text without masks."""
    loader = MlmLoader(dataset, INSTANCES, seed=seed, masking=masking, prefetch=0, group_by_length=False,
                       masked=target == "mlm")
    count = min(count or BATCHES.get(target, MORE_BATCHES), loader.batches_per_epoch)
    batches = by_length([loader.batch(i) for i in range(place.rank, count, place.world_size)])
    return [batch.to(place.device) for batch in batches]


def calibrate(config: ModelConfig, weights: dict[str, torch.Tensor], groups: dict[str, MaskGroup],
              batches: list[MlmBatch], progress=lambda part: None, tied: bool = False) -> Calibration:
    """`calibrate_on` for a teacher with these weights, in float64 on the batches' device."""
    with closing(Stream(double_teacher(config, weights), batches)) as stream:
        return calibrate_on(stream, groups, progress, tied)


@contextmanager
def calibration_progress(config: ModelConfig, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """What `calibrate` tells its finished parts to, so that the reader sees how far it is."""
    with Progress("calibration", 4 * config.layers_num + 2, "parts", shown) as progress:
        yield lambda part: progress.advance()


def calibrate_on(stream: Stream, groups: dict[str, MaskGroup], progress=lambda part: None,
                 tied: bool = False) -> Calibration:
    """Calibrated compactors for the teacher of a stream, which serves for any groups.
    `tied`: whether the student is to have one table of words."""
    if tied:
        check_tied(stream.teacher.config, groups)
    return Calibrator(stream, groups, tied, progress).run(calibrate_target)


def calibrate_groups(args: argparse.Namespace, config: ModelConfig, weights: dict[str, torch.Tensor],
                     groups: dict[str, MaskGroup], loader: MlmLoader, place: Place, reports: Reports,
                     text: dict[str, Any]) -> Calibration:
    """`calibrate` as the options say, or what calibrate.py has found before, with a word to the reader.
    `text`: how text becomes ids (`TextRules.to_dict`)."""
    if args.compactors_path:
        whom = made_for(config, weights, text, args.compactor_mask_strategy, groups)
        calibration = load_compactors(args.compactors_path, whom, place.device)
        how = f"; compactors from {args.compactors_path}"
    else:
        batches = _data_of_run(args, config, loader, place)
        begun = time.perf_counter()
        with calibration_progress(config, place.leads) as progress:
            calibration = calibrate(config, weights, groups, batches, progress, args.tie_student)
        how = f" in {time.perf_counter() - begun:.0f} s"
    tables = [] if calibration.table is None else [calibration.table]
    take_leaders([*calibration.tensors.values(), *calibration.keep.values(), calibration.offset, *tables])
    say_calibrated(calibration, config, how, reports.say)
    return calibration


def shorten_teacher(args: argparse.Namespace, config: ModelConfig, weights: dict[str, torch.Tensor], loader: MlmLoader,
                    place: Place, reports: Reports) -> dict[str, torch.Tensor]:
    """The weights of a teacher with the layers that the options keep, with a word to the reader."""
    on_device = {name: tensor.to(place.device) for name, tensor in weights.items()}
    target = layers_to_keep(config.layers_num, args.target_layers, args.keep_layers)
    with closing(Stream(double_teacher(config, on_device), _data_of_run(args, config, loader, place))) as stream:
        shorter = Depths(stream).shorter(target, args.keep_layers)
    reports.say(shorter.line(config))
    found = shorter.weights(on_device)
    take_leaders(list(found.values()))
    return found


def _data_of_run(args: argparse.Namespace, config: ModelConfig, loader: MlmLoader, place: Place) -> list[MlmBatch]:
    """What a training run calibrates on: --calibration_path, or its own text."""
    path = args.calibration_path
    dataset = Dataset.open(path, option="--calibration_path") if path else loader.dataset
    dataset.check_positions(config.max_seq_length)
    masking = None if path else masking_options(args)
    return calibration_batches(dataset, args.calibration_batches, args.seed, place, masking, config.target)


def say_calibrated(calibration: Calibration, config: ModelConfig, how: str, say: Callable[[str], object]) -> None:
    """Say on how many tokens, and a warning where these were few for the dimensions to choose from."""
    say(f"calibrated on {calibration.tokens:,} tokens{how}")
    widest = max(config.feedforward_size, config.hidden_size)
    if calibration.tokens < 2 * widest:
        say(f"warning: {calibration.tokens:,} tokens for {widest:,} dimensions to choose from; about {4 * widest:,} "
            f"would do: more text, or more --calibration_batches")


def calibrated_groups(groups: dict[str, MaskGroup]) -> None:
    """Calibration keeps single dimensions of the residual stream, whatever the strategy."""
    groups["hidden"].whole_blocks = False


def apply_calibration(calibration: Calibration, weights: dict[str, torch.Tensor],
                      groups: dict[str, MaskGroup]) -> dict[str, torch.Tensor]:
    """The teacher's weights with calibrated compactors, biases and LayerNorms; the groups become squeezed."""
    like = weights["embedding.word_embedding.weight"]
    calibrated_groups(groups)
    for name, group in groups.items():
        group.set_keep(calibration.keep[name].to(like.device))
        group.dropped = group.dropped[:0]
        group.squeezed = True
    found = {name: tensor.to(like.device, like.dtype).contiguous() for name, tensor in calibration.tensors.items()}
    return {**weights, **found}
