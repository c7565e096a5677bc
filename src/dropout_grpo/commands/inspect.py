"""``dropout-grpo inspect``: what is found in a model, and a dry run of what GRPO does with it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.commands.ask import shown_tokens, thoughts_as_text
from dropout_grpo.commands.shared.options import add_config, add_device, add_json, checkpoint_options_of
from dropout_grpo.config.checkpoint import CheckpointOptions
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.exploration import KINDS, ExplorationConfig
from dropout_grpo.config.needs import changed
from dropout_grpo.data.files import load_problems
from dropout_grpo.data.formats import COCONUT_COLUMNS, Columns
from dropout_grpo.training.progress import console

if TYPE_CHECKING:
    import torch

    from dropout_grpo.exploration.base import Exploration
    from dropout_grpo.exploration.sites import Site
    from dropout_grpo.latent.model import LatentModel

HELP = "show what is found in a model: sites, masks, latent tokens; and do a dry run"

SEED_BYTES = 8
FED_BACK = "hidden_states[-1] of transformers (after the final norm, where there is one), as inputs_embeds"

_QUESTION = "Tom has 3 boxes with 4 pens in each box. How many pens does Tom have?"
_ROLLOUTS, _ANSWER_TOKENS = 4, 8
_ASKED = 64
"""Problems of a file that are answered to find some of each kind."""
_STEPS = 6
"""Thoughts of the dry run if no number is recorded: Coconut's on GSM8K."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=str, help="folder or hub name of a model, with latent tokens or without")
    few = "file or hf: dataset: read the thoughts about a few of its problems that are answered right and wrong"
    parser.add_argument("--problems", type=str | None, default=None, help=few)
    add_config(parser, Columns, "data.columns")
    add_device(parser)
    add_config(parser, CheckpointOptions)
    add_json(parser)


def run(options: Namespace) -> None:
    if options.problems is None and (columns := changed(options.data.columns, "data.columns")):
        console.print(f"warning: {', '.join(columns)}: no effect without --problems.", markup=False)
    found = inspect(options.model, checkpoint_options_of(options), options.problems, options.data.columns)
    print(json.dumps(found) if options.json else as_text(found))


def inspect(
    path: str, options: CheckpointOptions, problems: str | None = None, columns: Columns = COCONUT_COLUMNS
) -> dict[str, Any]:
    """What ``inspect`` prints, as JSON values.

    Args:
        path: folder, hub name or Coconut ``state_dict`` file.
        options: what the checkpoint does not record.
        problems: a problem file or hf: dataset; the thoughts about a few of its problems are read as well.
        columns: names of its columns.

    Raises:
        UserError: no such model or file, sites that are not found, or too few positions for a question.
    """
    import torch

    from dropout_grpo.exploration.sites import SITES
    from dropout_grpo.latent.tokens import END, LATENT, START

    model, lacking, steps_from = _load(path, options)
    tokens = model.tokens
    exploration = _exploration_of(model)
    about = {} if problems is None else {"thoughts": thoughts_about(model, problems, exploration, columns)}
    with torch.no_grad():
        dry = dry_run(model, exploration)
    return {
        "model": path,
        "class": type(model.model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.sites.dtype).removeprefix("torch."),
        "positions": model.max_positions,
        "latent_tokens": {START: tokens.start, END: tokens.end, LATENT: tokens.latent},
        "latent_tokens_added": lacking,
        "latent_steps": model.latent_steps,
        "latent_steps_from": steps_from,
        "thought": model.thought.kind,
        "fed_back": FED_BACK,
        "shares_prompt": model.shares_prefix,
        "sites": [_site_kind(model, kind) for kind in SITES if kind not in model.sites.lacking],
        "sites_lacking": model.sites.lacking,
        "seed_bytes": SEED_BYTES,
        "dry_run": dry,
        **about,
    }


def _exploration_of(model: LatentModel) -> Exploration:
    """The exploration that a model was trained with; the default if it records none, or code of another package."""
    from dropout_grpo.commands.shared.models import exploration_for
    from dropout_grpo.exploration.build import build_exploration

    kind = (model.exploration or {}).get("kind", "none")
    if kind in KINDS:
        return build_exploration(exploration_for(model, {}))
    default = build_exploration(ExplorationConfig())
    console.print(
        f"masks: {default}; the checkpoint was trained with exploration.kind {kind!r:.80}, whose code is not run",
        markup=False,
    )
    return default


