"""Memory that a run needs beside the weights, known from the plan beforehand."""

from __future__ import annotations

from .fts import FTS
from .plan import Plan
from .spec import ModelSpec

# Tensors of (rows, dim) that live at once in a block: residual, norm, q, k, v, output; and the MLP's two.
BLOCK_TENSORS = 6
HEAD_TENSORS = 8


def activation_bytes(plan: Plan, spec: ModelSpec, *, guided: bool, itemsize: int, fts: FTS | None = None) -> int:
    """An upper estimate in bytes for ``plan``; ``itemsize`` is the transformer's, the head works in float32."""
    rows, peak = plan.batch * (2 if guided else 1), 0
    for step in plan.steps:
        sequence = spec.buffer + step.known.shape[1] + step.tokens + step.context.shape[1]
        block = rows * sequence * spec.dim * (BLOCK_TENSORS + 2 * spec.mlp_ratio) * itemsize
        scores = rows * spec.heads * sequence**2 * itemsize
        steps = max(step.diffusion_steps, fts.detail_steps if fts and step.reconstruction else 0)
        head = rows * step.tokens * spec.head.width * HEAD_TENSORS * 4
        noise = plan.batch * step.tokens * spec.head.channels * (steps + 1) * 4
        peak = max(peak, block + scores, head + noise)
    return peak
