"""Chain of thought in tokens with transformers: the same questions, then the steps and the answer as tokens.

Each row has T tokens of steps and L tokens of answer. All rows are generated at once with a cache. Each function runs
the first ``rows`` rows.
"""

import math

import torch
from torch import Tensor, nn

from dropout_grpo.latent.casts import autocast
from dropout_grpo.rl.objective import Totals, surrogate
from evidence.bench.workload import TEMPERATURE, Workload

_LOGITS = 2**29  # of a micro-batch; in float32, with gradient and softmax, they take 6 GiB


def rollouts(work: Workload, rows: int) -> Tensor:
    """Prompts with sampled steps and answers, [rows, S + T + L]."""
    prompts = work.each_its_own
    with torch.random.fork_rng(devices=_cuda(work)):  # generate samples from the global generator
        torch.manual_seed(work.setting.seed)
        return _generate(work, prompts.input_ids[:rows], prompts.attention_mask[:rows], sample=True)


def update(work: Workload, rows: int) -> float:
    """Scores steps and answers, computes the surrogate and back-propagates it in micro-batches; returns the loss."""
    completions, loss = work.chain_of_thought[:rows], 0.0
    total = Totals(rollouts=rows, tokens=completions.numel(), max_completion_length=completions.shape[1])
    old = -math.log(work.networks.vocab)  # the value does not matter: clipped or not, the gradient costs the same
    for few in torch.arange(rows).split(_rows_at_once(work)):
        few = few.to(work.model.device)
        with autocast(work.model.device, work.setting.bf16):
            logprobs = _score(work, work.each_its_own.input_ids[few], completions[few])
        part = surrogate(
            logprobs,
            torch.full_like(logprobs, old),
            torch.ones_like(logprobs),
            work.advantages.flatten()[few.cpu()].to(logprobs),
            totals=total,
        )
        part.loss.backward()
        loss += float(part.loss.detach())
    return loss


def curriculum(work: Workload, rows: int) -> float:
    """Supervised training: mean loss over steps and answers, back-propagated in micro-batches; returns the loss."""
    loss = 0.0
    for few in torch.arange(rows).split(_rows_at_once(work)):
        few = few.to(work.model.device)
        with autocast(work.model.device, work.setting.bf16):
            part = -_score(work, work.question_ids[few], work.chain_of_thought[few]).mean() * len(few) / rows
        part.backward()
        loss += float(part.detach())
    return loss


def evaluation(work: Workload, rows: int) -> list[str]:
    """Greedy steps and answers, including tokenisation and decoding to text."""
    ids, mask = work.model.encode([p.question for p in work.problems[:rows]])
    made = _generate(work, ids, mask, sample=False)[:, ids.shape[1] :]
    return work.model.decode(made, torch.ones_like(made))


def _rows_at_once(work: Workload) -> int:
    """Rows of a micro-batch: the setting's, or as many as have ``_LOGITS`` logits."""
    row = (work.setting.cot_tokens + work.setting.answer_tokens) * work.networks.vocab
    return max(1, min(work.setting.micro_batch_size, _LOGITS // row))


def _generate(work: Workload, ids: Tensor, mask: Tensor, *, sample: bool) -> Tensor:
    with torch.no_grad(), autocast(work.model.device, work.setting.bf16):
        made: Tensor = work.reference.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            **({"do_sample": True, "top_k": 0, "temperature": TEMPERATURE} if sample else {"do_sample": False}),
            max_new_tokens=work.setting.cot_tokens + work.setting.answer_tokens,
            pad_token_id=work.model.tokens.pad,
        )
    return made


def _score(work: Workload, prompts: Tensor, completions: Tensor) -> Tensor:
    """Log-probs [R, T + L] with gradient."""
    inputs = torch.cat([prompts, completions[:, :-1]], dim=1)
    logits = work.reference(input_ids=inputs, use_cache=False, logits_to_keep=completions.shape[1]).logits
    logprobs = -nn.functional.cross_entropy(
        logits.float().flatten(0, 1) / TEMPERATURE, completions.flatten(), reduction="none"
    )
    return logprobs.view_as(completions)


def _cuda(work: Workload) -> list[torch.device]:
    return [work.model.device] if work.model.device.type == "cuda" else []
