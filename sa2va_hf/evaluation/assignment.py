"""One-to-one matchings of rows and columns: the best in sum, and the greedy one."""

from __future__ import annotations

import numpy as np


def assign(worth: np.ndarray) -> list[int]:
    """The column of each row, all different, with the largest sum of worth (rows, columns); rows <= columns.

    The Hungarian method by shortest augmenting paths: O(rows^2 columns).
    """
    rows, columns = worth.shape
    if rows > columns:
        raise ValueError(f"worth must have at least as many columns as rows, got {rows} x {columns}")
    cost = -worth.astype(np.float64)
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)
    for start in range(rows):
        distance, before = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        row, column, reached = start, -1, 0.0
        while row >= 0:
            way = reached + cost[row] - row_price[row] - column_price
            better = ~done & (way < distance)
            distance[better], before[better] = way[better], column
            column = int(np.where(done, np.inf, distance).argmin())
            reached, row = distance[column], owner[column]
            done[column] = True
        row_price[start] += reached
        for closed in np.flatnonzero(done):
            if owner[closed] >= 0:
                row_price[owner[closed]] += reached - distance[closed]
            column_price[closed] -= reached - distance[closed]
        while column >= 0:  # hand the columns of the path on
            previous = before[column]
            owner[column] = owner[previous] if previous >= 0 else start
            column = previous
    places = [-1] * rows
    for column, row in enumerate(owner):
        if row >= 0:
            places[row] = column
    return places


def greedy(worth: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Pairs (row, column), each used once, by worth, none below `least`; of equal ones the first by rows."""
    worth, pairs = worth.astype(np.float64), []
    while worth.size and worth.max() >= least:
        row, column = np.unravel_index(int(worth.argmax()), worth.shape)
        pairs.append((int(row), int(column)))
        worth[row], worth[:, column] = -np.inf, -np.inf
    return pairs
