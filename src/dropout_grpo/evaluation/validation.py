"""Validation of a model while it is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError, at_place
from dropout_grpo.evaluation.answering import ModelAnswers, answer_problems, check_evaluation, evaluation_batches
from dropout_grpo.evaluation.measures import powers_of_two, summarize
from dropout_grpo.exploration.base import Exploration, NoExploration
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import Sampling
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import Prompts
from dropout_grpo.training.memory import MicroBatches
from dropout_grpo.training.plan import Held, Work, available_memory, planned, sampled
from dropout_grpo.training.progress import console


def require_one_validation(eval_dataset: object, evaluate: object, evaluation: object, eval_steps: int) -> None:
    """Check a trainer's arguments of these names: what is given has an effect, or a warning tells of it.

    Raises:
        UserError: there are two ways to validate, or ``evaluation`` without problems that are asked in this way.
    """
    if evaluate is not None and eval_dataset is not None:
        raise UserError("eval_dataset and evaluate both say how to validate: leave one of them out.")
    if evaluation is not None and eval_dataset is None:
        raise UserError("evaluation says how eval_dataset is asked, and there is none: give it, or leave both out.")
    if eval_steps > 0 and eval_dataset is None and evaluate is None:
        tell_without_effect("eval_steps", eval_steps, "eval_dataset")


def tell_without_effect(option: str, value: object, needs: str) -> None:
    """Print a warning that an option of a validation has no effect without what it needs."""
    console.print(f"warning: {option}={value}: no effect; it needs {needs}.", markup=False)


class Validation:
    """Asks a model the problems of one or several sets. Their questions are encoded once.

    Args:
        sets: problems by the name of their set.
        config: how they are asked.
        exploration: masks of the samples.
        seed: seed of the masks and samples.
        bf16: matrix products in bf16.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[Problem]],
        config: EvaluationConfig,
        exploration: Exploration | None = None,
        *,
        seed: int,
        bf16: bool,
    ) -> None:
        self.sets, self.config, self.seed, self.bf16 = dict(sets), config, seed, bf16
        self.exploration = exploration or NoExploration()
        self._encoded: dict[str, list[list[int]]] = {}  # by set
        self._batches = evaluation_batches(config)

    @property
    def measures(self) -> list[str]:
        """Names of the shares that a call returns."""
        own = _shares_of(self.config.num_samples)
        return own + [f"{name}/{measure}" for name in self.sets if len(self.sets) > 1 for measure in own]

    def __call__(
        self, model: LatentModel, latent_steps: int | None = None, max_new_tokens: int | None = None
    ) -> dict[str, float]:
        """Shares of right answers; see ``validation_metrics``.

        Args:
            model: what answers.
            latent_steps: number of thoughts, where it is not the model's own.
            max_new_tokens: maximum number of answer tokens; the config's when None.
        """
        config = self._asked(latent_steps, max_new_tokens)
        answered: dict[str, Sequence[ModelAnswers]] = {}
        for name, problems in self.sets.items():
            answered[name] = answer_problems(
                model,
                problems,
                config,
                exploration=self.exploration,
                seed=self.seed,
                bf16=self.bf16,
                batches=self._batches,
                encoded=self._questions(model, name),
                average=False,
            )
        return validation_metrics(answered)

    def check(self, model: LatentModel, latent_steps: int | None = None, max_new_tokens: int | None = None) -> None:
        """Check, before a training, that a call with these arguments can ask every question.

        Raises:
            UserError: see ``answering.check_evaluation``; names the set.
        """
        config = self._asked(latent_steps, max_new_tokens)
        for name, problems in self.sets.items():
            with at_place(f"eval_dataset[{name!r}]" if name else "eval_dataset"):
                check_evaluation(model, problems, config, self.exploration, self._questions(model, name))

    def _asked(self, latent_steps: int | None, max_new_tokens: int | None) -> EvaluationConfig:
        config = replace(self.config, max_new_tokens=max_new_tokens or self.config.max_new_tokens)
        return config if latent_steps is None else replace(config, latent_steps=latent_steps)

    def _questions(self, model: LatentModel, name: str) -> list[list[int]]:
        if name not in self._encoded:
            self._encoded[name] = model.tokenize([problem.prompt for problem in self.sets[name]])
        return self._encoded[name]

    def work(self, model: LatentModel, latent_steps: int | None = None, max_new_tokens: int | None = None) -> Work:
        """The validation as a work whose batches must fit in memory; the arguments are those of a call."""
        config = self._asked(latent_steps, max_new_tokens)
        samples, length, steps = max(1, config.num_samples), config.max_new_tokens, config.latent_steps
        longest = max((row for name in self.sets for row in self._questions(model, name)), key=len)

        def run(rows: int) -> Held:
            prompts = Prompts(*model.pad([longest] * (rows // samples)))
            seeds = torch.arange(rows).view(-1, samples)
            exploration: Exploration = self.exploration if config.num_samples else NoExploration()
            strategy = Sampling(seeds.flatten().to(model.device), config.temperature or 1.0)
            with autocast(model.device, self.bf16):
                return sampled(model, prompts, seeds, exploration, strategy, length=length, latent_steps=steps)

        most = samples * sum(map(len, self.sets.values()))
        return Work(name="evaluation", batches=self._batches, rows=samples, most=most, run=run)


def planned_batches(
    model: LatentModel,
    problems: Sequence[Problem],
    config: EvaluationConfig,
    exploration: Exploration | None = None,
    *,
    bf16: bool = False,
) -> MicroBatches:
    """Batches for ``answer_problems``, with its arguments. On a CPU the size is halved until it fits in memory."""
    work = Validation({"": problems}, config, exploration, seed=0, bf16=bf16).work(model)
    if model.device.type == "cpu":
        (size,) = planned(model, [work], optimizer=0, reference=None, available=available_memory()).sizes
        if size.rows < size.before:
            console.print(f"memory: {size.choice}", markup=False)
        work.batches.size = size.rows
    return work.batches


def validation_metrics(answered: Mapping[str, Sequence[ModelAnswers]]) -> dict[str, float]:
    """Shares of right answers, for validation during training.

    Args:
        answered: the answers to each set of problems, by its name.

    Returns:
        ``pass@1`` of the plain network over all problems; with samples also ``masked_pass@1`` and ``pass@k`` for k = 2,
        4, 8, ... n. With several sets, the same for each of them, with its name in front: ``NAME/pass@1``.
    """
    shares = _shares([a for part in answered.values() for a in part])
    if len(answered) > 1:
        for name, part in answered.items():
            shares |= {f"{name}/{measure}": share for measure, share in _shares(part).items()}
    return shares


def _shares(answered: Sequence[ModelAnswers]) -> dict[str, float]:
    row = summarize(answered)
    return {name: row[name] for name in _shares_of(len(answered[0].samples))}


def _shares_of(num_samples: int) -> list[str]:
    """Names of the shares of one set."""
    sampled = ["masked_pass@1", *(f"pass@{k}" for k in powers_of_two(num_samples) if k > 1)]
    return ["pass@1", *(sampled if num_samples else ())]