def thoughts_about(
    model: LatentModel, file: str, exploration: Exploration, columns: Columns = COCONUT_COLUMNS
) -> list[dict[str, Any]]:
    """Lines as in thoughts.jsonl, of a few of the file's first problems: right, wrong, divided between masks.

    Raises:
        UserError: no such file, or a question that the model cannot read.
    """
    from dropout_grpo.commands.shared.problems import require_known_words
    from dropout_grpo.commands.shared.thoughts import MASKS, kinds_of, thought_lines
    from dropout_grpo.evaluation.answering import answer_problems
    from dropout_grpo.latent.tokens import encode_answers

    problems = load_problems(file, columns=columns, require_steps=False, max_problems=_ASKED)
    require_known_words(model.tokenizer, problems, file)
    masks = 0 if model.latent_steps == 0 else MASKS
    longest = max(map(len, encode_answers(model.tokenizer, [p.answer for p in problems], model.tokens)), default=0)
    config = EvaluationConfig(num_samples=masks, max_new_tokens=max(_ANSWER_TOKENS, longest))
    answered = answer_problems(model, problems, config, exploration=exploration)
    return thought_lines(kinds_of(answered), {"": (model, answered)}, exploration)


def _load(path: str, options: CheckpointOptions) -> tuple[LatentModel, list[str], str]:
    """The model, the latent tokens that were added in memory, and the source of its number of thoughts."""
    from dropout_grpo.commands.shared.models import load_model
    from dropout_grpo.distributed.device import default_device
    from dropout_grpo.latent.io.causal_lm import load_causal_lm, load_tokenizer
    from dropout_grpo.latent.io.checkpoint import LATENT_CONFIG, latent_config
    from dropout_grpo.latent.io.gguf import gguf_file
    from dropout_grpo.latent.model import LatentModel
    from dropout_grpo.latent.tokens import add_latent_tokens, missing_latent_tokens

    given, lacking, written = options.latent_steps, [], None
    is_state_dict = Path(path).is_file() and gguf_file(path) is None
    if not is_state_dict and options.base is None:
        lacking = missing_latent_tokens(load_tokenizer(path))
        written = latent_config(path).get("latent_steps")
    if given is not None:
        steps, steps_from = given, "--latent_steps"
    elif written is not None:
        steps, steps_from = int(written), LATENT_CONFIG
    else:
        steps, steps_from = _STEPS, "assumed"
    if not lacking:
        return load_model(path, CheckpointOptions(latent_steps=steps, base=options.base)), [], steps_from
    plain, tokenizer = load_causal_lm(path)
    add_latent_tokens(plain, tokenizer)
    return LatentModel(plain, tokenizer, latent_steps=steps).to(default_device()), lacking, steps_from


def _site_kind(model: LatentModel, kind: str) -> dict[str, Any]:
    """The sites of one kind: modules, features and factors of each place, Bernoulli bits per rollout."""
    sites = model.sites.instances((kind,))
    return {
        "kind": kind,
        "modules": _modules(sites),
        "places": len(sites),
        "widths": sorted({site.count * site.repeat for site in sites}),
        "factors": sorted({site.count for site in sites}),
        "bits": sum(site.count for site in sites),
    }


def _modules(sites: Sequence[Site]) -> list[str]:
    """Inputs or outputs of modules, those of all layers in one text: ``output of h.0-11.attn.c_proj``."""
    from dropout_grpo.exploration.sites import ATTENTION_WEIGHTS

    if sites[0].kind == ATTENTION_WEIGHTS:
        return ["attention weights after the softmax, of each key position"]
    ends = {"attention": "output", "mlp": "output", "heads": "input", "values": "input", "mlp_hidden": "input"}
    alike: dict[tuple[str, int], list[list[str]]] = {}  # dense layers and mixtures of experts have other paths
    for site in sites:
        if site.kind in ends:
            path = site.path.split(".")
            alike.setdefault((site.kind, len(path)), []).append(path)
    ranges = []
    for (kind, _), paths in alike.items():
        parts = [names[0] if len(set(names)) == 1 else f"{names[0]}-{names[-1]}" for names in zip(*paths, strict=True)]
        ranges.append(f"{ends[kind]} of {'.'.join(parts)}")
    return ranges or ["the vector fed back"]


