# Every target creates .venv when it is missing, and reuses it.
PYTHON ?= python3
BIN := .venv/bin
# Hints of pip about its own version are noise here.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export TOKENIZERS_PARALLELISM := false
# Number of test processes, with one thread each: the models in the tests are too small to gain from threads.
WORKERS ?= 2
# What is committed of a run of which only the verdicts are: from, to.
keep_claims = mkdir -p $(2) && cp $(1)/claims.csv $(1)/provenance.json $(2)
# Defences whose attack success is committed.
ATTACKED := safety_prompt,text_verdict,gate_refuser,guard,guard_stronger,guard_more_layers,guard_references,guard_random_layer,guard_bigrams,guard_detector
NOTEBOOKS := paper_repro.ipynb $(wildcard studies/notebooks/*.ipynb)

.PHONY: repro test lint notebook docs organism reference detection equal-strength attacks stress seeds controls qwen qwen-reference models bench lock

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(PIP) --constraint requirements.lock torch
	$(PIP) --constraint requirements.lock --editable '.[notebook,docs,dev,distributed,endpoint,qwen,xlsx]'
	@touch $@

repro: .venv/installed  ## the paper's argument on the built-in model, and a report page
	$(BIN)/vlm-guard repro

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not large" -n $(WORKERS) --dist loadfile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebook: .venv/installed  ## executes all notebooks in place; the paper's reads results/reference/, the others run at scale quick
	for name in $(NOTEBOOKS); do \
		PYTHONWARNINGS="ignore:IProgress not found" $(BIN)/jupyter-execute --inplace $$name || exit 1; \
	done

docs: .venv/installed  ## the documentation as a site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

organism: .venv/installed  ## trains the built-in model from scratch, and measures it
	$(BIN)/python -m studies.organism

reference: .venv/installed  ## writes the committed results in results/reference/, and their numbers into the documentation
	$(BIN)/vlm-guard repro --scale quick --out results/reference/quick
	$(BIN)/vlm-guard repro --scale full --out results/reference/full
	$(BIN)/python docs/measured.py

equal-strength: .venv/installed  ## writes the committed table of methods at their own best and at equal KL
	$(BIN)/vlm-guard equal-strength --out results/equal_strength
	cp results/equal_strength/equal_strength.* results/reference/full/
	cp results/equal_strength/provenance.json results/reference/full/equal_strength_provenance.json
	$(BIN)/python docs/measured.py

attacks: .venv/installed  ## attacks every defence of the built-in model, and writes the committed table of it
	$(BIN)/vlm-guard attack --attacks universal_suffix --requests 8 --defences $(ATTACKED) --out results/attack
	for kind in csv png pdf; do cp results/attack/adaptive.$$kind results/reference/full/ || exit 1; done
	cp results/attack/adaptive_found.json results/reference/full/
	cp results/attack/provenance.json results/reference/full/adaptive_provenance.json

stress: .venv/installed  ## answers of the built-in model, sampled, longer and later, and writes the committed table of it
	$(BIN)/vlm-guard stress --out results/stress
	for kind in csv png pdf; do cp results/stress/stress.$$kind results/reference/full/ || exit 1; done
	cp results/stress/provenance.json results/reference/full/stress_provenance.json
	$(BIN)/python docs/measured.py

detection: .venv/installed  ## writes the committed comparison of detectors with the guard of scale quick, and its numbers
	$(BIN)/vlm-guard guard fit --scale quick --work results/detection-guard/work --out results/detection-guard/guard
	$(BIN)/vlm-guard detect --scale full --guard results/detection-guard/guard --out results/detection
	mkdir -p results/reference/full/detection && cp results/detection/*.csv results/detection/*.json \
		results/detection/detection_*.pdf results/detection/detection_*.png results/reference/full/detection/
	$(BIN)/python docs/measured.py

seeds: .venv/installed  ## trains two more seeds of the built-in model, and runs every study on them
	for seed in 1 2; do $(BIN)/python -m studies.organism --seed $$seed || exit 1; done
	$(BIN)/vlm-guard seeds results/organism/seed1 results/organism/seed2 --out results/seeds
	mkdir -p results/reference/seeds && cp results/seeds/*.csv results/seeds/provenance.json results/reference/seeds/
	for seed in 1 2; do $(call keep_claims,results/seeds/seed$$seed,results/reference/seeds/built-in-seed$$seed); done
	$(BIN)/python docs/measured.py

controls: .venv/installed  ## trains models in which an outcome is planted, and runs every study on them; seeds first
	for control in no_gap blurred; do for seed in 0 1 2; do \
		$(BIN)/python -m studies.organism --control $$control --seed $$seed && \
		$(BIN)/vlm-guard repro --weights results/organism/$$control-seed$$seed \
			--out results/controls/$$control-seed$$seed && \
		$(call keep_claims,results/controls/$$control-seed$$seed,results/reference/controls/$$control-seed$$seed) \
			|| exit 1; \
	done; done

models: .venv/installed  ## the claims on every model with committed results, as a table and figures
	$(BIN)/vlm-guard compare --out results/reference/models built-in=results/reference/quick \
		$(wildcard results/reference/seeds/*/) $(dir $(wildcard results/reference/llava-*/claims.csv)) $(wildcard results/reference/controls/*/)
	$(BIN)/python docs/measured.py

qwen: .venv/installed  ## builds llava-qwen-0.5b, a VLM on an LLM that others aligned, and runs the main study on it
	$(BIN)/vlm-guard model get llava-qwen-0.5b
	$(BIN)/vlm-guard repro --model llava-qwen-0.5b --scale brief --out results/llava-qwen-0.5b

qwen-reference: qwen  ## writes the committed results of llava-qwen-0.5b, without its answers
	$(BIN)/python -m studies.llava_qwen.published results/llava-qwen-0.5b results/reference/llava-qwen-0.5b

bench: .venv/installed  ## with DEVICE=cuda: the 7B shape on a GPU
	$(BIN)/python -m tests.speed $(if $(DEVICE),--device $(DEVICE) --only seven_b)

lock:  ## pins the versions that are installed now
	echo '# Complete pins, used as constraints (pip install -c). Made by `make lock`.' > requirements.lock
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed -E 's/\+cpu$$//' >> requirements.lock
