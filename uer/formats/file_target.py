"""The target that a model from a file has: an MLM head, a task's head, or none, which is the states themselves.

    states    output_layer = the identity: the teacher's states are what is asked of it
    tokens    a tagger's or reader's output_layer
    cls       output_layer_2(tanh(output_layer_1(x))); a pooler and a classifier of Hugging Face are that,
              with relu or gelu those of DistilBERT and ELECTRA
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from uer.config import POOLINGS, SPAN_LABELS, ModelConfig
from uer.errors import UserError
from uer.formats import shapes
from uer.formats.file_model import LoadedModel
from uer.formats.huggingface_config import HuggingFaceConfig
from uer.formats.huggingface_names import their_name
from uer.formats.storage import shortened

HEAD_NOISE = 0.01
OUTPUT = "target.output_layer"
LAST = (f"{OUTPUT}.weight", f"{OUTPUT}_2.weight")
MLM_HEAD = ("target.mlm_", "target.layer_norm.")
TEXT_TASK = "ForSequenceClassification"
TOKEN_TASKS = ("ForTokenClassification", "ForQuestionAnswering")
MULTI_LABEL, SCORES = "multi_label_classification", "regression"  # transformers' words
READER_HEAD = "qa_outputs"  # head, whatever class a config names
# What classes call their heads, the first linear of each; other families than BERT's by the beginning of their names.
LINEARS = {"ForMaskedLM": "cls.predictions.transform.dense", "ForPreTraining": "cls.predictions.transform.dense",
           TEXT_TASK: "classifier", TOKEN_TASKS[0]: "classifier", TOKEN_TASKS[1]: READER_HEAD}
LINEARS_APART = {
    "DistilBert": {"ForMaskedLM": "vocab_transform", TEXT_TASK: "pre_classifier"},
    "Electra": {"ForMaskedLM": "generator_predictions.dense", TEXT_TASK: "classifier.dense"},
    **{family: {"ForMaskedLM": "lm_head.dense", TEXT_TASK: "classifier.dense"}
       for family in ("Roberta", "XLMRoberta", "Camembert")}}
UNLIKE = ("ForMultipleChoice", "ForNextSentencePrediction")


def outputs_apart(teacher: ModelConfig, model: ModelConfig) -> str:
    """Why a model cannot learn from a teacher or be compared with it, output by output, in words; "": it can.

    Labels with other names may mean the same; those with the same names have to stand in the same order.
    """
    theirs, ours = _outputs_in_words(teacher), _outputs_in_words(model)
    named = [[label.casefold() for label in config.labels] for config in (teacher, model)]
    if theirs == ours and named[0] != named[1] and sorted(named[0]) == sorted(named[1]):
        theirs, ours = (f"its labels in the order {', '.join(config.labels)}" for config in (teacher, model))
    return f"{theirs}, the model has {ours}" if theirs != ours else ""


def _outputs_in_words(config: ModelConfig) -> str:
    kind = "a reader" if config.reader else f"target {config.target}"
    kind += " whose labels may hold together" if config.multi_label else ""
    return f"{config.outputs} outputs of {kind}"


def settle_target(model: LoadedModel, wanted: str | None, where: str) -> None:
    """Give the model's config its target, and the model the tensors of that one alone.

    Args:
        wanted: `mlm`, `states`, or None for what the file has.
    Raises:
        UserError: a head that is none of these.
    """
    found = _found(model, where) if wanted is None else wanted
    asked = model.reading.get("of_logits", {}).get("problem_type")
    if found == "states" and model.config.target == "states" and f"{OUTPUT}.weight" in model.weights:
        _leave_out(model, *MLM_HEAD, f"{OUTPUT}_")
    elif found == "states":
        _leave_out(model, shapes.TASK_HEAD)
        strip_heads(model)
        hidden = model.config.hidden_size
        words = model.weights.get(shapes.WORDS, torch.empty(0))
        model.weights |= {f"{OUTPUT}.weight": torch.eye(hidden, dtype=words.dtype),
                          f"{OUTPUT}.bias": torch.zeros(hidden, dtype=words.dtype)}
    elif found == "mlm":
        _leave_out(model, shapes.TASK_HEAD)
    else:
        _leave_out(model, *MLM_HEAD)
    _configure(model, found, where)
    if found == "cls" and asked == SCORES and model.config.outputs > 1:
        raise UserError(f"{where}: problem_type {SCORES} with {model.config.outputs} labels; one score of a text is "
                        f"needed, or classes")


def strip_heads(model: LoadedModel) -> None:
    """Leave out every head, whether of masked language modelling or of a task; what is not the former is noted."""
    other = [name_in_file(model, name) for name in model.weights if not name.startswith((*shapes.ENCODER, *MLM_HEAD))]
    if other:
        model.notes.append(f"not taken over, no part of the encoder: {shortened(other)}")
    model.weights = {name: tensor for name, tensor in model.weights.items() if name.startswith(shapes.ENCODER)}
    model.config = replace(model.config, target="mlm", outputs=0, labels=(), mlm_size=None, cls_act="tanh")


def _leave_out(model: LoadedModel, *prefixes: str) -> None:
    left = [name for name in model.weights if name.startswith(prefixes)]
    if left and shapes.TASK_HEAD in prefixes:
        model.notes.append(f"not taken over, a fine-tuned head: {shortened([name_in_file(model, x) for x in left])}")
    model.weights = {name: tensor for name, tensor in model.weights.items() if name not in left}


def name_in_file(model: LoadedModel, name: str) -> str:
    """What the user's file calls a tensor."""
    if model.source != "huggingface":
        return name.removeprefix(shapes.HEAD) if name.startswith(shapes.TASK_HEAD) else name
    linear, _, part = name.rpartition(".")
    whole = READER_HEAD if model.architecture.endswith(TOKEN_TASKS[1]) else "classifier"
    usual = {OUTPUT: whole, f"{OUTPUT}_1": "classifier.dense", f"{OUTPUT}_2": "classifier.out_proj"}
    theirs = model.spelled.get(linear, usual.get(linear))
    return f"{theirs}.{part}" if theirs else their_name(name)


