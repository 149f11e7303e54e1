# `make` alone prints the tasks. Every task first creates .venv with the pinned dependencies, unless another Python is
# named, as with conda: make run-notebooks PYTHON=python (a command: PYTHON="'/my env/bin/python'" has a space in its path).
DATASET ?= auto#    auto, MNIST, FashionMNIST, KMNIST, digits, or a folder of your own
EPOCHS  ?= 20#      1 to 10,000; of the post's network
SEED    ?= 0#       a whole number
DEVICE  ?= auto#    auto, cpu, cuda or mps
THREADS ?= 2#       part of a run's identity: another number, other rounding
SEEDS   ?= 10#      not for notebooks: how many seeds, counted from 0, or the first and the last, 10-19
RECIPE  ?= ten-digits# sweep only: ten-digits or post
LAB     ?= #        lab only: options of JupyterLab, as --ip=0.0.0.0 --no-browser in a container

PYTHON = .venv/bin/python
SYSTEM_PYTHON ?= python3

ifeq ($(PYTHON),.venv/bin/python)
ENVIRONMENT = .venv/installed
endif
# Ends all that a task started when make is told to end.
SUPERVISE = $(PYTHON) -m mnist_ae.supervise
TASK = $(SUPERVISE) -m mnist_ae
# Threads that wait for each other sleep: alone up to a fifth slower; beside another training 2 times slower, not 25.
export OMP_WAIT_POLICY ?= PASSIVE
# What a person writes reaches the shell as the value of a variable: no quote in it ends ours.
export DATASET EPOCHS SEED DEVICE THREADS SEEDS RECIPE
PARAMETERS = --dataset="$$DATASET" --epochs="$$EPOCHS" --seed="$$SEED" --device="$$DEVICE" --threads="$$THREADS"