def dry_run(model: LatentModel, exploration: Exploration) -> dict[str, Any]:
    """Roll out a short question, time each method, and replay the rollouts under the same masks.

    The question has the words that the tokenizer knows, at least one word of its vocabulary.
    """
    import torch

    from dropout_grpo.exploration.seeds import rollout_seeds
    from dropout_grpo.latent.decoding import Sampling, require_finite_answers
    from dropout_grpo.latent.rollout import Prompts, replay, think_in_groups
    from dropout_grpo.latent.tokens import unknown_words

    seeds = rollout_seeds(0, 0, torch.tensor([0]), _ROLLOUTS).to(model.device)
    known = [word for word in _QUESTION.split() if not unknown_words(model.tokenizer, [word])]
    question = " ".join(known) or next(word for word in model.tokenizer.get_vocab() if word.isalnum())
    prompts = Prompts(*model.encode([question], room=_ANSWER_TOKENS))
    clock = _Clock(model.device)
    read = model.read(prompts.input_ids, prompts.attention_mask)
    clock.stop("read")
    state, noise = think_in_groups(model, prompts, seeds, exploration, read=read)
    clock.stop("think")
    rollouts = model.generate(state, _ANSWER_TOKENS, strategy=Sampling(seeds.flatten(), 1.0), noise=noise)
    clock.stop("generate")
    require_finite_answers(rollouts, lambda row: f"the dry run's question ({question!r})")
    replayed = replay(model, prompts, seeds, rollouts.token_ids, exploration, temperature=1.0)
    clock.stop("replay")
    difference = (replayed - rollouts.logprobs)[rollouts.mask].abs().max().item()
    (thoughts,) = model.thoughts([question], exploration, seeds.flatten().tolist())
    return {
        "question": question,
        "exploration": repr(exploration),
        "prompt_tokens": prompts.input_ids.shape[1],
        "rollouts": model.decode(rollouts.token_ids, rollouts.mask),
        "plain": model.answer(question, _ANSWER_TOKENS),
        "thoughts": asdict(thoughts),
        "mean_cosine": thoughts.mean_cosine,
        "logprob_difference": difference,
        "seconds": clock.seconds,
    }


class _Clock:
    """Seconds between stops, including work that a GPU has not finished."""

    def __init__(self, on: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._on, self._last = on, time.perf_counter()

    def stop(self, name: str) -> None:
        import torch

        if self._on.type == "cuda":
            torch.cuda.synchronize(self._on)
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 4), now


def as_text(found: dict[str, Any]) -> str:
    """The report for people."""
    from dropout_grpo.latent.io.checkpoint import LATENT_CONFIG

    ids = ", ".join(f"{token} {number}" for token, number in found["latent_tokens"].items())
    if found["latent_tokens_added"]:
        ids = f"absent: `dropout-grpo sft` adds them; added here only in memory as {ids}"
    steps = {
        "assumed": f"not recorded: give --latent_steps; the dry run takes {found['latent_steps']}",
        LATENT_CONFIG: f"{found['latent_steps']} per answer, from {LATENT_CONFIG}",
        "--latent_steps": f"{found['latent_steps']} per answer, as given",
    }[found["latent_steps_from"]]
    prompt = "one copy, shared by the rollouts of a group" if found["shares_prompt"] else "copied for each rollout"
    dry, default = found["dry_run"], found["sites"][0]
    seconds = ", ".join(f"{verb} {taken:.3f} s" for verb, taken in dry["seconds"].items())
    thoughts = zip(dry["thoughts"]["plain"], dry["mean_cosine"], strict=True)
    read = [
        f"{shown_tokens(thought)}; under masks the mean cosine with it is {cosine:.3f}" for thought, cosine in thoughts
    ]
    lines = [
        ("model", f"{found['model']}: {found['class']}, {found['parameters']:,} parameters, {found['dtype']}"),
        ("positions", "not given in its config" if found["positions"] is None else f"{found['positions']:,}"),
        ("latent tokens", ids),
        ("thoughts", f"{steps}; kind {found['thought']}"),
        ("fed back", found["fed_back"]),
        ("prompt", prompt),
        *((f"site {site['kind']}", _site_line(site)) for site in found["sites"]),
        *((f"site {kind}", f"none, because {why}") for kind, why in found["sites_lacking"].items()),
        ("masks", f"{default['bits']:,} Bernoulli bits per rollout on the default site, {default['kind']}"),
        ("stored", f"{found['seed_bytes']} bytes per rollout, the seed from which the masks are drawn"),
        ("dry run", f"{len(dry['rollouts'])} rollouts, {dry['prompt_tokens']} prompt tokens, {dry['exploration']}"),
        ("", seconds),
        ("", f"rollout and replay differ by {dry['logprob_difference']:.1e} at most in a token's log-probability"),
        ("", f"the plain network says {dry['plain']!r}"),
        *((f"thought {i}", said) for i, said in enumerate(read[:-1], start=1)),
        ("after thoughts", read[-1]),
    ]
    text = "\n".join(f"{title:<16} {text}" for title, text in lines)
    return "\n\n".join([text, *map(_about_problem, found.get("thoughts", ()))])


def _about_problem(line: Mapping[str, Any]) -> str:
    (side,) = line["models"]
    head = f"{line['kind']}: {line['question']}\nright answer {line['answer']}, plain answer {side['said']!r}"
    return f"{head}\n{thoughts_as_text(side['thoughts'])}"


def _range(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _site_line(site: dict[str, Any]) -> str:
    width, factors = (_range(site[name]) for name in ("widths", "factors"))
    shared = {"heads": "heads", "values": "value features"}.get(site["kind"], "factors")
    shape = f"width {width}" + (f" in {factors} {shared}" if width != factors else "")
    places = f"{site['places']} place{'s' if site['places'] > 1 else ''}"
    return f"{' and '.join(site['modules'])}: {shape}, {places}, {site['bits']:,} bits"
