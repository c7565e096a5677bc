"""Conversations and chat templates: what the model reads, what a checkpoint records, what rewards get."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo import GRPOTrainer, LatentModel, UserError
from dropout_grpo.cli.main import main
from dropout_grpo.commands.shared.models import load_model
from dropout_grpo.commands.shared.problems import require_readable
from dropout_grpo.config.data import DataConfig
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.data.records import as_problems
from dropout_grpo.data.rewards import choice_answer, exact_answer, format_penalty
from dropout_grpo.evaluation.answering import answer_problems
from dropout_grpo.latent.io.causal_lm import load_causal_lm, load_tokenizer
from dropout_grpo.latent.tokens import add_latent_tokens, set_template_variables
from helpers.grpo_run import CONFIG, alternating, digits
from helpers.tiny import WORDS, tiny_model, tiny_tokenizer
from helpers.tiny_latent import tiny_latent, tiny_problems

USER, ASSISTANT, SYSTEM, TURN = 28, 29, 30, 31
"""Ids of the template's own tokens, after the 28 of the tiny tokenizer; the latent tokens are 32 to 34."""
START = 32
TEMPLATE = """{% for m in messages %}
{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
{{ '<' + m['role'] + '>' + m['content'] + '<turn>' }}{% endfor %}
{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}""".replace("\n", "")
ID = {word: i for i, word in enumerate(WORDS)}


