"""``dropout-grpo ask``: questions to the plain network, to several masks, and their vote."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.commands.shared.options import add_config, add_device, checkpoint_options_of
from dropout_grpo.config.checkpoint import CheckpointOptions
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.exploration import ExplorationConfig
from dropout_grpo.config.needs import without_effect
from dropout_grpo.config.ranges import check_ranges, ranged, seed_field
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.training.progress import console

HELP = "answer questions with the plain network, with several masks, and by their vote"


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """Options of ``ask``.

    Args:
        masks: number of masks that vote.
        seed: seed of the masks.
        max_new_tokens: maximum number of answer tokens.
    """

    masks: int = ranged(8, at_least=0, at_most=1024)
    seed: int = seed_field()
    max_new_tokens: int = ranged(64, at_least=1)

    def __post_init__(self) -> None:
        check_ranges(self)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=str, help="folder or hub name of a latent model")
    lines = "the text; questions are read from standard input, one a line, if not given"
    parser.add_argument("question", type=str | None, nargs="?", help=lines)
    parser.add_argument("--json", action="store_true", help="print one JSON object per question on standard output")
    add_device(parser)
    read = "read each thought through the head: its likeliest tokens, plain and under each mask"
    parser.add_argument("--thoughts", action="store_true", help=read)
    add_config(parser, CheckpointOptions)
    add_config(parser, AskOptions)
    add_config(parser, ExplorationConfig, "exploration")


def _from_standard_input() -> list[str]:
    """The lines of standard input that are not empty."""
    try:
        lines = [line.removeprefix("\ufeff").strip() for line in sys.stdin]  # some editors begin a file with the mark
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 ({error.reason}): convert it to UTF-8.") from error
    return [line for line in lines if line]


def run(options: Namespace) -> None:
    questions = [options.question] if options.question is not None else _from_standard_input()
    if not questions:
        raise UserError("there is no question: give one, or one on each line of standard input.")
    for line in without_effect(options.exploration, "exploration"):
        console.print(line, markup=False)
    said = ask(
        options.checkpoint,
        questions,
        options.exploration,
        AskOptions(masks=options.masks, seed=options.seed, max_new_tokens=options.max_new_tokens),
        checkpoint_options_of(options),
        thoughts=options.thoughts,
        told=options.given.get("exploration", {}),
    )
    for question, answers in zip(questions, said, strict=True):
        if options.json:
            print(json.dumps({"question": question, **answers}))
        else:
            print(as_text(answers) if len(questions) == 1 else f"{question}\n{as_text(answers)}\n")


def ask(
    checkpoint: str,
    questions: Sequence[str],
    config: ExplorationConfig,
    options: AskOptions,
    checkpoint_options: CheckpointOptions,
    *,
    thoughts: bool = False,
    told: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Ask a checkpoint questions, each as if it were the only one.

    Args:
        checkpoint: folder, hub name or Coconut ``state_dict`` file.
        questions: the texts.
        config: the exploration that makes the masks.
        options: masks, seed and length.
        checkpoint_options: what the checkpoint does not record.
        thoughts: read the thoughts through the head as well, plain and under the same masks.
        told: the options of the exploration that the user has given; the others are those that the checkpoint was
            trained with. ``config`` if None.

    Returns:
        For each question ``plain``, the plain network's answer; ``masks``, one answer per mask; with masks also
        ``average``, the model average's answer, ``vote``, the majority's answer or None, and ``votes``, the counts;
        with ``thoughts`` also those, as ``ThoughtReadings`` in JSON values.

    Raises:
        UserError: an empty or too long question, a bad option or checkpoint.
    """
    import torch

    from dropout_grpo.commands.shared.context import tell_device
    from dropout_grpo.commands.shared.models import exploration_for, load_model
    from dropout_grpo.evaluation.answering import EVAL_STEP, all_alike, answer_problems, vote, vote_table
    from dropout_grpo.exploration.build import build_exploration
    from dropout_grpo.exploration.seeds import rollout_seeds

    exploration = build_exploration(config)
    model = load_model(checkpoint, checkpoint_options)
    tell_device(model.device, bf16=False)
    if told is not None and options.masks > 0:
        exploration = build_exploration(exploration_for(model, told))
    for question in questions:
        model.encode([question], room=options.max_new_tokens)
    settings = EvaluationConfig(num_samples=options.masks, max_new_tokens=options.max_new_tokens)
    if options.masks > 1 and all_alike(model, settings, exploration):
        raise UserError(
            f"no mask changes an answer of {model.name}, which follows from --exploration.kind, --exploration.p or "
            "--latent_steps: use --masks 0."
        )
    answers = []
    for question in questions:
        problem = Problem(id=0, question=question, steps=(), answer="?")  # the same masks for every question
        with torch.no_grad():
            (answered,) = answer_problems(model, [problem], settings, exploration=exploration, seed=options.seed)
        found: dict[str, Any] = {"plain": answered.plain, "masks": list(answered.samples)}
        if answered.average is not None:
            found["average"] = answered.average
        if answered.samples:
            found |= {"vote": vote(answered), "votes": vote_table(answered)}
        if thoughts:
            seeds = rollout_seeds(options.seed, EVAL_STEP, torch.tensor([problem.id]), options.masks)[0].tolist()
            found["thoughts"] = asdict(model.thoughts([question], exploration, seeds)[0])
        answers.append(found)
    return answers


def as_text(found: dict[str, Any]) -> str:
    """The answers as text, one per line."""
    lines = [("plain", found["plain"].strip())]
    lines += [(f"mask {i}", said.strip()) for i, said in enumerate(found["masks"])]
    if "average" in found:
        lines.append(("average", f"{found['average'].strip()}  (greedy, by the masks' mean probability of each token)"))
    if "votes" in found:
        counts = ", ".join(f"{name} x{count}" for name, count in found["votes"].items())
        lines.append(("vote", f"{found['vote'] or 'none'}  ({counts})"))
    text = "\n".join(f"{title:<8} {text}" for title, text in lines)
    return f"{text}\n\n{thoughts_as_text(found['thoughts'])}" if "thoughts" in found else text


def thoughts_as_text(thoughts: Mapping[str, Any]) -> str:
    """The thoughts about one question, a block for each: the likeliest tokens, and how far each mask moves it.

    Args:
        thoughts: ``ThoughtReadings`` as JSON values.
    """
    plain, masked = thoughts["plain"], thoughts["masked"]
    lines = ["thoughts read through the head: the likeliest tokens; cos: cosine with the plain network's thought"]
    for i, thought in enumerate(plain):
        lines.append(f"thought {i + 1}" if i < len(plain) - 1 else "after the thoughts")
        lines.append(f"  {'plain':<18} {shown_tokens(thought)}")
        lines += [
            f"  {f'mask {m}':<7} cos {under[i]['cosine']:6.3f} {shown_tokens(under[i])}"
            for m, under in enumerate(masked)
        ]
    return "\n".join(lines)


def shown_tokens(thought: Mapping[str, Any]) -> str:
    """The likeliest tokens of a thought with their probabilities: ``' 7' 0.612  ' 8' 0.103``."""
    return "  ".join(f"{token!r} {share:.3f}" for token, share in thought["tokens"])
