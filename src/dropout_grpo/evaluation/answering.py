"""Answers of a model to a set of problems: plain, under many masks, and of the Bayesian model average."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from dropout_grpo.distributed import processes
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.config import EvaluationConfig
from dropout_grpo.evaluation.metrics import majority_vote
from dropout_grpo.exploration.base import ChangesWeights, Exploration, NoExploration
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.exploration.sites import THOUGHT
from dropout_grpo.latent.generation import require_finite_answers
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.recurrence import keyed_noise
from dropout_grpo.latent.sampling import AverageOverMasks, Chooser, Greedy, Sampled
from dropout_grpo.problems.answers import answers_match, canonical_answer, extract_answer
from dropout_grpo.problems.problem import Problem
from dropout_grpo.rl.rollout import Prompts, think_in_groups
from dropout_grpo.training.memory import MicroBatches
from dropout_grpo.training.precision import autocast

EVAL_STEP = -1
"""In the place of a training step in ``rollout_seeds``: evaluation never reuses a training mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a model said to one problem, as decoded.

    Attributes:
        problem: what was asked.
        plain: the plain network's answer.
        plain_length: its tokens, EOS among them.
        plain_clipped: it was cut off at ``max_new_tokens``.
        samples: n answers under masks, or at a temperature.
        sample_lengths: their tokens.
        average: the model average's answer; None without masks.
    """

    problem: Problem
    plain: str
    plain_length: int
    plain_clipped: bool
    samples: tuple[str, ...] = ()
    sample_lengths: tuple[int, ...] = ()
    average: str | None = None

    @property
    def plain_correct(self) -> bool:
        """Is the plain network's answer right?"""
        return is_correct(self.plain, self.problem)

    def samples_correct(self) -> list[bool]:
        """Which samples are right; what the samples have in common is read once."""
        right = {said: is_correct(said, self.problem) for said in set(self.samples)}
        return [right[said] for said in self.samples]

    def votes(self) -> list[str | None]:
        """The samples' answers in canonical form; None where there is none to parse."""
        read = {said: _vote(said) for said in set(self.samples)}
        return [read[said] for said in self.samples]


def is_correct(completion: str, problem: Problem) -> bool:
    """Does the text after the last ``###`` match the gold answer?"""
    return answers_match(extract_answer(completion), problem.answer)


def check_evaluation(
    model: LatentModel, problems: Sequence[Problem], config: EvaluationConfig, exploration: Exploration
) -> list[list[int]]:
    """Refuse what ``answer_problems`` could not measure, before anything is asked.

    Returns:
        The encoded questions.

    Raises:
        UserError: no problems, a question too long for the model, or samples asked for with nothing random.
    """
    if not problems:
        raise UserError("there are no problems to evaluate on.")
    steps = _latent_steps(model, config)
    if config.num_samples > 1 and config.temperature == 0 and not _masks_matter(model, exploration, steps):
        raise UserError(
            f"num_samples={config.num_samples} with temperature 0 and no exploration: all samples would be the same. "
            "Set a temperature, an exploration, or num_samples 0."
        )
    more_thoughts = steps - model.latent_steps  # encode_rows leaves room for the model's own
    return model.encode_rows([p.question for p in problems], room=config.max_new_tokens + more_thoughts)


def answer_problems(
    model: LatentModel,
    problems: Sequence[Problem],
    config: EvaluationConfig,
    *,
    exploration: Exploration | None = None,
    seed: int = 0,
    bf16: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Answered]:
    """Ask a model everything.

    Args:
        model: the checkpoint.
        problems: what to ask, in any order; batches are bucketed by length.
        config: how.
        exploration: masks for the samples and the average.
        seed: of the masks and samples.
        bf16: matrix products in bf16.
        progress: told how many problems are done after each batch.

    Raises:
        UserError: see ``check_evaluation``; not even one problem fits memory; logits are not finite.
    """
    exploration = exploration or NoExploration()
    encoded = check_evaluation(model, problems, config, exploration)
    by_length = sorted(range(len(problems)), key=lambda i: len(encoded[i]))
    order = by_length[processes.rank() :: processes.size()]

    def answer_first(places: list[int], size: int) -> list[Answered]:
        prompts = Prompts(*model.pad([encoded[i] for i in places[:size]]))
        with torch.no_grad(), autocast(model.device, bf16):
            return _answer_batch(model, [problems[i] for i in places[:size]], prompts, config, exploration, seed)

    answered: dict[int, Answered] = {}
    batches = MicroBatches("evaluation.batch_size", config.batch_size)
    while rest := order[len(answered) :]:
        said = batches.fit(len(rest), partial(answer_first, rest), rows=max(1, config.num_samples))
        answered |= dict(zip(rest, said, strict=False))
        if progress is not None:
            progress(min(len(problems), len(answered) * processes.size()))
    records = [{"place": i, **asdict(said), "problem": None} for i, said in answered.items()]
    everyones = [record for of_rank in processes.gather_json(records) for record in of_rank]
    return [_from_record(record, problems) for record in sorted(everyones, key=lambda record: record["place"])]


