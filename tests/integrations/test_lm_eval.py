"""The lm-evaluation-harness backend answers and scores as the package itself does."""

import json
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402

from dropout_grpo.config.evaluation import EvaluationConfig  # noqa: E402
from dropout_grpo.data.answers import answers_match, extract_answer  # noqa: E402
from dropout_grpo.data.problem import Problem  # noqa: E402
from dropout_grpo.errors import UserError  # noqa: E402
from dropout_grpo.evaluation.answering import answer_problems  # noqa: E402
from dropout_grpo.integrations.lm_eval import TASKS, DropoutGRPOLM, with_defaults  # noqa: E402
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
    actual = backend.generate_until(
        [request("generate_until", p.question, {"until": [], "max_gen_toks": LENGTH}) for p in problems]
    )
    config = EvaluationConfig(num_samples=0, max_new_tokens=LENGTH)
    assert actual == [a.plain for a in answer_problems(backend.model, problems, config)]


def test_an_answer_ends_before_the_first_stop_string(backend: DropoutGRPOLM) -> None:
    (whole,) = backend.generate_until([request("generate_until", "Ann has 3 ?", {"max_gen_toks": LENGTH})])
    assert len(whole) > 2, "the tiny model says too little for this test"
    stop = whole[2]
    options = {"until": ["not there", stop], "max_gen_toks": LENGTH}
    assert backend.generate_until([request("generate_until", "Ann has 3 ?", options)]) == [whole.split(stop)[0]]


def test_likelihoods_equal_those_of_score(backend: DropoutGRPOLM) -> None:
    model = backend.model
    pairs = [("Ann has 3 ?", "4"), ("Ann has 5 ? ?", "3 + 4"), ("Ann has 7 ?", ""), ("Ann has 1 ?", "1")]
    actual = backend.loglikelihood([request("loglikelihood", *pair) for pair in pairs])
    for (question, text), (logprob, _) in zip(pairs, actual, strict=True):
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
    actual = backend.loglikelihood([request("loglikelihood", question, text) for text in texts])
    assert [greedy for _, greedy in actual] == [True, False, False]


def test_sampling_and_running_text_are_refused(backend: DropoutGRPOLM) -> None:
    with pytest.raises(UserError, match="decodes greedily"):
        backend.generate_until([request("generate_until", "Ann has 3 ?", {"do_sample": True, "temperature": 0.7})])
    with pytest.raises(UserError, match="decodes greedily"):  # transformers samples at 1; fault: it was ignored
        backend.generate_until([request("generate_until", "Ann has 3 ?", {"do_sample": True})])
    with pytest.raises(UserError, match="running text"):
        backend.loglikelihood_rolling([request("loglikelihood_rolling", "Ann")])


def run_shipped_task(checkpoint: Path, folder: Path, problems: Sequence[Problem]) -> dict[str, Any]:
    """The shipped task on a local file, from the harness's own entry."""
    rows = folder / "rows.jsonl"
    lines = [json.dumps({"question": p.question, "answer": f"x #### {p.answer}"}) + "\n" for p in problems]
    rows.write_text("".join(lines), encoding="utf-8")
    task: dict[str, Any] = {"include": str(TASKS / "gsm8k_latent.yaml"), "task": "tiny_latent_task"}
    task |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(rows)}}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    from lm_eval.tasks import TaskManager

    actual: dict[str, Any] = lm_eval.simple_evaluate(
        model="dropout_grpo",
        model_args={"pretrained": str(checkpoint), "device": "cpu"},
        tasks=["tiny_latent_task"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return actual


def test_the_harness_runs_the_task_with_the_answers_of_eval(checkpoint: Path, tmp_path: Path) -> None:
    problems = tiny_problems(6)
    actual = run_shipped_task(checkpoint, tmp_path, problems)
    backend = DropoutGRPOLM(pretrained=str(checkpoint), device="cpu")
    config = EvaluationConfig(num_samples=0, max_new_tokens=16)
    answered = answer_problems(backend.model, problems, config)
    assert [s["resps"] for s in actual["samples"]["tiny_latent_task"]] == [[[a.plain]] for a in answered]
    right = sum(a.plain_correct for a in answered) / len(answered)
    assert actual["results"]["tiny_latent_task"]["exact_match,answer"] == pytest.approx(right)


SCORED = [
    ("### 72", "72", 1.0),
    ("#### 72", "72", 1.0),  # GSM8K's own marker
    ("### 72.0", "72", 1.0),
    ("### $29.00", "29", 1.0),
    ("<<3+4=7>>\n### 7 dollars", "7", 1.0),
    ("### 1000", "1,000", 1.0),
    ("### 7\n### 8", "7", 0.0),  # the last marker counts
    ("72", "72", 0.0),
    ("### 73", "72", 0.0),
]


def test_the_harness_scores_completions_as_eval_does(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [completion for completion, _, _ in SCORED]
    monkeypatch.setattr(DropoutGRPOLM, "generate_until", lambda self, requests: said)
    problems = [Problem(id=i, question="how many ?", steps=(), answer=gold) for i, (_, gold, _) in enumerate(SCORED)]
    actual = run_shipped_task(checkpoint, tmp_path, problems)
    samples = sorted(actual["samples"]["tiny_latent_task"], key=lambda sample: int(sample["doc_id"]))
    assert [sample["exact_match"] for sample in samples] == [score for _, _, score in SCORED]
    assert actual["results"]["tiny_latent_task"]["exact_match,answer"] == pytest.approx(6 / 9)
    assert [answers_match(extract_answer(completion), gold) for completion, gold, _ in SCORED] == [
        bool(score) for _, _, score in SCORED
    ]


def test_newer_harnesses_find_the_backend_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = project["entry-points"]["lm_eval.models"]["dropout_grpo"]
    assert EntryPoint("dropout_grpo", named, "lm_eval.models").load() is DropoutGRPOLM


def test_the_harness_cuda_0_is_the_cpu_where_there_is_no_gpu(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The harness's command line passes device="cuda:0" and batch_size=1 when the user gives neither."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    backend = DropoutGRPOLM(pretrained=str(checkpoint), batch_size=1, device="cuda:0")
    assert backend.model.device.type == "cpu"
    assert "device cuda:0: there is no CUDA device here" in caplog.text
    named = ["run", "--tasks", "gsm8k_latent"]
    assert with_defaults(named) == [*named, "--include_path", str(TASKS), "--device", "cpu", "--batch_size", "auto"]
    words = [*named, "--include_path", "mine", "--device=cuda:1", "-b", "3"]
    assert with_defaults(words) == words
    assert with_defaults(["ls", "tasks"]) == ["ls", "tasks"]


def test_an_argument_that_the_backend_does_not_have_is_refused(checkpoint: Path) -> None:
    """Fault: it was ignored."""
    with pytest.raises(UserError, match="model_args: latent_step is not an argument of this backend, which has"):
        DropoutGRPOLM(pretrained=str(checkpoint), latent_step=3)
    assert DropoutGRPOLM(pretrained=str(checkpoint), max_batch_size=8).batch_size == 64
