# Both work on a fresh machine: they make .venv, and install what is missing, the first time.
.PHONY: demo test check gpu

demo: .venv/ready  ## train RISurConv on furniture, turn the furniture, and show that nothing changes
	.venv/bin/python tools/demo.py

test: .venv/ready
	.venv/bin/python -m pytest

check: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

gpu:  ## test and time the Triton kernels on this machine's GPU; needs torch, triton, numba, numpy and pytest alone
	$(or $(PYTHON),python3) tools/gpu.py

.venv/ready: setup.py pyproject.toml constraints.txt tools/setup.sh
	PYTHON="$(PYTHON)" bash tools/setup.sh
	touch $@
