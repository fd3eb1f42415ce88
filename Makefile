# For people and for CI: `make help` lists the targets. Each sets up what it needs first, and only once.

VENV ?= .venv
MLX_VENV ?= .venv-mlx
DYNAMO_VENV ?= .venv-dynamo
VLLM_VENV ?= .venv-vllm
SMG_NEWEST_VENV ?= .venv-smg-newest
ENVOY_VENV ?= .venv-envoy
LITELLM_VENV ?= .venv-litellm
VLLM_ROUTER_VENV ?= .venv-vllm-router
SGLANG_ROUTER_VENV ?= .venv-sglang-router
PREFIX ?= /opt/gateway-sidecar
ENGINE ?= simulated
ROUTER ?= smg
DEMO ?=
FLEET ?=
MINUTES ?= 10
EXAMPLES ?= 60
SEED ?=
ARGS ?=
RELEASES ?= bookworm trixie
JOBS ?= 5

PY := $(VENV)/bin/python
SETUP := VENV="$(VENV)" MLX_VENV="$(MLX_VENV)" VLLM_VENV="$(VLLM_VENV)" SMG_NEWEST_VENV="$(SMG_NEWEST_VENV)" \
    ENVOY_VENV="$(ENVOY_VENV)" LITELLM_VENV="$(LITELLM_VENV)" DYNAMO_VENV="$(DYNAMO_VENV)" VLLM_ROUTER_VENV="$(VLLM_ROUTER_VENV)" \
    SGLANG_ROUTER_VENV="$(SGLANG_ROUTER_VENV)" PREFIX="$(PREFIX)" PYTHON="$(PYTHON)" scripts/setup.sh
ROUTERS := vllm-router sglang-router dynamo
# What is compiled is kept, whatever the environment says: 3 s of CPU in each process of pytest, and 0.3 s in each daemon.
PYTEST := PYTHONDONTWRITEBYTECODE= $(PY) -m pytest
# Without plugins that they do not use, and with a quarter of the drawn examples.
UNIT := $(PYTEST) -q -p no:schemathesis -p no:anyio --hypothesis-profile=quick tests/unit
# Not with --quiet: it keeps warnings from --strict. The variable silences an advertisement.
SITE := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
export MLX_PYTHON ?= $(abspath $(MLX_VENV)/bin/python)
export DYNAMO_PYTHON ?= $(abspath $(DYNAMO_VENV)/bin/python)
export VLLM_PYTHON ?= $(abspath $(VLLM_VENV)/bin/python)
export SMG_NEWEST ?= $(abspath $(SMG_NEWEST_VENV)/bin/smg)
export ENVOY ?= $(abspath $(ENVOY_VENV)/bin/envoy)
export LITELLM ?= $(abspath $(LITELLM_VENV)/bin/python)

export VLLM_ROUTER ?= $(abspath $(VLLM_ROUTER_VENV)/bin/vllm-router)
export SGLANG_ROUTER ?= $(abspath $(SGLANG_ROUTER_VENV)/bin/sglang-router)

.PHONY: help run test unit coverage check reference docs format bench page-shots chaos freezes frontends kinds soak fuzz proto mlx vllm dynamo routers install lock dist deb deb-test clean

help:
	@sed -n 's/^## //p' Makefile

## make run      the demo: the real daemon with simulated engines; ENGINE=mlx adds a real one, ROUTER=none (or another
##               kind) has no SMG for the first service, DEMO=once ends by itself;
##               FLEET=3 shows three gateways, etcd and HAProxy: one is killed, one leaves, all are upgraded in turn;
##               ENGINE=vllm shows real vLLM engines alone: names, adapters, a core that hangs or dies, prefill and decode
run:
	@$(SETUP) dev nginx $(filter mlx vllm,$(ENGINE)) $(filter $(ROUTERS),$(ROUTER)) $(if $(FLEET),etcd haproxy)
	@ENGINE="$(ENGINE)" ROUTER="$(ROUTER)" FLEET="$(FLEET)" DEMO="$(DEMO)" $(PY) -m examples.demo

## make test     all tests, with the real nginx and the real SMG, JOBS=5 at a time; ARGS='-k drain' for some of them
test:
	@$(SETUP) dev nginx sshd prometheus etcd haproxy keepalived faketime chromium pebble man smg-newest envoy litellm $(ROUTERS)
	@$(PYTEST) -n $(JOBS) --dist worksteal $(ARGS)

## make unit     the unit tests alone: no nginx, no socket, no process, and time is fake
unit:
	@$(SETUP) dev
	@$(UNIT) -n 2 --dist worksteal $(ARGS)

