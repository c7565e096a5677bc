"""Answers by transformers alone, without this package's engine.

python -m evidence.studies.by_transformers words --model MODEL --file FILE --out RUN
python -m evidence.studies.by_transformers same --checkpoints '[CHECKPOINT,...]' --file FILE --out RUN

``words`` asks a chat model that was not trained here, in its own format, and takes the last number that it says.
``same`` asks latent checkpoints, by the ``custom_generate`` in their folders, and counts the answers that are equal to
ours. Both write a run folder, and its ``results.json`` last.
"""

import json
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse import CLI
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.commands.merge import merge
from dropout_grpo.data.files import load_problems
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import ModelAnswers
from dropout_grpo.evaluation.measures import measure_answers, sample
from dropout_grpo.evaluation.statistics import CI95
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from dropout_grpo.latent.lora.checkpoint import is_adapter
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import ANSWER_PREFIX
from dropout_grpo.runs.files import MEASURES_FILE, RESULTS_FILE, SAMPLES_FILE, write_json, write_text
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.training.machine import bf16_for

INSTRUCTION = "Reason step by step. End with #### and the answer as a number."
_NUMBER = re.compile(r"-?\$?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
_BATCH = 64


def words(model: str, file: str, out: Path, problems: int | None = None, max_new_tokens: int = 320) -> None:
    """Chain of thought of a chat model before any training; writes what an eval run has.

    Args:
        model: folder, GGUF file or hub name.
        file: problems.
        out: run folder.
        problems: number of problems, the first ones; all if None.
        max_new_tokens: number of tokens of an answer at most.
    """
    dtype = torch.bfloat16 if bf16_for(torch.device("cpu"))[0] else torch.float32
    network, tokenizer = load_causal_lm(model, dtype=dtype)
    asked = load_problems(file, require_steps=False, max_problems=problems)
    by_length = sorted(asked, key=lambda problem: len(problem.question))
    answered: list[ModelAnswers] = []
    while rest := by_length[len(answered) :]:
        turns = [[{"role": "user", "content": f"{p.question}\n{INSTRUCTION}"}] for p in rest[:_BATCH]]
        prompts: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        said = _generate(network, tokenizer, prompts, max_new_tokens)
        answered += [
            ModelAnswers(problem=p, plain=marked(text), plain_length=length, plain_clipped=length == max_new_tokens)
            for p, (text, length) in zip(rest, said, strict=False)
        ]
        print(f"{len(answered)} of {len(asked)}", file=sys.stderr, flush=True)
    answered.sort(key=lambda answer: answer.problem.id)
    write_json(out / MEASURES_FILE, {"ci95": CI95, "evaluations": [{"file": file, **measure_answers(answered)}]})
    write_text(out / SAMPLES_FILE, "".join(f"{json.dumps(sample(file, answer))}\n" for answer in answered))
    write_json(out / RESULTS_FILE, {"model": model, **provenance()})


def same(checkpoints: list[str], file: str, out: Path, problems: int = 100, max_new_tokens: int = 10) -> None:
    """Compare answers by transformers' ``generate`` with ours, both greedy, in float32 and without masks.

    Args:
        checkpoints: folders of latent models; an adapter is merged into its base first, as ``dropout-grpo merge`` does.
        file: problems.
        out: run folder.
        problems: number of problems, the first ones.
        max_new_tokens: number of tokens of an answer at most.
    """
    questions = [p.question for p in load_problems(file, require_steps=False, max_problems=problems)]
    equal = {}
    for checkpoint in checkpoints:
        with TemporaryDirectory() as merged:
            folder = merged if is_adapter(checkpoint) else checkpoint
            if folder == merged:
                merge(checkpoint, Path(merged))
            ours = LatentModel.from_pretrained(folder).answer(questions, max_new_tokens)
            network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            prompts = [f"{question}\n" for question in questions]
            theirs = _generate(network, tokenizer, prompts, max_new_tokens, folder)
        equal[checkpoint] = sum(a == b for a, (b, _) in zip(ours, theirs, strict=True))
        print(f"{checkpoint}: {equal[checkpoint]} of {len(questions)} answers are equal", file=sys.stderr, flush=True)
    write_json(out / RESULTS_FILE, {"problems": len(questions), "equal": equal, **provenance()})


def marked(said: str) -> str:
    """What a model said, with its last number after ``###``, where answers stand."""
    numbers = _NUMBER.findall(said)
    return f"{said}\n{ANSWER_PREFIX}{numbers[-1]}" if numbers else said


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    custom_generate: str | None = None,
) -> list[tuple[str, int]]:
    """Greedy completions of prompts, with their numbers of tokens."""
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    inputs: Any = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    custom = {} if custom_generate is None else {"custom_generate": custom_generate, "trust_remote_code": True}
    with torch.no_grad():
        output = model.generate(  # type: ignore[operator]
            **inputs,
            **custom,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    completions = output if custom else output[:, inputs["input_ids"].shape[1] :]  # custom_generate returns only these
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    lengths = (completions != tokenizer.pad_token_id).sum(-1).tolist()
    return list(zip(texts, lengths, strict=True))


if __name__ == "__main__":
    try:
        CLI([words, same], as_positional=False)
    except UserError as error:
        sys.exit(f"by_transformers: error: {error}")
