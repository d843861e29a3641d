"""XLM-RoBERTa's tokenizer: a sentencepiece model, whose ids move up by one behind four special tokens.

Needs the package sentencepiece.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uer.errors import UserError
from uer.tokenizers.base import Tokenizer
from uer.tokenizers.vocab import Vocab

_FIRST = ("<s>", "<pad>", "</s>", "<unk>")  # in place of the model's own <unk>, <s>, </s>
_SHIFT = 1
_SPACE = "\u2581"


class XlmRobertaTokenizer(Tokenizer):
    """Ids as in the published XLM-RoBERTa models: <s> 0, <pad> 1, </s> 2, <unk> 3, pieces, <mask> last."""

    def __init__(self, model: Any, source: str) -> None:
        pieces = [model.id_to_piece(i) for i in range(len(_FIRST) - _SHIFT, model.get_piece_size())]
        super().__init__(Vocab([*_FIRST, *pieces, "<mask>"], source))
        self._model = model

    @classmethod
    def load(cls, path: str | Path) -> XlmRobertaTokenizer:
        """Read a sentencepiece model.

        Raises:
            UserError: the package is missing, or the file is not there or not such a model.
        """
        try:
            import sentencepiece
        except ImportError:
            raise UserError("--tokenizer xlmroberta needs sentencepiece (pip install sentencepiece)") from None
        if not Path(path).is_file():
            raise UserError(f"--spm_model_path {path}: no such file")
        model = sentencepiece.SentencePieceProcessor()
        try:
            model.Load(str(path))
        except (OSError, RuntimeError):
            raise UserError(f"--spm_model_path {path}: not a sentencepiece model") from None
        return cls(model, f"--spm_model_path {path}")

    def encode_raw(self, text: str) -> bytes:
        ids = np.array(self._model.encode(text), dtype=np.int64)
        ids = np.where(ids == self._model.unk_id(), self.vocab.unk_id, ids + _SHIFT)
        return ids.astype(self.dtype).tobytes()

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.vocab.tokens[i] for i in ids).replace(_SPACE, " ").strip()

    def continues(self) -> np.ndarray:
        flags = np.array([not token.startswith(_SPACE) for token in self.vocab.tokens])
        flags[self.vocab.special_ids] = False
        return flags
