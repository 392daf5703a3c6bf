# From a fresh clone with python3, pip and make: `make quickstart`, `make test`.

PYTHON ?= python3
# Of benchmarks: a Python with torch and transformers for the GPU.
TORCH ?= $(PYTHON)
ARGS ?=
VENV := .venv
VENV310 := .venv310
BIN := $(VENV)/bin

# Every peer has a venv of its own: their requirements exclude each other.
PEERS := mlserver litserve fastapi modelopt alibi-detect schemathesis llama-cpp genai aiperf
PEER_mlserver := mlserver==1.7.1 onnxruntime==1.31.1
PEER_litserve := litserve==0.2.19 onnxruntime==1.31.1
PEER_fastapi := fastapi==0.165.0 uvicorn[standard]==0.54.0 flask==3.1.3 waitress==3.0.2 onnxruntime==1.31.1
# With the torch of constraints.txt: a newer one brings gigabytes of CUDA.
PEER_modelopt := nvidia-modelopt[onnx]==0.47.0 torch==2.13.0
PEER_alibi-detect := alibi-detect==0.13.0
PEER_schemathesis := schemathesis==4.32.5 hypothesis==6.170.15
# Compiled for this CPU (needs cmake and a C++ compiler; 10 minutes).
PEER_llama-cpp := llama-cpp-python==0.3.36 gguf==0.19.0 safetensors==0.8.0
# With the torch of constraints.txt, for the model builder.
PEER_genai := onnxruntime-genai==0.18.0 onnxruntime==1.31.1 onnx==1.23.2 onnx-ir==1.1.0 torch==2.13.0 transformers==5.23.0
PEER_aiperf := aiperf==0.13.0

SERVING_PEERS := mlserver litserve fastapi

# One generation of TensorRT's Python bindings each, as folder=requirement; no libraries.
BINDINGS := 8.6.1=tensorrt-bindings 10.3.0=tensorrt-cu12-bindings \
	10.13.3.9=tensorrt-cu12-bindings 11.4.0.106=tensorrt-cu12-bindings

GPU_ENGINES := $(foreach net,resnet50 encoder,$(addprefix $(net).,fp32 fp16 int8))

# -qq: errors only.
PIP_INSTALL := -m pip install -qq --disable-pip-version-check

# $(call make_venv,PYTHON,FOLDER): Debian ships venv without ensurepip; pip itself can fill that in.
define make_venv
@$(1) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo "$(1) is not Python 3.10 or newer; run: make PYTHON=python3.11 ..." >&2; exit 2; }
@if $(1) -c 'import ensurepip' 2>/dev/null; then $(1) -m venv $(2); else \
	$(1) -m venv --without-pip $(2) && $(1) -m pip --python $(2)/bin/python install -qq pip; fi
endef

.PHONY: help venv quickstart chat-demo test test-slow test-crash test-fleet test-observability test-py310 test-surface test-openapi test-gpu lint
.PHONY: peers docs bench-minilm bench-calibration bench-serving bench-chat bench-chat-gpu bench-gpu
.PHONY: bench-aiperf soak-serving clients-400 clean
.DELETE_ON_ERROR:

help: ## Show this list.
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  \1\t/' | expand -t 20

venv: $(VENV)/.stamp ## Make .venv with everything that development needs.

quickstart: $(VENV)/.stamp ## Train, quantize, sign, serve and compare a small model (ARGS=--keep).
	$(BIN)/edge-kit quickstart $(ARGS)

chat-demo: $(VENV)/.stamp ## Train a small Llama on Python's documentation, pack and serve it (6 minutes; ARGS=--keep).
	$(BIN)/edge-kit chat-demo $(ARGS)

test: $(VENV)/.stamp ## Run all tests but the slow ones (ARGS="-k name").
	$(BIN)/python -m pytest tests $(ARGS)

test-slow: $(VENV)/.stamp .peers/alibi-detect/.stamp ## Run the slow tests: whole pipelines on real models (ARGS="-k name").
	$(BIN)/python -m pytest -m 'slow and not gpu and not surface and not fleet' tests $(ARGS)

test-crash: $(VENV)/.stamp ## Cut the power after every call of an installation, and kill it 1,000 times (3 minutes).
	$(BIN)/python -m pytest -q -m 'slow or not slow' tests/edge/slots $(ARGS)

