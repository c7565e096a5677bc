"""Writes a model card for a checkpoint folder, and ``custom_generate`` for use with plain transformers."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from yaml import YAMLError

from dropout_grpo.latent.io.causal_lm import is_generic
from dropout_grpo.latent.lora.checkpoint import ADAPTER_CONFIG
from dropout_grpo.latent.tokens import CHAT, CODI

CARD = "README.md"
_TAGS = ["latent-reasoning", "coconut", "dropout-grpo"]
_PAPER = "https://arxiv.org/abs/2606.10184"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measure of a checkpoint on one file of problems.

    Attributes:
        file: name of the problem file.
        n: number of problems.
        pass_at_1: share of right answers, in [0, 1].
        ci95: 95 % interval of ``pass_at_1``.
    """

    file: str
    n: int
    pass_at_1: float
    ci95: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """Facts for the model card that the checkpoint folder does not contain.

    Attributes:
        base: folder or hub name of the model that training started from.
        method: how the checkpoint was trained, such as ``Coconut's curriculum`` or ``Dropout-GRPO``.
        command: the command line that trained it.
        measured: results, one per file.
    """

    base: str | None = None
    method: str | None = None
    command: str | None = None
    measured: Sequence[Measured] = ()


def card_of(folder: Path, *, latent_steps: int, thought: str, prompt_format: str, facts: CardFacts) -> ModelCard:
    """The model card of a folder; it belongs into its file ``CARD``."""
    complete = (folder / "custom_generate").is_dir() and not (folder / ADAPTER_CONFIG).is_file()
    data = ModelCardData(
        license=_licence_of(facts.base),
        base_model=facts.base if facts.base and not Path(facts.base).exists() else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*_TAGS, *(["custom_generate"] if complete else [])],
        model_name=_name_of(folder),
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=Path(m.file).stem,
                dataset_name=Path(m.file).name,
                metric_type="pass@1",
                metric_value=round(m.pass_at_1, 4),
            )
            for m in facts.measured
        ]
        or None,
    )
    body = [f"# {_name_of(folder)}", _about(latent_steps, thought, prompt_format, facts)]
    if facts.measured:
        lines = ["| problems | n | pass@1 | 95 % interval |", "|---|---|---|---|"]
        for m in facts.measured:
            low, high = m.ci95
            lines.append(f"| {Path(m.file).name} | {m.n} | {m.pass_at_1:.1%} | {low:.1%} to {high:.1%} |")
        body.append("## Results\n\nThe plain network, greedy, masks off.\n\n" + "\n".join(lines))
    if facts.command:
        body.append(f"## Training\n\n```console\n$ {facts.command}\n```")
    question = {CHAT: _CHAT_QUESTION, CODI: _QUESTION.replace("\\n", "")}.get(prompt_format, _QUESTION)
    usage = _TRANSFORMERS.replace(_QUESTION, question)
    if is_generic(folder):
        usage = usage.replace("AutoTokenizer", "PreTrainedTokenizerFast")
    body.append(_USAGE + (usage if complete else _ADAPTER))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n")


def write_custom_generate(folder: Path) -> None:
    """Write ``custom_generate/generate.py``, which lets plain transformers think before it answers."""
    target = folder / "custom_generate" / "generate.py"
    target.parent.mkdir(parents=True, exist_ok=True)
    with as_file(files("dropout_grpo.latent.io") / "custom_generate" / "generate.py") as source:
        shutil.copyfile(source, target)


def _name_of(folder: Path) -> str:
    """The folder's name; a checkpoint is written to NAME.part first."""
    return folder.name.removesuffix(".part")


def _about(latent_steps: int, thought: str, prompt_format: str, facts: CardFacts) -> str:
    marker = "The answer is: " if prompt_format == CODI else "### "
    trained = f" It was trained with {facts.method}." if facts.method else ""
    base = f" Its base is {without_folder(facts.base)}." if facts.base else ""
    return (
        f"A language model that reasons in continuous latent space: it reads a question, takes {latent_steps} latent "
        f"steps (thought: {thought}), and answers after `{marker}`.{trained}{base} "
        f"Method: [Dropout-GRPO]({_PAPER}); software: dropout-grpo."
    )


def without_folder(text: str) -> str:
    """Of an absolute path the last name, since its folder holds on this machine only; any other text unchanged."""
    return re.sub(r"^(hf:)?/(.*/)?(?=.)", r"\1", text)


def _licence_of(base: str | None) -> str | None:
    """The licence in the base's own card, if the base is a folder with a card that can be read."""
    readme = None if base is None else Path(base) / CARD
    if readme is None or not readme.is_file():
        return None
    try:
        licence = ModelCard(readme.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.get("license")
    except (OSError, ValueError, TypeError, YAMLError):  # somebody else's file
        return None
    return licence if isinstance(licence, str) else None


_USAGE = """## Use

With dropout-grpo:

```console
$ dropout-grpo ask CHECKPOINT "a question"
```

"""

_QUESTION = 'tokenizer(["a question\\n"], return_tensors="pt")'
_CHAT_QUESTION = """tokenizer.apply_chat_template(
    [[{"role": "user", "content": "a question"}]], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""

_ADAPTER = (
    "This folder is an adapter. `dropout-grpo merge CHECKPOINT --out FOLDER` makes a model for plain transformers."
)

_TRANSFORMERS = """With transformers only. `trust_remote_code` runs `custom_generate/generate.py` of this folder;
read it first.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("CHECKPOINT")
tokenizer = AutoTokenizer.from_pretrained("CHECKPOINT", padding_side="left")
inputs = tokenizer(["a question\\n"], return_tensors="pt")
answers = model.generate(**inputs, custom_generate="CHECKPOINT", trust_remote_code=True, max_new_tokens=16)
print(tokenizer.batch_decode(answers, skip_special_tokens=True))
```"""
