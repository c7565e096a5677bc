"""The latent recurrence, step by step: ``read``, ``think_eagerly``, ``score``.

The curriculum, rollouts, replay, evaluation and ``ask`` all call these methods, through ``LatentModel``. There is only
one other implementation in the package: ``io/custom_generate/generate.py``, for models that run without it.

Shapes: B rows, S prompt positions, T own positions, L new positions, D width, V vocabulary.

    state = model.read(ids, mask)               # the prompt, once
    state = model.think_eagerly(state, n)       # n latent steps: last hidden state in, next hidden state out
    logprobs = model.score(state, answers)      # teacher-forced, with gradient through every thought and the cache
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import Exploration, KeyNoise, Noise, OwnHooks
from dropout_grpo.exploration.build import require_exploration
from dropout_grpo.exploration.sites import THOUGHT_SITE, SiteMap, times
from dropout_grpo.latent import head as heads
from dropout_grpo.latent.attention_choice import without_cudnn
from dropout_grpo.latent.casts import frozen_weights_cast
from dropout_grpo.latent.checkpointing import checkpointed, switched_off
from dropout_grpo.latent.packing import Packing, packing_of
from dropout_grpo.latent.padding import padding_sees_itself
from dropout_grpo.latent.probe import agrees, fed_back, has_plain_head, own_hidden, probe_rows
from dropout_grpo.latent.shared_prompt import SHARED_PREFIX, CopiedCache, own_cache, prefix_of, shares_prefix
from dropout_grpo.latent.state import LatentState, extended, share_cache
from dropout_grpo.latent.thought import build_thought
from dropout_grpo.latent.tokens import (
    COCONUT,
    LatentTokens,
    embedding_table,
    latent_tokens,
    pad_left,
    require_prompt_format,
    require_rows,
)

_UNFIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors of architectures that do not accept input embeddings, a standard cache or positions."""

