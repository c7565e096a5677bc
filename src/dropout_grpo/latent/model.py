"""LatentModel: a Hugging Face causal LM with three verbs, ``read``, ``think``, ``answer`` (``generate`` or ``score``).

Training on the curriculum, rollouts, replay, evaluation and asking by hand all call these; there is no second
implementation of the recurrence. Shapes: B rows, S prompt positions, L answer tokens, D width, V vocabulary.

    state = model.read(ids, mask)               # the prompt, once
    state = model.think(state, n)               # n latent steps: last hidden state in, next hidden state out
    logprobs = model.score(state, answers)      # teacher-forced, with gradient through every thought and the cache
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import Exploration, Noise
from dropout_grpo.exploration.sites import THOUGHT, SiteMap
from dropout_grpo.latent.dropout_off import switch_off_dropout
from dropout_grpo.latent.fast.attention import NAME as SHARED_PREFIX, Prefix, own_cache, prefix_of, shares_prefix
from dropout_grpo.latent.fast.graphs import recordings_for
from dropout_grpo.latent.generation import Generation, at_temperature, generate_eagerly
from dropout_grpo.latent.sampling import Chooser, Greedy
from dropout_grpo.latent.state import LatentState, longer, share_cache
from dropout_grpo.latent.thought import build_thought
from dropout_grpo.latent.tokens import LatentTokens, encode_questions, latent_tokens, pad_left


class LatentModel(nn.Module):
    """Wraps a causal LM that takes ``inputs_embeds``, a cache and positions.

    Args:
        model: any decoder-only Hugging Face model. Its own dropout is set to zero: noise is an argument here, and
            ``train()`` or ``eval()`` never switches any.
        tokenizer: with Coconut's three latent tokens in it.
        latent_steps: n, how many thoughts an answer takes.
        thought: what is fed back, ``hidden_state`` (Coconut), ``projection`` (CODI) or ``pause`` (control).
        prj_dim: inner width of a projection; the model's width when None.
        seed: of a projection's first weights.

    Raises:
        UserError: latent tokens missing, ``latent_steps`` below 0, unknown thought, sites not found.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        latent_steps: int,
        thought: str = "hidden_state",
        prj_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(latent_steps, int) or latent_steps < 0:
            raise UserError(
                f"latent_steps={latent_steps!r} of {model.name_or_path or type(model).__name__}: it must be the number "
                "of thoughts an answer takes, 0 or more."
            )
        self.tokens: LatentTokens = latent_tokens(tokenizer, model.name_or_path or type(model).__name__)
        self.tokenizer, self.latent_steps = tokenizer, latent_steps
        self.model = model
        switch_off_dropout(model)
        with torch.no_grad():  # as ``inputs_embeds`` takes it: the module may do more than look up a row (Gemma)
            latent = model.get_input_embeddings()(torch.tensor(self.tokens.latent, device=model.device))
        self.thought = build_thought(thought, latent, prj_dim=prj_dim, seed=seed)
        self.to(model.device)
        self.shares_prefix = shares_prefix(model)
        if self.shares_prefix:
            model.set_attn_implementation(SHARED_PREFIX)
        heads = getattr(model.config.get_text_config(), "num_attention_heads", 0)
        self.sites = SiteMap(model.get_decoder(), width=len(latent), heads=heads)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "LatentModel":
        """Load a folder or hub name; see ``load_latent_model`` for the options."""
        from dropout_grpo.latent.weights.checkpoint import load_latent_model

        return load_latent_model(path, **options)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a plain Hugging Face folder; see ``save_latent_model``."""
        from dropout_grpo.latent.weights.checkpoint import save_latent_model

        save_latent_model(self, path)

    def answer(self, questions: Sequence[str], max_new_tokens: int = 64) -> list[str]:
        """The plain network's answers: read, think, decode greedily. Text after the end marker, without EOS."""
        with torch.no_grad():
            state = self.think(self.read(*self.encode(questions, room=max_new_tokens)), self.latent_steps)
        generation = self.generate(state, max_new_tokens)
        return self.decode(generation.token_ids, generation.mask)

    def decode(self, token_ids: Tensor, mask: Tensor) -> list[str]:
        """Texts of answers [B, L] where ``mask`` [B, L] is on, special tokens left out."""
        lengths = mask.sum(-1).tolist()  # an answer ends once, so its tokens are the first ones
        rows = [ids[:length] for ids, length in zip(token_ids.tolist(), lengths, strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    @property
    def name(self) -> str:
        """Folder or hub name that the model was loaded from, else its class."""
        return self.model.name_or_path or type(self.model).__name__

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the model has positions for, None if it does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def noise(self, exploration: Exploration, seeds: Tensor) -> Noise | None:
        """The noise of the rollouts with these seeds (int64 [B]) on this model's sites."""
        return exploration.noise(seeds.to(self.device), self.sites)

    def encode(self, questions: Sequence[str], room: int = 0) -> tuple[Tensor, Tensor]:
        """Prompts, left-padded: ids [B, S] and mask [B, S].

        Args:
            questions: the texts.
            room: answer tokens that must still fit after the prompt and the thoughts.

        Raises:
            UserError: a question longer than the model's positions allow.
        """
        return self.pad(self.encode_rows(questions, room))

    def encode_rows(self, questions: Sequence[str], room: int = 0) -> list[list[int]]:
        """As ``encode``, before padding: for callers that encode once and pad batch by batch."""
        rows = encode_questions(self.tokenizer, questions, self.tokens)
        self.check_length(rows, self.latent_steps + 1 + room)
        return rows

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids [B, S] and mask [B, S] of prompts, padded on the left."""
        return pad_left(rows, self.tokens.pad, self.device)

    def check_length(self, rows: Sequence[Sequence[int]], room: int) -> None:
        """Refuse prompts that leave no room for ``room`` more positions.

        Raises:
            UserError: names the longest prompt.
        """
        longest = max(range(len(rows)), key=lambda i: len(rows[i]))
        if self.max_positions is not None and len(rows[longest]) + room > self.max_positions:
            begins = self.tokenizer.decode(list(rows[longest][:12]))
            raise UserError(
                f"question {longest + 1} ({begins!r} ...) has {len(rows[longest])} tokens and needs {room} more for "
                f"thoughts and answer; the model has {self.max_positions} positions. Shorten or drop it, or have fewer "
                "thoughts or answer tokens."
            )

    def read(self, input_ids: Tensor, attention_mask: Tensor, noise: Noise | None = None) -> LatentState:
        """Run prompts [B, S], left-padded, each ending in the start marker; keep cache and last hidden state."""
        assert input_ids.shape == attention_mask.shape, "ids and mask differ in shape"
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        embeds = self.model.get_input_embeddings()(input_ids)
        cache = own_cache() if self.shares_prefix else DynamicCache(config=self.model.config)
        factors = noise.factors("prompt", 0) if noise is not None else {}
        with self.sites.multiplied(factors):
            hidden = self._decoder(embeds, cache, attention_mask, positions, None)
        prefix = None
        if self.shares_prefix:
            prefix, cache = prefix_of(cache, attention_mask), own_cache()
            attention_mask = attention_mask[:, :0]
        return LatentState(
            cache=cache,
            hidden=hidden[:, -1:],
            attention_mask=attention_mask,
            next_position=positions[:, -1:] + 1,
            prefix=prefix,
        )

    def think(self, state: LatentState, steps: int, noise: Noise | None = None) -> LatentState:
        """``steps`` latent steps: h_{t+1} = f(thought(h_t), cache_t; m). Nothing is detached."""
        recordings = recordings_for(self, state, steps, None)
        if recordings is not None:
            return recordings.think(self, state, steps, noise)
        return self.think_eagerly(state, steps, noise)

    def think_eagerly(self, state: LatentState, steps: int, noise: Noise | None) -> LatentState:
        """``think`` without graphs."""
        for _ in range(steps):
            factors = noise.factors("latent", state.latent_step) if noise is not None else {}
            fed_back = self.thought(state.hidden)  # [B, 1, D]
            if THOUGHT in factors:
                fed_back = fed_back * factors[THOUGHT]
            cache, mask = share_cache(state.cache), longer(state.attention_mask, 1)
            with self.sites.multiplied(factors):
                hidden = self._decoder(fed_back, cache, mask, state.next_position, state.prefix)
            state = replace(
                state,
                cache=cache,
                hidden=hidden,
                attention_mask=mask,
                next_position=state.next_position + 1,
                latent_step=state.latent_step + 1,
            )
        return state

    def score(
        self, state: LatentState, token_ids: Tensor, *, temperature: float = 1.0, noise: Noise | None = None
    ) -> Tensor:
        """Log-probabilities [B, L], float32 or wider, of answers [B, L] after the end marker, with gradient.

        Right-padded rows are scored to their end; what stands under padding means nothing and is the caller's to mask.
        """
        inputs = torch.cat([self.end_marker(state.rows), token_ids[:, :-1]], dim=1)  # [B, L]
        logits, _ = self.logits(state, inputs, noise)
        logits = at_temperature(logits, temperature)
        return -nn.functional.cross_entropy(logits.flatten(0, 1), token_ids.flatten(), reduction="none").view_as(
            token_ids
        )

    @torch.no_grad()
    def generate(
        self, state: LatentState, max_new_tokens: int, *, chooser: Chooser | None = None, noise: Noise | None = None
    ) -> Generation:
        """Decode answers after the end marker, greedily unless a ``chooser`` says otherwise; see ``generation.py``."""
        chooser = chooser or Greedy()
        recordings = recordings_for(self, state, max_new_tokens, chooser)
        if recordings is not None:
            return recordings.generate(self, state, max_new_tokens, chooser, noise)
        return generate_eagerly(self, state, max_new_tokens, chooser=chooser, noise=noise)

    def end_marker(self, rows: int) -> Tensor:
        """Ids of the end marker, [B, 1]."""
        return torch.full((rows, 1), self.tokens.end, device=self.device)

    def logits(self, state: LatentState, token_ids: Tensor, noise: Noise | None) -> tuple[Tensor, LatentState]:
        """Logits [B, L, V] of the tokens after each of ``token_ids`` [B, L], and the state behind them."""
        length = token_ids.shape[1]
        cache, mask = share_cache(state.cache), longer(state.attention_mask, length)
        positions = state.next_position + torch.arange(length, device=self.device)
        factors = noise.factors("answer", 0) if noise is not None else {}
        with self.sites.multiplied(factors):
            logits = self.model(
                inputs_embeds=self.model.get_input_embeddings()(token_ids),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **_shared(state.prefix),
            ).logits
        after = replace(state, cache=cache, attention_mask=mask, next_position=state.next_position + length)
        return logits, after

    def _decoder(self, embeds: Tensor, cache: Cache, mask: Tensor, positions: Tensor, prefix: Prefix | None) -> Tensor:
        """Last hidden states [B, L, D] after the final norm; the language-model head is not run."""
        output = self.model.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **_shared(prefix),
        )
        return output.last_hidden_state


def _shared(prefix: Prefix | None) -> dict[str, Prefix]:
    """A keyword for the attention of every layer; not even its name is shown to a model that copies the prompt."""
    return {} if prefix is None else {"prefix": prefix}
