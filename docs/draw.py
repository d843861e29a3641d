#!/usr/bin/env python3
"""Draws the pictures of the method in docs/how.md: `python3 docs/draw.py` writes docs/pictures/*.svg."""

from __future__ import annotations

from html import escape
from pathlib import Path

INK, FAINT, PAPER = "#1d2530", "#69737f", "#ffffff"
BLUE, BRICK, GREEN, PURPLE, GONE = "#2b6399", "#c0513b", "#5a8a57", "#84639f", "#e3e7eb"
PICTURES = Path(__file__).parent / "pictures"


class Picture:
    """An SVG that grows by shapes; positions and sizes in pixels, y downwards."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.parts: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, colour: str, text: str = "", ink: str = PAPER,
            opacity: float = 1.0) -> None:
        """A rectangle with a word in its middle."""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{colour}" '
                          f'fill-opacity="{opacity:g}" rx="2"/>')
        if text:
            self.text(x + w / 2, y + h / 2 + 5, text, ink, "middle")

    def text(self, x: float, y: float, text: str, colour: str = INK, anchor: str = "start", size: int = 14) -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">'
                          f"{escape(text)}</text>")

    def note(self, x: float, y: float, text: str) -> None:
        """A line of explanation."""
        self.text(x, y, text, FAINT, size=13)

    def line(self, points: list[tuple[float, float]], colour: str = FAINT, width: float = 1.5, arrow: bool = False,
             dashed: bool = False) -> None:
        """Through points [x, y]."""
        more = (' marker-end="url(#tip)"' if arrow else "") + (' stroke-dasharray="4 3"' if dashed else "")
        places = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width:g}"{more}/>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        self.line([(x, y), (to_x, to_y)], arrow=True)

    def matrix(self, x: float, y: float, w: float, h: float, colour: str, text: str, *, rows: tuple[int, ...] = (),
               columns: tuple[int, ...] = (), cells: int = 8) -> None:
        """A matrix of `cells` × `cells` under its name, with rows or columns that are gone."""
        self.box(x, y, w, h, colour)
        for i in rows:
            self.box(x, y + h * i / cells, w, h / cells, GONE)
        for i in columns:
            self.box(x + w * i / cells, y, w / cells, h, GONE)
        self.text(x + w / 2, y - 8, text, INK, "middle", 17)

    def svg(self) -> str:
        """The file's text."""
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" font-family="DejaVu Sans, Verdana, sans-serif">\n'
                f'<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
                f'<path d="M0,0 L8,4 L0,8 z" fill="{FAINT}"/></marker></defs>\n'
                f'<rect width="{self.width}" height="{self.height}" fill="{PAPER}"/>\n')
        return head + "\n".join(self.parts) + "\n</svg>\n"


def compactors() -> Picture:
    """y = R (W (C x) + b), with what is masked."""
    p = Picture(760, 210)
    for x, letter, text, gone in ((120, BLUE, "C", {"columns": (2, 5, 6, 7)}), (300, INK, "W", {}),
                                  (480, BLUE, "R", {"rows": (1, 3, 6, 7)})):
        p.matrix(x, 40, 110, 110, letter, text, **gone)
    for x, to in ((70, 115), (235, 295), (415, 475), (595, 645)):
        p.arrow(x, 95, to, 95)
    p.text(50, 100, "x", anchor="middle", size=18)
    p.text(665, 100, "y", anchor="middle", size=18)
    for x, text in ((175, "column compactor"), (355, "the teacher's weight, + b"), (535, "row compactor")):
        p.text(x, 175, text, FAINT, "middle")
    p.note(120, 198, "Grey columns and rows are pushed to zero: what they carry leaves.")
    return p


def groups() -> Picture:
    """Which dimensions leave together."""
    p = Picture(760, 250)
    p.box(30, 40, 700, 26, BLUE, "hidden: the residual stream, one mask for the whole model")
    for i, x in enumerate((30, 280)):
        for place, colour, text in ((x, BRICK, f"attention.{i}"), (x + 115, GREEN, f"ffn.{i}")):
            p.arrow(place + 25, 66, place + 25, 103)
            p.arrow(place + 80, 105, place + 80, 68)
            p.box(place, 105, 105, 54, colour, text)
        p.text(x + 110, 180, f"layer {i}", FAINT, "middle")
    p.text(525, 138, "…", INK, "middle", 22)
    p.arrow(645, 66, 645, 103)
    p.box(560, 105, 170, 54, PURPLE, "mlm: its features")
    p.text(645, 180, "MLM head", FAINT, "middle")
    p.note(30, 212, "Inside a group, a dimension leaves everywhere at once; different groups choose on their own.")
    p.note(30, 232, "dim: every attention head gets thinner. head: whole heads leave. ffn and mlm: any dimension.")
    return p


