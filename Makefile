# All but gpu work on a fresh machine: they make .venv, and install what is missing, the first time.
.PHONY: demo test test-all check gpu

demo: .venv/ready  ## train RISurConv on furniture, turn the furniture, and show that nothing changes
	.venv/bin/python tools/demo.py

# a process for each core, and in each process one thread (tests/conftest.py)
PYTEST = .venv/bin/python -m pytest -n auto --dist worksteal --durations 10

test: .venv/ready  ## what a change can break in ordinary use: under 10 minutes on two cores
	$(PYTEST) -m "not slow"

test-all: .venv/ready  ## everything: trainings to a stated figure, exports of every system, killed runs, fuzzers
	$(PYTEST)

check: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	rm -rf .installed && mkdir -p .installed/attlas
	ln -s $(CURDIR)/attlas/* $(addprefix $(CURDIR)/,kernels backbones pointnets dense) .installed/attlas/
	.venv/bin/mypy

gpu:  ## test and time the Triton kernels on this machine's GPU; needs torch, triton, numba, numpy and pytest alone
	$(or $(PYTHON),python3) tools/gpu.py

.venv/ready: setup.py pyproject.toml constraints.txt tools/setup.sh
	PYTHON="$(PYTHON)" bash tools/setup.sh
	touch $@
