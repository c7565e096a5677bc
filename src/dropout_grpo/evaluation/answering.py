"""Answers of a model to a set of problems: plain, under many masks, and of the Bayesian model average."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.data.answers import answers_match, canonical_answer, extract_answer
from dropout_grpo.data.problem import Problem
from dropout_grpo.distributed import processes
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.statistics import majority_vote
from dropout_grpo.exploration.base import Exploration, NoExploration, OwnHooks
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.exploration.sites import THOUGHT_SITE
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import AverageOverMasks, DecodingStrategy, Greedy, Sampling, require_finite_answers
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.recurrence import keyed_noise
from dropout_grpo.latent.rollout import Prompts, think_in_groups
from dropout_grpo.training.machine import threads_for
from dropout_grpo.training.memory import MicroBatches

EVAL_STEP = -1
"""The step that ``rollout_seeds`` gets in an evaluation, so that it never reuses a training mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswers:
    """The answers of a model to one problem, as decoded.

    Attributes:
        problem: the problem.
        plain: the plain network's answer.
        plain_length: its number of tokens, including EOS.
        plain_clipped: whether it was cut off at ``max_new_tokens``.
        samples: n answers under masks, or at a temperature.
        sample_lengths: their numbers of tokens.
        average: the model average's answer; None without masks.
        tolerance: two numbers count as equal if they differ by at most this.
    """

    problem: Problem
    plain: str
    plain_length: int
    plain_clipped: bool
    samples: tuple[str, ...] = ()
    sample_lengths: tuple[int, ...] = ()
    average: str | None = None
    tolerance: float = 0.0

    @property
    def plain_correct(self) -> bool:
        """Whether the plain network's answer is right."""
        return is_correct(self.plain, self.problem, self.tolerance)

    @property
    def average_correct(self) -> bool | None:
        """Whether the model average's answer is right; None without masks."""
        return None if self.average is None else is_correct(self.average, self.problem, self.tolerance)

    def samples_correct(self) -> list[bool]:
        """Whether each sample is right. Equal samples are compared once."""
        right = {text: is_correct(text, self.problem, self.tolerance) for text in set(self.samples)}
        return [right[text] for text in self.samples]

    def votes(self) -> list[str | None]:
        """The samples' answers in canonical form; None for a sample without an answer."""
        votes = {text: _vote(text) for text in set(self.samples)}
        return [votes[text] for text in self.samples]


def is_correct(completion: str, problem: Problem, tolerance: float = 0.0) -> bool:
    """Whether the text after the last ``###`` matches the gold answer; see `answers.answers_match`."""
    return answers_match(extract_answer(completion), problem.answer, tolerance)


def check_evaluation(
    model: LatentModel,
    problems: Sequence[Problem],
    config: EvaluationConfig,
    exploration: Exploration,
    encoded: Sequence[list[int]] | None = None,
) -> Sequence[list[int]]:
    """Check, before any question is asked, that ``answer_problems`` can measure the problems.

    Returns:
        The encoded questions, ``encoded`` if it is given.

    Raises:
        UserError: there are no problems, a question is too long for the model, or all samples would be the same.
    """
    if not problems:
        raise UserError("there are no problems to evaluate on.")
    steps = _latent_steps(model, config)
    if config.num_samples > 1 and all_alike(model, config, exploration):
        raise UserError(
            f"num_samples={config.num_samples} with temperature 0 and no masks that change an answer: all samples "
            "would be the same. Set a temperature, an exploration, or num_samples 0."
        )
    if encoded is None:
        encoded = model.tokenize([p.prompt for p in problems])
    model.check_length(encoded, steps + 1 + config.max_new_tokens)
    return encoded


def evaluation_batches(config: EvaluationConfig) -> MicroBatches:
    """Batches of the size in the config, halved where memory runs out. Keep them to remember the size."""
    return MicroBatches("evaluation.batch_size", config.batch_size)


def answer_problems(
    model: LatentModel,
    problems: Sequence[Problem],
    config: EvaluationConfig,
    *,
    exploration: Exploration | None = None,
    seed: int = 0,
    bf16: bool = False,
    progress: Callable[[int], None] | None = None,
    batches: MicroBatches | None = None,
    encoded: Sequence[list[int]] | None = None,
    average: bool = True,
) -> list[ModelAnswers]:
    """Ask a model all problems.

    Args:
        model: the checkpoint.
        problems: problems in any order; batches are formed by length.
        config: options.
        exploration: masks for the samples and the average.
        seed: seed of the masks and samples.
        bf16: matrix products in bf16.
        progress: called with the number of finished problems after each batch.
        batches: batches of an earlier call, whose size is used again; new ones if None.
        encoded: the questions as ``check_evaluation`` returns them, of an earlier call.
        average: answer with the model average too, where there are masks.

    Raises:
        UserError: see ``check_evaluation``; not even one problem fits in memory; logits are not finite.
    """
    exploration = exploration or NoExploration()
    encoded = check_evaluation(model, problems, config, exploration, encoded)
    by_length = sorted(range(len(problems)), key=lambda i: len(encoded[i]))
    order = by_length[processes.rank() :: processes.size()]

    def answer_first(indices: list[int], size: int) -> list[ModelAnswers]:
        prompts = Prompts(*model.pad([encoded[i] for i in indices[:size]]))
        with torch.no_grad(), autocast(model.device, bf16):
            some = [problems[i] for i in indices[:size]]
            return _answer_batch(model, some, prompts, config, exploration, seed, average=average)

    answered: dict[int, ModelAnswers] = {}
    batches = batches or evaluation_batches(config)
    samples = max(1, config.num_samples)
    with threads_for(model.model, min(samples * len(order), max(samples, batches.size))):
        while rest := order[len(answered) :]:
            answers = batches.fit(len(rest), partial(answer_first, rest), rows=samples)
            answered |= dict(zip(rest, answers, strict=False))
            if progress is not None:
                progress(min(len(problems), len(answered) * processes.size()))
    of_all = {i: answer for of_rank in processes.gather(answered) for i, answer in of_rank.items()}
    return [of_all[i] for i in range(len(problems))]


