"""Relations between the tokens of a text, as the last layer's queries, keys and values have them (MiniLMv2, Wang et al.
2021): softmax(x xᵀ / √d) of each, split into heads of d numbers whatever the model's own heads; KL(teacher ‖ student).

They need neither labels nor a head nor equal widths: the teacher and the student are split into equally many heads.
"""

from __future__ import annotations

import math

import torch

from uer.cpu.padding import RealTokens
from uer.data.loader import MlmBatch
from uer.models.bert import Bert
from uer.opts import RELATION_HEADS
from uer.targets.pooling import position_of

LEFT = {"mlm": "MLM head", "states": "map into the teacher's space", "cls": "classifier", "tokens": "output layer"}
IN_CACHE, AT_ONCE = 1 << 20, 1 << 26  # numbers of [rows, heads, seq, seq], on a CPU and on a GPU


def left_behind(target: str) -> str:
    """What is to be known of a model with this target that learns relations alone."""
    return f"--target relations trains the encoder alone, its {LEFT[target]} does not follow: fine-tune it for a task"


class RelationTargets:
    """An `Objective`: the teacher's relations alone. The rest of the last layer and the head are not trained.

    Args:
        teacher: run without gradients on the same batches.
        heads: at most so many; the largest number that divides both widths.
    """

    figure = "relation likeness"
    partial = True

    def __init__(self, teacher: Bert, heads: int = RELATION_HEADS):
        self.teacher, self.heads = teacher.eval(), heads

    def __call__(self, student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss, and (it, exp(−mean divergence) a text, summed) to report."""
        passed = batch.src, batch.seg, batch.padded, position_of(batch.seg, "first")
        with torch.no_grad():
            wanted = self.teacher.encode(*passed)[0]
        given = student.encode(*passed)[0]
        loss = relation_loss(self.teacher, wanted, student, given, batch, self.heads)
        texts = len(batch.src)
        return loss, torch.stack([loss.detach(), texts * torch.exp(loss.detach() / (-3 * texts))])


def relation_loss(teacher: Bert, wanted: torch.Tensor, student: Bert, given: torch.Tensor, batch: MlmBatch,
                  heads: int = RELATION_HEADS) -> torch.Tensor:
    """Divergence of relations, mean over a text's tokens and the heads, summed over queries, keys, values and texts.

    Args:
        wanted, given: what the teacher's and the student's last layers are given, [batch, seq, hidden].
        heads: as for `RelationTargets`.
    """
    weights = text_weights(batch, given)
    padding = batch.seg == 0 if batch.padded else None
    with torch.no_grad():
        theirs = [linear(wanted) for linear in teacher.encoder.layers()[-1].self_attn.linears()]
    losses = []
    for linear, their in zip(student.encoder.layers()[-1].self_attn.linears(), theirs):
        mine = linear(given)
        number = common_heads(heads, their.shape[-1], mine.shape[-1])
        losses.append(_Divergence.apply(mine, their, number, weights, padding))
    return torch.stack(losses).sum()


def text_weights(batch: MlmBatch, states: torch.Tensor, packed: RealTokens | None = None) -> torch.Tensor:
    """What tokens weigh, so that every text counts 1: [batch, seq], 0 of padding; [n] where states are packed, or of
    positions (of masked ones 1 a text in the mean: all of a step weigh the same)."""
    real = batch.seg > 0
    weights = real / real.sum(1, keepdim=True)
    if states.dim() == 3:
        return weights
    if packed is not None:
        return weights.flatten()[packed.rows]
    ones = torch.ones(len(states), device=states.device)
    return ones / batch.units_a_text if batch.masked else ones * (len(batch.src) / max(len(states), 1))


def common_heads(most: int, *widths: int) -> int:
    """The largest number up to `most` that divides all widths."""
    common = math.gcd(*widths)
    return max(number for number in range(1, min(most, common) + 1) if common % number == 0)


class _Divergence(torch.autograd.Function):
    """Σ w KL(softmax(y yᵀ / √e) ‖ softmax(x xᵀ / √d)) of all texts, mean over heads; x, y [batch, seq, heads * d or e].

    The gradient is found along, text by text where texts are long: G = w (softmax(x xᵀ / √d) − softmax(y yᵀ / √e)), and
    (G + Gᵀ) x / √d. So nothing of [batch, heads, seq, seq] is ever kept, and on a CPU it stays in the cache.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, y: torch.Tensor, heads: int, weights: torch.Tensor,
                padding: torch.Tensor | None) -> torch.Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = (weights.to(dtype) / heads)[:, None, :, None]
        gradient, losses = torch.empty_like(x, dtype=dtype), []
        rows = max(1, (AT_ONCE if x.is_cuda else IN_CACHE) // (heads * x.shape[1] ** 2))
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(x), rows):
                part = slice(start, start + rows)
                hidden = None if padding is None else padding[part, None, None, :]
                mine, theirs = (_scores(z[part].to(dtype), heads, hidden) for z in (x, y))
                mine, theirs = mine.log_softmax(-1), theirs.log_softmax(-1)
                shares = theirs.exp().mul_(weights[part])
                losses.append(shares.flatten() @ theirs.sub_(mine).flatten())
                apart = mine.exp_().mul_(weights[part]).sub_(shares)
                split = x[part].to(dtype).unflatten(-1, (heads, -1)).transpose(1, 2)
                d_split = (apart @ split + apart.transpose(2, 3) @ split) / split.shape[-1] ** 0.5
                gradient[part] = d_split.transpose(1, 2).flatten(2)
        ctx.save_for_backward(gradient)
        ctx.dtype = x.dtype
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx, d_loss: torch.Tensor):
        (gradient,) = ctx.saved_tensors
        return (gradient * d_loss).to(ctx.dtype), None, None, None, None  # rounded once a scale is in it


def _scores(x: torch.Tensor, heads: int, hidden: torch.Tensor | None) -> torch.Tensor:
    """x xᵀ / √d by heads: [rows, seq, heads * d] -> [rows, heads, seq, seq]; keys that are hidden get −10,000."""
    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = x @ x.transpose(2, 3) / x.shape[-1] ** 0.5
    return scores if hidden is None else scores.masked_fill(hidden, -1e4)
