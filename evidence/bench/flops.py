"""Model FLOPs: only matrix products of a decoder shaped like GPT-2 or Llama, 2 m n k each.

The count is the work that an arm needs, even if its kernels do more: a position attends to itself and to earlier
positions, and the language-model head runs only where a token is chosen or scored. A backward pass counts as two
forward passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from evidence.bench.config import GROUPED, Job, Setting

FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a decoder: shaped like Llama if ``key_width`` is given, else like GPT-2."""

    layers: int
    width: int
    mlp: int
    vocab: int
    key_width: int | None = None  # of all key heads together

    def products(self) -> tuple[tuple[int, int], ...]:
        """Sizes (in, out) of a layer's matrix products, in the order in which they run.

        GPT-2 has queries, keys and values in one product, then attention's output, MLP up and down. Llama has queries,
        keys and values apart, attention's output, and the MLP's gate, up and down.
        """
        d, m = self.width, self.mlp
        if self.key_width is None:
            return (d, 3 * d), (d, d), (d, m), (m, d)
        return (d, d), (d, self.key_width), (d, self.key_width), (d, d), (d, m), (d, m), (m, d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Forward work of one kind."""

    name: str
    tokens: int  # positions that go through the layers
    pairs: int  # pairs of a new position and a position that it attends to, per head and layer
    logits: int  # positions with a language-model head
    rows: int  # positions in one matrix product


def linear_flops(shape: Shape, phase: Phase) -> int:
    """FLOPs of the layers' matrix products with weights."""
    return phase.tokens * shape.layers * sum(2 * a * b for a, b in shape.products())


def attention_flops(shape: Shape, phase: Phase) -> int:
    """FLOPs of queries times keys and of weights times values: 2 D each per pair."""
    return phase.pairs * shape.layers * 4 * shape.width


def head_flops(shape: Shape, phase: Phase) -> int:
    """FLOPs of the language-model head."""
    return phase.logits * 2 * shape.width * shape.vocab


def forward_flops(shape: Shape, phases: Sequence[Phase]) -> int:
    """FLOPs of a forward pass."""
    return sum(linear_flops(shape, p) + attention_flops(shape, p) + head_flops(shape, p) for p in phases)


def passes(job: Job) -> int:
    """The cost of a job in forward passes: 3 with a backward pass, else 1."""
    return FORWARD_AND_BACKWARD if job in ("update", "curriculum") else 1


def engine_phases(setting: Setting, job: Job) -> list[Phase]:
    """The engine: a prompt is read once per question."""
    return _latent(setting, job, readers=setting.questions if job in GROUPED else setting.problems)


def plain_phases(setting: Setting, job: Job) -> list[Phase]:
    """The plain way: a prompt is read once per rollout."""
    return _latent(setting, job, readers=setting.rows(job))


def published_phases(setting: Setting, job: Job) -> list[Phase]:
    """The published way: each thought and sampled token runs the whole prefix again; scored tokens share a pass."""
    s, n, length, rows = setting.prompt_tokens, setting.latent_steps, setting.answer_tokens, setting.rows(job)
    prefixes = range(s, s + n)
    answers = [s + n + length] if passes(job) > 1 else range(s + n + 1, s + n + length + 1)
    return [
        _phase("think", rows * sum(prefixes), rows * sum(map(triangle, prefixes)), 0, s),
        _phase("answer", rows * sum(answers), rows * sum(map(triangle, answers)), rows * length, s + n + length),
    ]


def cot_phases(setting: Setting, job: Job) -> list[Phase]:
    """Chain of thought: every token of steps and answer goes through the head, all but the last through the layers."""
    s, length, rows = setting.prompt_tokens, setting.cot_tokens + setting.answer_tokens, setting.rows(job)
    after, pairs = rows * (length - 1), rows * (triangle(s + length - 1) - triangle(s))
    batch = _at_once(setting, job)
    return [
        _phase("read", rows * s, rows * triangle(s), 0, batch * s),
        _phase("answer", after, pairs, rows * length, batch * (length - 1) if passes(job) > 1 else batch),
    ]


def triangle(length: int) -> int:
    """Pairs of a position and one it attends to in a causal sequence."""
    return length * (length + 1) // 2


def _latent(setting: Setting, job: Job, *, readers: int) -> list[Phase]:
    s, n, length, rows = setting.prompt_tokens, setting.latent_steps, setting.answer_tokens, setting.rows(job)
    batch = _at_once(setting, job)
    own = [triangle(s), triangle(s + n), triangle(s + n + length)]
    return [
        _phase("read", readers * s, readers * own[0], 0, max(1, batch * readers // rows) * s),
        _phase("think", rows * n, rows * (own[1] - own[0]), 0, batch),
        _phase(
            "answer",
            rows * length,
            rows * (own[2] - own[1]),
            rows * length,
            batch * length if passes(job) > 1 else batch,
        ),
    ]


def _at_once(setting: Setting, job: Job) -> int:
    """Rows in one pass. Updates are cut into micro-batches."""
    rows = setting.rows(job)
    return min(rows, setting.micro_batch_size) if job == "update" else rows


def _phase(name: str, tokens: int, pairs: int, logits: int, rows: int) -> Phase:
    return Phase(name=name, tokens=tokens, pairs=pairs, logits=logits, rows=rows)
