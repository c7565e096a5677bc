"""A backend for lm-evaluation-harness: each request is a question, read once and thought about before it is answered.

    pip install 'dropout-grpo[lm-eval]'
    python -m dropout_grpo.integrations.lm_eval run --model dropout_grpo --model_args pretrained=CHECKPOINT \\
        --tasks gsm8k_latent

This is the harness's own command line with the backend and our tasks added. Versions of the harness that know plugins
find the backend by its entry point, so that ``lm-eval run --model dropout_grpo`` works as well.

The task ``gsm8k_latent`` in ``lm_eval_tasks/`` is GSM8K without examples in the prompt, for answers after ``###``.
"""

import logging
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.data.problem import Problem
from dropout_grpo.distributed.device import default_device
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import answer_problems
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import pad_right

_log = logging.getLogger(__name__)

TASKS = Path(__file__).parent / "lm_eval_tasks"
"""Our tasks, for the harness's ``--include_path``."""


@register_model("dropout_grpo")
class DropoutGRPOLM(LM):
    """A latent model for the harness. Answers are those of ``dropout-grpo eval``: greedy, masks off.

    Args:
        pretrained: folder or hub name of a latent model.
        latent_steps: thoughts per answer; for a checkpoint without latent_config.json.
        base: model that a Coconut state_dict file was trained from.
        max_gen_toks: answer tokens at most, where a task does not say.
        batch_size: questions at once; ``auto`` is 64.
        max_batch_size: the harness's own limit of ``auto``; no effect.
        device: where the model runs; CUDA if available, when not given. The harness's own command line gives
            ``cuda:0`` when the user gives nothing, so that on a machine without CUDA this means the CPU.

    Raises:
        UserError: an unknown argument, or the checkpoint cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str,
        latent_steps: int | None = None,
        base: str | None = None,
        max_gen_toks: int = 64,
        batch_size: int | str = 64,
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(
                f"model_args: {next(iter(unknown))} is not an argument of this backend, which has pretrained, "
                "latent_steps, base, max_gen_toks, batch_size and device."
            )
        model = LatentModel.from_pretrained(pretrained, latent_steps=latent_steps, base=base)
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            _log.warning("device %s: there is no CUDA device here; the model runs on the CPU.", device)
            device = None
        self.model = model.to(device or default_device())
        self.max_gen_toks = int(max_gen_toks)
        self.batch_size = 64 if str(batch_size).startswith("auto") else int(batch_size)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache of requests."""
        return self.model.name.replace("/", "__")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, cut before the first stop string.

        Args:
            requests: each with ``args = (question, options)``.

        Raises:
            UserError: a request asks for sampling.
        """
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            options = request.args[1]
            temperature = options.get("temperature")  # transformers samples at 1 without one
            if options.get("do_sample") and (temperature is None or float(temperature) > 0):
                raise UserError("do_sample=True: the backend decodes greedily; set do_sample to false in the task.")
            by_length[int(options.get("max_gen_toks", self.max_gen_toks))].append(i)
        texts = [""] * len(requests)
        for length, numbers in by_length.items():
            questions = [_question(i, requests[i].args[0]) for i in numbers]
            config = EvaluationConfig(num_samples=0, max_new_tokens=length, batch_size=self.batch_size)
            for i, answered in zip(numbers, answer_problems(self.model, questions, config), strict=True):
                texts[i] = _before(answered.plain, requests[i].args[1].get("until", []))
        return texts

    @torch.no_grad()
    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after the thoughts, and whether greedy decoding gives it.

        Args:
            requests: each with ``args = (question, continuation)``.
        """
        model, scores = self.model, []
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            rows = [model.tokenizer.encode(r.args[1], add_special_tokens=False) for r in batch]
            prompts = model.encode([r.args[0] for r in batch], room=max(map(len, rows)))
            state = model.think(model.read(*prompts), model.latent_steps)
            if not any(rows):
                scores += [(0.0, True)] * len(batch)
                continue
            token_ids, mask = pad_right(rows, model.tokens.pad, model.device)  # [B, L]
            inputs = torch.cat([model.end_marker(len(rows)), token_ids[:, :-1]], dim=1)
            logits, _ = model.logits(state, inputs, None)  # [B, L, V]
            logprobs = logits.float().log_softmax(-1).gather(-1, token_ids[..., None])[..., 0]  # [B, L]
            greedy = (logits.argmax(-1) == token_ids) | (mask == 0)
            scores += zip((logprobs * mask).sum(-1).tolist(), greedy.all(-1).tolist(), strict=True)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not defined: a latent model gives probabilities to answers after a question, not to text on its own.

        Raises:
            UserError: always.
        """
        raise UserError("loglikelihood_rolling: a latent model scores answers after a question, not running text.")


def _question(number: int, text: str) -> Problem:
    return Problem(id=number, question=text, steps=(), answer="")


def _before(text: str, until: str | list[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text


def with_defaults(words: list[str]) -> list[str]:
    """The harness's words with what it lacks: our tasks, the device here, and batches of more than one question."""
    defaults = {"--include_path": str(TASKS), "--device": default_device().type, "--batch_size": "auto"}
    short = {"--batch_size": "-b"}
    for name, value in defaults.items() if words[:1] == ["run"] else ():
        if not any(word in (name, short.get(name)) or word.startswith(f"{name}=") for word in words):
            words = [*words, name, value]
    return words


def main() -> None:
    """The harness's command line, with this backend registered and ``TASKS`` on its path."""
    sys.argv[1:] = with_defaults(sys.argv[1:])
    cli_evaluate()


if __name__ == "__main__":
    main()
