"""A segment's text, read in blocks: plain text as it stands, records as documents of plain text or as pairs."""

from __future__ import annotations

from collections.abc import Iterator

from uer.data.records import JsonLine, Record, TableRow
from uer.data.sources import BLOCK, Segment
from uer.errors import UserError
from uer.files import CR_ALONE, HEAD, begins_with_objects, ends_in_cr, without_marks

NULS = 1 / 32  # of the bytes of a text in UTF-16 are more than these; in a text in UTF-8 one may be by mistake
LONGEST_WORD = 64 << 20  # bytes of text without any space or line end, or of a record


class BadLine(Exception):
    """A line that cannot be read: the lines of the segment before it, and what is wrong with it."""

    def __init__(self, segment: Segment, lines: int, problem: str) -> None:
        super().__init__(segment, lines, problem)
        self.segment, self.lines, self.problem = segment, lines, problem


def read_blocks(segment: Segment) -> Iterator[tuple[str, bool, int]]:
    """The segment's text in blocks that end at a line end, or before a space in a line longer than a block.

    Yields (text, whether its last line ends there, records without text that were left out).

    A pair's two texts have a tab between them, and its line never goes on.

    Raises:
        BadLine: not UTF-8, no record, or records where text was to be.
        UserError: a word without end.
    """
    if segment.record is None:
        for text, ended, _ in _read_text(segment, b" "):
            yield text, ended, 0
        return
    for text, _, lines in _read_text(segment, None):
        documents = _documents(segment, segment.record, text.split("\n"), lines)
        without_text = documents.count("")
        found = "".join(documents) or "\n"
        for part, ended in [(found, True)] if segment.record.pair else _in_blocks(found):
            yield part, ended, without_text
            without_text = 0


def _documents(segment: Segment, record: Record, lines: list[str], before: int) -> list[str]:
    """The documents or pairs of lines, "" for those without text; `before`: lines of the segment before them."""
    documents = []
    begun = isinstance(record, TableRow) and segment.offset == before == 0  # behind the header
    for number, line in enumerate(lines[begun:], before + begun):
        if line.strip(record.blank):
            try:
                documents.append(record.document(line))
            except ValueError as error:
                raise BadLine(segment, number, str(error)) from None
    return documents


def _in_blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Whole lines that may be longer than a block, as `read_blocks` has them."""
    start = 0
    while len(text) - start > BLOCK:
        end, ended = text.rfind("\n", start, start + BLOCK) + 1, True
        if not end:
            end, ended = text.rfind(" ", start + 1, start + BLOCK), False
        if end < 0:
            end = text.find(" ", start + BLOCK)
        if end < 0:
            break
        yield text[start:end], ended
        start = end
    if start < len(text):
        yield text[start:], True


def _read_text(segment: Segment, space: bytes | None) -> Iterator[tuple[str, bool, int]]:
    """Yields (text, whether its last line ends there, lines of the segment before it).

    A line longer than a block is cut before a `space`; where there is none, it comes whole.
    """
    offset, lines, left = segment.start, 0, segment.end - segment.start
    rest = b""
    with open(segment.path, "rb") as file:
        file.seek(segment.start)
        while left or rest:
            block = file.read(min(BLOCK, left))
            if len(block) < min(BLOCK, left):
                raise UserError(f"{segment.source}: the file became shorter while it was read")
            left -= len(block)
            data = rest + block
            end = data.rfind(b"\n") + 1 if left else len(data)
            ended = bool(end)
            if not ended:
                end = data.rfind(space) if space else 0
                if end <= 0 and len(data) < LONGEST_WORD:
                    rest = data
                    continue
                if end <= 0:
                    what = "without a space" if space else "in one record"
                    where = segment.offset + offset - segment.start
                    raise UserError(f"{segment.source}: {LONGEST_WORD >> 20} MB {what} from byte {where} on")
            data, rest = data[:end], data[end:]
            try:
                text = without_marks(data.decode("utf-8"))
            except UnicodeDecodeError as error:
                position = segment.offset + (offset - segment.start) + error.start
                problem = f"byte {position} is not UTF-8; convert the file to UTF-8"
                raise BadLine(segment, lines + data[: error.start].count(b"\n"), problem) from None
            if segment.offset == 0 and offset == segment.start:
                problem = "" if isinstance(segment.record, JsonLine) else _mistaken(text)
                if problem:
                    raise BadLine(segment, 0, problem)
            yield text, ended, lines
            offset += len(data)
            lines += data.count(b"\n")


def _mistaken(text: str) -> str:
    """What the beginning of a plain text says that it is instead; "": nothing."""
    if text.count("\0", 0, HEAD) > max(1, NULS * len(text[:HEAD])):
        return "full of NULs, so text in UTF-16 or no text at all; convert it to UTF-8"
    if ends_in_cr(text):
        return CR_ALONE
    if begins_with_objects(text):
        return "JSON lines, read as plain text; name the file .jsonl (standard input: give --text_field)"
    return ""
