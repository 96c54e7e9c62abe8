"""What a stretch of packed rows costs: cross-entropy of the answers, or the preference of one answer to another.

A stretch is some rows (tasks/contexts.py) laid end to end; a token sees the earlier tokens of its own row that are
shared or of its own branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.records import Record
from tasks.contexts import Rows

PAD = 64


@dataclass(frozen=True)
class Preferring(Record):
    """Robust DPO after supervised training (Rafailov et al. 2023, arXiv 2305.18290; noise as in Chowdhury et al. 2024,
    arXiv 2403.00409). Ends after `minutes` or `passes` over the pairs.

    `beta` scales how far the policy may leave the supervised one. `supervised`: weight of the chosen answer's mean
    cross-entropy, which keeps it likely in itself and not only likelier than the rejected one. `fewest`: with fewer
    pairs than this nothing is done.
    """

    minutes: float | None = 2.0
    passes: int = 3
    learning_rate: float = 2e-4
    beta: float = 0.1
    supervised: float = 0.2
    fewest: int = 20


def attend(module, query, key, value, mask, scaling=None, **_):
    """Attention with an additive mask [1, 1, n, n], as plain batched products over grouped heads.

    torch's fused kernel took 1.0 of 3.2 s of a step on a CPU in bfloat16; this takes 0.35 s (Zen 5, rows of 448). The
    weights are computed again on the way back: a quarter less memory for 3% of the time.
    """
    from torch.utils.checkpoint import checkpoint

    mixed = checkpoint(mix, query, key, value, mask, scaling, use_reentrant=False, preserve_rng_state=False)
    return mixed.transpose(1, 2).contiguous(), None


def mix(query, key, value, mask, scaling):
    """Values mixed by attention weights, [batch, heads, n, size]."""
    import torch

    batch, heads, n, size = query.shape
    groups = key.shape[1]
    rows = (query * scaling).reshape(batch * groups, heads // groups * n, size)
    scores = torch.bmm(rows, key.reshape(batch * groups, n, size).transpose(1, 2))
    scores = scores.view(batch * groups, heads // groups, n, n) + mask.view(1, 1, n, n)
    weights = torch.softmax(scores, dim=-1).view(batch * groups, -1, n)
    return torch.bmm(weights, value.reshape(batch * groups, n, size)).view(batch, heads, n, size)


def token_losses(model, data: Rows, stretch: Sequence[int], device: str):
    """Cross-entropy of each learned token of some rows, its row's place in the stretch and its branch; tokens read.

    The output layer, the largest matrix of a small model, is computed for the learned positions only. Stretches are
    padded to a multiple of PAD: torch keeps compiled kernels for every length it meets, 0.6 GB of them within a minute.
    """
    import torch

    lengths = data.lengths[list(stretch)]
    columns = [*zip(*map(data.row, stretch), strict=True), [np.full(n, at) for at, n in enumerate(lengths, start=1)]]
    padding = np.zeros(-lengths.sum() % PAD, int)
    ids, positions, branches, learn, row = (
        torch.from_numpy(np.concatenate([*column, padding])).to(device).long() for column in columns
    )
    seen = (row[:, None] == row[None]) & ((branches[None] == 0) | (branches[:, None] == branches[None]))
    mask = torch.zeros(len(ids), len(ids), dtype=model.dtype, device=device)
    mask.masked_fill_(~seen.tril(), torch.finfo(model.dtype).min)
    inner = model.get_base_model()
    states = inner.model(
        input_ids=ids[None], position_ids=positions[None], attention_mask=mask[None, None], use_cache=False
    ).last_hidden_state[0]
    targets = learn.nonzero().squeeze(1)
    logits = inner.lm_head(states[targets - 1]).float()
    losses = torch.nn.functional.cross_entropy(logits, ids[targets], reduction="none")
    return losses, row[targets] - 1, branches[targets], int(lengths.sum())


def supervised(model, data: Rows, stretch: Sequence[int], device: str):
    """Summed cross-entropy over the learned tokens, how many they are, and how many tokens were read."""
    losses, _, _, read = token_losses(model, data, stretch, device)
    return losses.sum(), len(losses), read


def answers(model, data: Rows, stretch: Sequence[int], device: str):
    """Log-probability and length of the first and the second branch of each row, [rows, 2] each, and tokens read."""
    import torch

    losses, row, branch, read = token_losses(model, data, stretch, device)
    place = row * 2 + branch - 1
    sums = torch.zeros(2 * len(stretch), device=losses.device).index_add(0, place, -losses)
    counts = torch.zeros(2 * len(stretch), device=losses.device).index_add(0, place, torch.ones_like(losses))
    return sums.view(-1, 2), counts.view(-1, 2), read


def preferred(model, data: Rows, stretch: Sequence[int], device: str, before, how: Preferring, flips: float):
    """Summed robust DPO loss of some pairs, how many they are, and how many tokens were read.

    A row is a pair: branch 1 the chosen answer, branch 2 the rejected one. `before` [pairs, 2]: log-probabilities
    under the policy that training starts from. `flips` (0 to below .5): share of pairs that say the opposite of what
    people mean; the loss is unbiased for the loss without them.
    """
    import torch

    found, lengths, read = answers(model, data, stretch, device)
    moved = found - before
    margin = how.beta * (moved[:, 0] - moved[:, 1])
    agree, disagree = -torch.nn.functional.logsigmoid(margin), -torch.nn.functional.logsigmoid(-margin)
    robust = ((1 - flips) * agree - flips * disagree) / (1 - 2 * flips)
    return (robust - how.supervised * found[:, 0] / lengths[:, 0]).sum(), len(found), read
