# Two commands do everything on a fresh machine with Python 3.11+ and git:
#   make demo    train the oscillator controller with HIG and with Adam, one minute each; draw the figure
#   make test    install what is missing and run the whole test suite
# and besides: lint, figures (every figure of the docs, the results page and the table in README and
# docs/choosing.md, from the result files in study/),
# docs (the site, into site/), tutorials (executes the notebooks again),
# lower-bounds (the test suite with the oldest dependencies that pyproject.toml allows),
# test-portable (the test suite as other machines would run it), benchmark,
# cuda, clean.
PYTHON ?= python3
VENV   ?= .venv
LOWER  ?= .venv-lower
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
DEMO   := results/demo
CUDA   := results/cuda
PORTABLE := results/portable
SECONDS_EACH ?= 60
# Processes that share the tests: one per core. Each file of tests stays in one, with its fixtures.
WORKERS ?= auto
STUDY  ?= study/desk
IMAGES := docs/images/study

.PHONY: demo test test-portable lint figures docs tutorials lower-bounds benchmark cuda clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, found ' + sys.version)"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable ".[problems,experiments,plots,test,lint]"
	touch $(STAMP)

demo: $(STAMP)
	$(PY) -m experiments.nonlinear_oscillators.submit_hig --time-budget $(SECONDS_EACH) --out $(DEMO)
	$(PY) -m experiments.nonlinear_oscillators.submit_adam --time-budget $(SECONDS_EACH) --out $(DEMO)
	$(PY) -m plots.loss $(DEMO)/*.pickle --out $(DEMO)/loss_vs_time.png
	@echo "result files and figure are in $(DEMO)/"

test: $(STAMP)
	$(PY) -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile

test-portable: $(STAMP)
	.ci/portable $(PY) $(PORTABLE) -n $(WORKERS) --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

figures: $(STAMP)
	$(PY) -m plots.scaling study/scaling/scaling_parameters_*.pickle --out docs/images/scaling_parameters.png
	$(PY) -m plots.scaling study/scaling/scaling_rows_*.pickle --out docs/images/scaling_rows.png
	$(PY) -m plots.scaling study/scaling/scaling_fields_*.pickle --out docs/images/scaling_fields.png
	$(PY) -m plots.scaling study/scaling/scaling_outputs_*.pickle --out docs/images/scaling_outputs.png
	$(PY) -m plots.loss study/reaction_diffusion/*.pickle --out docs/images/reaction_diffusion_loss.png
	$(PY) -m plots.flow study/reaction_diffusion/hig_seed0.pickle study/reaction_diffusion/adam_seed0.pickle --out docs/images/reaction_diffusion_flow.png
	$(PY) -m plots.jacobians study/jacobians/jacobians.pickle --out docs/images/jacobians.png
	$(PY) -m experiments.jacobians --into docs/jacobian.md
	$(PY) -m plots.step_time study/step_time/*.pickle --out docs/images/poisson_step_time.png
	$(PY) -m plots.diagnosis study/diagnosis/*.pickle --out docs/images/diagnosis.png
	$(PY) -m plots.saturation study/saturation/*.pickle --log-x --out docs/images/toy_saturation.png
	$(PY) -m plots.landscape study/landscape/*.pickle --out docs/images/landscape.png
	$(PY) -m plots.robustness study/robustness/before.pickle study/robustness/after.pickle --out docs/images/robustness.png
	$(PY) -m experiments.robustness --table study/robustness/before.pickle study/robustness/after.pickle --into docs/settings.md
	$(PY) -m experiments.robustness --table study/robustness/defaults.pickle --defaults --into docs/settings.md
	rm -rf $(IMAGES)
	$(PY) -m plots.study $(STUDY) --out $(IMAGES)
	$(PY) -m experiments report $(STUDY) --out docs/results.md --images $(IMAGES) --into README.md docs/choosing.md

docs: $(STAMP)
	$(PY) -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

tutorials: $(STAMP)
	$(PY) -m pip install --quiet --editable ".[docs]"
	$(PY) docs/tutorials/execute.py

# Everything that pyproject.toml names, at the version from which on it is said to work.
lower-bounds:
	$(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/python -m pip install --quiet --editable . $$($(PYTHON) .ci/lower_bounds.py)
	$(LOWER)/bin/python -m pytest
	$(LOWER)/bin/python -m ruff check .
	$(LOWER)/bin/python -m mypy
	NO_MKDOCS_2_WARNING=1 $(LOWER)/bin/python -m mkdocs build --strict

benchmark: $(STAMP)
	$(PY) -m experiments.benchmark

# Where everything is installed already: make cuda PY=python3 STAMP=Makefile
cuda: $(STAMP)
	nvidia-smi
	$(PY) -m pytest -m cuda
	$(PY) -m experiments.benchmark --device cuda --rounds 31 --json $(CUDA)/benchmark.json
	$(PY) -m experiments.phases --device cuda --json $(CUDA)/phases.json
	for axis in parameters rows fields outputs; do $(PY) -m experiments.scaling $$axis --device cuda --out $(CUDA); done
	$(PY) -m plots.scaling $(CUDA)/scaling_*.pickle --out $(CUDA)/scaling.png

clean:
	rm -rf $(VENV) $(LOWER) results build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