def _from_record(record: dict[str, Any], problems: Sequence[Problem]) -> Answered:
    """What another process was answered; JSON has turned tuples into lists."""
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
    values["problem"] = problems[values.pop("place")]
    return Answered(**values)


def _answer_batch(
    model: LatentModel,
    problems: Sequence[Problem],
    prompts: Prompts,
    config: EvaluationConfig,
    exploration: Exploration,
    seed: int,
) -> list[Answered]:
    """Each question is read once, and thinks once plain and once under its masks."""
    n, length, steps = config.num_samples, config.max_new_tokens, _latent_steps(model, config)
    read = model.read(prompts.input_ids, prompts.attention_mask)
    plain = model.generate(model.think(read, steps), length)
    require_finite_answers(plain, lambda row: _place(problems[row]))
    plain_texts = model.decode(plain.token_ids, plain.mask)
    plain_lengths = plain.mask.sum(-1).tolist()
    ended = (plain.mask & (plain.token_ids == model.tokens.eos)).any(-1).tolist()
    samples: list[str] = []
    sample_lengths: list[int] = []
    averages: list[str | None] = [None] * len(problems)
    if n > 0:
        seeds = rollout_seeds(seed, EVAL_STEP, torch.tensor([p.id for p in problems]), n)  # [N, n]
        state, noise = think_in_groups(model, prompts, seeds, exploration, steps, read=read)
        chooser: Chooser = Greedy()
        if config.temperature > 0:
            chooser = Sampled(seeds.flatten().to(model.device), config.temperature)
        drawn = model.generate(state, length, chooser=chooser, noise=noise)
        require_finite_answers(drawn, lambda row: _place(problems[row // n]))
        samples, sample_lengths = model.decode(drawn.token_ids, drawn.mask), drawn.mask.sum(-1).tolist()
        if noise is not None:
            common = model.generate(state, length, chooser=AverageOverMasks(n), noise=noise)
            averages = [*model.decode(common.token_ids[::n], common.mask[::n])]
    return [
        Answered(
            problem=problem,
            plain=plain_texts[i],
            plain_length=plain_lengths[i],
            plain_clipped=not ended[i],
            samples=tuple(samples[i * n : i * n + n]),
            sample_lengths=tuple(sample_lengths[i * n : i * n + n]),
            average=averages[i],
        )
        for i, problem in enumerate(problems)
    ]


def _place(problem: Problem) -> str:
    return f"problem {problem.id + 1} ({problem.question!r:.60})"


def _latent_steps(model: LatentModel, config: EvaluationConfig) -> int:
    return model.latent_steps if config.latent_steps is None else config.latent_steps


def _masks_matter(model: LatentModel, exploration: Exploration, latent_steps: int) -> bool:
    """Does a mask multiply anything on the way to an answer? Not in the latent phase of a model without thoughts."""
    noise = model.noise(exploration, torch.zeros(1, dtype=torch.int64))
    if noise is None:
        return False
    phases = ("prompt", "latent", "answer") if latent_steps > 0 else ("prompt", "answer")
    if isinstance(noise, ChangesWeights):
        return any(noise.weight_changes(phase, 0) for phase in phases)
    keyed, keys = keyed_noise(noise), torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    if keyed is not None and any(keyed.key_factors(phase, 0, keys) for phase in phases):
        return True
    # What is fed back is fed back in the latent phase only.
    return any(site != THOUGHT or phase == "latent" for phase in phases for site in noise.factors(phase, 0))


def _vote(completion: str) -> str | None:
    answer = extract_answer(completion)
    return None if answer is None else canonical_answer(answer)


def vote_table(answered: Answered) -> dict[str, int]:
    """How the masks voted on one problem, most votes first; what cannot be parsed is ``(unparsable)``."""
    names = ["(unparsable)" if vote is None else vote for vote in answered.votes()]
    return {name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))}


def vote(answered: Answered) -> str | None:
    """The majority's answer."""
    return majority_vote(answered.votes())
