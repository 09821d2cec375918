"""Drawings show what they are given and nothing else.

Run: pytest tests/test_drawing.py
"""

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from sa2va_hf.drawing import COLOURS, PAPER, contact_sheet, curve, luminance, overlay


def scene() -> tuple[np.ndarray, np.ndarray]:
    picture = np.full((60, 80, 3), 200, np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    return picture, mask


def of_colour(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(image) == colour).all(axis=2)


def test_overlay_changes_the_mask_alone():
    picture, mask = scene()
    drawn = np.asarray(overlay(picture, [mask]))
    assert ((drawn != picture).any(axis=2) == mask).all()
    assert tuple(drawn[10, 20]) == COLOURS[0]  # the rim in full, the inside tinted
    assert tuple(drawn[20, 35]) != COLOURS[0]
    assert (picture == 200).all()  # the input stays as it was


def contrast(one, other) -> float:
    """WCAG 2.2: 1 for equal colours, 21 for black on white."""
    low, high = sorted((luminance(one) + 0.05, luminance(other) + 0.05))
    return high / low


@pytest.mark.parametrize("number", range(len(COLOURS)))
def test_a_mask_contrasts_with_whatever_it_covers(number):
    """Amber on a yellow square, blue on the sea: a tenth of the mask at least has another lightness."""
    empty, mask = np.zeros((60, 80), bool), scene()[1]
    levels = (0, 64, 128, 192, 255)
    for background in [*itertools.product(levels, repeat=3), *COLOURS, (240, 228, 66)]:
        picture = np.full((60, 80, 3), background, np.uint8)
        drawn = np.asarray(overlay(picture, [empty] * number + [mask]))[mask]
        tones, counts = np.unique(drawn, axis=0, return_counts=True)
        visible = [contrast(tone, background) > 2.2 for tone in tones]
        assert counts[visible].sum() > 0.1 * mask.sum(), background


def test_objects_of_one_colour_are_hatched_differently():
    picture, mask = scene()
    drawn = [overlay(picture, [np.zeros_like(mask)] * number + [mask]) for number in (0, len(COLOURS))]
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_labels_do_not_lie_on_each_other():
    """Three objects in one place: three whole plates, above the box, in it and below it."""
    picture, box = np.full((200, 200, 3), 200, np.uint8), (60, 60, 120, 120)
    away_from_lines = np.ones((200, 200), bool)
    away_from_lines[58:62, 58:122] = away_from_lines[118:122, 58:122] = False
    away_from_lines[58:122, 58:62] = away_from_lines[58:122, 118:122] = False

    def plate(drawn, number):
        return (of_colour(drawn, COLOURS[number]) & away_from_lines).sum()

    together = overlay(picture, [], [box] * 3, ["cat"] * 3)
    for number in range(3):
        alone = overlay(picture, [], [None] * number + [box], [None] * number + ["cat"])
        assert plate(together, number) > 0.6 * plate(alone, number) > 0


def test_overlay_of_nothing_is_the_picture():
    picture, mask = scene()
    for masks in ([], [np.zeros_like(mask)]):
        assert (np.asarray(overlay(Image.fromarray(picture), masks)) == picture).all()


def test_boxes_are_drawn_on_their_last_pixels():
    picture, mask = scene()
    drawn = of_colour(overlay(picture, [], boxes=[(20.0, 10.0, 50.0, 30.0)]), COLOURS[0])
    rows, columns = np.nonzero(drawn)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 10, 49, 29)


@pytest.mark.parametrize("box", [None, (math.nan,) * 4])
def test_absent_boxes_are_not_drawn(box):
    picture, _ = scene()
    assert (np.asarray(overlay(picture, [], boxes=[box])) == picture).all()


@pytest.mark.parametrize("corner", [(0, 0), (75, 55)])
def test_labels_stay_in_the_picture(corner):
    """The whole plate is seen wherever the box lies."""
    picture, _ = scene()
    box = (*corner, corner[0] + 5, corner[1] + 5)
    plates = [of_colour(overlay(picture, [], [b], ["cat"]), COLOURS[0]).sum() for b in ((30, 30, 35, 35), box)]
    assert plates[1] > 0.8 * plates[0]


def test_overlay_refuses_what_does_not_fit():
    picture, mask = scene()
    with pytest.raises(ValueError, match=r"masks\[1\]: expected the picture's \(H, W\) \(60, 80\), got \(80, 60\)"):
        overlay(picture, [mask, mask.T])
    with pytest.raises(ValueError, match="labels: expected 1 entries"):
        overlay(picture, [mask], labels=["a", "b"])


def test_contact_sheet_places_every_tile():
    tiles = [Image.new("RGB", (30, 20 + i), COLOURS[i]) for i in range(5)]
    sheet = contact_sheet(tiles, 2, captions=["one", "two words that need more than one line", "", "four", "five"])
    for number, tile in enumerate(tiles):
        rows, columns = np.nonzero(of_colour(sheet, COLOURS[number]))
        assert len(rows) == tile.width * tile.height
        assert columns.min() == 4 + number % 2 * 34
    assert sheet.width == 2 * 34 + 4
    plain = contact_sheet(tiles, 2)
    assert sheet.height > plain.height
    assert plain.height == 4 + (21 + 4) + (23 + 4) + (24 + 4)  # every row as high as its own pictures


def test_a_caption_without_spaces_stays_in_its_cell():
    tiles = [np.zeros((10, 60, 3), np.uint8)] * 2
    sheet = np.asarray(contact_sheet(tiles, 2, captions=["0.1234," * 20, ""]))
    first, second = sheet[14:, :64], sheet[14:, 68:]
    assert (first != PAPER).any() and (second == PAPER).all()


def test_contact_sheet_refuses_nothing_and_wrong_captions():
    with pytest.raises(ValueError, match="at least one tile"):
        contact_sheet([], 2)
    with pytest.raises(ValueError, match="captions: expected 1"):
        contact_sheet([scene()[0]], 2, captions=[])


def test_a_falling_curve_falls():
    drawn = of_colour(curve({"loss": ([0, 50, 100], [1.0, 0.4, 0.1])}), COLOURS[0])[120:]  # below the legend
    heights = [np.nonzero(column)[0].mean() for column in drawn.T if column.any()]
    assert len(heights) > 300 and heights == sorted(heights)


def test_a_curve_breaks_where_it_is_not_finite():
    xs = list(range(9))
    whole, broken = ([2.0] * 9, [2.0] * 4 + [math.nan] + [2.0] * 4)
    columns = [of_colour(curve({"y": (xs, ys)}), COLOURS[0])[120:].any(axis=0) for ys in (whole, broken)]
    gap = columns[0] & ~columns[1]
    assert 120 < gap.sum() < 200  # two of eight intervals
    assert columns[1].sum() > 400


def test_curves_of_one_point_and_of_nothing():
    assert of_colour(curve({"y": ([3], [0.0])}), COLOURS[0])[120:].any()
    with pytest.raises(ValueError, match="nothing finite"):
        curve({"y": ([1, 2], [math.nan, math.inf])})
    with pytest.raises(ValueError, match="'y': expected as many ys as xs"):
        curve({"y": ([1, 2], [1.0])})


def test_drawings_repeat():
    picture, mask = scene()
    for make in (
        lambda: overlay(picture, [mask], [(1, 2, 30, 40)], ["shape"]),
        lambda: contact_sheet([picture] * 3, 2, ["a", "b", "c"]),
        lambda: curve({"a": ([1, 2], [3.0, 4.0]), "b": ([1, 2], [4.0, 3.0])}, "title"),
    ):
        assert make().tobytes() == make().tobytes()
