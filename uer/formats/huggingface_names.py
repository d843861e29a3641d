"""Names and conventions of Hugging Face's BERT (and RoBERTa, and its relatives) against ours.

    gamma_ours = gamma_hf * sqrt(n / (n - 1))      the unbiased std of UER's LayerNorm against the biased one there
    segment table: ours has a row 0 for padding, theirs has none
    position table of RoBERTa: its first padding_idx + 1 rows are never used by real tokens; ours starts behind them
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch

from uer.formats import relatives
from uer.formats.shapes import SEGMENTS, WORDS

LAYER_PARTS = {
    "attention.self.query": "self_attn.linear_layers.0",
    "attention.self.key": "self_attn.linear_layers.1",
    "attention.self.value": "self_attn.linear_layers.2",
    "attention.output.dense": "self_attn.final_linear",
    "attention.output.LayerNorm": "layer_norm_1",
    "intermediate.dense": "feed_forward.linear_1",
    "output.dense": "feed_forward.linear_2",
    "output.LayerNorm": "layer_norm_2",
}
MODULES = {
    "embeddings.word_embeddings": "embedding.word_embedding",
    "embeddings.position_embeddings": "embedding.position_embedding",
    "embeddings.token_type_embeddings": "embedding.segment_embedding",
    "embeddings.LayerNorm": "embedding.layer_norm",
    "cls.predictions.transform.dense": "target.mlm_linear_1",
    "cls.predictions.transform.LayerNorm": "target.layer_norm",
    "cls.predictions.decoder": "target.mlm_linear_2",
    "pooler.dense": "target.nsp_linear_1",
    "cls.seq_relationship": "target.nsp_linear_2",
}
LAYER_PARTS_BACK = {ours: theirs for theirs, ours in LAYER_PARTS.items()}
MODULES_BACK = {ours: theirs for theirs, ours in MODULES.items()}
ATTRIBUTES_BACK = {"gamma": "weight", "beta": "bias"}
ROBERTA_HEAD = {
    "lm_head.dense": "cls.predictions.transform.dense",
    "lm_head.layer_norm": "cls.predictions.transform.LayerNorm",
    "lm_head.decoder": "cls.predictions.decoder",
}
VOCABULARY_BIASES = ("cls.predictions.bias", "lm_head.bias")
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
BUFFER_ENDINGS = (".embeddings.position_ids", ".embeddings.token_type_ids")
INSIDE = ("embeddings", "encoder", "transformer", "cls.predictions", "lm_head")  # all in these must be known
ADAPTER = re.compile(r"lora_|adapter|prefix_|ia3_|prompt_embedding", re.IGNORECASE)  # they change what all others do
TASK_HEADS = {  # of a classifier with a pooler, see `uer.formats.file_target`
    "classifier": "target.output_layer",
    "qa_outputs": "target.output_layer",
    "classifier.dense": "target.output_layer_1",
    "classifier.out_proj": "target.output_layer_2",
    "pre_classifier": "target.output_layer_1",
}
PREFIXES = ("bert.", "roberta.", *relatives.PREFIXES)
LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
OUR_LAYER = re.compile(r"encoder\.transformer\.(\d+)\.(.+)")
BARE_MODULES = ("cls.", "lm_head.", "classifier", "qa_outputs")


def is_huggingface(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the names look like those of a Hugging Face encoder."""
    names = [_bare(name) for name in tensors]
    return any(name.startswith(("embeddings.", "encoder.layer.")) for name in names)


def _bare(name: str) -> str:
    return relatives.bert_name(next((name[len(prefix):] for prefix in PREFIXES if name.startswith(prefix)), name))


def _internal(module: str) -> str | None:
    """Our name of one of their modules; None if it is none of BERT's."""
    found = LAYER.fullmatch(module)
    if found:
        part = LAYER_PARTS.get(found.group(2))
        return part and f"encoder.transformer.{found.group(1)}.{part}"
    return MODULES.get(ROBERTA_HEAD.get(module, module))


def task_heads(names: Iterable[str]) -> dict[str, str]:
    """Our linears of a task's head -> what a file with these names calls them."""
    modules = {_bare(name).rpartition(".")[0] for name in names}
    last = {"classifier": "target.output_layer_2"} if "pre_classifier" in modules else {}
    return {ours: theirs for theirs, ours in {**TASK_HEADS, **last}.items() if theirs in modules}


