"""The commands: each is the script of its name, `uer-wid <name>` and `python3 -m uer <name>` alike.

A module here holds the `parser` and the `main` of one; none imports torch before the command line is parsed.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

COMMANDS = {
    "preprocess": ("uer.cli.preprocess", "text -> dataset"),
    "pretrain": ("uer.cli.pretrain", "dataset + teacher -> checkpoints of a student (or of a plain BERT)"),
    "convert": ("uer.cli.convert", "checkpoint -> student, in the formats asked for"),
    "calibrate": ("uer.cli.calibrate", "teacher + text -> student, without training"),
    "evaluate": ("uer.cli.evaluate", "model + held-out dataset -> loss and accuracy"),
    "run_classifier": ("uer.cli.run_classifier", "fine-tune on a classification task"),
    "run_glue": ("uer.cli.run_glue", "fine-tune several models on GLUE: a table and a chart"),
    "run_squad": ("uer.cli.run_squad", "fine-tune on SQuAD"),
    "run_classifier_infer": ("uer.cli.run_classifier_infer", "classify texts with a fine-tuned model"),
    "convert_bert_from_huggingface_to_uer": ("uer.cli.from_huggingface", "Hugging Face BERT -> UER file"),
    "convert_bert_from_uer_to_huggingface": ("uer.cli.to_huggingface", "UER file -> Hugging Face folder"),
    "report": ("uer.report.__main__", "logs of runs -> a page and pictures"),
    "inspect": ("uer.data.inspect", "look into a dataset"),
    "options": ("uer.cli.options", "find options of all commands by a word"),
}
BARE = ("report", "inspect", "options")  # commands without a script
TUNING = ("run_classifier", "run_glue", "run_squad")
FOLDERS = {**dict.fromkeys(TUNING, "finetune"), "run_classifier_infer": "inference", **dict.fromkeys(
    ("convert_bert_from_huggingface_to_uer", "convert_bert_from_uer_to_huggingface"), "scripts")}


def command(name: str) -> Callable[[], None]:
    """The main of a command, which is imported when that is called: Ctrl-C meanwhile ends it as at any other time."""
    return partial(_run, name)


def _run(name: str) -> None:
    importlib.import_module(COMMANDS[name][0]).main()


@contextmanager
def importing() -> Iterator[None]:
    """Around a process's first import of torch: nothing in the million objects that it makes is garbage, so none is
    looked for among them, now or later. A start takes a seventh less."""
    first = "torch" not in sys.modules
    if first:
        gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            gc.enable()


def command_line() -> str:
    """What was typed, to be kept beside what it made."""
    name, *options = sys.argv
    start = ["python3", name] if name.endswith(".py") else name.split()
    return shlex.join([*start, *options])


def same_tokenizer(args: argparse.Namespace, reader: str | Path | None = None) -> list[str]:
    """The words that make another command read text as this one did, which may have found its vocabulary.
    `reader`: the model that it reads text for; where no vocabulary is known, the user has to name one."""
    found = None
    if not (args.vocab_path or args.spm_model_path):
        from uer.formats.tokenizer_files import vocabulary_beside  # and torch

        models = (getattr(args, f"{name}_path", None) for name in (
            "model", "pretrained_model", "load_model", "teacher"))
        found = next((path for model in models if model and (path := vocabulary_beside(model))), None)
        if found is None:
            return [] if reader is None or vocabulary_beside(reader) else ["--vocab_path", "VOCABULARY"]
    names = ("tokenizer", "vocab_path", "merges_path", "spm_model_path", "do_lower_case")
    values = {**{name: getattr(args, name, None) for name in names}, **({"vocab_path": found} if found else {})}
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def readable_one(paths: Mapping[str, Path]) -> Path | None:
    """Of what was written, format -> path, one that the scripts here can read; None: there is none."""
    return next((paths[name] for name in ("uer", "uer-py", "huggingface") if name in paths), None)


def judged_by(target: str) -> list[str]:
    """evaluate.py's options for a model with this target."""
    return ["--dataset_path", "DEV_DATASET"] if target == "mlm" else \
        ["--task", "agreement", "--teacher_path", "TEACHER", "--test_path", "TEXT"]


def learning(target: str) -> list[str]:
    """pretrain.py's options for what a model with this target learns from its teacher, as docs/classifiers.md has them;
    none where its own default does."""
    return [] if target in ("mlm", "states") else [
        "--target", "logits", "--layer_weight", "3", "--soft_targets_temperature", "3", "--augment_texts", "0.3"]


def taught_by(teacher: str, target: str) -> list[str]:
    """The same, and the rate, for a student without MLM head that is there already."""
    from uer.training.mask_schedule import usual_rate  # and torch

    layers = learning(target)
    rate = usual_rate("logits" if layers else target, bool(layers))
    return ["--soft_targets_teacher", teacher, *(layers or ["--target", target]), "--learning_rate", f"{rate:g}"]


def suggestion(name: str, *options: object) -> str:
    """The command line of another command, to be typed where this one was; options that are None are left out.
    `options`: the words after the command; a list stands for its items."""
    program = sys.argv[0]
    words = [*program.split()[:-1], name] if " " in program else ["uer-wid", name]
    if program.endswith(".py") and Path(program).stem in COMMANDS:
        here, mine, folder = Path(program).parent, FOLDERS.get(Path(program).stem), FOLDERS.get(name, "")
        top = here.parent if mine and here.name == mine else here / ".." if mine else here
        words = ["python3", str(top / folder / f"{name}.py")] if name not in BARE else ["python3", "-m", "uer", name]
    for option in options:
        words += map(str, option) if isinstance(option, (list, tuple)) else [] if option is None else [str(option)]
    return shlex.join(words)
