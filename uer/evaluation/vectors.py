"""Texts to vectors, as a model is used: its own tokenizer, pooling, length and, where it normalises, length 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from uer.errors import UserError
from uer.finetuning.batches import by_length, collate, encode
from uer.finetuning.tasks import Example
from uer.formats import LoadedModel
from uer.models.bert import from_weights
from uer.tokenizers import Tokenizer

SEQ_LENGTH = 128  # where nothing says another


class Embedder:
    """An encoder that embeds sentences.

    Args:
        loaded: with target `states`.
        mapped: into the teacher's space, as an index built with the teacher needs; else as the student stands alone.
        seq_length: tokens at most (default: the model's own, else 128).
        batch_size: texts at a time.
    """

    def __init__(self, loaded: LoadedModel, tokenizer: Tokenizer, device: torch.device, mapped: bool = False,
                 seq_length: int | None = None, batch_size: int = 32):
        self.model = from_weights(loaded.config, loaded.weights).to(device).eval()
        self.tokenizer, self.device, self.mapped, self.batch_size = tokenizer, device, mapped, batch_size
        own = loaded.sentence.max_seq_length if loaded.sentence else None
        self.seq_length = min(seq_length or own or SEQ_LENGTH, loaded.config.max_seq_length)
        self.parameters = sum(parameter.numel() for name, parameter in self.model.named_parameters()
                              if mapped or not name.startswith("target."))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [texts, width], of length 1, on the CPU"""
        if not texts:
            raise UserError("there is no text to embed")
        instances = encode([Example(text, None, None) for text in texts], self.tokenizer, self.seq_length)
        rows: list[torch.Tensor] = []
        order: list[int] = []
        for index in by_length(instances, self.batch_size):
            batch = collate([instances[i] for i in index], self.tokenizer.vocab.pad_id).to(self.device)
            pooled = self.model.pooled(batch.src, batch.seg)
            rows.append(F.normalize((self.model.target(pooled) if self.mapped else pooled).float(), dim=1).cpu())
            order += index.tolist()
        found = torch.cat(rows)
        out = torch.empty_like(found)
        out[torch.tensor(order)] = found
        return out