def named_target(architecture: str) -> str | None:
    """The target of the class that a config.json names; None: it names none."""
    if not architecture:
        return None
    return "mlm" if architecture.endswith("ForMaskedLM") or architecture == "BertForPreTraining" else \
        "cls" if architecture.endswith(TEXT_TASK) else "tokens" if architecture.endswith(TOKEN_TASKS) else "states"


def named_head(theirs: HuggingFaceConfig, names: Iterable[str]) -> tuple[HuggingFaceConfig, list[str], list[str]]:
    """The config of a file with tensors of these names, which may tell the class where the config does not.

    Returns:
        the config; notes; the names of a head that is another class's.
    """
    names, named = list(names), theirs.architecture
    if f"{READER_HEAD}.weight" in names and named_target(named) not in ("cls", "tokens", "mlm"):
        note = f"the config names {named or 'no class'}; taken for a reader, as its head is called {READER_HEAD}"
        theirs = replace(theirs, architecture=f"Bert{TOKEN_TASKS[1]}")
        return theirs, [note], [name for name in names if name.startswith("classifier.")]
    another = "" if named_target(named) not in ("cls", "tokens") else \
        "classifier." if named.endswith(TOKEN_TASKS[1]) else f"{READER_HEAD}."
    return theirs, [], [name for name in names if another and name.startswith(another)]


def _refuse_headless(model: LoadedModel, where: str) -> None:
    """`UserError` where the config says that there is a head, as there is none."""
    named = model.architecture
    if model.source == "uer" and model.config.target in ("cls", "tokens"):
        first = f"{OUTPUT}_1" if model.config.target == "cls" else OUTPUT
        raise UserError(f"{where}: its config says target {model.config.target}, and it has no "
                        f"{name_in_file(model, first)}.weight, the head")
    if named_target(named) in (None, "states"):
        return
    kind = next(ending for ending in LINEARS if named.endswith(ending))
    family = next((linears for family, linears in LINEARS_APART.items() if named.startswith(family)), {})
    others = f" (but {shortened(model.left_out)})" if model.left_out else ""
    others_class = {"classifier.weight": (f"Bert{TOKEN_TASKS[0]}", "a tagger"),
                    f"{READER_HEAD}.weight": (f"Bert{TOKEN_TASKS[1]}", "a reader")}
    class_of, what = next((found for name, found in others_class.items() if name in model.left_out),
                          ("BertModel", "the encoder alone"))
    raise UserError(f"{where}: its config names {named}, and it has no {family.get(kind, LINEARS[kind])}.weight, the "
                    f'head{others}; under that name the head is found, and with "architectures": ["{class_of}"] in '
                    f"config.json the model is taken as {what}")


