# Everything a person types. Environments are made on demand and kept; `make clean-env` removes them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
PY := .venv/bin/python
RECIPE := flows/recipes/demo.yaml

# Environments are made side by side.
MAKEFLAGS += -j2

# One thread per process unless a part asks for more: two cores, several processes.
export OMP_NUM_THREADS ?= 1
export NO_ALBUMENTATIONS_UPDATE := 1
export HF_HUB_OFFLINE ?= 1

.PHONY: demo demo-long test soak check format docs bench env img2dataset vllm data-juicer lmms-eval clean-env

demo: env img2dataset
	.venv/bin/harmon run $(RECIPE)

demo-long: env img2dataset
	.venv/bin/harmon run flows/recipes/demo-long.yaml

test: env img2dataset vllm check
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not alone"
	$(PY) -m pytest -m alone

soak: env img2dataset vllm lmms-eval
	mkdir -p docs/proof
	$(call soaked,datasets,tests/pipelines -k "kill or racing or gigabytes")
	$(call soaked,download,tests/pipelines/test_misbehaving.py)
	$(call soaked,filtering,tests/filtering)
	$(call soaked,recaption,tests/recaption)
	$(call soaked,parity,tests/harmon/test_parity.py -k compile)
	$(call soaked,training,tests/harmon/test_kills.py tests/harmon/test_elastic.py)
	$(call soaked,memory,tests/harmon/test_memory.py)
	$(call soaked,lmms-eval,tests/harmon/test_lmms.py)
	$(call soaked,flow,tests/flows -k kill)
	$(call soaked,deployments,tests/flows/test_deployments.py tests/flows/test_deployed_training.py)
	$(call soaked,clusters,tests/flows/test_cluster.py)

# $(1) names the log; it begins with when, of which commit, on what machine, and the counts that hold.
define soaked
{ date -u +'%F %T UTC'; git log -1 --format='commit %H'; uname -srm; grep -m1 'model name' /proc/cpuinfo; nproc --all; \
  grep -rn --include=*.py 'HARMON_SOAK' tests; \
  HARMON_SOAK=1 $(PY) -m pytest -v --durations=20 $(2); } 2>&1 | tee docs/proof/soak-$(1).log
endef

check: env
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(PY) -m pytest tests/test_imports.py

format: env
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs: env
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo site/index.html

bench: env
	$(PY) -m benchmarks

env: .venv/.ready
img2dataset: .venv-img2dataset/.ready
vllm: .venv-vllm/.ready
data-juicer: .venv-data-juicer/.ready
lmms-eval: .venv-lmms-eval/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("harmon needs Python 3.11 or newer; name one with PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv-img2dataset/.ready: infra/img2dataset/requirements.txt
	$(PYTHON) -m venv .venv-img2dataset
	.venv-img2dataset/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

.venv-vllm/.ready: infra/vllm-cpu/requirements.txt infra/vllm-cpu/install.sh
	PYTHON=$(PYTHON) sh infra/vllm-cpu/install.sh .venv-vllm
	touch $@

.venv-data-juicer/.ready: infra/data-juicer/requirements.txt
	$(PYTHON) -m venv .venv-data-juicer
	.venv-data-juicer/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

.venv-lmms-eval/.ready: infra/lmms-eval/requirements.txt infra/lmms-eval/install.sh .venv/.ready
	PYTHON=$(PYTHON) sh infra/lmms-eval/install.sh .venv-lmms-eval
	touch $@

clean-env:
	rm -rf .venv .venv-img2dataset .venv-vllm .venv-data-juicer .venv-lmms-eval
