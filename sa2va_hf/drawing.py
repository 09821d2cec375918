"""Images for people: overlays, contact sheets, curves. Uses Pillow only; the same input gives the same pixels."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Distinguishable with the common colour vision deficiencies (Okabe & Ito 2008, without its yellow and black). What a
# mask covers may have the mask's colour, so every colour is drawn beside black or white, whichever contrasts with it.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (0, 114, 178))
INK, PAPER, GRID = (30, 30, 30), (255, 255, 255), (224, 224, 224)
TINT = 0.45  # opacity of a mask's colour
HATCH = 0.6  # opacity of the second tone, on the lines of the hatching


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def luminance(colour: Sequence[int]) -> float:
    """Relative luminance, 0 for black to 1 for white, of an sRGB colour (WCAG 2.2)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def second_tone(colour: Sequence[int]) -> tuple[int, int, int]:
    """Black or white, whichever has the higher contrast to `colour`: for text on it and lines beside it."""
    return (0, 0, 0) if (luminance(colour) + 0.05) ** 2 > 0.05 * 1.05 else PAPER


def overlay(
    image: Image.Image | np.ndarray,
    masks: Sequence[np.ndarray],
    boxes: Sequence[Sequence[float] | None] | None = None,
    labels: Sequence[str | None] | None = None,
) -> Image.Image:
    """A copy of the image with every mask tinted, hatched and outlined in its own colour, with boxes and labels.

    The outline has two tones, the colour and inside it black or white, so that it contrasts with any background; the
    direction of the hatching differs from one object to the next.

    Args:
        image: PIL, or uint8 (H, W, 3).
        masks: bool (H, W) each; the sequence may be empty.
        boxes: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; None or NaN where an object has none.
        labels: one text per mask, or per box where there are no masks; None for no text.

    Raises:
        ValueError: a mask has another size than the image, or the numbers of masks, boxes and labels differ.
    """
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    count = len(masks) or len(boxes or ()) or len(labels or ())
    for name, given in (("masks", masks), ("boxes", boxes), ("labels", labels)):
        if given is not None and len(given) not in (count, 0):
            raise ValueError(f"{name}: expected {count} entries, one per object, got {len(given)}")
    pixels = np.array(picture)
    for number, mask in enumerate(masks):
        _tint(pixels, mask, COLOURS[number % len(COLOURS)], number)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    corners = [_corners(box) for box in boxes] if boxes else [None] * count
    for number, box in enumerate(corners):
        if box is not None:
            draw.rectangle(box, outline=COLOURS[number % len(COLOURS)], width=_line_width(picture.size))
    plates: list[tuple] = []
    for number, text in enumerate(labels or ()):
        mask = masks[number] if len(masks) else None
        _label(draw, text, corners[number], mask, COLOURS[number % len(COLOURS)], picture.size, plates)
    return picture


def outline(picture: Image.Image, mask: np.ndarray, label: str) -> None:
    """Draws the mask's edge in white and black, which contrasts with any image, and its label, in place.

    Args:
        mask: bool (H, W), of the picture's size; nothing is drawn where it is empty.
    """
    if not mask.any():
        return
    width, pixels = 2 * _line_width(picture.size), np.array(picture)
    rim, inner = _inside(mask, width), _inside(mask, 2 * width)
    pixels[mask & ~rim], pixels[rim & ~inner] = PAPER, 0
    picture.paste(Image.fromarray(pixels))
    _label(ImageDraw.Draw(picture), label, None, mask, PAPER, picture.size, [])


def _tint(pixels: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], number: int) -> None:
    """Blends colour and hatching into the pixels of the mask and draws its outline in two tones, in place."""
    mask = np.asarray(mask, bool)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"masks[{number}]: expected the picture's (H, W) {pixels.shape[:2]}, got {mask.shape}")
    if not mask.any():
        return
    width, second = _line_width(pixels.shape[:2]), second_tone(colour)
    pixels[mask] = np.rint(pixels[mask] * (1 - TINT) + np.array(colour) * TINT)
    lines = mask & _hatching(mask.shape, number, width)
    pixels[lines] = np.rint(pixels[lines] * (1 - HATCH) + np.array(second) * HATCH)
    rim = _inside(mask, width)
    pixels[rim & ~_inside(rim, width)] = second
    pixels[mask & ~rim] = colour