def _found(model: LoadedModel, where: str) -> str:
    """The target of the file, its tensors under the names that it has here."""
    weights = model.weights
    unlike = [kind for kind in UNLIKE if model.architecture.endswith(kind)]
    if unlike:
        raise UserError(f"{where}: a model {unlike[0]}; one with an MLM head, a classifier of texts or tokens, a "
                        f"reader or an encoder alone is needed")
    words = any(name.startswith(MLM_HEAD) and name != shapes.DECODER for name in weights)
    task = named_target(model.architecture) in ("cls", "tokens")
    if model.source == "huggingface" and model.sentence is not None:  # modules.json pools its states
        if words:
            model.notes.append("not taken over: a head for masked words, as modules.json says that it embeds sentences")
        return "states"
    if words and not task:
        return "mlm"
    if words:
        model.notes.append(f"not taken over: a head for masked words, as the config names {model.architecture}")
    whole = [OUTPUT] if f"{OUTPUT}.weight" in weights else [f"{OUTPUT}_1", f"{OUTPUT}_2"]
    missing = [name for part in whole for name in (f"{part}.weight", f"{part}.bias") if name not in weights]
    if missing and f"{whole[-1]}.weight" in weights:
        raise UserError(f"{where}: missing: {shortened([name_in_file(model, name) for name in missing])}")
    if f"{OUTPUT}_2.weight" in weights:
        return "cls"
    if model.config.target == "states":
        return "states"
    if f"{OUTPUT}.weight" not in weights:
        _refuse_headless(model, where)
        return "states"
    pooled = all(name in model.extras for name in shapes.POOLER)
    if model.architecture.endswith(TEXT_TASK) and not pooled:
        first = "pre_classifier" if model.architecture.startswith("DistilBert") else "pooler.dense"
        raise UserError(f"{where}: missing: {first}, which the classifier of a {model.architecture} reads")
    of_texts = model.source == "huggingface" and pooled and not model.architecture.endswith(TOKEN_TASKS)
    if model.source == "huggingface" and not model.architecture.endswith((TEXT_TASK, *TOKEN_TASKS)):
        model.notes.append(f"the config names {model.architecture or 'no class'}, which does not tell what its head "
                           f"reads; taken for a Bert{TEXT_TASK if of_texts else TOKEN_TASKS[0]}")
    if of_texts:
        for part, name in zip(("weight", "bias"), shapes.POOLER):
            weights[f"{OUTPUT}_1.{part}"] = model.extras.pop(name)
            weights[f"{OUTPUT}_2.{part}"] = weights.pop(f"{OUTPUT}.{part}")
        model.spelled = {f"{OUTPUT}_1": "pooler.dense", f"{OUTPUT}_2": model.spelled[OUTPUT]}
        return "cls"
    return "tokens"