def to_internal(tensors: Mapping[str, torch.Tensor], skip_positions: int = 0,
                ) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """Their tensors under our names, LayerNorms and tables put into our conventions.

    Args:
        tensors: with or without `bert.`; LayerNorms as gamma/beta or weight/bias.
        skip_positions: rows of the position table that no real token uses (RoBERTa).
    Returns:
        the tensors; the names of other heads and parts that read the encoder's states, which were left out; names
        within encoder and MLM head that no BERT has, so that it would compute something else without them.
    """
    out: dict[str, torch.Tensor] = {}
    left_out: list[str] = []
    strangers: list[str] = []
    biases: list[torch.Tensor] = []
    heads = {theirs: ours for ours, theirs in task_heads(tensors).items()}
    for name, tensor in tensors.items():
        bare = _bare(name)
        if bare in BUFFERS or bare.endswith(BUFFER_ENDINGS):
            continue
        if bare in VOCABULARY_BIASES:
            biases.append(tensor)
            continue
        module, _, attribute = bare.rpartition(".")
        internal = heads.get(module) or _internal(module)
        if internal is None:
            (strangers if bare.startswith(INSIDE) or ADAPTER.search(bare) else left_out).append(name)
        else:
            internal, tensor = _converted(internal, attribute, tensor, skip_positions)
            out[internal] = tensor
    words = out.get(WORDS, torch.empty(0))
    if any("transformer.layer." in name for name in tensors) and words.dim() == 2:  # DistilBERT has no segments
        out.setdefault(SEGMENTS, segment_table(torch.zeros_like(words[:1])))
    for bias in biases:  # an untied decoder has a bias of its own, and that is the one in use
        out.setdefault("target.mlm_linear_2.bias", bias)
    return out, left_out, strangers


def _converted(module: str, attribute: str, tensor: torch.Tensor, skip: int) -> tuple[str, torch.Tensor]:
    if "layer_norm" in module:
        if attribute in ("weight", "gamma"):
            return f"{module}.gamma", tensor * gamma_factor(tensor.numel())
        return f"{module}.{attribute.replace('bias', 'beta')}", tensor
    if module == "embedding.segment_embedding" and tensor.dim() == 2:
        return f"{module}.{attribute}", segment_table(tensor)
    if module == "embedding.position_embedding" and tensor.dim() == 2:
        return f"{module}.{attribute}", tensor[skip:]
    return f"{module}.{attribute}", tensor


def gamma_factor(size: int) -> float:
    """gamma_ours / gamma_hf over `size` dimensions."""
    return math.sqrt(size / (size - 1)) if size > 1 else 1.0


def segment_table(types: torch.Tensor) -> torch.Tensor:
    """[types, hidden] -> [at least 3, hidden]: a row 0 of zeros for padding; a single type serves both sentences."""
    padding = torch.zeros_like(types[:1])
    return torch.cat([padding, types] if len(types) > 1 else [padding, types, types])


def their_name(name: str) -> str:
    """A published name -> that in `BertForMaskedLM` (unknown names stay)."""
    module, _, attribute = name.rpartition(".")
    layer = OUR_LAYER.fullmatch(module)
    if layer and layer.group(2) in LAYER_PARTS_BACK:
        return f"bert.encoder.layer.{layer.group(1)}.{LAYER_PARTS_BACK[layer.group(2)]}." \
               f"{ATTRIBUTES_BACK.get(attribute, attribute)}"
    theirs = MODULES_BACK.get(module)
    if theirs is None:
        return name
    if (theirs, attribute) == ("cls.predictions.decoder", "bias"):
        return "cls.predictions.bias"
    prefix = "" if theirs.startswith(BARE_MODULES) else "bert."
    return f"{prefix}{theirs}.{ATTRIBUTES_BACK.get(attribute, attribute)}"


def to_huggingface(tensors: Mapping[str, torch.Tensor], heads: Mapping[str, str] | None = None,
                   prefix: str = "bert.") -> dict[str, torch.Tensor]:
    """Our tensors under the names of `BertForMaskedLM`, in its conventions.

    The vocabulary bias goes out under both its names: stock code reads the one or the other, tied or not.

    Args:
        heads: our linears of a task's head -> theirs.
        prefix: of an encoder's names; that alone has none.
    """
    out = {}
    for name, tensor in tensors.items():
        if name.endswith(".gamma"):
            tensor = tensor / gamma_factor(tensor.numel())
        elif name == "embedding.segment_embedding.weight":
            tensor = tensor[1:]
        linear, _, part = name.rpartition(".")
        theirs = f"{heads[linear]}.{part}" if heads and linear in heads else their_name(name)
        out[prefix + theirs.removeprefix("bert.") if theirs.startswith("bert.") else theirs] = tensor
    if "cls.predictions.bias" in out:
        out["cls.predictions.decoder.bias"] = out["cls.predictions.bias"]
    return out