## make coverage what of control/ and domain/ the unit tests run: each room, then each module
coverage:
	@$(SETUP) dev
	@mkdir -p build
	-@$(subst $(PY),$(PY) -m coverage run,$(UNIT)) $(ARGS)  # What measures CPU time may fail while it is traced.
	@for room in $(sort $(wildcard gateway_sidecar/control/*/ gateway_sidecar/domain/)); do \
	    printf '%4s %%  %s\n' "$$($(PY) -m coverage report --format=total --include="$$room*")" "$$room"; done
	@$(PY) -m coverage report

## make check    lint, format, types and the site of docs/
check:
	@$(SETUP) dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(SITE)

## make reference write into docs/ what the code says: settings, commands, exit codes, events, metrics, the API
reference:
	@$(SETUP) dev
	$(PY) -m scripts.reference

## make docs     the site of docs/, into build/site; a link that leads nowhere is an error
docs:
	@$(SETUP) dev
	$(SITE)

## make format   put the format right, and what lint can put right by itself
format:
	@$(SETUP) dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

## make bench    the figures in docs/figures.md
bench:
	@$(SETUP) dev nginx wrk sshd etcd $(ROUTERS)
	@$(PY) -m bench $(ARGS)

## make page-shots take the pictures of the live page in docs/images again, in the real Chromium
page-shots:
	@$(SETUP) dev chromium
	@$(PY) -m scripts.page_shots

## make chaos    random faults under load on the real thing; MINUTES=10, and SEED=n to play one again;
##               FLEET=3 has three gateways, three members of etcd, HAProxy and keepalived on networks of their own (root)
chaos:
	@$(SETUP) dev nginx $(if $(FLEET),etcd haproxy keepalived sshd)
	@$(PY) -m tests.chaos$(if $(FLEET),.fleet --gateways $(FLEET)) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

## make freezes  daemon, routers, nginx, engines stopped or starved under load; MINUTES=10, and SEED=n to play one again
freezes:
	@$(SETUP) dev nginx
	@$(PY) -m tests.chaos.freezes --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

## make frontends    random frontends, EXAMPLES=60 of them: served, adopted, changed, refused; status, plan, check and metrics agree
frontends:
	@$(SETUP) dev nginx
	@FRONTENDS=$(EXAMPLES) $(PY) -m pytest tests/system/test_every_frontend.py -o timeout=0 $(ARGS)

## make kinds    every kind of router that is installed takes over from every other, under load
kinds:
	@$(SETUP) dev nginx
	@PAIRS=all $(PY) -m pytest tests/system/test_kind_changes.py $(ARGS)

## make soak     an hour's changes in MINUTES=10; nothing may grow
soak:
	@$(SETUP) dev nginx
	@$(PY) -m tests.chaos.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

## make fuzz     random input at every edge for MINUTES=10, and SEED=n to play it again; ARGS='--edge engines' for one of them
fuzz:
	@$(SETUP) dev nginx
	@$(PY) -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

## make mlx      a real MLX engine in .venv-mlx, for its contract test and for ENGINE=mlx
mlx:
	@$(SETUP) mlx

## make dynamo   NVIDIA Dynamo's frontend and mock worker in .venv-dynamo, for their tests and for ROUTER=dynamo
dynamo:
	@$(SETUP) dynamo

## make vllm     vLLM for CPUs with NIXL in .venv-vllm, for ENGINE=vllm; 3 GB
vllm:
	@$(SETUP) vllm

## make routers  vllm-router and sglang-router, each in an environment of its own, for their tests, figures and demos
routers:
	@$(SETUP) $(ROUTERS)

## make proto    write gateway_sidecar/engines/_pb anew from proto/
proto:
	@$(SETUP) dev
	PYTHON=$(PY) proto/generate.sh

## make install  as root: the package into PREFIX (/opt/gateway-sidecar), and from there the systemd unit and its files
install:
	@$(SETUP) nginx app
	"$(PREFIX)/bin/gateway-sidecar" files --copy "$(PREFIX)/share/gateway-sidecar" >/dev/null
	"$(PREFIX)/bin/gateway-sidecar" install $(ARGS)

## make lock     write requirements.lock anew: what make install puts in place, the newest of all, each with its hashes
lock:
	@$(SETUP) dev
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | \
	    $(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
	        --no-emit-index-url --custom-compile-command "make lock" --extra smg --output-file requirements.lock \
	        pyproject.toml - >/dev/null

## make dist     wheel and source archive, into dist/
dist:
	@$(SETUP) dev
	@$(PY) -m pip install --quiet --disable-pip-version-check build
	@rm -rf build dist
	$(PY) -m build --outdir dist .

## make deb      Debian packages, into dist/; RELEASES='bookworm trixie', each in a clean root of that release
deb:
	@$(SETUP) dev man deb
	@VENV="$(VENV)" scripts/deb.sh $(RELEASES)

## make deb-test each package in dist/ (make deb) in a clean root: lintian, installed, upgraded under load, rolled back, purged
deb-test:
	@$(SETUP) dev nginx deb
	@$(PY) -m pytest -s tests/system/test_debian_package.py $(ARGS)

## make clean    remove all that was made here
clean:
	rm -rf "$(VENV)" "$(MLX_VENV)" "$(VLLM_VENV)" "$(SMG_NEWEST_VENV)" "$(ENVOY_VENV)" "$(LITELLM_VENV)" "$(DYNAMO_VENV)"
	rm -rf "$(VLLM_ROUTER_VENV)" "$(SGLANG_ROUTER_VENV)"
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
