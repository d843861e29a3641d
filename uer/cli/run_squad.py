"""Fine-tune a BERT on SQuAD 1.1 or 2.0."""

from __future__ import annotations

from uer.cli import importing, same_tokenizer, suggestion
from uer.config import parse_with_config
from uer.finetuning.options import squad_parser as parser
from uer.progress import ending


def main() -> None:
    args, given = parse_with_config(parser)
    with importing():
        from uer.finetuning.squad import run_squad

    best = run_squad(args, given)
    from uer.finetuning.tuning import in_words

    ending(f"{args.output_model_path} and its answers, {args.output_model_path}.predictions.json",
           f"on the dev data {in_words(best['figures'])}, epoch {best['best_epoch']}",
           suggestion("run_glue", "--data_dir", "GLUE_FOLDER", "--pretrained_model_path", args.pretrained_model_path,
                      same_tokenizer(args), "--output_path", "glue"))