def saved_instruct(folder: Path) -> Path:
    """A plain tiny model whose tokenizer has a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<user>", "<assistant>", "<system>", "<turn>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    tiny_model("gpt2", vocab_size=32).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def instruct(folder: Path, **options: Any) -> LatentModel:
    saved_instruct(folder)
    model, tokenizer = load_causal_lm(folder)
    add_latent_tokens(model, tokenizer)
    return LatentModel(model, tokenizer, latent_steps=2, **options)


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


HAS = [ID["Ann"], ID["has"], ID["3"]]
SYSTEM_TURN = {"role": "system", "content": "how many"}


def test_one_conversation_is_one_question_and_its_unknown_words_are_refused(tmp_path: Path) -> None:
    model = instruct(tmp_path)
    assert model.encode_rows(asked("Ann has 3")) == [[USER, *HAS, TURN, ASSISTANT, START]]
    assert model.answer(asked("Ann has 3"), 2) == model.answer([asked("Ann has 3")], 2)[0]
    with pytest.raises(UserError, match=r"as <unk>: 'zebra' \(1\)"):
        model.answer([asked("Ann has 3"), asked("zebra has 3")])


def test_a_prompt_is_the_templates_tokens_and_the_start_marker(tmp_path: Path) -> None:
    model = instruct(tmp_path, prompt_format="chat")
    conversation = [SYSTEM_TURN, *asked("Ann has 3")]
    expected = [
        [USER, *HAS, TURN, ASSISTANT, START],
        [SYSTEM, ID["how"], ID["many"], TURN, USER, *HAS, TURN, ASSISTANT, START],
    ]
    assert model.encode_rows(["Ann has 3", conversation]) == expected
    template = model.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert expected[1] == [*template, model.tokens.start]
    plain = LatentModel(model.model, model.tokenizer, latent_steps=2)
    assert plain.encode_rows(["Ann has 3", asked("Ann has 3")]) == [[*HAS, ID["\n"], START], expected[0]]


@pytest.mark.parametrize("start", ["", "\n", "  {# of no use #}\n", "{%- if true %}yes{% endif %}"])
def test_variables_are_written_into_the_template_and_the_last_value_holds(start: str) -> None:
    """The template's own start is rendered as before, as Jinja treats blanks and newlines around its first block."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = start + "{{ messages[0].content }}"
    turns = asked("Ann")
    plain = tokenizer.apply_chat_template(turns, tokenize=False)
    tokenizer.chat_template = start + "{{ messages[0].content }} {{ think }} {{ names }}"
    set_template_variables(tokenizer, {"think": True, "names": ["'a' %}\n", None, 1.5]})
    set_template_variables(tokenizer, {"think": True})
    set_template_variables(tokenizer, {"think": False})
    assert tokenizer.apply_chat_template(turns, tokenize=False) == plain + " False [\"'a' %}\\n\", None, 1.5]"
    assert tokenizer.chat_template.count("set think") == 1


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{% set think = reasoning | default(true) %}\n{{ think }}", "False"),
        ("{% set name = 'A' %}\n{% set name = name ~ 'B' %}\n{{ name }}", "AB"),
        ("{% set reasoning = true %}\n{{ reasoning }}", "False"),
    ],
)
def test_lines_that_a_template_starts_with_see_the_variables(template: str, prompt: str) -> None:
    """Fault: variables came after such lines, and of two lines for one name the first was lost."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    set_template_variables(tokenizer, {"reasoning": True})
    set_template_variables(tokenizer, {"reasoning": False})
    assert tokenizer.apply_chat_template(asked("Ann"), tokenize=False) == prompt


def test_what_a_template_cannot_have_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        set_template_variables(tokenizer, {"think": True})
    tokenizer.chat_template = TEMPLATE
    for name, value in (("a b", 1), ("today", date(2026, 1, 1)), ("most", float("inf"))):
        with pytest.raises(UserError, match=f"a template cannot have '{name}' with the value"):
            set_template_variables(tokenizer, {name: value})


THINKING = TEMPLATE.replace("'<assistant>'", "'<assistant>' if think is defined and not think else '<system>'")


def test_template_variables_of_sft_and_of_trls_config_are_saved(tmp_path: Path) -> None:
    folder = saved_instruct(tmp_path / "plain")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(folder)
    rows = [{"question": f"Ann has {i}", "steps": [f"{i} + 1"], "answer": str(i + 1)} for i in range(6)]
    (tmp_path / "problems.json").write_text(json.dumps(rows), encoding="utf-8")
    files = [f"--data.{split}={tmp_path / 'problems.json'}" for split in ("train", "valid")]
    small = ["c_thought=1", "max_latent_stage=1", "cot_epochs=0", "epochs_per_stage=1", "final_epochs=0"]
    learn = [*files, "--bf16=false", f"--model.name_or_path={folder}", *(f"--curriculum.{each}" for each in small)]
    chat = ["--data.chat_template=true", "--data.chat_template_kwargs={think: false}"]
    assert main(["sft", *learn, *chat, f"--run_dir={tmp_path / 'sft'}"]) == 0
    trained = LatentModel.from_pretrained(tmp_path / "sft/checkpoints/coconut")
    assert trained.encode_rows(["Ann has 3"]) == [[USER, *HAS, TURN, ASSISTANT, START]]

    config = replace(CONFIG, chat_template_kwargs={"think": False})
    conversations = [{"prompt": asked(f"Ann has {i}"), "answer": "7"} for i in range(5)]
    made = GRPOTrainer(folder, alternating, config, conversations, run=tmp_path / "run", latent_steps=2)
    assert ASSISTANT in made.sampler.encoded[0]
    made.train()
    other = replace(config, max_steps=CONFIG.max_steps + 1, chat_template_kwargs=None)
    with pytest.raises(UserError, match=r"cannot resume .* the content of chat_template"):
        GRPOTrainer(folder, alternating, other, conversations, run=tmp_path / "run", latent_steps=2).train(True)
    made.save_model(tmp_path / "saved")
    assert LatentModel.from_pretrained(tmp_path / "saved").encode_rows([asked("Ann has 3")])[0][-2] == ASSISTANT


def test_a_tokenizer_without_a_template_is_refused() -> None:
    model = tiny_latent()
    with pytest.raises(UserError, match=r"has no chat template, which conversations and data\.chat_template need"):
        model.encode([asked("Ann has 3")])
    with pytest.raises(UserError, match="has no chat template"):
        GRPOTrainer(model, digits, CONFIG, [{"prompt": asked(f"Ann has {i}"), "answer": "7"} for i in range(5)])
    with pytest.raises(UserError, match="has no chat template"):
        LatentModel(model.model, model.tokenizer, latent_steps=2, prompt_format="chat")
    with pytest.raises(UserError, match=r"prompt_format 'alpaca' of .* known are coconut, chat"):
        LatentModel(model.model, model.tokenizer, latent_steps=2, prompt_format="alpaca")


def test_what_the_template_refuses_is_named(tmp_path: Path) -> None:
    model = instruct(tmp_path)
    with pytest.raises(UserError, match="question 2: the chat template refuses the conversation: no tools here"):
        model.encode([asked("Ann has 3"), [{"role": "tool", "content": "3"}]])


def test_rewards_get_rows_as_they_came_and_conversations_as_in_trl(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def theirs(prompts: Any, completions: Any, solution: Any, **columns: Any) -> list[float | None]:
        seen.append({"prompts": prompts, "completions": completions, "solution": solution, **columns})
        return digits(prompts, [turns[0]["content"] for turns in completions])

    rows = [{"prompt": asked(f"Ann has {i}"), "solution": f"so #### {i}"} for i in range(5)]
    model = instruct(tmp_path / "plain")
    GRPOTrainer(model, [theirs, exact_answer], CONFIG, rows, run=tmp_path / "run").train()
    assert len(seen) == CONFIG.max_steps
    for call in seen:
        assert call["prompts"] == call["prompt"]
        assert [turns[-1]["content"] for turns in call["prompts"]] == call["question"]
        assert call["solution"] == [f"so #### {answer}" for answer in call["answer"]]
        assert {turn["role"] for turns in call["completions"] for turn in turns} == {"assistant"}
    model.save_pretrained(tmp_path / "trained")
    assert LatentModel.from_pretrained(tmp_path / "trained").prompt_format == "chat"


def test_the_packages_rewards_read_conversations() -> None:
    prompts, said = [asked("Is Tom a lempus or scrompus ?")], [[{"role": "assistant", "content": "### a lempus"}]]
    assert exact_answer(prompts, said, ["a lempus"]) == [1.0]
    assert choice_answer(prompts, said, ["lempus"]) == [1.0]
    assert format_penalty(prompts, said) == [0.0]
    assert format_penalty(prompts, [[{"role": "assistant", "content": "a lempus"}]]) == [-0.5]


def test_every_command_keeps_the_format_of_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """sft puts plain questions into the template; grpo, eval and ask on its checkpoint do so without being told."""
    saved_instruct(tmp_path / "plain")
    rows = [{"question": f"Ann has {i}", "steps": [f"{i} + 1"], "answer": str(i + 1)} for i in range(6)]
    file = tmp_path / "problems.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    files = [f"--data.{split}={file}" for split in ("train", "grpo", "valid")]
    small = ["c_thought=1", "max_latent_stage=1", "cot_epochs=1", "epochs_per_stage=1", "final_epochs=0"]
    common = [*files, "--bf16=false", "--evaluation.max_new_tokens=3"]
    learn = [*common, f"--model.name_or_path={tmp_path / 'plain'}", *(f"--curriculum.{option}" for option in small)]
    assert main(["sft", *learn, "--data.chat_template=true", f"--run_dir={tmp_path / 'sft'}"]) == 0
    checkpoint = tmp_path / "sft/checkpoints/coconut"
    update = ["max_steps=1", "prompts_per_step=2", "num_generations=2", "max_completion_length=3"]
    options = [*common, *(f"--grpo.{option}" for option in update)]
    assert main(["grpo", f"--checkpoint={checkpoint}", *options, f"--run_dir={tmp_path / 'grpo'}"]) == 0
    checkpoint = tmp_path / "grpo/checkpoints/grpo"
    assert json.loads((checkpoint / "latent_config.json").read_text(encoding="utf-8"))["prompt_format"] == "chat"
    ask = ["--evaluation.num_samples=0", "--evaluation.max_new_tokens=3", "--bf16=false"]
    assert main(["eval", f"--checkpoint={checkpoint}", f"--files=[{file}]", *ask, f"--run_dir={tmp_path / 'e'}"]) == 0
    samples = [json.loads(line) for line in (tmp_path / "e/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    model = LatentModel.from_pretrained(checkpoint)
    conversations = as_problems([{"prompt": asked(row["question"]), "answer": row["answer"]} for row in rows], "rows")
    config = EvaluationConfig(num_samples=0, max_new_tokens=3)
    assert [line["plain"] for line in samples] == [said.plain for said in answer_problems(model, conversations, config)]
    capsys.readouterr()
    assert main(["ask", str(checkpoint), "Ann has 3", "--masks=0", "--max_new_tokens=3"]) == 0
    assert capsys.readouterr().out.split(maxsplit=1)[1].strip() == samples[3]["plain"].strip()


@pytest.mark.parametrize("chat", [True, False])
def test_variables_of_a_template_that_is_not_used(
    chat: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = instruct(tmp_path), DataConfig(chat_template_kwargs={"enable_thinking": False})
    require_readable(model.tokenizer, data, "chat" if chat else "coconut", {"grpo": tiny_problems(2)})
    assert ("data.chat_template_kwargs: no effect; it needs" in capsys.readouterr().err) != chat


def test_a_model_from_scratch_has_no_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "--data.chat_template=true", f"--run_dir={tmp_path / 'run'}"]) == 2
    assert "has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chat_template", "formats"),
    [
        (None, {"coconut": "coconut", "codi": "codi", "chat": "chat"}),
        (True, {"coconut": "chat", "codi": "chat", "chat": "chat"}),
        (False, {"coconut": "coconut", "codi": "codi", "chat": "coconut"}),
    ],
)
def test_the_option_and_what_the_checkpoint_records(
    chat_template: bool | None, formats: dict[str, str], tmp_path: Path
) -> None:
    """Fault: ``false`` made Coconut's format of CODI's."""
    for recorded, expected in formats.items():
        model = instruct(tmp_path / f"plain-{recorded}")
        model.prompt_format = recorded
        model.save_pretrained(tmp_path / recorded)
        data = DataConfig(chat_template=chat_template)
        assert load_model(tmp_path / recorded, data=data).prompt_format == expected
