"""A processor that can be counted by eye: a token is a word."""

import numpy as np


class WordProcessor:
    """1 token to start with, 1 per word, 2 around each turn; 10 per image, 4 per frame of a clip, 3 per region."""

    takes_regions = True

    def region_cells(self, mask):
        return np.asarray(mask)[::2, ::2]

    def num_tokens(self, turns, image_size=None, num_frames=1, video=False, region_masks=None) -> int:
        words = sum(len(f"{question} {answer}".split()) for question, answer in turns)
        visuals = 0 if image_size is None else 4 * num_frames if video else 10
        assert all(np.asarray(mask).shape == image_size[::-1] for mask in region_masks or [])
        return 1 + words + 2 * len(turns) + visuals + 3 * len(region_masks or [])
