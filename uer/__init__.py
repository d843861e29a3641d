"""Weight-inherited distillation (WID) of BERT: preprocess, pretrain, convert."""

__version__ = "0.1.0"
