"""Objects and the names of their classes tied together: a contrastive term with several positives, over all ranks.

The embedding of an object's [SEG] (`Sa2VAOutput.seg_embeddings`) has to be closer to the name of its own class than to
those of other classes, and the other way round. A part, "mug:handle", has two labels: that of its object, and its own;
classes that share a label are positives of each other. Source: the intent of LISA's fork for generated pictures (its
`multi_label_contrastive.py`, after GroupViT, arXiv 2202.11094).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Gather = Callable[[list[Any]], list[Any]]


def labels_of(category: str) -> frozenset[str]:
    """The labels of a class: "mug" has itself, "mug:handle" has "mug" and ":handle"."""
    whole, colon, part = category.lower().partition(":")
    return frozenset({whole, colon + part} if colon else {whole})


def multi_label_contrastive(
    objects: Tensor, names: Tensor, labels: Sequence[frozenset[str]], temperature: float
) -> Tensor:
    """Cross-entropy of cosines / temperature, mean over objects -> names and names -> objects; the target of a row is
    spread evenly over its positives. 0 without an object.

    Args:
        objects, names: (N, C), of object i and of its class's name. labels: those of each class.
    """
    if not labels:
        return objects.sum() * 0.0 + names.sum() * 0.0
    positive = torch.tensor([[bool(one & other) for other in labels] for one in labels], device=objects.device)
    target = positive / positive.sum(1, keepdim=True)
    cosines = F.normalize(objects.float(), dim=1) @ F.normalize(names.float(), dim=1).T
    both = (cosines / temperature, cosines.T / temperature)
    return sum(-(target * logits.log_softmax(1)).sum(1).mean() for logits in both) / 2


def contrastive_over_ranks(
    objects: Tensor,
    names: Tensor,
    categories: Sequence[str],
    temperature: float,
    gather: Gather,
    rank: int,
    ranks: int,
) -> Tensor:
    """`multi_label_contrastive` of the objects of all ranks, alike on each, with the gradient of that for this rank's.

    Engines average gradients over the ranks, so that each rank's counts `ranks` times here: what reaches the weights
    is the gradient of one process with all objects. Nothing is exchanged in the backward pass.

    Args:
        objects, names, categories: of this rank. gather: a list of every rank -> those of all ranks, in their order.
    """
    if ranks == 1:
        return multi_label_contrastive(objects, names, [labels_of(one) for one in categories], temperature)
    everyone = gather([(objects.detach().cpu(), names.detach().cpu(), list(categories))])
    others = [(one.to(objects), name.to(names)) for one, name, _ in everyone]
    others[rank] = objects, names
    labels = [labels_of(category) for *_, given in everyone for category in given]
    loss = multi_label_contrastive(*map(torch.cat, zip(*others, strict=True)), labels, temperature)
    return ranks * loss - (ranks - 1) * loss.detach()
