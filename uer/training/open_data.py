"""The text of a run, opened and checked against vocabulary, teacher and options."""

from __future__ import annotations

import argparse

from uer.data.dataset import Dataset
from uer.data.loader import MlmLoader
from uer.data.masking import MaskingOptions
from uer.data.options import masking_options
from uer.errors import UserError
from uer.formats.tokenizer_files import text_beside
from uer.parallel.collectives import Place
from uer.report.writer import Reports
from uer.tokenizers import TextRules, agreed_rules


def open_data(args: argparse.Namespace, place: Place,
              reports: Reports) -> tuple[MlmLoader, MlmLoader | None, TextRules]:
    """Training and held-out loaders, and how their text became ids, checked against the vocabulary and the teacher."""
    def loader(paths: list[str], option: str, masking: MaskingOptions | None = None) -> MlmLoader:
        return MlmLoader(Dataset.open(paths, option, masking is not None), args.batch_size, seed=args.seed,
                         rank=place.rank, world_size=place.world_size, group_by_length=args.group_by_length,
                         pin_memory=place.device.type == "cuda", masking=masking)

    train = loader(args.dataset_path, "--dataset_path", masking_options(args))
    if (instances := len(train.dataset)) < place.world_size:
        raise UserError(f"--dataset_path: {instances} instance(s), fewer than there are processes ({place.world_size})")
    train.dataset.check_processor(args.processor, "--data_processor says")
    dev = loader(args.dev_path, "--dev_path") if args.dev_path else None
    others = [dev.dataset] if dev else []
    if args.calibration_path:
        others.append(Dataset.open(args.calibration_path, "--calibration_path"))
    for other in others:
        other.check_processor(train.dataset.header["data_processor"], f"{train.dataset.paths[0]} holds")
    beside = text_beside(args.pretrained_model_path) if args.pretrained_model_path else []
    rules = [dataset.rules for dataset in (train.dataset, *others)]
    return train, dev, agreed_rules(args, *rules, *beside, say=reports.say)