test-fleet: $(VENV)/.stamp ## Roll out to four devices in network namespaces, over real SSH (5 minutes; needs root).
	$(BIN)/python -m pytest -m fleet tests/host_tools/fleet $(ARGS)

test-observability: $(VENV)/.stamp ## Let a real Prometheus watch two agents, one of which leaks (2 minutes; needs prometheus).
	$(BIN)/python -m pytest -m observability tests/observability $(ARGS)

test-py310: ## Run the tests of edge/ on Python 3.10, if there is one.
	@for python in python3.10 "$$HOME"/.pyenv/versions/3.10*/bin/python; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then \
			$(MAKE) --no-print-directory PYTHON310="$$python" $(VENV310)/.stamp && \
			exec $(VENV310)/bin/python -m pytest tests/edge $(ARGS); exit 1; \
		fi; \
	done; \
	echo "NOT RUN: no Python 3.10 on this machine, so edge/ was not tested on it" >&2; \
	[ -z "$$EDGE_REQUIRE" ]

test-surface: $(VENV)/.stamp build/tensorrt-bindings/.stamp ## Check what we call against four generations of TensorRT.
	$(BIN)/python -m pytest -m surface tests/edge/test_tensorrt_surface.py $(ARGS)

test-openapi: $(VENV)/.stamp .peers/schemathesis/.stamp ## Try 3,500 requests made from OpenAPI documents (2 minutes).
	$(BIN)/python -m tests.openapi_cases .peers/schemathesis/bin/python

test-gpu: ## Run the tests that need a GPU, with the TensorRT of $(PYTHON).
	$(PYTHON) -m pytest -m gpu tests/gpu $(ARGS)

bench-gpu: ## Build and measure the engines of BENCHMARKS.md with the TensorRT of $(PYTHON).
	$(PYTHON) -m tests.gpu.make_models build/gpu
	$(PYTHON) -m tests.gpu.build_engines build/gpu build/gpu/timings $(GPU_ENGINES)
	$(PYTHON) -m tests.gpu.bench build/gpu $(GPU_ENGINES)
	$(PYTHON) -m tests.gpu.layer_profile build/gpu 32 resnet50.fp16 resnet50.int8
	$(PYTHON) -m tests.gpu.soak build/gpu resnet50.fp16 200000 1000
	$(PYTHON) -m tests.gpu.bench_torch build/gpu
	$(PYTHON) -m tests.gpu.build_engines build/gpu build/gpu/timings embedder.fp16
	rm -rf build/gpu/served
	$(PYTHON) -m tests.gpu.make_bundle build/gpu embedder build/gpu/served fp16
	$(PYTHON) -m tests.gpu.serve_load build/gpu embedder build/gpu/served fp16

build/chat: $(VENV)/.stamp # May be made elsewhere and brought to the machine with the GPU.
	$(BIN)/python -m tests.gpu.chat_prepare $@

bench-chat-gpu: ## Measure chat with the TensorRT of $(PYTHON) beside the torch of $(TORCH) (10 minutes).
	@test -d build/chat || { echo "first run: make build/chat" >&2; exit 2; }
	$(PYTHON) -m tests.gpu.chat_build build/chat/tiny
	$(PYTHON) -m tests.gpu.chat_build build/chat/qwen3
	$(PYTHON) -m pytest -m gpu tests/gpu/test_chat_decoder.py tests/gpu/test_chat_whole.py
	$(PYTHON) -m tests.gpu.chat_build build/chat/8b
	$(TORCH) -m tests.gpu.chat_peers bandwidth > build/chat/read_tb_s
	$(PYTHON) -m tests.gpu.chat_bench build/chat/8b $$(cat build/chat/read_tb_s) 4
	$(TORCH) -m tests.gpu.chat_peers logits build/chat/8b 4
	$(PYTHON) -m tests.gpu.chat_bench build/chat/8b $$(cat build/chat/read_tb_s) 32
	for row in fp16.1 fp16.512 int8.1 int8.512; do $(PYTHON) -m tests.gpu.chat_rows build build/chat/rows $$row || exit; done
	$(PYTHON) -m tests.gpu.chat_rows time build/chat/rows
	$(TORCH) -m tests.gpu.chat_peers rows
	$(TORCH) -m tests.gpu.chat_peers generate

