"""A stage-1 checkpoint on its way to a student: what it is, what is known about it, and its merge."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from uer.calibration.pooler import take_pooler
from uer.config import ModelConfig, config_from_dict, load_config
from uer.conversion.merge import Merged, groups_for, master_from_checkpoint, merge
from uer.conversion.outputs import Source
from uer.errors import UserError
from uer.files import as_written, config_path_for, read_object
from uer.formats import shapes
from uer.formats.file_model import LoadedModel, reading_of
from uer.formats.file_target import settle_target
from uer.formats.model_card import CardFacts
from uer.formats.sentence import SentenceFacts
from uer.formats.storage import read_tensors, without_shared_prefix, written_sha256
from uer.formats.teacher import guessed_config, is_config
from uer.formats.uer_names import heads_in, is_uer, to_published
from uer.layer_sizes import layers_in_words, wishes_from
from uer.squeeze.mask_file import check_masks, read_masks
from uer.tokenizers import TextRules, agreed_rules
from uer.tokenizers.rules import KEY, recorded
from uer.training.relations import left_behind

RECORDED = {"loss": "MLM loss in training", "accuracy": "MLM accuracy in training", "dev_loss": "MLM loss, held-out",
            "dev_accuracy": "MLM accuracy, held-out"}
STRATEGY_WORDS = {"dim": "every head made thinner (dim)", "head": "heads dropped (head)"}
HOW_MERGED = ("A student by weight-inherited distillation: {compactors} around the teacher's linears, {strategy}, "
              "hidden size {teacher} to {size}, then merged into the teacher's weights{more}.")
SIZE_OPTIONS = ("layers_num", "hidden_size", "heads_num", "feedforward_size")


def recorded_figures(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of the losses and accuracies in a checkpoint's facts; of a run without labels, whose loss says
    nothing by itself, the figure that it was judged by on held-out text."""
    labelless = "objective" in facts
    names = {"dev_accuracy": f"{facts.get('figure')}, held-out"} if labelless else RECORDED
    found = [(words, f"{100 * facts[key]:.2f} %" if "accuracy" in key else f"{facts[key]:.4g}")
             for key, words in names.items() if isinstance(facts.get(key), float)]
    return found or ([] if labelless or "config" in facts else [("MLM loss", "not recorded with the checkpoint")])


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a checkpoint (published names, at least float32) and the facts in the JSON beside it.

    Facts are {} where there is none, and only the config and how text becomes ids beside a finished UER file.
    `UserError` where it is no file of tensors, or of another model.
    """
    path = as_written(path)
    if path.is_dir():
        raise UserError(f"--load_model_path {path}: a folder; a checkpoint file is needed")
    raw = without_shared_prefix(read_tensors(path, "checkpoint"), is_uer)
    if not is_uer(raw):
        raise UserError(f"checkpoint {path}: not a checkpoint of pretrain.py (its tensors are called "
                        f"{', '.join(list(raw)[:3])}, …)")
    state = {name: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
             for name, tensor in heads_in(to_published(raw)).items()
             if name in shapes.POOLER or name not in shapes.NSP_HEAD}
    beside = Path(f"{path}.json")
    found = read_object(beside) if beside.is_file() else {}
    if not is_config(found) and config_path_for(path).is_file():
        config = read_object(config_path_for(path))
        return state, {"teacher": config, KEY: config.get(KEY)}
    facts = _checked_facts(found, beside)
    if facts.get("tensors") and facts["tensors"] != written_sha256(path):
        raise UserError(f"checkpoint {path}: not the file that {beside.name} was written with, so what that says is "
                        f"not of it; bring the two of one step of one run together")
    if "config" in facts and "teacher" not in facts:  # a finished model with another target than masked words
        facts = {**facts, "teacher": facts["config"]}
    return state, facts


def _checked_facts(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """The JSON beside a checkpoint; `UserError` where it is not as pretrain.py writes it."""
    sizes = ("target_dim", "mlm_target_dim", "target_feedforward_size", "target_heads")
    kinds = {"teacher": (dict,), "origin": (dict,), "step": (int,), "layer_sizes": (list, type(None)),
             **dict.fromkeys(sizes, (int, type(None)))}
    wrong = [key for key, kind in kinds.items() if key in facts and not isinstance(facts[key], kind)]
    if facts.get("strategy", "dim") not in ("dim", "head"):
        wrong.append("strategy")
    if wrong:
        raise UserError(f"{path}: not the JSON of a checkpoint: {', '.join(wrong)} cannot be {facts[wrong[0]]!r}")
    return facts


def has_compactors(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether this is a checkpoint of a WID run (and not a plain model)."""
    return any("compactor" in name for name in state)