def composing() -> Picture:
    """Master and student."""
    p = Picture(760, 250)
    p.text(30, 30, "master (float32, has the optimizer)", FAINT)
    for x, colour, text, gone in ((30, BLUE, "R", {"rows": (4, 5, 6, 7)}), (130, INK, "W", {}),
                                  (230, BLUE, "C", {"columns": (4, 5, 6, 7)})):
        p.matrix(x, 60, 85, 85, colour, text, **gone)
    p.arrow(330, 90, 450, 90)
    p.text(390, 77, "multiply", FAINT, "middle", 13)
    p.line([(450, 115), (330, 115)], arrow=True)
    p.text(390, 137, "gradients", FAINT, "middle", 13)
    p.text(460, 30, "student (a plain BERT)", FAINT)
    p.box(470, 80, 42, 42, BRICK, "W̃")
    p.arrow(525, 101, 570, 101)
    p.box(575, 75, 150, 52, FAINT, "forward, backward")
    p.text(30, 185, "W̃ = R[keep] · W · C[:, keep]   and   b̃ = R[keep] · b", size=15)
    p.note(30, 213, "The product does not grow with the batch, so a step costs about a plain student's; and the merged")
    p.note(30, 233, "model is the trained model: nothing is approximated at the end.")
    return p


def squeeze() -> Picture:
    """Masks grow, entries decay, the group leaves."""
    p = Picture(760, 260)
    left, top, bottom, right = 70, 40, 190, 720
    p.line([(left, top), (left, bottom), (right, bottom)])
    p.text(right, bottom + 20, "steps", FAINT, "end", 13)
    stairs = [(left, top)]
    for i in range(8):
        x, y = left + 26 * (i + 1), top + 11 * (i + 1)
        stairs += [(x, stairs[-1][1]), (x, y)]
    p.line([*stairs, (right, stairs[-1][1])], BLUE, 2.5)
    decay = [(left + 26 + 6 * i, bottom - 110 * 0.94 ** i) for i in range(55)]
    p.line(decay, BRICK, 2.5)
    p.line([(400, top), (400, bottom)], dashed=True)
    p.line([(left, top + 22), (400, top + 22), (400, bottom - 25), (right, bottom - 25)], GREEN, 2.5, dashed=True)
    p.text(410, 116, "dimensions kept", BLUE)
    p.text(76, 184, "largest masked entry", BRICK)
    p.text(500, bottom - 32, "time of a step", GREEN)
    p.text(406, 54, "the squeeze: they leave for good", FAINT)
    p.note(30, 235, "Below --squeeze_tolerance they are dropped; what that does to the loss is told: next to nothing.")
    return p


def calibration() -> Picture:
    """Closed-form compactors."""
    p = Picture(760, 250)
    p.text(30, 30, "64 sequences through both, layer after layer", FAINT)
    for y, colour, who, width in ((50, INK, "teacher", 150), (140, BRICK, "student", 75)):
        p.text(30, y + 28, who)
        for i in range(3):
            p.box(120 + 190 * i, y, width, 44, colour, f"layer {i}" if width > 100 else f"{i}")
            if i < 2:
                p.arrow(120 + 190 * i + width + 4, y + 22, 120 + 190 * (i + 1) - 4, y + 22)
    for i in range(3):
        x = 157 + 190 * i
        p.line([(x, 140), (x, 98)], BLUE, 2, arrow=True, dashed=True)
        p.text(x + 8, 122, "x ≈ C z + c", BLUE, size=13)
    p.note(30, 215, "C comes from a regression of the teacher's states x on the student's z, the student's next")
    p.note(30, 235, "weights from W C: what earlier layers lost, later ones make up for. Nothing dropped: C = 1.")
    return p


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for draw in (compactors, groups, composing, squeeze, calibration):
        (PICTURES / f"{draw.__name__}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
