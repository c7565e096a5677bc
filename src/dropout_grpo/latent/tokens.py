"""Coconut's three special tokens, and prompts made of them."""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.data.problem import Message, Prompt
from dropout_grpo.errors import UserError

START, LATENT, END = "<|start-latent|>", "<|latent|>", "<|end-latent|>"
LATENT_TOKENS = (START, END, LATENT)
"""The latent tokens in the order in which Coconut's run.py adds them; their ids follow the vocabulary in this order."""

ANSWER_PREFIX = "### "

COCONUT, CHAT, CODI = "coconut", "chat", "codi"
PROMPT_FORMATS = (COCONUT, CHAT, CODI)
"""How a question becomes a prompt: with a newline after it, as the user's turn of the tokenizer's chat template, or as
in CODI, without the newline and without double spaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentTokens:
    """Ids of the markers. A prompt ends in ``start``; the answer is decoded after ``end``.

    Training ends answers with ``eos``. A generated answer also ends with any of ``stops``.
    """

    start: int
    latent: int
    end: int
    eos: int
    pad: int
    stops: tuple[int, ...] = ()

    def end_answer(self, token_ids: Tensor) -> Tensor:
        """True for tokens that end an answer, of the shape of ``token_ids``."""
        ends = token_ids == self.eos
        for stop in self.stops:
            ends = ends | (token_ids == stop)
        return ends


def latent_tokens(
    tokenizer: PreTrainedTokenizerBase, where: str, stops: int | Sequence[int] | None = None
) -> LatentTokens:
    """The ids of the latent tokens in a tokenizer.

    Args:
        tokenizer: tokenizer of the model.
        where: name of the model, for messages.
        stops: tokens that end an answer in addition to the tokenizer's end-of-sequence token, such as those in
            ``eos_token_id`` of a generation config. A warning names one that is an ordinary word.

    Raises:
        UserError: the tokenizer lacks a latent token or an end-of-sequence token.
    """
    if missing := missing_latent_tokens(tokenizer):
        raise UserError(
            f"{where} has no latent tokens: {', '.join(missing)} not in its tokenizer. Train it with "
            "`dropout-grpo sft` first, which adds them, or give a Coconut checkpoint."
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {where} has no end-of-sequence token: set tokenizer.eos_token.")
    eos = int(tokenizer.eos_token_id)
    pad = eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    others = [] if stops is None else [stops] if isinstance(stops, int) else stops
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    words = set(others) - special
    for index in sorted(words & set(tokenizer.get_vocab().values())) if words else ():
        warnings.warn(
            f"{where}: eos_token_id {index} of its config is the ordinary token {tokenizer.decode([index])!r} of its "
            f"tokenizer, so answers end there. Set it to {eos}, {tokenizer.eos_token}, in generation_config.json.",
            stacklevel=4,
        )
    ids = _latent_ids(tokenizer)
    return LatentTokens(
        start=ids[START],
        latent=ids[LATENT],
        end=ids[END],
        eos=eos,
        pad=pad,
        stops=tuple(sorted(set(others) - {eos})),
    )


def missing_latent_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The latent tokens that a tokenizer lacks."""
    present = _latent_ids(tokenizer)
    return [token for token in LATENT_TOKENS if token not in present]


def _latent_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The latent tokens that a tokenizer has, with their ids. ``get_vocab`` takes 0.1 seconds to copy all words."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in LATENT_TOKENS}  # of an unknown one, None or <unk>
    return {t: i for t, i in ids.items() if isinstance(i, int) and tokenizer.convert_ids_to_tokens(i) == t}


def add_latent_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the latent tokens that are missing, resize the embeddings, and initialise them from ``<<``, as Coconut does.

    If the tokenizer does not know ``<<``, they are initialised from the mean embedding. Other words without an
    embedding start as they do. A latent token that the tokenizer has and the embeddings lack counts as missing.

    Raises:
        UserError: the tokenizer would give a latent token the id of a word, because its ids have gaps.
    """
    count = len(embedding_table(model))
    vocabulary = tokenizer.get_vocab()
    new = [token for token in LATENT_TOKENS if vocabulary.get(token, count) >= count]
    if not new:
        return
    words = {index: word for word, index in vocabulary.items() if word not in new}
    tokenizer.add_tokens([token for token in new if token not in vocabulary], special_tokens=True)
    present = _latent_ids(tokenizer)
    ids = [present[token] for token in new]
    for token, index in zip(new, ids, strict=True):
        if index in words:
            raise UserError(
                f"the tokenizer of {model.name_or_path or type(model).__name__} has gaps in its ids, so {token} would "
                f"get id {index}, which is {words[index]!r}: number its tokens without gaps."
            )
    size = max([*words, *ids]) + 1
    new_rows = sorted({*ids, *range(count, size)})
    if size > count:
        with _NoDraws():
            model.resize_token_embeddings(size, mean_resizing=False)
    known = tokenizer.convert_tokens_to_ids("<<")
    has_known = isinstance(known, int) and known != tokenizer.unk_token_id and known in words and known < count
    old = [] if has_known else sorted(index for index in words if index < count)
    rows = slice(len(old)) if old and old[-1] == len(old) - 1 else old
    head = model.get_output_embeddings()
    tables = [embedding_table(model)] + ([] if head is None else [head.weight])
    with torch.no_grad():
        for table in tables:
            table[new_rows] = table[known].clone() if has_known else table[rows].mean(0)


class _NoDraws(TorchDispatchMode):
    """Leaves out random initial values: transformers draws them for a whole table, and then copies the old one over."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        draws = func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
        return args[0] if draws else func(*args, **kwargs or {})


