"""A processor that can be counted by eye: a token is a word."""

from types import SimpleNamespace

import numpy as np

GRID = 16


class WordProcessor:
    """1 token to start with, 1 per word, 2 around each turn; 10 per image, 4 per frame of a clip, 3 per region."""

    takes_regions = True
    pictures = SimpleNamespace(region_grid=GRID)

    def region_cells(self, mask):
        rows, columns = (np.arange(GRID) * side // GRID for side in np.asarray(mask).shape)
        return np.asarray(mask)[np.ix_(rows, columns)]

    def num_tokens(self, turns, image_size=None, num_frames=1, video=False, region_masks=None) -> int:
        words = sum(len(f"{question} {answer}".split()) for question, answer in turns)
        visuals = 0 if image_size is None else 4 * num_frames if video else 10
        assert all(np.asarray(mask).shape in (image_size[::-1], (GRID, GRID)) for mask in region_masks or [])
        return 1 + words + 2 * len(turns) + visuals + 3 * len(region_masks or [])
