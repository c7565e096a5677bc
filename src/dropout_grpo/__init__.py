"""Dropout-GRPO: post-training for language models that reason in continuous latent space (arXiv 2606.10184)."""

import importlib.metadata
from typing import TYPE_CHECKING

from dropout_grpo.lazy import lazily

if TYPE_CHECKING:
    from dropout_grpo.config.curriculum import CurriculumConfig as CurriculumConfig
    from dropout_grpo.config.grpo_config import GRPOConfig as GRPOConfig
    from dropout_grpo.curriculum.trainer import CurriculumTrainer as CurriculumTrainer
    from dropout_grpo.data.answers import extract_answer as extract_answer
    from dropout_grpo.data.files import load_problems as load_problems, save_problems as save_problems
    from dropout_grpo.data.problem import Problem as Problem
    from dropout_grpo.data.rewards import exact_answer as exact_answer
    from dropout_grpo.errors import UserError as UserError
    from dropout_grpo.evaluation.answering import is_correct as is_correct
    from dropout_grpo.exploration.base import Exploration as Exploration, NoExploration as NoExploration
    from dropout_grpo.exploration.dropout import PerStepDropout as PerStepDropout, SharedDropout as SharedDropout
    from dropout_grpo.latent.io.scratch import scratch_model as scratch_model
    from dropout_grpo.latent.model import LatentModel as LatentModel
    from dropout_grpo.latent.state import LatentState as LatentState
    from dropout_grpo.latent.tokens import add_latent_tokens as add_latent_tokens
    from dropout_grpo.rl.trainer import GRPOTrainer as GRPOTrainer
    from dropout_grpo.runs.folder import RunFolder as RunFolder
    from dropout_grpo.tasks.word_tokenizer import word_tokenizer as word_tokenizer, words_of as words_of

_HOME = {
    "CurriculumConfig": "config.curriculum",
    "CurriculumTrainer": "curriculum.trainer",
    "Exploration": "exploration.base",
    "GRPOConfig": "config.grpo_config",
    "GRPOTrainer": "rl.trainer",
    "LatentModel": "latent.model",
    "LatentState": "latent.state",
    "NoExploration": "exploration.base",
    "PerStepDropout": "exploration.dropout",
    "Problem": "data.problem",
    "RunFolder": "runs.folder",
    "SharedDropout": "exploration.dropout",
    "UserError": "errors",
    "add_latent_tokens": "latent.tokens",
    "exact_answer": "data.rewards",
    "extract_answer": "data.answers",
    "is_correct": "evaluation.answering",
    "load_problems": "data.files",
    "save_problems": "data.files",
    "scratch_model": "latent.io.scratch",
    "word_tokenizer": "tasks.word_tokenizer",
    "words_of": "tasks.word_tokenizer",
}
__all__ = [*_HOME]
__version__ = importlib.metadata.version("dropout-grpo")

if not TYPE_CHECKING:  # a module __getattr__ would make mypy accept any name
    __getattr__ = lazily(__name__, _HOME)
