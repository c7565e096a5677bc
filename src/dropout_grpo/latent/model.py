"""LatentModel: a Hugging Face causal LM that reads, thinks and answers, with loading, saving and text in and out.

    model = LatentModel.from_pretrained("checkpoint")
    model.answer(["Tom has 3 boxes with 4 pens in each box. How many pens does Tom have?"])

The recurrence itself is in ``recurrence.py``. This module adds text, files, and the methods that use CUDA graphs.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dropout_grpo.data.answers import MARKER, answers_match, extract_answer
from dropout_grpo.data.problem import Prompt
from dropout_grpo.errors import QuestionTooLong, UserError
from dropout_grpo.exploration.base import Exploration, Noise
from dropout_grpo.latent.decoding import DecodingStrategy, Generation, Greedy, generate_eagerly, require_finite_answers
from dropout_grpo.latent.graphs import recordings_for, ropes
from dropout_grpo.latent.io.checkpoint import load_parts, load_thought, save_latent_model
from dropout_grpo.latent.logit_lens import TOP_K, ThoughtReadings, read_thoughts
from dropout_grpo.latent.recurrence import Recurrence
from dropout_grpo.latent.state import LatentState
from dropout_grpo.latent.tokens import (
    ANSWER_PREFIX,
    CHAT,
    encode_answers,
    encode_questions,
    pad_left,
    require_prompt_format,
)


class LatentModel(Recurrence):
    """A causal LM that can ``read``, ``think``, and ``generate`` or ``score``.

    Its arguments are those of ``Recurrence``. Shapes: B rows, S prompt positions, L answer tokens.
    """

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        base: str | Path | None = None,
        latent_steps: int | None = None,
        thought: str | None = None,
        merge: bool = False,
        prompt_format: str | None = None,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> "LatentModel":
        """Load a latent model from a folder, a hub name, or a Coconut ``state_dict`` file; an adapter with its base.

        Args:
            path: a folder that ``save_pretrained`` wrote, any causal LM with Coconut's latent tokens, or a file that
                facebookresearch/coconut (``checkpoint_33``) or zhenyi4/codi (``pytorch_model.bin``) saved.
            base: the model that such a file was trained from; only for a file.
            latent_steps: number of thoughts per answer; required if there is no ``latent_config.json``.
            thought: kind of thought; by default from ``latent_config.json``, or ``hidden_state`` without that file.
            merge: for an adapter: add it to its base's weights and remove it.
            prompt_format: how questions become prompts, ``coconut``, ``codi`` or ``chat``; by default from
                ``latent_config.json``, or ``coconut`` without that file.
            dtype: dtype of the weights.
            attn_implementation: as in transformers; None for its default. It has an effect only for a model whose
                rollouts cannot share the prompt's cache (``shares_prefix``); others have an attention of their own.
            tokenizer: that of the folder, hub name or GGUF file, if it is loaded already.

        Raises:
            UserError: there is no such checkpoint, latent tokens or ``latent_steps`` are missing, a file is given
                without its ``base``, or there is nothing to ``merge``.
        """
        parts = load_parts(
            path,
            base=base,
            latent_steps=latent_steps,
            thought=thought,
            merge=merge,
            dtype=dtype,
            attn_implementation=attn_implementation,
            tokenizer=tokenizer,
        )
        model = cls(
            parts.model,
            parts.tokenizer,
            latent_steps=parts.latent_steps,
            thought=parts.thought,
            prj_dim=parts.prj_dim,
            prompt_format=prompt_format or parts.prompt_format,
        )
        model.exploration = parts.exploration
        load_thought(model, path, saved_kind=parts.saved_thought, weights=parts.thought_weights)
        return model

    def save_pretrained(self, path: str | Path) -> None:
        """Write a plain Hugging Face folder; see ``save_latent_model``."""
        save_latent_model(self, path)

    @overload
    def answer(self, questions: Prompt, max_new_tokens: int = 64) -> str: ...  # type: ignore[overload-overlap]

    @overload
    def answer(self, questions: Sequence[Prompt], max_new_tokens: int = 64) -> list[str]: ...

    def answer(self, questions: Prompt | Sequence[Prompt], max_new_tokens: int = 64) -> str | list[str]:
        """The plain network's greedy answers: the text after the end marker, such as ``### 15``, without EOS.

        ``extract_answer`` gives the text after ``###``.

        Args:
            questions: one question or conversation, which gives one answer, or a sequence of them, which gives a list.
            max_new_tokens: number of tokens of an answer at most.

        Raises:
            UserError: a question is empty or too long, or has words that the tokenizer does not know.
        """
        several = _several(questions)
        if several is not questions:
            return self.answer(several, max_new_tokens)[0]
        if not questions:
            return []
        with torch.no_grad():
            state = self.think(self.read(*self.encode(questions, room=max_new_tokens)), self.latent_steps)
        generation = self.generate(state, max_new_tokens)
        require_finite_answers(generation, lambda row: f"question {row + 1} ({questions[row]!r:.60})")
        return self.decode(generation.token_ids, generation.mask)

    def thoughts(
        self,
        questions: Prompt | Sequence[Prompt],
        exploration: Exploration | None = None,
        seeds: Sequence[int] = (),
        top_k: int = TOP_K,
        latent_steps: int | None = None,
    ) -> list[ThoughtReadings]:
        """What thoughts are close to: the likeliest tokens that the head gives for each, plain and under masks.

        Args:
            questions: N texts.
            exploration: makes the masks.
            seeds: one mask each, the same for all questions.
            top_k: number of tokens.
            latent_steps: number of thoughts; the model's own number when None.

        Returns:
            N ``ThoughtReadings``: tokens with probabilities, and cosines between the masked states and the plain ones.

        Raises:
            UserError: ``top_k`` is below 1, seeds without an exploration, or a question is too long.
        """
        if not questions:
            return []
        steps = self.latent_steps if latent_steps is None else latent_steps
        ids, mask = self.encode(questions, room=steps - self.latent_steps)
        return read_thoughts(self, ids, mask, exploration, seeds, top_k, steps)

    def decode(self, token_ids: Tensor, mask: Tensor) -> list[str]:
        """Texts of the answer tokens [B, L] where ``mask`` [B, L] is True, without special and final tokens."""
        lengths = mask.sum(-1).tolist()  # an answer ends once, so its tokens are the first ones
        stops = self.tokens.stops
        rows = [
            [token for token in ids[:length] if token not in stops]
            for ids, length in zip(token_ids.tolist(), lengths, strict=True)
        ]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def require_writable(self, answers: Iterable[str]) -> None:
        """Check that the tokenizer can write the answers: ``### 7``, encoded and decoded, must be the answer 7.

        A tokenizer may have no ``###``, split it, or change spaces when it decodes. No completion then matches. A
        warning counts the answers that are lost if others are not.

        Args:
            answers: gold answers.

        Raises:
            UserError: no answer can be written, or one has words that the tokenizer does not know.
        """
        golds = list(dict.fromkeys(answers))
        if not golds:
            return
        rows = encode_answers(self.tokenizer, golds, self.tokens)
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        lost = [(g, t) for g, t in zip(golds, texts, strict=True) if not answers_match(extract_answer(t), g)]
        if not lost:
            return
        gold, text = lost[0]
        message = (
            f"the tokenizer of {self.name} cannot write {len(lost)} of {len(golds)} different answers, which no "
            f"completion matches then: {ANSWER_PREFIX + gold!r:.80} is decoded as {text!r:.80}."
        )
        if len(lost) == len(golds):
            raise UserError(f"{message} It needs a token for {MARKER}, and clean_up_tokenization_spaces=False.")
        warnings.warn(f"{message} Write them as the tokenizer decodes them.", stacklevel=3)

    @property
    def max_positions(self) -> int | None:
        """Maximum number of positions in a sequence; None if the model's config does not give it.

        With longrope (Phi-3) these are the positions it was pretrained with. One longer row would make it rotate all
        rows of its batch by other factors, and a row's answer must not depend on the others.
        """
        limits = [rope["original_max_position_embeddings"] for rope in self._longropes()]
        config = self.model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)  # MPT
        return min([*limits, *([] if positions is None else [positions])], default=None)

    def _longropes(self) -> list[dict[str, Any]]:
        return [rope for rope in ropes(self.model.config) if rope.get("rope_type") == "longrope"]

    def encode(self, questions: Prompt | Sequence[Prompt], room: int = 0) -> tuple[Tensor, Tensor]:
        """Encode questions as left-padded prompts: ids [B, S] and mask [B, S].

        Args:
            questions: one or more texts, or conversations for the tokenizer's chat template.
            room: number of answer tokens that must still fit after the prompt and the thoughts.

        Raises:
            UserError: there is no question; one is empty, too long for the model's positions, or has words that the
                tokenizer does not know.
        """
        return self.pad(self.encode_rows(questions, room))

    def encode_rows(self, questions: Prompt | Sequence[Prompt], room: int = 0) -> list[list[int]]:
        """Like ``encode``, without padding: for callers that encode once and pad batch by batch."""
        questions = _several(questions)
        for number, question in enumerate(questions, start=1):
            if isinstance(question, str) and not question.strip():
                raise UserError(f"{f'question {number}' if len(questions) > 1 else 'the question'} is empty.")
        rows = self.tokenize(questions)
        self.check_length(rows, self.latent_steps + 1 + room)
        return rows

    def tokenize(self, questions: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of prompts of any length, each with the start marker at its end; see ``encode_questions``."""
        return encode_questions(self.tokenizer, questions, self.tokens, self.prompt_format)

    def tokenize_for_training(self, questions: Sequence[Prompt]) -> list[list[int]]:
        """Like ``tokenize``. If there is a conversation, the model's format becomes ``chat``, which it then records.

        Raises:
            UserError: there is a conversation, and the tokenizer has no chat template.
        """
        if not all(isinstance(question, str) for question in questions):
            self.prompt_format = require_prompt_format(self.tokenizer, CHAT, self.name)
        return self.tokenize(questions)

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids [B, S] and mask [B, S] of prompts, padded on the left to an even S.

        On a CPU attention in bf16 over an odd number of positions rounds differently. With even lengths a row has the
        same bits in every batch.

        Raises:
            UserError: there are no rows.
        """
        if not rows:
            raise UserError("there are no questions to encode: give at least one.")
        ids, mask = pad_left(rows, self.tokens.pad, self.device)
        odd = ids.shape[1] % 2
        return nn.functional.pad(ids, (odd, 0), value=self.tokens.pad), nn.functional.pad(mask, (odd, 0))

    def check_length(self, rows: Sequence[Sequence[int]], room: int) -> None:
        """Check that every prompt leaves room for ``room`` more positions.

        Raises:
            QuestionTooLong: names the longest prompt.
        """
        longest = max(range(len(rows)), key=lambda i: len(rows[i]), default=None)
        if longest is None or self.max_positions is None:
            return
        if len(rows[longest]) + room > self.max_positions:
            begins = self.tokenizer.decode(list(rows[longest][:12]))
            longrope = " before longrope changes all rows of a batch" if self._longropes() else ""
            raise QuestionTooLong(
                f"question {longest + 1} ({begins!r} ...) has {len(rows[longest])} tokens and needs {room} more for "
                f"thoughts and answer; the model has {self.max_positions} positions{longrope}. Shorten or drop it, or "
                "have fewer thoughts or answer tokens."
            )

    def think(self, state: LatentState, steps: int, noise: Noise | None = None) -> LatentState:
        """Run ``steps`` latent steps, with CUDA graphs if ``recordings_for`` allows them, else step by step."""
        recordings = recordings_for(self, state, steps, None, noise)
        if recordings is not None:
            return recordings.think(self, state, steps, noise)
        return self.think_eagerly(state, steps, noise)

    @torch.no_grad()
    def generate(
        self,
        state: LatentState,
        max_new_tokens: int,
        *,
        strategy: DecodingStrategy | None = None,
        noise: Noise | None = None,
    ) -> Generation:
        """Decode answers after the end marker, greedily unless a ``strategy`` is given."""
        strategy = strategy or Greedy()
        recordings = recordings_for(self, state, max_new_tokens, strategy, noise)
        if recordings is not None:
            return recordings.generate(self, state, max_new_tokens, strategy, noise)
        return generate_eagerly(self, state, max_new_tokens, strategy=strategy, noise=noise)


def _several(questions: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A sequence of questions as it is; one question, or one conversation, in a list."""
    one = isinstance(questions, str) or any(isinstance(question, Mapping) for question in questions)
    return cast("Sequence[Prompt]", [questions] if one else questions)
