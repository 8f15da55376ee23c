"""Pictures of results."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int = 4, cell: int = 192, title: str | None = None
) -> Image.Image:
    """Images in a grid, each above its caption, on white.

    Args:
        images: of any size; scaled to squares of `cell` pixels.
        captions: one each; broken into two lines at most.
        columns: images in a row.
        cell: side of an image on the sheet, in pixels.
        title: one line above everything.
    """
    margin, caption_height, head = 16, 44, 48 if title else 0
    rows = -(-len(images) // columns)
    width = columns * (cell + margin) + margin
    sheet = Image.new("RGB", (width, head + rows * (cell + caption_height + margin) + margin), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    if title:
        draw.text((margin, margin), title, fill="black", font=ImageFont.load_default(20))
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        x, y = margin + column * (cell + margin), head + margin + row * (cell + caption_height + margin)
        # Whole multiples of pixel art stay crisp; anything else is resampled.
        smooth = cell % image.width != 0
        sheet.paste(
            image.resize((cell, cell), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST), (x, y)
        )
        draw.rectangle((x - 1, y - 1, x + cell, y + cell), outline="#d0d0d0")
        for line, text in enumerate(_wrap(caption, draw, font, cell)[:2]):
            draw.text((x, y + cell + 4 + 18 * line), text, fill="#333333", font=font)
    return sheet


def _wrap(text: str, draw: ImageDraw.ImageDraw, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