def _configure(model: LoadedModel, target: str, where: str) -> None:
    """The config's fields on the target. `UserError` for labels that say it is another kind of model."""
    if target == "mlm":
        model.config = replace(model.config, target="mlm", outputs=0, labels=(), cls_act="tanh")
        return
    bias = model.weights.get(f"{OUTPUT}.bias", model.weights.get(f"{OUTPUT}_2.bias", torch.empty(0)))
    labels = model.facts.get("labels", model.config.labels) or model.labels
    if model.architecture.endswith("ForQuestionAnswering") or model.facts.get("kind") == "span finder":
        labels = SPAN_LABELS
    elif target == "tokens" and model.source == "huggingface" and tuple(labels) == SPAN_LABELS:
        raise UserError(f"{where}: a tagger whose labels are {' and '.join(SPAN_LABELS)}, as a reader's are called "
                        f"here; name them otherwise in config.json (id2label)")
    labels = _checked_labels(model, tuple(labels), bias.numel(), where) if target != "states" else ()
    pooling = model.facts.get("pooling", model.config.pooling)
    told = model.source == "uer" and ("pooling" in model.facts or model.config.target == "cls")
    if (target == "cls" and not told) or pooling not in POOLINGS:  # as poolers do, and classifiers of UER by default
        pooling = "first"
    inner = model.weights.get(f"{OUTPUT}_1.bias")
    features = None if inner is None or inner.numel() == model.config.hidden_size else inner.numel()
    kind = model.reading.get("of_logits", {}).get("problem_type")
    model.config = replace(model.config, target=target, tie_weights=False, mlm_size=features, pooling=pooling,
                           cls_act=model.config.cls_act if target == "cls" else "tanh",
                           multi_label=target == "cls" and bias.numel() > 1 and kind == MULTI_LABEL,
                           outputs=bias.numel(), labels=labels)


def _checked_labels(model: LoadedModel, labels: tuple[str, ...], outputs: int, where: str) -> tuple[str, ...]:
    """A name for each output, or none. `UserError` where there are others than outputs, or one is not told whose."""
    if model.labels_wrong and not labels:
        raise UserError(f"{where}: {model.labels_wrong}")
    rows = [len(tensor) for name, tensor in model.weights.items() if name in LAST and tensor.dim() == 2]
    if len(labels) == outputs or rows != [outputs]:  # else the head is misshapen, and named as such
        return labels if len(labels) == outputs else ()
    if all(label == f"LABEL_{number}" for number, label in enumerate(labels)):  # what transformers fills in
        return ()
    raise UserError(f"{where}: {len(labels)} labels ({shortened(list(labels))}) for {outputs} outputs; a name for each "
                    f"output is needed" + (", in config.json (id2label)" if model.source == "huggingface" else ""))


def config_for(theirs: HuggingFaceConfig, wanted: str | None) -> ModelConfig:
    """The config of a model that only JSON tells of, with the target `wanted`, or that of the class it names."""
    config, named, target = theirs.config, theirs.architecture, wanted
    target = target or named_target(named) or config.target
    if target == config.target:
        return config
    outputs = {"mlm": 0, "states": config.hidden_size}.get(target, len(theirs.labels) or 2)  # as transformers counts
    return replace(config, target=target, outputs=outputs, tie_weights=False, mlm_size=None,
                   pooling="first" if target == "cls" else config.pooling)


def complete_head(model: LoadedModel, allowed: bool, seed: int) -> None:
    """A tied decoder is made a tensor of its own; an absent MLM head is made if that is allowed."""
    weights, config = model.weights, model.config
    if config.tie_weights and shapes.WORDS in weights:
        weights.setdefault(shapes.DECODER, weights[shapes.WORDS].clone())
    if not allowed or shapes.WORDS not in weights or any(
            name.startswith("target.") and name != shapes.DECODER for name in weights):
        return
    words = weights[shapes.WORDS]
    vocab, hidden = words.shape
    noise = torch.empty(hidden, hidden).normal_(0, HEAD_NOISE, generator=torch.Generator().manual_seed(seed))
    weights.update({
        "target.mlm_linear_1.weight": (torch.eye(hidden) + noise).to(words.dtype),
        "target.mlm_linear_1.bias": torch.zeros(hidden, dtype=words.dtype),
        "target.layer_norm.gamma": torch.ones(hidden, dtype=words.dtype),
        "target.layer_norm.beta": torch.zeros(hidden, dtype=words.dtype),
        shapes.DECODER: words.clone(),
        "target.mlm_linear_2.bias": torch.zeros(vocab, dtype=words.dtype)})
    model.head_made = True
    model.notes.append(f"MLM head made, as the file has none: decoder = word embeddings, its bias 0; transform = "
                       f"identity + noise of {HEAD_NOISE} (seed {seed}), bias 0; LayerNorm gamma 1, beta 0. Adapt it "
                       f"by a plain MLM run before use")
