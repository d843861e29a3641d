"""Options of the fine-tuning scripts; UER's names where UER has the option. Needs no torch."""

from __future__ import annotations

import argparse

from uer import config
from uer.arguments import add_uer_options
from uer.data.options import add_tokenizer_options
from uer.opts import SCHEDULERS

TASKS = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI")
POOLINGS = (*config.POOLINGS, "pooler")


def add_tuning_options(parser: argparse.ArgumentParser, *, batch_size: int, seq_length: int, rate: float,
                       epochs: int) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument("--epochs_num", type=int, default=epochs, metavar="N",
                       help=f"passes over the data (default: {epochs})")
    group.add_argument("--batch_size", type=int, nargs="+", default=[batch_size], metavar="N",
                       help=f"one, or several to try each (default: {batch_size})")
    group.add_argument("--seq_length", type=int, default=seq_length, metavar="N",
                       help=f"tokens an instance at most (default: {seq_length})")
    group.add_argument("--group_by_length", action="store_true",
                       help="batches of like length, less padding: faster on a GPU where lengths differ much, on a CPU "
                            "hardly")
    group.add_argument("--learning_rate", type=float, nargs="+", default=[rate], metavar="LR",
                       help=f"one, or several to try each (default: {rate:g})")
    group.add_argument("--warmup", type=float, default=0.1, metavar="SHARE",
                       help="share of the steps in which the rate rises (default: 0.1)")
    group.add_argument("--scheduler", choices=SCHEDULERS, default="linear", help="what it does then (default: linear)")
    group.add_argument("--weight_decay", type=float, default=0.01, metavar="X", help="of matrices (default: 0.01)")
    group.add_argument("--max_grad_norm", type=float, default=1.0, metavar="X",
                       help="longer gradients are cut to this length; 0: never (default: 1)")
    group.add_argument("--no_bias_correction", dest="bias_correction", action="store_false",
                       help="AdamW without bias correction, as UER's (steps are larger at the start)")
    group.add_argument("--dropout", type=float, metavar="P",
                       help="share of activations dropped (default: the config's)")
    seeds = group.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=7, help="of the head, the order and dropout (default: 7)")
    seeds.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="several runs: median and spread are told")
    precision = group.add_mutually_exclusive_group()
    precision.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    precision.add_argument("--fp16", action="store_true", help="matrix products in float16, with a scaled loss")


def add_pretrained_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--pretrained_model_path", required=True, metavar="PATH",
                       help="a UER file or a Hugging Face folder; a head for masked language modelling is not needed")
    group.add_argument("--config_path", metavar="FILE", help="model config, where there is none beside the model")


def add_pooling_option(group: argparse._ActionsContainer, default: str | None = "first") -> None:
    group.add_argument("--pooling", choices=POOLINGS, default=default,
                       help="what stands for the whole text; pooler: the first token through the model's own pooler"
                            + (f" (default: {default})" if default else " (default: the model's)"))


def add_report_options(group: argparse._ActionsContainer) -> None:
    group.add_argument("--report_steps", type=int, default=100, metavar="N",
                       help="steps between reports (default: 100)")
    group.add_argument("--log_path", metavar="FILE", help="the console's lines go here as well")
    group.add_argument("--resume", action="store_true",
                       help="take over the runs that the results file has; one that was interrupted begins again")


def classifier_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Fine-tune a BERT on a classification task (STS-B: regression) and keep the best epoch.",
        epilog="Batches are drawn in a new random order every epoch and padded to their longest instance. Of a pair "
               "that is too long, the longer text is cut first.")
    group = parser.add_argument_group("data")
    group.add_argument("--train_path", metavar="FILE", help="UER's TSV, or CSV: a header, columns label, text_a and "
                                                            "perhaps text_b")
    group.add_argument("--dev_path", metavar="FILE", help="the same, to choose the best epoch by")
    group.add_argument("--test_path", metavar="FILE", help="the same, with or without labels")
    group.add_argument("--task", choices=TASKS, help="a GLUE task instead, in GLUE's own files")
    group.add_argument("--data_dir", metavar="FOLDER", help="where that task's train.tsv, dev.tsv, test.tsv are")
    add_tokenizer_options(parser)
    add_pretrained_options(parser)
    add_pooling_option(parser.add_argument_group("head"))
    add_tuning_options(parser, batch_size=32, seq_length=128, rate=2e-5, epochs=3)
    group = parser.add_argument_group("output")
    group.add_argument("--output_model_path", default="models/finetuned_model.bin", metavar="FILE",
                       help="the best epoch of the best run; <FILE>.json says what it is, <FILE>.results.json has "
                            "every run (default: models/finetuned_model.bin)")
    group.add_argument("--prediction_path", metavar="PATH",
                       help="predictions for the test data: a file, or with --task a folder for files in GLUE's "
                            "submission format")
    add_report_options(group)
    add_uer_options(parser)
    return parser


