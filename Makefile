# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEED ?= 0

.PHONY: demo test lint test-slow test-newest docs theory bench study rivals gpu gsm8k clean

demo: $(READY)
	$(BIN)/dropout-grpo demo --seed $(SEED) --data.word_problems.seed $(SEED) --run_dir runs/demo-seed$(SEED)

test: lint  # on all cores; a test uses one thread
	$(BIN)/pytest -n logical --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(READY)
	$(BIN)/pytest -m slow

test-newest:  # with the newest versions of all libraries, then with the lowest that pyproject.toml allows
	PYTHON=$(PYTHON) .ci/test_versions $(TESTS)

docs: $(READY)  # fills the tables and figures of all documents from the recorded results
	$(BIN)/python -m evidence.redo_pages

theory: $(READY)  # runs all checks, then fills docs/theory.md
	$(BIN)/python -m evidence.theory --json > docs/theory/checks.json.part && mv docs/theory/checks.json.part docs/theory/checks.json
	$(MAKE) docs

LONE := --jobs [evaluation] --problems 1 --num_generations [2] --beside [published,cot] --repeats 9 --memory false
# Each call writes one result file. A run that fails leaves the old file.
measure = $(BIN)/python -m evidence.bench --device cpu $(2) --json > docs/performance/$(1).json.part && \
	mv docs/performance/$(1).json.part docs/performance/$(1).json

bench: $(READY)  # on an idle machine; see docs/performance.md
	$(call measure,tiny-cpu,--size tiny)
	$(call measure,gpt2-cpu,--size gpt2 --repeats 3)
	$(call measure,smollm2-cpu,--size smollm2 --repeats 3 --num_generations [32])
	$(call measure,qwen-cpu,--size qwen-0.5b --repeats 3 --num_generations [8] --beside [])
	$(BIN)/python -m evidence.bench.plan  # docs/scaling.md
	$(call measure,tiny-cpu-lone,--size tiny $(LONE))
	$(call measure,gpt2-cpu-lone,--size gpt2 $(LONE))
	$(call measure,tiny-cpu-sweep,--size tiny --sweep --repeats 3)
	$(MAKE) docs

study: $(READY)  # the paper's tables, about 1.6 hours on 2 idle cores; the same command resumes it
	$(BIN)/python -m evidence.studies.study --out runs/study
	$(MAKE) docs

rivals: $(READY)  # one more table of the study, on other sources of exploration; about 1.1 hours after it
	$(BIN)/python -m evidence.studies.study --out runs/study --only rivals
	$(MAKE) docs

gpu: $(READY)  # tests, real sizes and speed on a GPU, in 8 minutes; see docs/gpu.md
	$(BIN)/python -m evidence.bench.gpu; status=$$?; $(MAKE) docs && exit $$status

PLAN ?= gsm8k$(if $(MODEL),-0.5b)
gsm8k: $(READY)  # a real model on GSM8K; DATA has the problem files, MODEL is a name or path; continues an interrupted run
	@test -n "$(DATA)" || { echo "Name the folder with GSM8K's files: make gsm8k DATA=..."; exit 2; }
	$(BIN)/python -m evidence.studies.study --settings evidence/studies/$(PLAN).yaml --data $(DATA) $(if $(MODEL),--model $(MODEL))
	$(MAKE) docs

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest build dist .pytest_cache .mypy_cache .ruff_cache
