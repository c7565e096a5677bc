"""Dropout-GRPO: post-training for language models that reason in continuous latent space (arXiv 2606.10184)."""

from dropout_grpo.curriculum.config import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.evaluate import is_correct
from dropout_grpo.exploration import Exploration, NoExploration, PerStepDropout, SharedDropout
from dropout_grpo.latent import LatentModel, LatentState
from dropout_grpo.latent.scratch import scratch_model
from dropout_grpo.latent.tokens import add_latent_tokens
from dropout_grpo.rl.config import GRPOConfig
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.tasks.answers import extract_answer
from dropout_grpo.tasks.files import load_problems, save_problems
from dropout_grpo.tasks.problem import Problem
from dropout_grpo.tasks.rewards import exact_answer
from dropout_grpo.tasks.word_tokenizer import word_tokenizer, words_of
from dropout_grpo.training.runs import RunFolder

__all__ = [
    "CurriculumConfig",
    "CurriculumTrainer",
    "Exploration",
    "GRPOConfig",
    "GRPOTrainer",
    "LatentModel",
    "LatentState",
    "NoExploration",
    "PerStepDropout",
    "Problem",
    "RunFolder",
    "SharedDropout",
    "UserError",
    "add_latent_tokens",
    "exact_answer",
    "extract_answer",
    "is_correct",
    "load_problems",
    "save_problems",
    "scratch_model",
    "word_tokenizer",
    "words_of",
]