def teacher_config(state: Mapping[str, torch.Tensor], facts: Mapping[str, Any],
                   options: argparse.Namespace) -> tuple[ModelConfig, list[str]]:
    """The teacher's config: from the checkpoint's JSON, else --config_path, else the shapes and the options.

    Returns:
        the config, and everything given that contradicts it or the checkpoint.
    Raises:
        UserError: the number of heads cannot be told, or senseless values.
    """
    where, measured = f"checkpoint {options.load_model_path}", shapes.measured(state)
    if len(measured) < 3:
        raise UserError(f"{where}: not a whole BERT; there is no {shapes.WORDS} or no encoder layer in it")
    origin = facts.get("origin", {})  # the teacher of a student that was trained on: its sizes may be given as well
    if facts.get("teacher"):
        config = config_from_dict(facts["teacher"], f"{where}.json")
    elif options.config_path:
        overrides = {} if options.heads_num is None else {"heads_num": options.heads_num}
        config = load_config(options.config_path, overrides)
    else:
        config = guessed_config(state, where, [], heads=options.heads_num)
    config = _settled(config, state, facts, where).config
    problems = [f"--{key} {getattr(options, key)}, but {measured.get(key, getattr(config, key))} in the checkpoint"
                for key in SIZE_OPTIONS
                if getattr(options, key) not in (None, measured.get(key, getattr(config, key)), getattr(config, key),
                                                 origin.get(key))]
    given = _settled(load_config(options.config_path), state, facts, where).config \
        if options.config_path and not origin else config
    problems += [f"{key} is {getattr(other, key)} in {name}, {value} in the checkpoint"
                 for other, name in ((config, f"{options.load_model_path}.json"), (given, options.config_path)) if name
                 for key, value in measured.items() if shapes.as_measured(other, key) != value]
    if facts.get("teacher") and given.heads_num != config.heads_num:
        problems.append(f"heads_num is {given.heads_num} in {options.config_path}, {config.heads_num} in the "
                        f"checkpoint")
    return config, list(dict.fromkeys(problems))


def _settled(config: ModelConfig, state: Mapping[str, torch.Tensor], facts: Mapping[str, Any],
             where: str) -> LoadedModel:
    """A model without compactors with the target that its file has: the config of a fine-tuned one is its encoder's."""
    model = LoadedModel(config, dict(state), facts=dict(facts))
    if not has_compactors(state):
        settle_target(model, None, where)
    return model


