"""XLM-RoBERTa's tokenizer: a sentencepiece model, whose ids move up by one behind four special tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from uer.tokenizers.base import Tokenizer, added_finder, special_finder
from uer.tokenizers.pieces import Pieces
from uer.tokenizers.vocab import Vocab

_SPACE = "\u2581"
_NEXT_LINE = "\x85"  # no space to sentencepiece's own normalisation, but to the fast tokenizers, which split after it
_WHITE = re.compile(r"[^\S\x1c-\x1f]")


class XlmRobertaTokenizer(Tokenizer):
    """Ids as in the published XLM-RoBERTa models: <s> 0, <pad> 1, </s> 2, <unk> 3, pieces, <mask> last."""

    separators = 2

    def __init__(self, vocab: Vocab, pieces: Pieces) -> None:
        super().__init__(vocab)
        self._model: Any = pieces.model
        self._ids, self._normalized = pieces.ids, pieces.normalized
        self._special, self._added = special_finder(vocab), added_finder(vocab)

    def encode_raw(self, text: str) -> bytes:
        def pieces(part: str) -> list[bytes]:
            spaced = part.replace(_NEXT_LINE, " ") if self._normalized else _WHITE.sub(" ", part)
            ids = self._ids[np.array(self._model.encode(spaced), dtype=np.int64)]
            return [ids.astype(self.dtype).tobytes()]

        def around(part: str) -> list[bytes]:
            assert self._added is not None
            parts = self._added.cut(unicodedata.normalize("NFKC", part) if self._normalized else part)
            return [self._raw_around(self._added, parts, pieces)] if len(parts) > 1 else pieces(part)

        return self._raw_around(self._special, self._special.cut(text), around if self._added else pieces)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.vocab.tokens[i] for i in ids).replace(_SPACE, " ").strip()

    def continues(self) -> np.ndarray:
        flags = np.array([not token.startswith(_SPACE) for token in self.vocab.tokens])
        flags[self.vocab.special_ids] = False
        return flags