lint: $(VENV)/.stamp ## Check style, types and the import table.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

peers: $(PEERS:%=.peers/%/.stamp) ## Install benchmark peers and judges, each into .peers/NAME.

docs: $(VENV)/.stamp ## Write docs/reference.md and docs/openapi.json from the code.
	$(BIN)/python docs/generate_reference.py

bench-minilm: $(VENV)/.stamp ## Measure the sentence encoder of BENCHMARKS.md (2 minutes).
	rm -rf build/minilm
	$(BIN)/python -m tests.minilm build/minilm
	$(BIN)/python -m tests.bench_loading build/minilm

bench-calibration: $(VENV)/.stamp .peers/modelopt/.stamp ## Measure calibration against its peers (25 minutes, 24 GB).
	$(BIN)/edge-kit quickstart --out build/calibration
	rm -rf build/minilm
	$(BIN)/python -m tests.minilm build/minilm
	cp build/minilm/minilm.onnx build/calibration/
	$(BIN)/python -m tests.bench_calibration build/calibration
	$(BIN)/python -m tests.bench_nets build/calibration
	$(BIN)/python -m tests.bench_int8 build/calibration
	$(BIN)/python -m tests.bench_compress build/calibration

bench-serving: $(VENV)/.stamp $(SERVING_PEERS:%=.peers/%/.stamp) ## Measure the agent beside other servers (25 minutes).
	$(BIN)/python -m tests.bench_serving build/serving
	rm -rf build/minilm
	$(BIN)/python -m tests.minilm build/minilm
	$(BIN)/python -m tests.bench_batching build/minilm/bundle build/minilm/keys
	$(BIN)/edge-kit quickstart --out build/quickstart
	$(BIN)/python -m tests.bench_images build/quickstart
	$(BIN)/python -m tests.bench_overload build/minilm/bundle build/minilm/keys

bench-chat: $(VENV)/.stamp .peers/llama-cpp/.stamp .peers/genai/.stamp ## Measure chat on the CPU beside other runtimes (10 minutes, 7 GB).
	rm -rf build/chat
	$(BIN)/python -m tests.bench_chat build/chat

bench-aiperf: $(VENV)/.stamp .peers/aiperf/.stamp ## Let NVIDIA's aiperf ask a small chat model, and compare its times (2 minutes).
	rm -rf build/aiperf
	$(BIN)/python -m tests.bench_aiperf .peers/aiperf/bin/aiperf build/aiperf

soak-serving: $(VENV)/.stamp ## Serve good, bad, slow and vanishing clients at once (ARGS=MINUTES, 20).
	$(BIN)/python -m tests.soak_serving $(ARGS)

clients-400: $(VENV)/.stamp ## Serve 400 clients for a minute; each checks its answers (ARGS=SECONDS).
	$(BIN)/python -m tests.clients_400 $(ARGS)

clean: ## Remove what make made.
	rm -rf $(VENV) $(VENV310) .peers build dist *.egg-info quickstart-out chat-demo-out
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.stamp: setup.py constraints.txt
	@echo "installing into $(VENV): this takes minutes the first time" >&2
	$(call make_venv,$(PYTHON),$(VENV))
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

build/tensorrt-bindings/.stamp: Makefile
	@for pair in $(BINDINGS); do \
		$(BIN)/python $(PIP_INSTALL) --no-deps --upgrade --target "$(@D)/$${pair%%=*}" \
			"$${pair#*=}==$${pair%%=*}" || exit 1; \
	done
	@touch $@

$(VENV310)/.stamp: setup.py constraints.txt Makefile
	@echo "installing into $(VENV310)" >&2
	$(call make_venv,$(PYTHON310),$(VENV310))
	@$(VENV310)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[ort,rtx-build,chat,update,nvml,otel]' \
		httpx hypothesis onnx openai opentelemetry-proto pytest scikit-learn scipy 'tritonclient[http]'
	@touch $@

.peers/%/.stamp: Makefile
	@echo "installing $(PEER_$*) into .peers/$*" >&2
	$(call make_venv,$(PYTHON),.peers/$*)
	@.peers/$*/bin/python $(PIP_INSTALL) $(foreach peer,$(PEER_$*),'$(peer)')
	@touch $@
