"""The lm-evaluation-harness backend answers and scores as the package itself does."""

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import yaml

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402

from dropout_grpo.errors import UserError  # noqa: E402
from dropout_grpo.evaluation.answering import answer_problems  # noqa: E402
from dropout_grpo.evaluation.config import EvaluationConfig  # noqa: E402
from dropout_grpo.integrations.lm_eval import TASKS, DropoutGRPOLM  # noqa: E402
from dropout_grpo.problems.answers import extract_answer  # noqa: E402
from helpers.by_path import ROOT  # noqa: E402
from helpers.tiny_latent import tiny_latent, tiny_problems  # noqa: E402

LENGTH = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm-eval") / "checkpoint"
    tiny_latent(latent_steps=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backend(checkpoint: Path) -> DropoutGRPOLM:
    return DropoutGRPOLM(pretrained=str(checkpoint), batch_size=3, device="cpu")


def request(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)  # type: ignore[arg-type]


def test_answers_equal_those_of_eval(backend: DropoutGRPOLM) -> None:
    problems = tiny_problems(5)
    found = backend.generate_until(
        [request("generate_until", p.question, {"until": [], "max_gen_toks": LENGTH}) for p in problems]
    )
    config = EvaluationConfig(num_samples=0, max_new_tokens=LENGTH)
    assert found == [a.plain for a in answer_problems(backend.model, problems, config)]


def test_an_answer_ends_before_the_first_stop_string(backend: DropoutGRPOLM) -> None:
    (whole,) = backend.generate_until([request("generate_until", "Ann has 3 ?", {"max_gen_toks": LENGTH})])
    assert len(whole) > 2, "the tiny model says too little for this test"
    stop = whole[2]
    options = {"until": ["not there", stop], "max_gen_toks": LENGTH}
    assert backend.generate_until([request("generate_until", "Ann has 3 ?", options)]) == [whole.split(stop)[0]]


def test_likelihoods_equal_those_of_score(backend: DropoutGRPOLM) -> None:
    model = backend.model
    pairs = [("Ann has 3 ?", "4"), ("Ann has 5 ? ?", "3 + 4"), ("Ann has 7 ?", ""), ("Ann has 1 ?", "1")]
    found = backend.loglikelihood([request("loglikelihood", *pair) for pair in pairs])
    for (question, text), (logprob, _) in zip(pairs, found, strict=True):
        ids = model.tokenizer.encode(text, add_special_tokens=False)
        state = model.think(model.read(*model.encode([question])), model.latent_steps)
        alone = float(model.score(state, torch.tensor([ids])).detach().sum()) if ids else 0.0
        assert logprob == pytest.approx(alone, abs=1e-4)


def test_greedy_is_what_greedy_decoding_says(backend: DropoutGRPOLM) -> None:
    model = backend.model
    question = "Ann has 3 ?"
    state = model.think(model.read(*model.encode([question])), model.latent_steps)
    (first,) = model.generate(state, 1).token_ids[0].tolist()
    others = [i for i in range(10, 20) if i != first][:2]
    texts = [model.tokenizer.decode([i]) for i in (first, *others)]
    if model.tokenizer.encode(texts[0], add_special_tokens=False) != [first]:
        pytest.skip("the first token does not survive decoding")
    found = backend.loglikelihood([request("loglikelihood", question, text) for text in texts])
    assert [greedy for _, greedy in found] == [True, False, False]


def test_sampling_and_running_text_are_refused(backend: DropoutGRPOLM) -> None:
    with pytest.raises(UserError, match="decodes greedily"):
        backend.generate_until([request("generate_until", "Ann has 3 ?", {"do_sample": True, "temperature": 0.7})])
    with pytest.raises(UserError, match="running text"):
        backend.loglikelihood_rolling([request("loglikelihood_rolling", "Ann")])


def test_the_harness_runs_a_task_with_it(checkpoint: Path, tmp_path: Path) -> None:
    """The shipped task on a local file, from the harness's own entry, equals ``eval`` on the same problems."""
    problems = tiny_problems(6)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "{p.question}", "answer": "x #### {p.answer}"}}\n' for p in problems))
    task = yaml.safe_load((TASKS / "gsm8k_latent.yaml").read_text(encoding="utf-8"))
    task |= {"task": "tiny_latent_task", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}}
    del task["dataset_name"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="dropout_grpo",
        model_args={"pretrained": str(checkpoint), "device": "cpu"},
        tasks=["tiny_latent_task"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    backend = DropoutGRPOLM(pretrained=str(checkpoint), device="cpu")
    config = EvaluationConfig(num_samples=0, max_new_tokens=16)
    answered = answer_problems(backend.model, problems, config)
    assert [s["resps"] for s in found["samples"]["tiny_latent_task"]] == [[[a.plain]] for a in answered]
    right = sum(a.plain_correct for a in answered) / len(answered)
    assert found["results"]["tiny_latent_task"]["exact_match,answer"] == pytest.approx(right)


def test_the_shipped_task_reads_answers_as_we_do() -> None:
    task = yaml.safe_load((TASKS / "gsm8k_latent.yaml").read_text(encoding="utf-8"))
    (pattern,) = [f["regex_pattern"] for f in task["filter_list"][0]["filter"] if f["function"] == "regex"]
    for completion in ("### 72", " ### 1,000", "<<3+4=7>>\n### 7"):
        assert re.findall(pattern, completion)[-1] == extract_answer(completion)


def test_newer_harnesses_find_the_backend_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = project["entry-points"]["lm_eval.models"]["dropout_grpo"]
    assert EntryPoint("dropout_grpo", named, "lm_eval.models").load() is DropoutGRPOLM