def require_rows(tokenizer: PreTrainedTokenizerBase, rows: int, where: str) -> None:
    """Check that every token of a tokenizer has an embedding.

    Args:
        tokenizer: tokenizer of the model.
        rows: number of the model's embeddings.
        where: name of the model, for messages.

    Raises:
        UserError: names a token without one.
    """
    vocabulary = tokenizer.get_vocab()
    beyond = sorted((index, token) for token, index in vocabulary.items() if index >= rows)
    if beyond:
        index, token = beyond[0]
        raise UserError(
            f"{where}: its tokenizer has {token!r} with id {index}, and the model has embeddings for the ids below "
            f"{rows}: call model.resize_token_embeddings({beyond[-1][0] + 1}) and train the new rows, or use the "
            "tokenizer that the model was trained with."
        )


def embedding_table(model: PreTrainedModel) -> Tensor:
    """The input embeddings, [V, D]."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor), "the input embeddings have no table"
    return table


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head is the table of the input embeddings."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is embedding_table(model)


def untie(model: PreTrainedModel) -> None:
    """Give the output head a table of its own, a copy. The config changes with ``record_tied``."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())


def record_tied(model: PreTrainedModel, *, tied: bool) -> None:
    """Write into the model's config whether embeddings and head are one table. If not, both are saved and loaded."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied


def require_prompt_format(tokenizer: PreTrainedTokenizerBase, prompt_format: str, where: str) -> str:
    """The format, if the tokenizer can write it.

    Raises:
        UserError: the format is unknown, or needs a chat template that the tokenizer lacks.
    """
    if prompt_format not in PROMPT_FORMATS:
        raise UserError(f"prompt_format {prompt_format!r} of {where}: known are {', '.join(PROMPT_FORMATS)}.")
    if prompt_format == CHAT and tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {where} has no chat template, which conversations and data.chat_template need: start "
            "from an Instruct model, set tokenizer.chat_template, or give plain questions."
        )
    return prompt_format


_SET = re.compile(r"{% set (\w+) = .* %}\n")


def set_template_variables(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any] | None) -> None:
    """Set variables of a chat template, such as ``enable_thinking`` of Qwen3, in the template's first lines.

    They are saved with the tokenizer, so every later use of the model has them. A new value replaces an earlier one.
    Nothing happens without variables.

    Args:
        tokenizer: changed in place.
        variables: values by name: texts, numbers, truth values, None, and lists and dicts of them.

    Raises:
        UserError: the tokenizer has no chat template, or several; or a name or value cannot be a variable's.
    """
    if not variables:
        return
    template = tokenizer.chat_template
    if not isinstance(template, str):
        has = "no chat template" if template is None else "several chat templates"
        raise UserError(f"chat_template_kwargs: the tokenizer has {has}: set tokenizer.chat_template to one.")
    for name, value in variables.items():
        if not name.isidentifier() or not _is_literal(value):
            raise UserError(f"chat_template_kwargs: a template cannot have {name!r} with the value {value!r:.40}.")
    others = []  # of earlier calls, or the template's own
    while found := _SET.match(template):
        template = template[found.end() :]
        if found[1] not in variables:
            others.append(found[0])
    new = [f"{{% set {name} = {value!r} %}}\n" for name, value in variables.items()]  # repr as Jinja reads it, too
    tokenizer.chat_template = "".join([*new, *others]) + template


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Prompt], tokens: LatentTokens, prompt_format: str = COCONUT
) -> list[list[int]]:
    """Token ids of prompts, each with the start marker at its end.

    In the format ``coconut`` a question is followed by a newline, in ``codi`` by nothing. A conversation, and in the
    format ``chat`` a question as a user's turn, is what the tokenizer's chat template makes of it, up to where the
    assistant's turn begins.

    Raises:
        UserError: there is a conversation and no chat template, the template refuses it, or a question has words that
            the tokenizer does not know.
    """
    plain = [_plain(q, prompt_format) for q in questions if isinstance(q, str) and prompt_format != CHAT]
    encoded = iter(_encode(tokenizer, plain, special=True))
    rows = []
    for number, question in enumerate(questions, start=1):
        if isinstance(question, str) and prompt_format != CHAT:
            ids = next(encoded)
        else:
            turns = [{"role": "user", "content": question}] if isinstance(question, str) else question
            ids = _apply_template(tokenizer, turns, f"question {number}")
        rows.append([*ids, tokens.start])
    return rows


def _plain(question: str, prompt_format: str) -> str:
    return question.strip().replace("  ", " ") if prompt_format == CODI else question + "\n"


def _apply_template(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], where: str) -> list[int]:
    require_prompt_format(tokenizer, CHAT, tokenizer.name_or_path or type(tokenizer).__name__)
    try:
        conversation = [dict(turn) for turn in turns]
        ids: Any = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    except Exception as error:  # a template is a program: it raises jinja2's errors, and those of its own expressions
        raise UserError(f"{where}: the chat template refuses the conversation: {error}") from error
    said = "\n".join(str(turn.get("content", "")) for turn in conversation)
    _refuse_unknown(tokenizer, [said], [ids])
    return list(ids)


def encode_steps(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """The token ids of each step of each problem; every step is a line."""
    lines = iter(_encode(tokenizer, [step + "\n" for steps in problems for step in steps], special=False))
    return [list(islice(lines, len(steps))) for steps in problems]


def encode_answers(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], tokens: LatentTokens) -> list[list[int]]:
    """Token ids of the end of a completion: ``### ``, the answer, EOS."""
    return [[*ids, tokens.eos] for ids in _encode(tokenizer, [ANSWER_PREFIX + a for a in answers], special=False)]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    """Encode all texts in one call, which is many times as fast as one call per text.

    transformers' warning about long texts is switched off, since ``check_length`` raises an error that names the
    question.

    Raises:
        UserError: a text has words that the tokenizer does not know.
    """
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    _refuse_unknown(tokenizer, texts, ids)
    return ids


