#!/usr/bin/env python3
"""Compress a BERT teacher by weight-inherited distillation, or train a BERT by masked language modelling."""

from uer.config import parse_with_config
from uer.errors import run_script
from uer.opts import pretrain_parser


def main() -> None:
    args, given = parse_with_config(pretrain_parser)
    from uer.pretraining import pretrain

    pretrain(args, given)


if __name__ == "__main__":
    run_script(main)
