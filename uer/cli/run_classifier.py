"""Fine-tune a BERT on a classification task: UER's TSV, or a task of GLUE."""

from __future__ import annotations

from uer.cli import importing, same_tokenizer, suggestion
from uer.config import parse_with_config
from uer.finetuning.options import classifier_parser as parser
from uer.progress import ending


def main() -> None:
    args, given = parse_with_config(parser)
    with importing():
        from uer.finetuning.classify import run_classifier

    best = run_classifier(args, given)
    from uer.finetuning.tuning import in_words

    ending(args.output_model_path, f"on the dev data {in_words(best['figures'])}, epoch {best['best_epoch']}",
           suggestion("run_classifier_infer", "--load_model_path", args.output_model_path,
                      same_tokenizer(args), "--test_path", args.test_path or "TEXTS",
                      "--prediction_path", "predictions.tsv"))