# Make cannot name a file with these in its path. Python and the shell can: all but run-notebooks works in any folder.
OUT := $(value MNIST_AE_OUT)
BRACKETS := ( )
UNFIT := $(strip $(if $(filter-out 1,$(words x$(OUT)x)),a space) $(if $(filter -%,$(OUT)),a leading -) \
           $(foreach sign,$$ % : = ; | * ? [ ] ~ ' " ` $(BRACKETS) \,$(findstring $(sign),$(OUT))))
RUNS = $(if $(UNFIT),,$(OUT:%=%/))runs
DATA_NAME = sed 's/-r dataset \([^ ]*\).*/\1/;q' "$(RUNS)/parameters"

NOTEBOOKS = $(sort $(filter notebooks/%.ipynb,$(wildcard notebooks/[0-9][0-9]_*.ipynb)))
START = notebooks/00_start_here.ipynb
EXECUTED = $(NOTEBOOKS:%=$(RUNS)/%)
# What the notebooks say they save: if one is gone, they run again.
FIGURES = figures/try.html $(shell grep -oh '\\"0[0-9]_[a-z_]*\\",' $(NOTEBOOKS) | sed 's|[^0-9a-z_]||g; s|.*|figures/&.png|')

# A misspelt variable would leave the default in place without a word.
VARIABLES = DATASET EPOCHS SEED DEVICE THREADS SEEDS RECIPE LAB PYTHON SYSTEM_PYTHON MAKEFLAGS SHELL MNIST_AE_% PIP_% OMP_%
UNKNOWN := $(filter-out $(VARIABLES),$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
ifneq ($(UNKNOWN),)
$(error unknown variable $(UNKNOWN): choose among $(wordlist 1,10,$(VARIABLES)))
endif
ifneq ($(realpath $(lastword $(MAKEFILE_LIST))),$(realpath Makefile))
$(error make works in the folder of its Makefile: go there, or use make -C)
endif

ifneq ($(if $(UNFIT),$(filter run-notebooks,$(MAKECMDGOALS))),)
$(error MNIST_AE_OUT is '$(OUT)', and make cannot work with $(UNFIT) in it: choose another folder, or make a link to it)
endif

.PHONY: help run-notebooks test test-unit test-notebooks test-browser refresh clean-notebooks lab sweep ablations baselines peers bench lint clean FORCE

help: ## print the tasks
	@echo "tasks:"
	@awk -F ': .*## ' '/^[a-z-]+: .*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile
	@echo "variables, with their defaults:"
	@awk -F ' *[?]= *|# +' '/^[A-Z]+ *[?]= / { printf "  %-16s %s\n", $$1 "=" $$2, $$3 }' Makefile

run-notebooks: $(EXECUTED) ## the main job: run every notebook whose inputs changed; writes figures/
	@rm -f "$(RUNS)/make.pid"
	@echo "Done: the executed notebooks are in $(RUNS)/notebooks, what they drew for the parameters"
	@echo "  $$(sed 1q '$(RUNS)/parameters')"
	@echo "is in $(RUNS:%runs=%figures)$$($(DATA_NAME) | sed '/^MNIST$$/d; s|^|/|')."

test: test-unit test-notebooks ## all tests

test-unit: $(ENVIRONMENT) ## the tests of mnist_ae, and how much of it they reach
	$(SUPERVISE) -m pytest tests -n logical --maxprocesses=4 --dist worksteal --cov=mnist_ae --cov-branch --cov-fail-under=95

test-notebooks: $(ENVIRONMENT) ## run the stored notebooks afresh and compare what they print
	$(SUPERVISE) -m pytest -n logical --maxprocesses=4 -p tests.nbval_plugin --nbval --nbval-current-env --nbval-cell-timeout 7200 notebooks

test-browser: $(ENVIRONMENT) ## use notebooks 00, 02 and 05 and figures/try.html in Chromium, as a person would
	$(SUPERVISE) -m pytest tests/browser.py

EXECUTE = TQDM_DISABLE=1 $(SUPERVISE) -m jupyter nbconvert --to notebook --execute --inplace \
  --ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.record_timing=False
refresh: export MNIST_AE_OUT =
refresh: $(ENVIRONMENT) ## train and publish the weights, execute the stored notebooks in place with their default parameters on MNIST
	@$(TASK) check --dataset MNIST > /dev/null
	@$(TASK) publish --dataset MNIST
	@for notebook in $(NOTEBOOKS); do $(EXECUTE) $$notebook || exit 1; done
	@$(MAKE) --no-print-directory clean-notebooks

# The page that needs no Python, of the committed weights: the same bytes as notebook 05 writes.
WEIGHTS = figures/ten_digits.safetensors figures/ten_digits.json
figures/try.html: mnist_ae/page.py mnist_ae/try.html $(WEIGHTS) | $(ENVIRONMENT)
	@MNIST_AE_OUT= $(TASK) page

clean-notebooks: $(ENVIRONMENT) ## take out of the stored notebooks what an editor leaves: metadata, widgets; before a commit
	$(PYTHON) -m tests.tidy $(NOTEBOOKS)
	$(PYTHON) -m ruff format --quiet notebooks

lab: $(ENVIRONMENT) ## explore the notebooks in JupyterLab
	$(PYTHON) -m jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/$(START) \
	  $$(test $$(id -u) != 0 || echo --allow-root) $(LAB)

sweep: $(ENVIRONMENT) ## train SEEDS seeds, as many at once as there are cores, into figures/ten_digits.csv
	@$(TASK) sweep $(PARAMETERS) --seeds="$$SEEDS" --recipe="$$RECIPE"

ablations: $(ENVIRONMENT) ## train what notebook 04 compares, for SEEDS seeds, into figures/ablations.csv
	@$(TASK) ablations $(PARAMETERS) --seeds="$$SEEDS"

baselines: $(ENVIRONMENT) ## clustering (UMAP: pip install -e '.[peers]' -c constraints.txt) and the same network with labels, for SEEDS seeds, into figures/baselines.csv
	@$(TASK) baselines $(PARAMETERS) --seeds="$$SEEDS"

peers: $(ENVIRONMENT) ## deep clustering by clustpy (pip install -e '.[peers]' -c constraints.txt), into figures/baselines.csv
	@$(TASK) peers $(PARAMETERS) --seeds="$$SEEDS"

bench: $(ENVIRONMENT) ## measure speed and memory on MNIST, into figures/bench.csv and figures/bench.png
	env -u OMP_WAIT_POLICY $(SUPERVISE) -m tests.bench --threads="$$THREADS"

lint: $(ENVIRONMENT) ## ruff
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

clean: ## delete what was written into runs/, and caches; figures/, data/ and .venv stay
	$(SYSTEM_PYTHON) -c 'from mnist_ae import storage; storage.clean()'
	rm -rf .pytest_cache .ruff_cache .hypothesis .coverage mnist_ae.egg-info

.venv/installed: pyproject.toml constraints.txt
	@$(SYSTEM_PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed, $(SYSTEM_PYTHON) is %d.%d: name another with SYSTEM_PYTHON=..." % sys.version_info[:2])'
	@echo "Installing the pinned dependencies into .venv (on Linux about 6 GB, since torch brings CUDA with it)"
	$(SYSTEM_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

# Rewritten only when a parameter or the data changed, so that make knows what is out of date; fails on a parameter or a
# data file that cannot be used, before anything runs, and where another make ($$PPID) is at work.
$(RUNS)/parameters: FORCE $(ENVIRONMENT)
	@parameters=$$($(TASK) check $(PARAMETERS)) && mkdir -p "$(@D)" && \
	  other=$$(cat "$(RUNS)/make.pid" 2> /dev/null || echo $$PPID) && \
	  if [ $$other != $$PPID ] && kill -0 $$other 2> /dev/null; then \
	    echo "error: process $$other is at work in $(RUNS): wait for it (or delete $(RUNS)/make.pid, if it is no make)" >&2; exit 1; \
	  fi && echo $$PPID > "$(RUNS)/make.pid" && echo "$$parameters" > "$@.new"
	@if cmp -s "$@.new" "$@"; then rm "$@.new"; else mv "$@.new" "$@"; \
	  $(TASK) estimate $(PARAMETERS) --dataset="$$($(DATA_NAME))" || \
	  case $$? in 129|130|143) exit 1;; esac; fi

# A failed notebook is kept for reading; a finished one appears in one step. 129, 130, 143: it was told to end.
$(RUNS)/notebooks/%.ipynb: notebooks/%.ipynb $(wildcard mnist_ae/*.*) $(RUNS)/parameters \
                           $(if $(filter-out $(wildcard figures/*),$(FIGURES)),FORCE)
	@mkdir -p "$(@D)"
	@echo "== $< ($$(printf '%s\n' $(NOTEBOOKS) | grep -nx '$<' | cut -d: -f1) of $(words $(NOTEBOOKS)))"
	@$(SUPERVISE) -m papermill --cwd notebooks --kernel python3 --language python --log-output $$(sed 1q "$(RUNS)/parameters") \
	  $< "$(abspath $(@D))/.$*.ipynb" || { \
	  case $$? in 129|130|143) exit 1;; esac; \
	  mv -f "$(@D)/.$*.ipynb" "$(@D)/$*.failed.ipynb"; \
	  echo "error: notebooks/$*.ipynb failed: read $(@D)/$*.failed.ipynb" >&2; exit 1; }
	@rm -f "$(@D)/$*.failed.ipynb"
	@mv "$(@D)/.$*.ipynb" "$@"

# 02, 03 and 05 read the run that 01 leaves, 06 the one that 05 leaves where it is not the committed one.
$(patsubst %,$(RUNS)/notebooks/%.ipynb,02_inspect_codes 03_cluster_to_label 05_ten_digits): $(RUNS)/notebooks/01_train.ipynb
$(RUNS)/notebooks/06_seeds.ipynb: $(RUNS)/notebooks/05_ten_digits.ipynb
# These read the weights that are committed.
$(patsubst %,$(RUNS)/notebooks/%.ipynb,00_start_here 05_ten_digits 06_seeds): $(wildcard $(WEIGHTS))
# What these tasks write is read by these notebooks.
$(patsubst %,$(RUNS)/notebooks/%.ipynb,03_cluster_to_label 04_beyond_forty 05_ten_digits 06_seeds): \
  $(wildcard $(foreach table,seeds ablations baselines ten_digits,$(RUNS:%runs=%figures)/$(table).csv $(RUNS:%runs=%figures)/*/$(table).csv))
