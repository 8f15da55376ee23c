"""Contact sheets: images with captions in a grid, under a heading."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont


PAPER, CARD, EDGE = "#f5f6f8", "#ffffff", "#dfe2e8"
INK, GREY, GREEN, RED, BLUE = "#1b1f27", "#6c7482", "#1a7f45", "#c2353b", "#2f5fc4"
MARGIN, GAP, PAD = 40, 18, 14
TITLE_SIZE, SUBTITLE_SIZE, TEXT_SIZE, LABEL_SIZE = 34, 18, 17, 19


@dataclass
class Line:
    """Line of a caption; wrapped where it is too wide."""

    text: str
    color: str = INK
    size: int = TEXT_SIZE


@dataclass
class Cell:
    """Image and its caption."""

    image: Image.Image
    lines: list[Line] = field(default_factory=list)


def draw_sheet(
    cells: Sequence[Cell],
    columns: int,
    title: str,
    subtitle: str = "",
    side: int = 192,
    row_labels: Sequence[tuple[str, str]] = (),
) -> Image.Image:
    """Renders cells as a grid of cards.

    Args:
        cells: row by row.
        columns: cells in a row.
        title: heading of the sheet.
        subtitle: smaller, below the heading.
        side: of an image on the sheet, in pixels.
        row_labels: (label, smaller label) to the left of each row.
    """
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    wrapped = [[_wrap(cell.lines, side) for cell in row] for row in rows]
    text_heights = [max(sum(_height(line) for line in lines) for lines in row) for row in wrapped]
    card_heights = [side + 2 * PAD + (height + PAD - 4 if height else 0) for height in text_heights]
    card_width = side + 2 * PAD
    label_width = 120 if row_labels else 0
    width = 2 * MARGIN + label_width + columns * (card_width + GAP) - GAP
    heading = _wrap([Line(title, INK, TITLE_SIZE)], width - 2 * MARGIN)
    heading += _wrap([Line(subtitle, GREY, SUBTITLE_SIZE)], width - 2 * MARGIN) if subtitle else []
    head_height = sum(_height(line) for line in heading) + GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + head_height + sum(card_heights) + GAP * (len(rows) - 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, heading, MARGIN, MARGIN - 6)
    y = MARGIN + head_height
    for index, (row, lines_of_row, height) in enumerate(zip(rows, wrapped, card_heights, strict=True)):
        if row_labels:
            _write_label(draw, row_labels[index], y + height // 2)
        for column, (cell, lines) in enumerate(zip(row, lines_of_row, strict=True)):
            x = MARGIN + label_width + column * (card_width + GAP)
            draw.rounded_rectangle((x, y, x + card_width - 1, y + height - 1), radius=12, fill=CARD, outline=EDGE)
            sheet.paste(_enlarge(cell.image, side), (x + PAD, y + PAD))
            _write(draw, lines, x + PAD, y + PAD + side + PAD - 4)
        y += height + GAP
    return sheet


def _enlarge(image: Image.Image, side: int) -> Image.Image:
    return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _height(line: Line) -> int:
    return round(line.size * 1.36)


def _wrap(lines: Sequence[Line], width: int) -> list[Line]:
    """Wraps lines to `width` pixels; a word that is wider is abbreviated."""
    broken = []
    for line in lines:
        font, text = _font(line.size), ""
        for word in line.text.split():
            while font.getlength(word) > width and len(word) > 2:
                word = word[:-2] + "."
            longer = f"{text} {word}".strip()
            if text and font.getlength(longer) > width:
                broken.append(Line(text, line.color, line.size))
                longer = word
            text = longer
        broken.append(Line(text, line.color, line.size))
    return broken


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[Line], x: int, y: int) -> None:
    for line in lines:
        draw.text((x, y), line.text, fill=line.color, font=_font(line.size))
        y += _height(line)


def _write_label(draw: ImageDraw.ImageDraw, label: tuple[str, str], middle: int) -> None:
    lines = [Line(label[0], INK, LABEL_SIZE), Line(label[1], GREY, TEXT_SIZE - 1)]
    lines = [line for line in lines if line.text]
    _write(draw, lines, MARGIN, middle - sum(_height(line) for line in lines) // 2)