def infer_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False,
                                     description="Classify texts with a model of finetune/run_classifier.py.")
    group = parser.add_argument_group("model")
    group.add_argument("--load_model_path", required=True, metavar="FILE", help="of run_classifier.py, or of UER's")
    group.add_argument("--config_path", metavar="FILE", help="model config, where there is no <FILE>.json")
    group.add_argument("--labels_num", type=int, metavar="N",
                       help="how many labels there are (default: as many as the model has)")
    add_pooling_option(group, None)
    add_tokenizer_options(parser)
    group = parser.add_argument_group("data")
    group.add_argument("--test_path", required=True, metavar="FILE", help="TSV or CSV: a header, columns text_a and "
                                                                          "perhaps text_b, or as GLUE calls them")
    group.add_argument("--prediction_path", required=True, metavar="FILE", help="TSV to write, a line a text")
    group.add_argument("--output_logits", action="store_true", help="a column with all logits")
    group.add_argument("--output_prob", action="store_true", help="a column with all probabilities")
    group.add_argument("--seq_length", type=int, metavar="N", help="tokens an instance at most (default: the model's)")
    group.add_argument("--batch_size", type=int, default=64, metavar="N", help="texts at a time (default: 64)")
    group.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    add_uer_options(parser)
    return parser


def glue_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Fine-tune one or several models on all GLUE tasks of a folder and compare them.",
        epilog="A task's figure is the mean of its metrics at the best epoch, the median over the seeds of the best "
               "learning rate and batch size; the average over tasks leaves WNLI out, as BERT's authors did. "
               "--resume is for the whole table: finished runs are not run again.")
    group = parser.add_argument_group("data")
    group.add_argument("--data_dir", required=True, metavar="FOLDER", help="of task folders in GLUE's own layout")
    group.add_argument("--tasks", nargs="+", choices=TASKS, metavar="TASK",
                       help=f"of {', '.join(TASKS)} (default: those whose folder is there)")
    group.add_argument("--predict", action="store_true",
                       help="test predictions in GLUE's submission format as well, a folder a model")
    add_tokenizer_options(parser)
    group = parser.add_argument_group("models")
    group.add_argument("--pretrained_model_path", required=True, nargs="+", metavar="PATH",
                       help="UER files and Hugging Face folders; the first is what the others are compared with")
    group.add_argument("--model_names", nargs="+", metavar="NAME", help="their names in the table (default: the paths' "
                                                                        "last parts)")
    group.add_argument("--config_path", metavar="FILE", help="config of all models, where there is none beside them")
    add_pooling_option(parser.add_argument_group("head"))
    add_tuning_options(parser, batch_size=32, seq_length=128, rate=2e-5, epochs=3)
    group = parser.add_argument_group("output")
    group.add_argument("--output_path", required=True, metavar="FOLDER",
                       help="glue.md, glue.json, glue.png, and a folder of models and results for each model")
    add_report_options(group)
    add_uer_options(parser)
    return parser


def squad_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Fine-tune a BERT on SQuAD 1.1 or 2.0 and answer the dev questions: exact match and F1.",
        epilog="Whether questions may have no answer is read off the training data. Without "
               "--null_score_diff_threshold the threshold with the best F1 on the dev data is taken, which is what "
               "SQuAD 2.0's script calls best_f1.")
    group = parser.add_argument_group("data")
    group.add_argument("--train_path", required=True, metavar="FILE", help="SQuAD's JSON")
    group.add_argument("--dev_path", required=True, metavar="FILE", help="the same, to choose the best epoch by")
    group.add_argument("--max_query_length", type=int, default=64, metavar="N",
                       help="tokens of a question at most (default: 64)")
    group.add_argument("--doc_stride", type=int, default=128, metavar="N",
                       help="tokens from the start of a window of the text to the next one's (default: 128)")
    group = parser.add_argument_group("answers")
    group.add_argument("--n_best_size", type=int, default=20, metavar="N", help="answers kept a question (default: 20)")
    group.add_argument("--max_answer_length", type=int, default=30, metavar="N",
                       help="tokens of an answer at most (default: 30)")
    group.add_argument("--null_score_diff_threshold", type=float, metavar="X",
                       help="no answer where its score is ahead of the best span's by more than X")
    add_tokenizer_options(parser)
    add_pretrained_options(parser)
    add_tuning_options(parser, batch_size=16, seq_length=384, rate=3e-5, epochs=2)
    group = parser.add_argument_group("output")
    group.add_argument("--output_model_path", required=True, metavar="FILE",
                       help="the best epoch of the best run; <FILE>.json says what it is, <FILE>.results.json has "
                            "every run, <FILE>.predictions.json and .nbest.json its answers, <FILE>.null_odds.json "
                            "how far no answer is ahead")
    add_report_options(group)
    add_uer_options(parser)
    return parser
