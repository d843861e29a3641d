"""A finished BERT on held-out text: masked language modelling, or what sentence encoders and students are used for."""

from __future__ import annotations

import argparse

from uer.arguments import add_uer_options, checked, refuse_overwriting, too_small
from uer.cli import importing, same_tokenizer, suggestion, taught_by
from uer.data.options import add_tokenizer_options
from uer.errors import UserError
from uer.progress import ending

TASKS = ("mlm", "sts", "retrieval", "agreement", "squad")


OF_READERS = {"doc_stride": "tokens from the start of a window of the text to the next one's",
              "max_query_length": "tokens of a question at most", "max_answer_length": "tokens of an answer at most"}


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False,
        epilog="A dataset with static masks gives the same figures every time; give every model the same one. Build it "
               "with  preprocess.py --dup_factor 1  from text that no model was trained on.")
    group = out.add_argument_group("model and text")
    group.add_argument("--model_path", required=True, metavar="PATH",
                       help="a UER file (a teacher, a student, a plain checkpoint) or a Hugging Face folder")
    group.add_argument("--config_path", metavar="FILE", help="model config, where there is none beside the model")
    group.add_argument("--task", choices=TASKS, default="mlm",
                       help="mlm: masked words; sts: similarity of two texts; retrieval: documents for queries; "
                            "agreement: with a teacher, on text without labels; squad: a reader's answers "
                            "(default: mlm)")
    group.add_argument("--dataset_path", nargs="+", metavar="FILE", help="mlm: dataset file(s) of preprocess.py")
    group.add_argument("--test_path", metavar="PATH",
                       help="sts: a table (.tsv, .csv) with sentence1, sentence2 and score (or text_a, text_b and "
                            "label); retrieval: a folder with corpus.jsonl, queries.jsonl and qrels/; agreement: text, "
                            "one a line, or a table with text_a (sentence), perhaps text_b, and perhaps label, which "
                            "tells accuracy too; squad: SQuAD's JSON")
    group.add_argument("--teacher_path", metavar="PATH",
                       help="agreement: with whom; retrieval: also search its documents with the model's queries; "
                            "sts, squad: its figures as well")
    group.add_argument("--keep_embedding_size", action="store_true",
                       help="sts, retrieval: the model's vectors in its teacher's space (default: its own)")
    group.add_argument("--seq_length", type=int, metavar="N",
                       help="tokens of a text at most (default: the model's own, else 128; squad: of a window, 384)")
    for name, what in OF_READERS.items():
        group.add_argument(f"--{name}", type=int, metavar="N", help=f"squad: {what} (default: the reader's own)")
    add_tokenizer_options(out)
    group = out.add_argument_group("run")
    group.add_argument("--batch_size", type=int, default=32, metavar="N", help="instances at a time (default: 32)")
    group.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    group.add_argument("--output_path", metavar="FILE", help="the figures go here as well, as JSON")
    add_uer_options(out)
    return out


FOR = {"dataset_path": ("mlm",), "test_path": TASKS[1:], "teacher_path": TASKS[1:], "seq_length": TASKS[1:],
       **dict.fromkeys(OF_READERS, ("squad",)),
       "keep_embedding_size": ("sts", "retrieval")}  # option -> the tasks that use it


def check(args: argparse.Namespace) -> None:
    """`UserError` for numbers that are too small, and for options that the task has no use for."""
    problems = [*too_small(args, ("batch_size", *OF_READERS)), *too_small(args, ("seq_length",), 3)]
    problems += [f"--{name} goes with --task {' or '.join(tasks)}" for name, tasks in FOR.items()
                 if getattr(args, name) and args.task not in tasks]
    if problems:
        raise UserError("; ".join(problems))


def following(args: argparse.Namespace, figures: dict[str, float], alike: bool) -> str:
    """After a comparison with scores that with a teacher, after that some training, where they read `alike`."""
    model = args.model_path.rstrip("/")
    if args.task == "agreement" and not alike:
        return suggestion("evaluate", "--task", "sts", "--model_path", model, same_tokenizer(args), "--test_path",
                          "PAIRS") if "cosine" in figures else \
            suggestion("run_classifier", "--pretrained_model_path", model, same_tokenizer(args), "--train_path",
                       "TRAIN.tsv", "--dev_path", "DEV.tsv", "--output_model_path",
                       f"{model.removesuffix('.bin')}-tuned.bin")
    if args.task == "agreement":
        return suggestion("pretrain", "--dataset_path", "DATASET", same_tokenizer(args), "--pretrained_model_path",
                          model, taught_by(args.teacher_path, "states" if "cosine" in figures else "cls"),
                          "--output_model_path", f"{model.removesuffix('.bin')}-trained.bin")
    return suggestion("evaluate", "--task", "agreement", "--model_path", model, same_tokenizer(args), "--teacher_path",
                      args.teacher_path or "TEACHER", "--test_path", "TEXT")


def main() -> None:
    args = checked(parser().parse_args())
    refuse_overwriting(args, {"output_path": [args.output_path]})
    check(args)
    made = f"{args.output_path}: the figures" if args.output_path else "figures, on the screen only"
    if args.task != "mlm":
        with importing():
            from uer.evaluation.command import evaluate_task

        figures, alike = evaluate_task(args)
        ending(made, ", ".join(f"{name} {value:.4f}" for name, value in figures.items()),
               following(args, figures, alike))
        return
    if not args.dataset_path:
        raise UserError("--dataset_path is needed for --task mlm: a dataset of preprocess.py")
    with importing():
        from uer.evaluation.mlm import evaluate_file

    found = evaluate_file(args)
    ending(made, f"accuracy {100 * found.accuracy:.2f} % of {found.predicted:,} predictions, loss {found.loss:.4f}",
           suggestion("run_glue", "--data_dir", "GLUE_FOLDER", "--pretrained_model_path", args.model_path,
                      same_tokenizer(args, args.model_path), "--output_path", "glue"))
