"""Answers end with the tokenizer's EOS, and with every other token that the generation config names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dropout_grpo.exploration import NoExploration
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.rollout import Prompts, roll_out
from dropout_grpo.latent.tokens import latent_tokens
from helpers.grpo_run import CONFIG, alternating, trainer
from helpers.tiny import EOS_ID
from helpers.tiny_latent import read_metrics, tiny_latent

QUESTIONS = ["Ann has 3", "Bob has 4 ?", "how many ?"]


@pytest.mark.parametrize(
    ("stops", "expected"), [(None, ()), (EOS_ID, ()), (7, (7,)), ([9, EOS_ID, 7], (7, 9)), ([], ())]
)
def test_what_a_generation_config_may_say(stops: int | list[int] | None, expected: tuple[int, ...]) -> None:
    model = tiny_latent()
    tokens = latent_tokens(model.tokenizer, "here", stops)
    assert (tokens.eos, tokens.stops) == (EOS_ID, expected)
    ids = torch.tensor([[EOS_ID, 7, 9, 3]])
    assert tokens.end_answer(ids).tolist() == [[True, 7 in expected, 9 in expected, False]]


def answers(model: LatentModel) -> list[list[int]]:
    generation = answers_of(model)
    return [ids[mask].tolist() for ids, mask in zip(generation.token_ids, generation.mask, strict=True)]


@torch.no_grad()
def answers_of(model: LatentModel) -> Generation:
    seeds, prompts = torch.arange(12).view(3, 4), Prompts(*model.encode(QUESTIONS))
    return roll_out(model, prompts, seeds, NoExploration(), temperature=1.0, max_completion_length=6)


def test_an_answer_ends_with_any_of_them_and_its_text_leaves_them_out(tmp_path: Path) -> None:
    model = tiny_latent(seed=17)
    before = answers(model)
    stop = before[0][1]
    model.model.generation_config.eos_token_id = [EOS_ID, stop]
    model.save_pretrained(tmp_path)
    loaded = LatentModel.from_pretrained(tmp_path)
    assert loaded.tokens.stops == (stop,)
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in before]
    assert answers(loaded) == cut
    assert cut != before
    generation = answers_of(loaded)
    word = model.tokenizer.decode([stop])
    assert all(word not in text.split() for text in loaded.decode(generation.token_ids, generation.mask))


def test_an_answer_that_ends_with_another_stop_is_not_truncated(tmp_path: Path) -> None:
    model = tiny_latent(seed=17)
    model.tokens = replace(model.tokens, stops=(0, *range(2, 31)))  # every token ends an answer
    trainer(
        tmp_path, replace(CONFIG, max_steps=1, max_completion_length=1), model=model, reward_funcs=[alternating]
    ).train()
    assert read_metrics(tmp_path)[0]["completions/clipped_ratio"] == 0.0
