"""Texts to vectors as a model is used: its own tokenizer, prompt, pooling, length; of length 1 where it normalises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from uer.errors import UserError
from uer.finetuning.batches import Batch, Instance, encode, in_order
from uer.finetuning.tasks import Example
from uer.formats import LoadedModel
from uer.models.bert import from_weights
from uer.targets.pooling import pool
from uer.tokenizers import Tokenizer

SEQ_LENGTH = 128  # where nothing says another


class Embedder:
    """An encoder that embeds sentences.

    Args:
        loaded: with target `states`.
        mapped: into the teacher's space, as an index built with the teacher needs; else as the student stands alone.
        seq_length: tokens at most (default: the model's own, else 128).
        batch_size: texts at a time.
        role: what the texts are, which decides the prompt before them (`SentenceFacts.prompt`).
    """

    def __init__(self, loaded: LoadedModel, tokenizer: Tokenizer, device: torch.device, mapped: bool = False,
                 seq_length: int | None = None, batch_size: int = 32, role: str | None = None):
        self.model = from_weights(loaded.config, loaded.weights).to(device).eval()
        self.tokenizer, self.device, self.mapped, self.batch_size = tokenizer, device, mapped, batch_size
        self.normalize = loaded.sentence is not None and loaded.sentence.normalize
        self.seq_length = min(seq_length or own_length(loaded), loaded.config.max_seq_length)
        self.separators = loaded.reading.get("separators")
        self.prompt = loaded.sentence.prompt(role) if loaded.sentence else ""
        pooled = loaded.config.pooling in ("mean", "max") and loaded.sentence and not loaded.sentence.include_prompt
        self.apart = 1 + len(tokenizer.encode(self.prompt)) if self.prompt and pooled else 0  # tokens not pooled
        self.parameters = sum(parameter.numel() for name, parameter in self.model.named_parameters()
                              if mapped or not name.startswith("target."))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [texts, width] on the CPU, of length 1 where the model normalises"""
        return self.vectors(self.instances(texts))

    @torch.no_grad()
    def vectors(self, instances: Sequence[Instance]) -> torch.Tensor:
        """The same of token ids."""
        pooled = self.pooled(instances)
        mapped = self.model.target(pooled).float() if self.mapped else pooled.float()
        return (F.normalize(mapped, dim=1) if self.normalize else mapped).cpu()

    def instances(self, texts: Sequence[str | Example]) -> list[Instance]:
        """Token ids of the texts (or of examples, which may be pairs), the prompt before each."""
        if not texts:
            raise UserError("there is no text to embed")
        examples = [Example(text, None, None) if isinstance(text, str) else text for text in texts]
        return encode([example._replace(text_a=self.prompt + example.text_a) for example in examples], self.tokenizer,
                      self.seq_length, self.separators)

    @torch.no_grad()
    def pooled(self, instances: Sequence[Instance]) -> torch.Tensor:
        """The pooled states [texts, hidden], on the device"""
        return in_order(instances, self.batch_size, self.tokenizer.vocab.pad_id, self.device, self._pool)

    def _pool(self, batch: Batch) -> torch.Tensor:
        if not self.apart:
            return self.model.pooled(batch.src, batch.seg)
        rest = batch.seg.clone()
        rest[:, :self.apart] = 0
        return pool(self.model.hidden_states(batch.src, batch.seg), rest, self.model.config.pooling)


def own_length(loaded: LoadedModel) -> int:
    """Tokens of a text at most: as its folder or its fine-tuning says; all positions, where a folder of
    sentence-transformers is silent, as there."""
    if loaded.sentence is None:
        return loaded.reading.get("seq_length", SEQ_LENGTH)
    return loaded.sentence.max_seq_length or loaded.config.max_seq_length