_LOGIT_OPTIONS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Config entries of models that change their logits after the head."""


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class Recurrence(nn.Module):
    """A causal LM with ``inputs_embeds``, a cache and positions, and the module that makes thoughts of hidden states.

    Args:
        model: any decoder-only Hugging Face model. Its own dropout is set to zero, and it is put in evaluation mode:
            noise is an argument here, and ``train()`` and ``eval()`` never switch it.
        tokenizer: contains Coconut's three latent tokens.
        latent_steps: n, the number of thoughts before an answer.
        thought: kind of thought: ``hidden_state`` (Coconut), ``projection`` (CODI) or ``pause`` (control).
        prj_dim: inner width of a projection; the model's width when None.
        seed: seed of a projection's initial weights.
        prompt_format: how questions become prompts: ``coconut``, ``codi``, or ``chat``, the tokenizer's chat template.

    Raises:
        UserError: latent tokens are missing, a token has no embedding, the attention is FlashAttention's,
            ``latent_steps`` is below 0, the kind of thought or the prompt format is unknown, sites are not found, or
            the model gives other results here than its own forward pass.
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
        prompt_format: str = COCONUT,
    ) -> None:
        super().__init__()
        if not isinstance(latent_steps, int) or latent_steps < 0:
            raise UserError(
                f"latent_steps={latent_steps!r} of {model.name_or_path or type(model).__name__}: it must be the number "
                "of thoughts per answer, 0 or more."
            )
        stops = getattr(model.generation_config, "eos_token_id", None)
        where = model.name_or_path or type(model).__name__
        self.tokens: LatentTokens = latent_tokens(tokenizer, where, stops)
        require_rows(tokenizer, len(embedding_table(model)), where)
        self.tokenizer, self.latent_steps = tokenizer, latent_steps
        self.prompt_format = require_prompt_format(tokenizer, prompt_format, where)
        self.exploration: Mapping[str, Any] | None = None  # options of the one that the weights were post-trained with
        self.model = model
        self.trained = False
        """Whether a trainer has changed weights of the causal LM itself, which is then not what its name stands for."""
        self._cache_name = cache_name(model)
        self._width = embedding_table(model).shape[1]  # D; with an adapter the table is copied where it is looked up
        switch_off_dropout(model)
        model.eval()  # in training mode mixtures of experts draw noise for their router
        with torch.no_grad():  # call the module: it may do more than look up a row (Gemma scales it)
            latent = model.get_input_embeddings()(torch.tensor(self.tokens.latent, device=model.device))
        self.thought = build_thought(thought, latent, prj_dim=prj_dim, seed=seed)
        self.thought.to(model.device)
        own = model.config._attn_implementation
        if str(own).startswith("flash_attention"):
            name = model.name_or_path or type(model).__name__
            raise UserError(
                f"attn_implementation={own!r} of {name}: its kernels cannot share a prompt between the rollouts of a "
                "group: load the model with attn_implementation='sdpa'."
            )
        self._own_attention = "eager" if own == SHARED_PREFIX else own
        self._gradient_checkpointing = False
        self.shares_prefix = shares_prefix(model)
        self.plain_head = False
        """Whether the model's logits are those of its head alone, without a cap or a scale."""
        self.find_sites()

    def find_sites(self) -> None:
        """Find the model's sites, and probe it: when it is new, and after an adapter has wrapped its layers.

        Raises:
            UserError: there are no sites, or the model gives other results than its own forward pass.
        """
        self.sites = sites_of(self.model)
        self._choose_attention()

    def train(self, mode: bool = True) -> Self:
        """As in torch, but the causal LM stays in evaluation mode, in which it draws no noise."""
        super().train(mode)
        self.model.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.device
        super()._apply(fn, recurse)
        if self.device != before:  # where other kernels compute
            self._choose_attention()
        return self

    def _choose_attention(self) -> None:
        """Share prompts if the model can and a probe on its device agrees. On the device ``meta`` there is no probe.

        Raises:
            UserError: the model gives other results than its own forward pass, both with shared and copied prompts.
        """
        model = self.model
        self.sites.with_attention_weights(self.shares_prefix)
        if model.device.type == "meta":  # the answers of the probe that are likely
            config = model.config.get_text_config()
            self.plain_head = all(getattr(config, name, None) in (None, 1.0) for name in _LOGIT_OPTIONS)
            if self.shares_prefix:
                model.set_attn_implementation(SHARED_PREFIX)
            return
        rows = probe_rows(model)
        if model.config._attn_implementation == SHARED_PREFIX:  # what an earlier probe has chosen
            model.set_attn_implementation(self._own_attention)
        try:
            expected = own_hidden(model, self.thought, rows)
        except _UNFIT as error:
            raise UserError(f"{self._kind} cannot be run from input embeddings: {_line(error)}") from error
        self.plain_head = has_plain_head(model, rows[0][:1])  # one position, for speed
        if self.shares_prefix:
            model.set_attn_implementation(SHARED_PREFIX)
            if self._differs(rows, expected) is None:
                return
            model.set_attn_implementation(self._own_attention)
            self.shares_prefix = False
            self.sites.with_attention_weights(False)
            warnings.warn(
                f"{self.name}: its attention does not work with a shared prompt; each rollout gets a copy of it.",
                stacklevel=4,
            )
        if (how := self._differs(rows, expected)) is not None:
            raise UserError(
                f"{self._kind} cannot be used: with a key/value cache and left padding it {how}. Another dtype, "
                "such as float32, or attn_implementation='eager' may help."
            )

    @torch.no_grad()
    def _differs(self, rows: list[list[int]], expected: Tensor) -> str | None:
        """How the results of the probe in one left-padded batch differ from the expected ones; None if they do not."""
        hidden = []
        try:
            state = self.read(*pad_left(rows, self.tokens.pad, self.device)).repeat(2)  # groups of two rollouts
            hidden.append(state.hidden)
            for given in fed_back(self.model, rows).repeat_interleave(2, dim=0).split(1, dim=1):  # [2 * R, 1, D]
                state = self.think_eagerly(replace(state, hidden=given), 1)
                hidden.append(state.hidden)
        except _UNFIT as error:
            return f"fails ({_line(error)})"
        steps = zip(hidden, expected.repeat_interleave(2, dim=0).split(1, dim=1), strict=True)
        same = all(agrees(actual, own) for actual, own in steps)
        return None if same else "gives other hidden states than without"

    @property
    def _kind(self) -> str:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"{self.name} ({type(self.model).__name__}, {dtype})"

    @property
    def name(self) -> str:
        """Folder or hub name that the model was loaded from, or the name of its class."""
        return self.model.name_or_path or type(self.model).__name__

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether a backward pass runs the decoder layers again; see ``checkpointing.py``. False at first.

        ``model.gradient_checkpointing_enable()`` of transformers, before or after wrapping, also makes it True. Only
        setting it to False switches it off again.
        """
        if switched_off(self.sites):  # transformers' own
            self._gradient_checkpointing = True
        return self._gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        switched_off(self.sites)
        self._gradient_checkpointing = on

    def noise(self, exploration: Exploration, seeds: Tensor) -> Noise | None:
        """The noise of the rollouts with these seeds (int64 [B]) on this model's sites.

        Raises:
            UserError: the exploration is a name, a class or another object.
        """
        return require_exploration(exploration, "exploration").noise(seeds.to(self.device), self.sites)

    def _packing(self, mask: Tensor) -> Packing | None:
        return packing_of(mask, self._width)

    def read(self, input_ids: Tensor, attention_mask: Tensor, noise: Noise | None = None) -> LatentState:
        """Run prompts once and keep their cache and last hidden state.

        Args:
            input_ids: [B, S], left-padded, each row ending in the start marker.
            attention_mask: [B, S], 1 for tokens and 0 for padding.
            noise: applied at every position if it is on in the prompt phase.
        """
        assert input_ids.shape == attention_mask.shape, "ids and mask differ in shape"
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        packing = self._packing(attention_mask) if self.shares_prefix and noise is None else None
        cache = own_cache(packing=packing) if self.shares_prefix else CopiedCache(config=self.model.config)
        keyed = keyed_noise(noise)
        by_key = {} if keyed is None else keyed.key_factors("prompt", 0, positions)
        embeds = self.model.get_input_embeddings()(input_ids if packing is None else packing.pack(input_ids))
        inputs: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": positions}
        if packing is not None:
            padding = (attention_mask == 0)[:, None, None]  # [B, 1, 1, S]
            seen = _causal(0, packing.length, embeds).masked_fill(padding, torch.finfo(embeds.dtype).min)
            inputs = {"attention_mask": seen, "position_ids": packing.pack(positions), "packing": packing}
        with self._noisy(noise, "prompt", 0), padding_sees_itself(self.sites.layers, attention_mask):
            output = self.model.get_decoder()(
                inputs_embeds=embeds, use_cache=True, **inputs, **{self._cache_name: cache}, **_keyword(by_key)
            )
        hidden = output.last_hidden_state if packing is None else packing.pad(output.last_hidden_state)
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

    def think_eagerly(self, state: LatentState, steps: int, noise: Noise | None = None) -> LatentState:
        """Run ``steps`` latent steps: h_{t+1} = f(thought(h_t), cache_t; m). Nothing is detached."""
        if steps < 0:
            raise UserError(f"steps={steps}: the number of thoughts must be 0 or more.")
        keyed = keyed_noise(noise)
        for _ in range(steps):
            by_key = {} if keyed is None else keyed.key_factors("latent", state.latent_step, key_positions(state, 1))
            with self._noisy(noise, "latent", state.latent_step) as factors:
                fed_back = self.thought(state.hidden)  # [B, 1, D]
                if THOUGHT_SITE in factors:
                    fed_back = times(fed_back, factors[THOUGHT_SITE])
                cache, inputs = self._inputs(state, fed_back, by_key)
                hidden = self.model.get_decoder()(**inputs).last_hidden_state  # [B, 1, D], after the final norm
            state = replace(_advanced(state, cache, 1), hidden=hidden, latent_step=state.latent_step + 1)
        return state

    @contextmanager
    def _noisy(
        self, noise: Noise | None, phase: str, step: int, packing: Packing | None = None
    ) -> Iterator[Mapping[str, Tensor]]:
        """Apply the noise to the model's modules in a forward pass. The caller applies the thought's factors."""
        factors = {} if noise is None else noise.factors(phase, step)
        if packing is not None:
            factors = {name: packing.spread(factor) for name, factor in factors.items()}

        @contextmanager
        def around(part: nn.Module, factors: Mapping[str, Tensor]) -> Iterator[None]:
            hooks = noise.hooks(self.sites, phase, step) if isinstance(noise, OwnHooks) else nullcontext()
            with self.sites.multiplied(factors), hooks, frozen_weights_cast(part), without_cudnn():
                yield

        keeps_inputs = self.gradient_checkpointing and torch.is_grad_enabled()
        layers = checkpointed(self.sites, factors, around) if keeps_inputs else nullcontext()
        with around(self, factors), layers:
            yield factors

    def score(
        self,
        state: LatentState,
        token_ids: Tensor,
        *,
        mask: Tensor | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> Tensor:
        """Log-probabilities [B, L], float32 or wider, of answers [B, L] after the end marker, with gradient.

        Args:
            state: the state after the last thought.
            token_ids: answers, right-padded.
            mask: [B, L], 1 for the tokens that count; all of them when None. The others get 0, without gradient.
            temperature: logits are divided by it.
            noise: applied if it is on in the answer phase.
        """
        inputs = torch.cat([self.end_marker(state.rows), token_ids[:, :-1]], dim=1)  # [B, L]
        packing = None
        if mask is not None and state.prefix is not None and not isinstance(noise, OwnHooks):
            packing = self._packing(mask.flip(-1).cumsum(-1).flip(-1))  # a token sees all tokens before it
        table = self.head_in_pieces(token_ids.numel())
        if table is None:
            output, _ = self._answer(self.model, state, inputs, noise, packing)
            logits = heads.at_temperature(output.logits, temperature).flatten(0, 1)
            words = token_ids if packing is None else packing.pack(token_ids)
            logprobs = -nn.functional.cross_entropy(logits, words.flatten(), reduction="none").view_as(words)
            logprobs = logprobs if packing is None else packing.pad(logprobs)
            return logprobs if mask is None else logprobs.masked_fill(mask == 0, 0.0)
        output, _ = self._answer(self.model.get_decoder(), state, inputs, noise, packing)
        hidden = output.last_hidden_state if packing is None else packing.pad(output.last_hidden_state)
        hidden, words = hidden.flatten(0, 1), token_ids.flatten()  # [B * L, D], [B * L]
        counted = torch.arange(len(words), device=words.device) if mask is None else mask.flatten().nonzero().squeeze(1)
        logprobs = heads.token_logprobs(table, hidden[counted], words[counted, None], temperature).squeeze(1)
        return logprobs.new_zeros(words.shape).index_copy(0, counted, logprobs).view_as(token_ids)

    def head_in_pieces(self, positions: int) -> heads.Table | None:
        """The head, for ``token_logprobs``, if so many positions have more logits than a piece; else None.

        None as well, with a warning, if the model does more to its logits than the head.
        """
        if positions * self.model.config.get_text_config().vocab_size <= heads.largest_piece(self.device):
            return None
        if self.plain_head and (table := heads.table_of(self.model.get_output_embeddings())) is not None:
            return table
        warnings.warn(
            f"{self.name}: its logits are not those of a plain linear head, so all logits of a micro-batch are in "
            "memory at once. A smaller micro_batch_size takes less.",
            stacklevel=3,
        )
        return None

    def end_marker(self, rows: int) -> Tensor:
        """Ids of the end marker, [B, 1]."""
        return torch.full((rows, 1), self.tokens.end, device=self.device)

    def logits(self, state: LatentState, token_ids: Tensor, noise: Noise | None) -> tuple[Tensor, LatentState]:
        """Logits [B, L, V] of the tokens after each of ``token_ids`` [B, L], and the state after them."""
        output, state = self._answer(self.model, state, token_ids, noise)
        return output.logits, state

    def _answer(
        self,
        network: nn.Module,
        state: LatentState,
        token_ids: Tensor,
        noise: Noise | None,
        packing: Packing | None = None,
    ) -> tuple[Any, LatentState]:
        """The output, packed or not, of the model or its decoder for ``token_ids`` [B, L], and the state after them."""
        keyed = keyed_noise(noise)
        by_key = {} if keyed is None else keyed.key_factors("answer", 0, key_positions(state, token_ids.shape[1]))
        with self._noisy(noise, "answer", 0, packing):
            ids = token_ids if packing is None else packing.pack(token_ids)
            cache, inputs = self._inputs(state, self.model.get_input_embeddings()(ids), by_key, packing)
            output = network(**inputs)
        return output, _advanced(state, cache, token_ids.shape[1])

    def _inputs(
        self, state: LatentState, embeds: Tensor, by_key: Mapping[str, Tensor], packing: Packing | None = None
    ) -> tuple[Cache, dict[str, Any]]:
        """A cache for all positions, and the arguments of the forward pass for embeddings [B, L, D], or packed."""
        length = embeds.shape[1] if packing is None else packing.length
        cache: Any = share_cache(state.cache)
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": extended(state.attention_mask, length),
            "position_ids": state.next_position + torch.arange(length, device=embeds.device),
            self._cache_name: cache,
            "use_cache": True,
            **_keyword(by_key),
        }
        if state.prefix is not None:  # a model that copies its prompts does not get the keyword
            own = state.attention_mask.shape[1]
            inputs |= {"prefix": state.prefix, "attention_mask": _causal(own, length, embeds)}
        if packing is not None:
            cache.packing = packing
            inputs |= {"packing": packing, "position_ids": packing.pack(inputs["position_ids"])}
        return cache, inputs


def switch_off_dropout(model: PreTrainedModel) -> None:
    """Zero every ``nn.Dropout`` and every float attribute or config entry that names a dropout probability.

    Attention dropout is often a plain number that is passed to a function (``attention_dropout`` in Llama and Qwen),
    and GPT-2's default is 0.1. If one were left, ``train()`` would switch on noise that cannot be replayed from a seed.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        _zero(module)
    _zero(model.config)