def _refuse_unknown(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
    """Raise UserError if texts, whose tokens are in ``ids``, have words that the tokenizer does not know."""
    unknown = _unknown_token(tokenizer)
    strange = [text for text, row in zip(texts, ids, strict=True) if unknown in row]
    if words := unknown_words(tokenizer, strange):
        first = next(text for text in strange if unknown_words(tokenizer, [text]))
        raise UserError(
            f"{first.strip()!r:.80} has words that the model's tokenizer does not know and would read as "
            f"{tokenizer.unk_token}: {most_common(words)}; use its words, or a pretrained model."
        )


def _unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that every unknown word gets. Byte-level tokenizers have none; slow ones do not say where it came from."""
    unknown = tokenizer.unk_token_id
    return None if unknown == tokenizer.eos_token_id or not tokenizer.is_fast else unknown


def unknown_words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Counter[str]:
    """The words of texts that a tokenizer would silently read as its unknown token, and how often they occur.

    White space does not count. Empty for slow tokenizers, which do not report where a token came from.
    """
    unknown = _unknown_token(tokenizer)
    if unknown is None or not texts:
        return Counter()
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    return Counter(
        text[start:end]
        for text, ids, spans in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if unknown in ids
        for token, (start, end) in zip(ids, spans, strict=True)
        if token == unknown and text[start:end].strip()
    )


def most_common(words: Counter[str]) -> str:
    """The five most frequent words with their counts, for messages."""
    shown = ", ".join(f"{word!r} ({count})" for word, count in words.most_common(5))
    return f"{shown} and {len(words) - 5} others" if len(words) > 5 else shown


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Ids [B, S] and mask [B, S] (1 real, 0 padding), padded on the left so that rows end together."""
    return _pad(rows, pad, device, left=True)


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Ids [B, L] and mask [B, L] (1 real, 0 padding), padded on the right so that rows start together."""
    return _pad(rows, pad, device, left=False)


def _pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str, *, left: bool) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])[:, None]  # [B, 1]
    position = torch.arange(int(lengths.max()))  # [L]
    real = position >= len(position) - lengths if left else position < lengths  # [B, L]
    ids = torch.full(real.shape, pad)
    ids[real] = torch.tensor(list(chain.from_iterable(rows)), dtype=ids.dtype)  # row by row, as in ``rows``
    return ids.to(device), real.long().to(device)