def _line_width(shape: tuple[int, int]) -> int:
    """Width of outlines in pixels, visible where a large image is shown reduced to a window's width."""
    return max(1, round(max(shape) / 400))


def _hatching(shape: tuple[int, int], number: int, width: int) -> np.ndarray:
    """Lines in one of four directions, bool (H, W)."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    along = (x + y, x - y + shape[0], y + 0 * x, x + 0 * y)[number // len(COLOURS) % 2 * 2 + number % 2]
    return along // width % 8 == 0


def _inside(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels more than `width` steps (up, down, left, right) from the mask's edge; the frame's edge is one."""
    for _ in range(width):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _corners(box: Sequence[float] | None) -> tuple[float, float, float, float] | None:
    """The box as ImageDraw expects it, x1 and y1 inclusive; a box without width becomes a line. None for no box."""
    if box is None or not all(math.isfinite(value) for value in box):
        return None
    x0, y0, x1, y1 = (float(value) for value in box)
    return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)


def _label(
    draw: ImageDraw.ImageDraw, text: str | None, box, mask, colour, size: tuple[int, int], taken: list[tuple]
) -> None:
    """The text on a plate above its box, else above its mask; at the picture's corner when there is neither. It moves
    into the box, then below it, where the picture or a plate of `taken` is in the way."""
    if not text:
        return
    if box is None and mask is not None and mask.any():
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        box = tuple(int(value) for value in (columns[0], rows[0], columns[-1], rows[-1]))
    x, top, _, bottom = box or (0, 0, 0, 0)
    font = _font(max(12, round(max(size) / 36)))
    left, above, right, below = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, below - above + 6
    x = max(0, min(x, size[0] - width))  # the whole plate stays in the picture
    places = [(x, max(0, min(y, size[1] - height))) for y in (top - height, top, bottom + 1)]
    x, y = next((place for place in places if not _overlaps((*place, width, height), taken)), places[0])
    taken.append((x, y, width, height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + 3 - left, y + 3 - above), text, fill=second_tone(colour), font=font)


def _overlaps(plate: tuple, taken: list[tuple]) -> bool:
    x, y, width, height = plate
    return any(x < u + w and u < x + width and y < v + h and v < y + height for u, v, w, h in taken)