def _zero(holder: object) -> None:
    for name, value in list(vars(holder).items()):
        if ("dropout" in name or name.endswith("_pdrop") or name.endswith("drop")) and isinstance(value, float):
            setattr(holder, name, 0.0)


def cache_name(model: PreTrainedModel) -> str:
    """The name of the cache in the model's forward pass: ``past_key_values`` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.get_decoder().forward).parameters else "past_key_values"


def keyed_noise(noise: Noise | None) -> KeyNoise | None:
    """The noise if it multiplies attention weights, else None."""
    return noise if isinstance(noise, KeyNoise) and noise.masks_keys else None


def key_positions(state: LatentState, new: int) -> Tensor:
    """Positions of all keys that ``new`` further positions can attend to, int64 [B, T]; below 0 for padding."""
    before = state.attention_mask.shape[1]
    if state.prefix is not None:
        before += state.prefix.keys[0].shape[-2]
    return torch.arange(before + new, device=state.hidden.device) - before + state.next_position


def _keyword(by_key: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keyword argument for the attention of every layer; empty if attention weights are not multiplied."""
    return {"key_factors": tuple(by_key.values())} if by_key else {}


def sites_of(model: PreTrainedModel) -> SiteMap:
    """The sites of a causal LM, by its config and its modules."""
    config, width = model.config.get_text_config(), embedding_table(model).shape[1]
    heads = getattr(config, "num_attention_heads", 0)
    return SiteMap(model.get_decoder(), width=width, heads=heads, key_heads=_key_heads(config))


def _key_heads(config: PreTrainedConfig) -> int | None:
    """Number of value heads; None if every query head has its own."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon, GPT-BigCode
    try:
        return getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    except RuntimeError:  # transformers: it differs by layer (Gemma 4), and the layers know it
        return None


def _advanced(state: LatentState, cache: Cache, length: int) -> LatentState:
    """The state after ``length`` more positions, with this cache."""
    return replace(
        state,
        cache=cache,
        attention_mask=extended(state.attention_mask, length),
        next_position=state.next_position + length,
    )


def _causal(own: int, new: int, like: Tensor) -> Tensor:
    """The causal mask to add to the scores of T own and L new positions, none of them padding: [1, 1, L, T + L].

    transformers would make the same from a mask [B, T + L], but for that it copies numbers from the host, which a CUDA
    graph cannot record.
    """
    if new == 1:  # sees all positions
        return like.new_zeros(1, 1, 1, 1)
    lowest = torch.finfo(like.dtype).min
    return like.new_full((1, 1, new, own + new), lowest).triu(own + 1)
