"""Options of the benchmark, and a single case with all numbers resolved."""

from dataclasses import dataclass, replace
from typing import Literal

from dropout_grpo.config.ranges import check_ranges, ranged, seed_field
from dropout_grpo.errors import UserError

Job = Literal["rollouts", "update", "curriculum", "evaluation"]
Size = Literal["tiny", "gpt2", "smollm2", "qwen-0.5b"]
OtherWay = Literal["plain", "published", "cot"]
Axis = Literal["num_generations", "latent_steps"]

GROUPED: tuple[Job, ...] = ("rollouts", "update")
"""Jobs on groups of K rollouts. The other jobs have one row per problem."""

_LEAST_ANSWER = 3
"""An answer consists of ``###``, at least one word and EOS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Defaults:
    questions: int
    problems: int
    micro_batch_size: int
    positions: int


_DEFAULTS: dict[str, _Defaults] = {  # batches of the larger sizes make a run of minutes on 2 cores
    "tiny": _Defaults(questions=32, problems=64, micro_batch_size=512, positions=256),
    "gpt2": _Defaults(questions=2, problems=16, micro_batch_size=64, positions=1024),
    "smollm2": _Defaults(questions=2, problems=16, micro_batch_size=64, positions=1024),
    "qwen-0.5b": _Defaults(questions=2, problems=16, micro_batch_size=16, positions=1024),
}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure.

    Args:
        size: tiny is the demo's model (a GPT-2 with 3 layers of width 128), gpt2 has 124 M parameters, smollm2 is a
            Llama with 135 M (30 layers of width 576, grouped heads, gated MLPs), qwen-0.5b a Qwen2 with 0.63 billion
            (24 layers of width 896, an untied head over 151,936 words). All have random weights.
        jobs: rollouts, update, curriculum, evaluation.
        beside: the ways that the engine is compared with: plain (every rollout reads its own prompt), published (one
            row at a time, no cache), cot (chain of thought in tokens, with transformers).
        num_generations: values of K for rollouts and update.
        prompt_tokens: length of every prompt.
        latent_steps: number of thoughts.
        answer_tokens: length of every answer; no answer ends early.
        cot_tokens: tokens of the steps that chain of thought writes before its answer.
        questions: groups in a batch of rollouts or of an update. The default depends on size.
        problems: rows in a batch of the curriculum or of evaluation. The default depends on size.
        micro_batch_size: rollouts in one forward and backward pass, in all arms. The default depends on size.
        published_rows: rows that the published way is measured on; its time is scaled to the batch.
        repeats: timed runs per arm, after one untimed run (two on CUDA).
        memory: also measure peak memory; on a CPU each arm then runs once more in a fresh process.
        device: cpu or cuda. The default is cuda if there is a CUDA device.
        bf16: compute matrix products in bf16. By default on hardware that multiplies bf16 matrices, unless the
            largest batch is small.
        seed: seed of weights, questions, masks and samples.
    """

    size: Size = "tiny"
    jobs: tuple[Job, ...] = ("rollouts", "update", "curriculum", "evaluation")
    beside: tuple[OtherWay, ...] = ("plain", "published", "cot")
    num_generations: tuple[int, ...] = ranged((8, 32), at_least=2, why="a group has at least 2 rollouts")
    prompt_tokens: int = ranged(64, at_least=3, why="a word, a newline and the start marker")
    latent_steps: int = ranged(6, at_least=1)
    answer_tokens: int = ranged(8, at_least=_LEAST_ANSWER, why="###, a word and EOS")
    cot_tokens: int = ranged(26, at_least=1)
    questions: int | None = ranged(None, at_least=1, why="leave it out to use the default")
    problems: int | None = ranged(None, at_least=1, why="leave it out to use the default")
    micro_batch_size: int | None = ranged(None, at_least=1, why="leave it out to use the default")
    published_rows: int = ranged(4, at_least=1)
    repeats: int = ranged(5, at_least=1)
    memory: bool = True
    device: Literal["cpu", "cuda"] | None = None
    bf16: bool | None = None
    seed: int = seed_field()

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            UserError: an option has a value that cannot be measured; names the option and the remedy.
        """
        check_ranges(self, "bench")
        for name in ("jobs", "num_generations"):
            if not getattr(self, name):
                raise UserError(f"bench {name} is empty: name at least one.")
        if self.device == "cuda" and not _has_cuda():
            raise UserError("bench device cuda: torch finds no CUDA device here; leave --device out or give cpu.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The sizes of one case. All values are plain, so that a fresh process can receive them as JSON."""

    size: Size
    num_generations: int  # K
    questions: int
    problems: int
    prompt_tokens: int
    latent_steps: int
    answer_tokens: int
    cot_tokens: int
    micro_batch_size: int
    published_rows: int
    device: str
    bf16: bool
    positions: int
    seed: int

    def rows(self, job: Job) -> int:
        """Rollouts or problems per batch of the job."""
        return self.questions * self.num_generations if job in GROUPED else self.problems


def resolve(config: BenchConfig, num_generations: int) -> Setting:
    """The case of a config at one value of K.

    Raises:
        UserError: prompt, thoughts or steps, and answer need more positions than the model has.
    """
    import torch

    from dropout_grpo.training.machine import bf16_or_not

    defaults = _DEFAULTS[config.size]
    longest = config.prompt_tokens + max(config.latent_steps + 1, config.cot_tokens) + config.answer_tokens
    if longest > defaults.positions:
        raise UserError(
            f"bench size {config.size} has {defaults.positions} positions, and prompt, thoughts or steps, and answer "
            f"need {longest}: lower prompt_tokens, latent_steps or cot_tokens."
        )
    device = config.device or ("cuda" if _has_cuda() else "cpu")
    setting = Setting(
        size=config.size,
        num_generations=num_generations,
        questions=config.questions or defaults.questions,
        problems=config.problems or defaults.problems,
        prompt_tokens=config.prompt_tokens,
        latent_steps=config.latent_steps,
        answer_tokens=config.answer_tokens,
        cot_tokens=config.cot_tokens,
        micro_batch_size=max(config.micro_batch_size or defaults.micro_batch_size, num_generations),
        published_rows=config.published_rows,
        device=device,
        bf16=False,
        positions=defaults.positions,
        seed=config.seed,
    )
    rows = max(setting.rows(job) for job in config.jobs)
    return replace(setting, bf16=bf16_or_not(config.bf16, torch.device(device), rows))


def _has_cuda() -> bool:
    import torch  # not at the top: --help would wait for it

    return torch.cuda.is_available()
