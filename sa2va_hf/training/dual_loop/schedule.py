"""In which order the steps of the loop and supervised steps follow each other."""

from __future__ import annotations


def interleave(loop: int, supervised: int) -> list[bool]:
    """Spread supervised batches evenly over an epoch; True stands for a supervised batch.

    The first batch is supervised, if any is. Of the others, at most one comes before each batch of the loop; those
    that find no batch are at the end.

    Args:
        loop: batches of the loop. supervised: supervised batches.
    """
    before = {(index + 1) * loop // supervised for index in range(supervised - 1)} if supervised else set()
    before = {position for position in before if position < loop}
    order = [True] if supervised else []
    for position in range(loop):
        order += [True, False] if position in before else [False]
    return order + [True] * (supervised - sum(order))
