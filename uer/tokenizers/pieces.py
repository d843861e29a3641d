"""A sentencepiece model and the ids that its pieces have in a BERT. Needs the package sentencepiece."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from uer.errors import UserError
from uer.files import read_bytes

_FIRST = ("<s>", "<pad>", "</s>", "<unk>")  # in place of the model's own <unk>, <s>, </s>
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # kinds of pieces in a sentencepiece model


class Pieces:
    """A sentencepiece model and the ids that its pieces have in a BERT.

    Attributes: `model` and its bytes, `proto`; `tokens` (index = id); `ids` (int64: number of a piece in the model ->
    id); `published`, whether these are as in XLM-RoBERTa; `normalized`, whether the model makes spaces of all white
    space itself; `sha256` of the pieces and their scores.
    """

    def __init__(self, proto: bytes, source: str, tokens: list[str] | None = None) -> None:
        """`tokens`: those of the model's pieces, where they stand in it as in the BERT; None: as in XLM-RoBERTa.
        `UserError` where the package is missing, or this is no such model."""
        try:
            import sentencepiece
        except ImportError:
            raise UserError(f"{source}: needs sentencepiece (pip install sentencepiece)") from None
        self.model = sentencepiece.SentencePieceProcessor()
        try:
            self.model.LoadFromSerializedProto(proto)
        except (OSError, RuntimeError):
            raise UserError(f"{source}: not a sentencepiece model") from None
        self.proto, self.published, self.normalized = proto, tokens is None, True
        count = self.model.get_piece_size()
        normal = [i for i in range(count) if not (self.model.is_control(i) or self.model.is_unknown(i))]
        digest = hashlib.sha256("\n".join(map(self.model.id_to_piece, normal)).encode())
        digest.update(np.array([self.model.get_score(i) for i in normal], dtype="<f4").tobytes())
        self.sha256 = digest.hexdigest()
        if tokens is not None:
            self.tokens, self.ids = tokens, np.arange(count)
            return
        self.tokens = [*_FIRST, *(self.model.id_to_piece(i) for i in range(len(_FIRST) - 1, count)), "<mask>"]
        self.ids = np.arange(count) + 1
        self.ids[self.model.unk_id()] = _FIRST.index("<unk>")

    @classmethod
    def load(cls, path: str | Path) -> Pieces:
        """Read a sentencepiece model; raises `UserError`."""
        return cls(read_bytes(path, "--spm_model_path", "a sentencepiece model"), f"--spm_model_path {path}")

    @classmethod
    def of_unigram(cls, vocab: list[tuple[str, float]], unknown: int, controls: set[str], charsmap: bytes,
                   source: str) -> Pieces:
        """A model made of pieces with scores, in the order of their ids, and of a compiled normalisation.
        `controls`: pieces that no text becomes."""
        names = tuple(piece for piece, _ in vocab)
        usual = names[:4] == _FIRST and names[-1] == "<mask>"
        if usual:  # then in the order of the published model, which is written as such a file again
            vocab, unknown = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *vocab[4:-1]], 0
        pieces = b""
        for number, (piece, score) in enumerate(vocab):
            kind = _UNKNOWN if number == unknown else _CONTROL if piece in {*controls, "<s>", "</s>"} else _NORMAL
            pieces += _field(1, _field(1, piece.encode()) + b"\x15" + np.array(score, dtype="<f4").tobytes()
                             + b"\x18" + bytes([kind]))
        normalizer = _field(1, b"from tokenizer.json") + _field(2, charsmap)
        trainer = b"\x18\x01" + b"\xc0\x02" + _varint(unknown) + b"\xc8\x02" + _NONE + b"\xd0\x02" + _NONE
        made = cls(pieces + _field(2, trainer) + _field(3, normalizer), source, None if usual else list(names))
        made.normalized = bool(charsmap)
        return made


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


_NONE = _varint((1 << 64) - 1)  # -1 as protocol buffers write it: this model has no such piece


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that holds bytes."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content