def fact_problems(facts: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """Options that contradict what the run wrote beside its checkpoint."""
    said = (("compactor_mask_strategy", "strategy", "the run's was"),
            ("mask_step", "step", "the checkpoint is of step"))
    return [f"--{option} {given}, but {whose} {facts[key]}" for option, key, whose in said
            if (given := getattr(options, option)) is not None and facts.get(key) not in (None, given)]


def merge_checkpoint(state: Mapping[str, torch.Tensor], facts: Mapping[str, Any], options: argparse.Namespace,
                     say: Callable[[str], object] = print,
                     pooler: Mapping[str, torch.Tensor] | None = None) -> tuple[Merged, ModelConfig, str]:
    """Masks, master, merge and the checks.

    Returns:
        the student, the teacher's config, the strategy.
    Raises:
        UserError: all contradictions in one message; masks that are absent or do not fit; a student that disagrees
            with the model that was trained.
    """
    config, problems = teacher_config(state, facts, options)
    problems += fact_problems(facts, options)
    if problems:
        raise UserError(f"checkpoint {options.load_model_path}: " + "; ".join(problems))
    strategy = options.compactor_mask_strategy or facts.get("strategy") or "dim"
    step = options.mask_step if options.mask_step is not None else facts.get("step")
    where, masks = f"checkpoint {options.load_model_path}", {}
    if options.mask_path:
        if step is None:
            raise UserError("--mask_path needs --mask_step, the step of the checkpoint")
        where, masks = f"mask file {options.mask_path}, step {step}", read_masks(options.mask_path, step)
        check_masks(options.mask_path, step, facts.get("masks_sha256"))
    groups, notes = groups_for(state, config, strategy, masks, where, facts.get("mlm_target_dim"),
                               facts.get("target_feedforward_size"), facts.get("target_heads"),
                               wishes_from(facts["layer_sizes"], f"{options.load_model_path}.json: layer_sizes")
                               if facts.get("layer_sizes") else None, facts.get("target_dim"))
    target = groups["hidden"].target
    if facts.get("target_dim") not in (None, target):
        raise UserError(f"{where}: leaves {target} hidden dimensions, the run's --target_dim was "
                        f"{facts['target_dim']}; a student exists once the masks are complete")
    for note in notes:
        say(f"note: {note}")
    merged = merge(master_from_checkpoint(state, config, groups), keep_attention_scale=options.keep_attention_scale,
                   pooler=pooler)
    _judge(merged, options, say)
    return merged, config, strategy


def _judge(merged: Merged, options: argparse.Namespace, say: Callable[[str], object]) -> None:
    report = merged.report
    scale = f"logits up to {report.scale:.3g}"
    if options.keep_attention_scale:
        say("note: --keep_attention_scale: the student divides its attention scores by the root of its own head size, "
            "as the published conversion's do; that is another model than was trained. The figures below compare "
            "against the trained one under that scale.")
    say(f"merged against the trained model with the dropped entries at 0: largest logit difference "
        f"{report.sparse_difference:.2g} ({scale}, fixed batch, float32)")
    exact = "" if report.exact_difference is None else f", in float64 by {report.exact_difference:.2g}"
    if not report.agrees:
        raise UserError(f"the merged student disagrees with the trained model by {report.sparse_difference:.3g} "
                        f"({scale}){exact}; nothing was written")
    if exact:
        say(f"in float64 by {report.exact_difference:.2g}: it is the trained model, which multiplies the rounding of "
            f"float32")
    say(f"merged against the trained model as it is: {report.trained_difference:.2g}; largest dropped compactor entry "
        f"{report.largest_dropped:.2g} ({report.largest_dropped_group})")
    if not report.decayed:
        say("WARNING: the dropped entries have not decayed yet, so the student is not the model that was trained: "
            "its logits differ as said above. Take a later checkpoint, or train the student on.")


# -- what goes out -----------------------------------------------------------------------------------------------------


def student_source(options: argparse.Namespace, command: str, say: Callable[[str], object] = print) -> Source:
    """The model that convert.py's options ask for: a merged student, or a plain model as it is.
    `command`: for the model card."""
    state, facts = read_checkpoint(options.load_model_path)
    pooler = take_pooler(state)
    text = text_of(options, facts, say)
    figures = recorded_figures(facts)
    teacher = None
    if has_compactors(state):
        merged, teacher, strategy = merge_checkpoint(state, facts, options, say, pooler)
        config, weights, report, pooler = merged.config, merged.weights, merged.report, merged.extras
        figures += [("merged student against the trained model, its dropped entries at 0, fixed batch, float32",
                     f"largest logit difference {report.sparse_difference:.2g} (logits up to {report.scale:.3g})"),
                    ("merged student against the trained model as it is", f"{report.trained_difference:.2g}")]
        how = how_made(facts, teacher, config, strategy)
        if options.keep_attention_scale:
            how += " The attention scale is not folded in (--keep_attention_scale)."
    else:
        config, weights = _plain(state, facts, options, say)
        if "origin" in facts:
            teacher = config_from_dict(facts["origin"], f"checkpoint {options.load_model_path}.json")
            how = how_made(facts, teacher, config, facts.get("strategy", "dim"))
        else:
            learnt = f"on a teacher's {facts['objective']}" if "objective" in facts else "by masked language modelling"
            how = f"A BERT{'' if 'config' in facts else f' trained {learnt}'}, converted as it is."
    if not (facts.get("teacher") or options.config_path or options.heads_num):
        say(f"note: no JSON beside the checkpoint: heads of {shapes.HEAD_SIZE} dimensions are assumed; a student whose "
            f"heads were made thinner has more of them, which --heads_num or --config_path would say")
    bare = facts.get("objective") == "relations"
    if bare:
        say(f"note: {left_behind(config.target)}")
        how += f" Note: {left_behind(config.target)}."
    say(f"{config.layers_num} layers, hidden_size {config.hidden_size}, {layers_in_words(config)}, "
        f"{shapes.parameter_count(weights):,} parameters")
    for note in shapes.spare_words(weights, text.vocab_size if text else None):
        say(f"note: {note}")
    card = CardFacts(name="", source=Path(options.load_model_path).name, how=how, teacher=teacher,
                     parameters=shapes.parameter_count(weights), figures=figures, command=command)
    sentence = SentenceFacts.from_dict(facts["sentence"], f"{options.load_model_path}.json") \
        if facts.get("sentence") else None
    return Source(config, weights, card, pooler, text, sentence=sentence,
                  keep_embedding_size=options.keep_embedding_size, bare=bare, reading=reading_of(facts))


def how_made(facts: Mapping[str, Any], teacher: ModelConfig, student: ModelConfig, strategy: str) -> str:
    """A sentence on how a student came about, merged here or folded in the course of its run."""
    folds = "origin" in facts
    steps = facts.get("folded", 0) if folds else facts.get("step")
    compactors = "closed-form compactors" if steps == 0 else f"compactors trained for {steps} steps" if steps else \
        "compactors trained"
    more = f", and trained on by itself to step {facts['step']}" if folds and "step" in facts else ""
    return HOW_MERGED.format(compactors=compactors, strategy=STRATEGY_WORDS[strategy], teacher=teacher.hidden_size,
                             size=student.hidden_size, more=more)


def text_of(options: argparse.Namespace, facts: Mapping[str, Any], say: Callable[[str], object]) -> TextRules | None:
    """How text becomes ids: what the checkpoint keeps, and the options if a vocabulary is given; None: nothing known.
    `UserError` where they contradict each other."""
    own = recorded(facts, f"checkpoint {options.load_model_path}")
    if not (options.vocab_path or options.spm_model_path):
        for name in ("tokenizer", "do_lower_case", "merges_path"):
            if getattr(options, name, None) is not None:
                raise UserError(f"--{name} goes with --vocab_path, the vocabulary that it is of")
        return own
    return agreed_rules(options, *([own] if own else []), say=say)


def _plain(state: Mapping[str, torch.Tensor], facts: Mapping[str, Any], options: argparse.Namespace,
           say: Callable[[str], object]) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    if options.mask_path or options.keep_attention_scale:
        say("note: no compactors in this checkpoint, so there is nothing to merge; masks are not needed")
    config, problems = teacher_config(state, facts, options)
    model = _settled(config, state, facts, f"checkpoint {options.load_model_path}")
    for note in model.notes:
        say(f"note: {note}")
    problems += shapes.tensor_problems(model.weights, config)
    if problems:
        raise UserError(f"checkpoint {options.load_model_path}: " + "; ".join(problems))
    return config, model.weights
