"""`np.random.default_rng((a, b, c))` of many seeds at once: most of its time is spent on hashing the seed."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.random.bit_generator import ISeedSequence

# numpy/random/bit_generator.pyx: constants of `SeedSequence`, whose output numpy promises not to change
POOL = 4
INIT_A, MULT_A = 0x43B0D7E5, 0x931E8875
INIT_B, MULT_B = 0x8B51F9DD, 0x58F38DED
MIX_LEFT, MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
SHIFT = np.uint32(16)
WORDS = 8  # of 32 bits, that a PCG64 is seeded with


def generator(*seed: int) -> np.random.Generator:
    """`np.random.default_rng(seed)`, which takes twice as long to read a tuple."""
    return np.random.default_rng(np.array(seed, np.uint32) if max(seed) < 2**32 else seed)


def generators(first: Sequence[int], numbers: np.ndarray) -> Iterator[np.random.Generator]:
    """`np.random.default_rng((*first, number))` for each of the numbers (n,)."""
    if max((*first, int(numbers.max(initial=0)))) >= 2**32 or len(first) >= POOL:
        for number in numbers.tolist():
            yield generator(*first, number)
        return
    words = [*(np.full(len(numbers), value, np.uint32) for value in first), numbers.astype(np.uint32)]
    for state in _states(words):
        yield np.random.Generator(np.random.PCG64(_Hashed(state)))


class _Hashed(ISeedSequence):
    """The seed of one generator, hashed already."""

    def __init__(self, state: np.ndarray):
        self._state = state

    def generate_state(self, n_words: int, dtype: type = np.uint32) -> np.ndarray:
        return self._state


class _Hash:
    """The running hash of a `SeedSequence`, over all seeds at once: uint32 arrays, whose products wrap around."""

    def __init__(self, start: int, factor: int):
        self.constant, self.factor = start, factor

    def __call__(self, value: np.ndarray) -> np.ndarray:
        value = value ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor % 2**32
        value = value * np.uint32(self.constant)
        return value ^ (value >> SHIFT)


def _states(words: list[np.ndarray]) -> np.ndarray:
    """The entropy of n seeds, at most POOL arrays uint32 (n,), as what a PCG64 starts from: uint64 (n, 4)."""
    mixed, zeros = _Hash(INIT_A, MULT_A), np.zeros_like(words[0])
    pool = [mixed(word) for word in (*words, *[zeros] * (POOL - len(words)))]
    for source in range(POOL):
        for goal in range(POOL):
            if source != goal:
                value = MIX_LEFT * pool[goal] - MIX_RIGHT * mixed(pool[source])
                pool[goal] = value ^ (value >> SHIFT)
    drawn = _Hash(INIT_B, MULT_B)
    state = np.stack([drawn(pool[index % POOL]) for index in range(WORDS)], axis=1).astype(np.uint64)
    return state[:, 0::2] | (state[:, 1::2] << np.uint64(32))