def _answer_batch(
    model: LatentModel,
    problems: Sequence[Problem],
    prompts: Prompts,
    config: EvaluationConfig,
    exploration: Exploration,
    seed: int,
    *,
    average: bool,
) -> list[ModelAnswers]:
    """Read each question once; think once with the plain network and once under each mask."""
    n, length, steps = config.num_samples, config.max_new_tokens, _latent_steps(model, config)
    read = model.read(prompts.input_ids, prompts.attention_mask)
    plain = model.generate(model.think(read, steps), length)
    require_finite_answers(plain, lambda row: _place(problems[row]))
    plain_texts = model.decode(plain.token_ids, plain.mask)
    plain_lengths = plain.mask.sum(-1).tolist()
    ended = (plain.mask & model.tokens.end_answer(plain.token_ids)).any(-1).tolist()
    samples: list[str] = []
    sample_lengths: list[int] = []
    averages: list[str | None] = [None] * len(problems)
    if n > 0:
        seeds = rollout_seeds(seed, EVAL_STEP, torch.tensor([p.id for p in problems]), n)  # [N, n]
        state, noise = think_in_groups(model, prompts, seeds, exploration, steps, read=read)
        strategy: DecodingStrategy = Greedy()
        if config.temperature > 0:
            strategy = Sampling(seeds.flatten().to(model.device), config.temperature)
        drawn = model.generate(state, length, strategy=strategy, noise=noise)
        require_finite_answers(drawn, lambda row: _place(problems[row // n]))
        samples, sample_lengths = model.decode(drawn.token_ids, drawn.mask), drawn.mask.sum(-1).tolist()
        if noise is not None and average:
            common = model.generate(state, length, strategy=AverageOverMasks(n), noise=noise)
            averages = [*model.decode(common.token_ids[::n], common.mask[::n])]
    return [
        ModelAnswers(
            problem=problem,
            plain=plain_texts[i],
            plain_length=plain_lengths[i],
            plain_clipped=not ended[i],
            samples=tuple(samples[i * n : i * n + n]),
            sample_lengths=tuple(sample_lengths[i * n : i * n + n]),
            average=averages[i],
            tolerance=config.tolerance,
        )
        for i, problem in enumerate(problems)
    ]


def _place(problem: Problem) -> str:
    return f"problem {problem.id + 1} ({problem.question!r:.60})"


def _latent_steps(model: LatentModel, config: EvaluationConfig) -> int:
    return model.latent_steps if config.latent_steps is None else config.latent_steps


def all_alike(model: LatentModel, config: EvaluationConfig, exploration: Exploration) -> bool:
    """Whether all samples of a problem are the same, because neither masks nor a temperature make them differ."""
    return config.temperature == 0 and not _masks_matter(model, exploration, _latent_steps(model, config))


def _masks_matter(model: LatentModel, exploration: Exploration, latent_steps: int) -> bool:
    """Whether a mask changes an answer. One in the latent phase of a model without thoughts does not."""
    noise = model.noise(exploration, torch.zeros(1, dtype=torch.int64))
    if noise is None:
        return False
    phases = ("prompt", "latent", "answer") if latent_steps > 0 else ("prompt", "answer")
    if isinstance(noise, OwnHooks):
        return not set(exploration.phases).isdisjoint(phases)
    keyed, keys = keyed_noise(noise), torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    if keyed is not None and any(keyed.key_factors(phase, 0, keys) for phase in phases):
        return True
    # The thought is fed back in the latent phase only.
    return any(site != THOUGHT_SITE or phase == "latent" for phase in phases for site in noise.factors(phase, 0))


def _vote(completion: str) -> str | None:
    answer = extract_answer(completion)
    return None if answer is None else canonical_answer(answer)


def vote_table(answered: ModelAnswers) -> dict[str, int]:
    """The votes of the masks on one problem, most frequent first; ``(unparsable)`` counts samples without an answer."""
    names = ["(unparsable)" if vote is None else vote for vote in answered.votes()]
    return {name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))}


def vote(answered: ModelAnswers) -> str | None:
    """The most frequent answer of the masks; None if none has an answer."""
    return majority_vote(answered.votes())
