"""Captions that a gradient can pass through: corrupted tokens, straight-through embeddings and the caption loss.

Source: the mask-caption dual loop (`mask_caption_sft` of Sa2VA's fork ANS_sft), whose numbers the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model.configuration_sa2va import IGNORE_INDEX

TINY = 1e-10  # inside both logarithms of the Gumbel noise, as in the reference
REDRAWS = 10  # rounds in which forbidden replacements are sampled again


def corrupt(
    tokens: Tensor,
    ratio: float,
    *,
    pad: int,
    forbidden: Collection[int],
    uniform: Tensor,
    sample: Callable[[int], Tensor],
    keep_forbidden: bool = False,
) -> Tensor:
    """Replace a share of the tokens of a caption by random ones, so that the student cannot copy its input.

    Args:
        tokens: (B, T) token ids; `pad` stays as it is.
        ratio: share of the tokens that are replaced.
        forbidden: ids that no replacement may be, such as special tokens.
        uniform: (B, T) in [0, 1); a token is replaced where this is below `ratio`.
        sample: n -> (n,) random token ids; called for all B * T positions, then for the forbidden ones.
        keep_forbidden: a replacement that is forbidden after all rounds stays, as in the reference; otherwise the
            original token does.
    """
    chosen = (uniform < ratio) & (tokens != pad)
    banned = torch.tensor(sorted(forbidden), dtype=tokens.dtype, device=tokens.device)
    replacement = sample(tokens.numel()).view_as(tokens)
    for _ in range(REDRAWS):
        bad = chosen & torch.isin(replacement, banned)
        if not bad.any():
            break
        replacement[bad] = sample(int(bad.sum()))
    if not keep_forbidden:
        chosen = chosen & ~torch.isin(replacement, banned)
    return torch.where(chosen, replacement, tokens)


def straight_through(
    logits: Tensor, embeddings: Tensor, *, k: int, tau: float, uniform: Tensor, chunk: int = 8
) -> tuple[Tensor, Tensor]:
    """Sample a token at every position by Gumbel noise; return its embedding, with a gradient for all top-k logits.

    Forward: row `embeddings[picked]`. Backward: as if the softmax-weighted mean of the top-k rows had been returned;
    the picked row alone gets a gradient. The (B, T, k, D) tensor of candidate rows never exists: they are gathered for
    `chunk` positions at a time. Noise and softmax are in float32 at least: bfloat16 noise ties in most rows.

    Args:
        logits: (B, T, V). embeddings: (V, D).
        k: candidates per position. tau: temperature. uniform: (B, T, k) in [0, 1), the noise.
        chunk: positions per gather; 0: all at once.

    Returns:
        (B, T, D) embeddings in the type of the wider of logits and embeddings, and (B, T) the picked ids.

    Raises:
        ValueError: k is not between 1 and V, or tau is not positive.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k: expected 1 to {logits.shape[-1]} (the vocabulary's size), got {k}")
    if tau <= 0:
        raise ValueError(f"tau: expected a positive temperature, got {tau}")
    return _StraightThrough.apply(logits, embeddings, uniform, k, tau, chunk)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, embeddings: Tensor, uniform: Tensor, k: int, tau: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(logits.dtype, torch.float32)
        top, index = logits.to(exact).topk(k, dim=-1)
        noise = -torch.log(-torch.log(uniform.to(exact) + TINY) + TINY)
        share = torch.softmax((top + noise) / tau, dim=-1)
        picked = index.gather(-1, share.argmax(-1, keepdim=True)).squeeze(-1)
        ctx.save_for_backward(embeddings, index, share, picked)
        ctx.tau, ctx.chunk, ctx.shape, ctx.dtype = tau, chunk, logits.shape, logits.dtype
        ctx.mark_non_differentiable(picked)
        return F.embedding(picked, embeddings).to(torch.promote_types(logits.dtype, embeddings.dtype)), picked

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        embeddings, index, share, picked = ctx.saved_tensors
        grad_logits = grad_embeddings = None
        if ctx.needs_input_grad[0]:
            step = ctx.chunk or index.shape[1]
            gains = torch.empty_like(share)  # how much the loss grows with each candidate's share
            for start in range(0, index.shape[1], step):
                here = slice(start, start + step)
                rows = F.embedding(index[:, here], embeddings).to(share.dtype)
                gains[:, here] = torch.einsum("btkd,btd->btk", rows, upstream[:, here].to(share.dtype))
            slope = share * (gains - (share * gains).sum(-1, keepdim=True)) / ctx.tau
            grad_logits = share.new_zeros(ctx.shape).scatter_(-1, index, slope).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            flat = upstream.flatten(0, -2).to(embeddings.dtype)
            grad_embeddings = torch.zeros_like(embeddings).index_add_(0, picked.flatten(), flat)
        return grad_logits, grad_embeddings, None, None, None, None


def caption_loss(logits: Tensor, captions: Tensor, pad: int, count_padding: bool = False) -> Tensor:
    """Cross-entropy of captions, mean over their tokens.

    Args:
        logits: (B, T, V), at each position those after the token before it. captions: (B, T) token ids.
        count_padding: padding after a caption counts as well, as in the reference, where it outweighs short captions.
    """
    labels = captions if count_padding else captions.masked_fill(captions == pad, IGNORE_INDEX)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX)


def denoising_loss(logits: Tensor, tokens: Tensor, corrupted: Tensor, pad: int) -> Tensor:
    """Cross-entropy of the original tokens where `corrupt` changed them, mean over those; 0 where it changed none.

    Args:
        logits: (B, T, V), at each position those after the token before it. tokens, corrupted: (B, T).
    """
    changed = (tokens != corrupted) & (tokens != pad)
    if not changed.any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits[changed].float(), tokens[changed])
