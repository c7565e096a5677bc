"""What a run is and where it comes from: model, data, exploration, steps, seconds, versions, configuration."""

import json
from collections.abc import Mapping
from typing import Any

from dropout_grpo.report.blocks import Section, Table
from dropout_grpo.report.formats import duration
from dropout_grpo.report.names import in_order, label
from dropout_grpo.report.series import CURRICULUM
from dropout_grpo.runs.files import CONFIG_FILE, RESULTS_FILE, flat_options
from dropout_grpo.runs.read import JsonObject, Run, mapping, number

_SPLITS = {"sft": ("train", "valid"), "grpo": ("grpo", "valid"), "demo": ("train", "grpo", "valid", "test")}
_PRECISIONS = {"True": "bf16 matrix products", "False": "float32"}
_EXPLORES = ("grpo", "demo", "eval")


def about(run: Run) -> dict[str, str]:
    """The facts that the run folder records, by name, for the top of the page."""
    config = mapping(run.provenance, "config", CONFIG_FILE)
    command = str(run.provenance.get("command") or "")
    facts = {
        "model": _model(config),
        "base": _text(config.get("base")),
        "adapter": _lora(config),
        "data": _data(config, command),
        "rewards": ", ".join(map(str, config.get("reward_funcs") or ())) if command in ("grpo", "demo") else "",
        "exploration": _exploration(config) if command in _EXPLORES else "",
        "steps": _steps(run, config),
        "precision": _precision(config, command),
        "started": _text(run.provenance.get("started")),
    }
    return {name: value for name, value in facts.items() if value}


def _precision(config: JsonObject, command: str) -> str:
    if config.get("param_dtype") == "bfloat16" and command != "eval":
        return "bf16 weights with float32 masters"
    return _PRECISIONS.get(str(config.get("bf16")), "")


def seconds_section(run: Run) -> Section:
    """Seconds of each part of a demo, in the order of the file."""
    place = f"{RESULTS_FILE}, 'seconds'"
    seconds = mapping(run.results, "seconds", RESULTS_FILE)
    spent = {label(name): number(seconds, name, place) for name in seconds}
    rows = [[name, duration(value)] for name, value in spent.items() if value is not None]
    table = (
        Table(caption="Time of each part since the last start", header=["part", "time"], rows=rows) if rows else None
    )
    return Section(heading="Time", table=table)


def provenance(run: Run) -> list[Table]:
    """Versions and commit, and the configuration with every default resolved."""
    versions = config_facts(mapping(run.provenance, "versions", CONFIG_FILE))
    commit = run.provenance.get("commit")
    if commit is not None:
        versions.append(["commit", str(commit)])
    config = config_facts(mapping(run.provenance, "config", CONFIG_FILE))
    titles = {"Versions and commit": versions, "Configuration, every default resolved": config}
    header = ["name", "value"]
    return [Table(caption=title, header=header, rows=rows, style="facts") for title, rows in titles.items() if rows]


def config_facts(config: JsonObject) -> list[list[str]]:
    """Nested configuration as [option, value] pairs; a value that is not a string is shown as JSON."""
    return [
        [name, value if isinstance(value, str) else json.dumps(value)] for name, value in flat_options(config).items()
    ]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _model(config: JsonObject) -> str:
    if (checkpoint := config.get("checkpoint")) is not None:
        return str(checkpoint)
    model = config.get("model")
    if not isinstance(model, Mapping):
        return _text(model)
    if (name := model.get("name_or_path")) is not None:
        return str(name)
    return f"{model.get('model_type')} from scratch: {model.get('n_layer')} layers of width {model.get('n_embd')}"


def _lora(config: JsonObject) -> str:
    lora = config.get("lora")
    return f"LoRA of rank {lora['r']}" if isinstance(lora, Mapping) and lora.get("r") is not None else ""


def _data(config: JsonObject, command: str) -> str:
    """The sources of the splits that the command uses; splits of the same source are named together."""
    if isinstance(files := config.get("files"), list):
        return ", ".join(map(str, files))
    data = config.get("data")
    if not isinstance(data, Mapping):
        return ""
    splits: dict[str, list[str]] = {}
    for split in _SPLITS.get(command, ()):
        splits.setdefault(_source(data.get(split), data.get("task")), []).append(split)
    return "; ".join(f"{', '.join(names)}: {source}" for source, names in splits.items())


def _source(option: Any, task: Any) -> str:
    if option is None:
        return f"built-in task {task}"
    if isinstance(option, list):
        return " + ".join(str(part.get("source")) if isinstance(part, Mapping) else str(part) for part in option)
    return str(option)


def _exploration(config: JsonObject) -> str:
    exploration = config.get("exploration")
    if not isinstance(exploration, Mapping):
        return _text(exploration)
    kind = str(exploration.get("kind"))
    if kind == "none":
        return "none"
    p = f", p = {exploration.get('p')}" if "dropout" in kind else ""
    sites, phases = (" and ".join(map(str, exploration.get(name) or ())) for name in ("sites", "phases"))
    return f"{kind}{p}, on {sites}, in {phases}"


def _steps(run: Run, config: JsonObject) -> str:
    """The last step of each part that trains, and of how many."""
    last = {record["part"]: record["step"] for record in run.metrics}
    grpo = config.get("grpo")
    planned = grpo.get("max_steps") if isinstance(grpo, Mapping) else None
    texts = []
    for part in sorted(in_order(last), key=lambda name: name != CURRICULUM):
        of = f" of {planned}" if planned is not None and part != CURRICULUM else ""
        texts.append(f"{label(part)} {last[part]}{of}")
    return ", ".join(texts)