def contact_sheet(
    tiles: Sequence[Image.Image | np.ndarray],
    columns: int,
    captions: Sequence[str] | None = None,
    font_size: int = 12,
) -> Image.Image:
    """One image with the tiles in rows of `columns` and their captions (wrapped) below them.

    All cells are as wide as the widest tile; the cells of a row are as high as its highest tile.

    Raises:
        ValueError: there are no tiles, columns < 1, or the numbers of captions and tiles differ.
    """
    if not tiles or columns < 1:
        raise ValueError(f"contact_sheet: expected at least one tile and one column, got {len(tiles)} and {columns}")
    if captions is not None and len(captions) != len(tiles):
        raise ValueError(f"captions: expected {len(tiles)}, one per tile, got {len(captions)}")
    pictures = [(t if isinstance(t, Image.Image) else Image.fromarray(t)).convert("RGB") for t in tiles]
    width, gap, font = max(picture.width for picture in pictures), 4, _font(font_size)
    texts = ["\n".join(_wrap(text, width, font)) for text in captions or [""] * len(pictures)]
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    under = [math.ceil(ruler.multiline_textbbox((0, 0), text, font=font)[3]) + 4 if text else 0 for text in texts]
    rows = [slice(first, first + columns) for first in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in pictures[row]) for row in rows]
    ends = list(accumulate(height + max(under[row]) + gap for height, row in zip(heights, rows, strict=True)))
    sheet = Image.new("RGB", (min(columns, len(pictures)) * (width + gap) + gap, ends[-1] + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        row, column = divmod(number, columns)
        x, y = gap + column * (width + gap), gap + (ends[row - 1] if row else 0)
        sheet.paste(picture, (x, y))
        draw.multiline_text((x, y + heights[row] + 2), text, fill=INK, font=font)
    return sheet


def _wrap(text: str, width: int, font) -> list[str]:
    """The text as lines of at most `width` pixels; a single word that is wider is broken."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            while len(longer) > 1 and font.getlength(longer) > width:
                cut = next(n for n in range(len(longer) - 1, 0, -1) if n == 1 or font.getlength(longer[:n]) <= width)
                lines.append(longer[:cut])
                longer = longer[cut:]
            line = longer
        lines.append(line)
    return lines


def curve(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str = "",
    x_label: str = "step",
    size: tuple[int, int] = (720, 420),
) -> Image.Image:
    """A line plot of name -> (xs, ys) on common axes, with a legend. A line is interrupted where y is not finite.

    Raises:
        ValueError: no y is finite, or a series has different numbers of xs and ys.
    """
    for name, (xs, ys) in series.items():
        if len(xs) != len(ys):
            raise ValueError(f"series {name!r}: expected as many ys as xs, got {len(xs)} xs and {len(ys)} ys")
    finite = [(x, y) for xs, ys in series.values() for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not finite:
        raise ValueError("series: nothing finite to draw")
    x_ticks, y_ticks = (_ticks(min(values), max(values)) for values in zip(*finite, strict=True))
    plane = (64, 34 if title else 16, size[0] - 16, size[1] - 44)  # left, top, right, bottom
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return plane[0] + across * (plane[2] - plane[0]), plane[3] - up * (plane[3] - plane[1])

    _axes(draw, place, plane, x_ticks, y_ticks)
    draw.text((size[0] / 2, 8), title, fill=INK, font=_font(15), anchor="ma")
    draw.text(((plane[0] + plane[2]) / 2, size[1] - 6), x_label, fill=INK, font=_font(12), anchor="md")
    for number, (xs, ys) in enumerate(series.values()):
        _line(draw, place, xs, ys, COLOURS[number % len(COLOURS)])
    _legend(draw, list(series), plane)
    return image


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose low and high."""
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _axes(draw: ImageDraw.ImageDraw, place, plane, x_ticks: list[float], y_ticks: list[float]) -> None:
    font = _font(12)
    for value in x_ticks:
        x, _ = place(value, y_ticks[0])
        draw.line((x, plane[1], x, plane[3]), fill=GRID)
        draw.text((x, plane[3] + 5), f"{value:.6g}", fill=INK, font=font, anchor="ma")
    for value in y_ticks:
        _, y = place(x_ticks[0], value)
        draw.line((plane[0], y, plane[2], y), fill=GRID)
        draw.text((plane[0] - 6, y), f"{value:.6g}", fill=INK, font=font, anchor="rm")
    draw.line((plane[0], plane[1], plane[0], plane[3], plane[2], plane[3]), fill=INK)


def _line(draw: ImageDraw.ImageDraw, place, xs: Sequence[float], ys: Sequence[float], colour) -> None:
    run: list[tuple[float, float]] = []
    for x, y in [*zip(xs, ys, strict=True), (0.0, math.nan)]:  # the last one ends the last run
        if math.isfinite(y):
            run.append(place(x, y))
            continue
        if len(run) == 1:
            (cx, cy) = run[0]
            draw.ellipse((cx - 2, cy - 2, cx + 2, cy + 2), fill=colour)
        elif run:
            draw.line(run, fill=colour, width=2, joint="curve")
        run = []


def _legend(draw: ImageDraw.ImageDraw, names: list[str], plane) -> None:
    font = _font(12)
    width = max(font.getlength(name) for name in names) + 34
    left, top = plane[2] - width - 4, plane[1] + 4
    draw.rectangle((left, top, left + width, top + 18 * len(names) + 4), fill=PAPER, outline=GRID)
    for number, name in enumerate(names):
        y = top + 11 + 18 * number
        draw.line((left + 6, y, left + 24, y), fill=COLOURS[number % len(COLOURS)], width=3)
        draw.text((left + 29, y), name, fill=INK, font=font, anchor="lm")
