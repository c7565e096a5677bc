"""Rollouts of a group, and their replay in the update: the same seeds give the same thoughts."""

from dataclasses import dataclass

from torch import Tensor

from dropout_grpo.exploration.base import Exploration, Noise
from dropout_grpo.latent.decoding import DecodingStrategy, Generation, Greedy, Sampling
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.state import LatentState


@dataclass(frozen=True, slots=True)
class Prompts:
    """N questions, left-padded and ending in the start marker."""

    input_ids: Tensor  # [N, S]
    attention_mask: Tensor  # [N, S]

    def select(self, rows: Tensor) -> "Prompts":
        """The questions with these indices, padded to an even length like ``LatentModel.pad``, so that bits stay."""
        rows = rows.to(self.input_ids.device)
        ids, mask = self.input_ids[rows], self.attention_mask[rows]
        longest = int(mask.sum(-1).max())
        length = longest + longest % 2
        return Prompts(input_ids=ids[:, -length:], attention_mask=mask[:, -length:])

    def longest_first(self) -> Tensor:
        """Indices of the questions from longest to shortest, int64 [N] on the CPU, so that batches need little padding.

        If a batch does not fit in memory, it is the first one, so little work is lost.
        """
        return self.attention_mask.sum(-1).cpu().argsort(descending=True, stable=True)


def think_in_groups(
    model: LatentModel,
    prompts: Prompts,
    seeds: Tensor,
    exploration: Exploration,
    latent_steps: int | None = None,
    *,
    read: LatentState | None = None,
) -> tuple[LatentState, Noise | None]:
    """Read each question once, repeat its state for its K rollouts, and think under each rollout's own noise.

    Args:
        model: the policy.
        prompts: N questions.
        seeds: int64 [N, K].
        exploration: if its noise is on in the prompt phase, every rollout reads the prompt separately.
        latent_steps: number of thoughts; the model's own number when None.
        read: the state after reading the questions without noise; not used if the noise is on in the prompt phase.

    Returns:
        State after the last thought, and noise. Both have N * K rows; the K rollouts of a question are adjacent.
    """
    k = seeds.shape[1]
    noise = model.noise(exploration, seeds.flatten())
    if "prompt" in exploration.phases:
        ids = prompts.input_ids.repeat_interleave(k, dim=0)
        mask = prompts.attention_mask.repeat_interleave(k, dim=0)
        state = model.read(ids, mask, noise)
    else:
        if read is None:
            read = model.read(prompts.input_ids, prompts.attention_mask)
        state = read.repeat(k)
    steps = model.latent_steps if latent_steps is None else latent_steps
    return model.think(state, steps, noise), noise


def roll_out(
    model: LatentModel,
    prompts: Prompts,
    seeds: Tensor,
    exploration: Exploration,
    *,
    temperature: float,
    max_completion_length: int,
    greedy: bool = False,
    top_p: float = 1.0,
) -> Generation:
    """One answer for each seed [N, K]: N * K rows. Call under no_grad.

    Args:
        model: the policy.
        prompts: N questions.
        seeds: int64 [N, K].
        exploration: noise of the rollouts.
        temperature: temperature for sampling answers and for their log-probabilities; 0 means greedy answers with
            log-probabilities at temperature 1.
        max_completion_length: maximum number of answer tokens.
        greedy: decode greedily; the log-probabilities stay those at ``temperature``.
        top_p: sample from the nucleus; the log-probabilities stay those of the whole distribution.
    """
    state, noise = think_in_groups(model, prompts, seeds, exploration)
    strategy: DecodingStrategy = Sampling(seeds.flatten().to(model.device), temperature, top_p)
    if greedy or temperature == 0:
        strategy = Greedy(temperature or 1.0)
    return model.generate(state, max_completion_length, strategy=strategy, noise=noise)


def replay(
    model: LatentModel,
    prompts: Prompts,
    seeds: Tensor,
    token_ids: Tensor,
    exploration: Exploration,
    *,
    temperature: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Log-probabilities [N * K, L] of sampled answers [N * K, L] under their own masks, with gradient.

    Tokens that are not in ``mask`` [N * K, L] get 0; see ``score``.
    """
    state, noise = think_in_groups(model, prompts, seeds, exploration)
    return model.score(state, token_ids, mask=mask, temperature=temperature, noise=noise)
