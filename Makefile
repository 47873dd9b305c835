# Everything here sets up what it needs: Python >= 3.10, git and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUNDLE := bundles/mri_head_segmentation
DEMO := demo_output
# MONAI Label wants older versions than the rest, so that it has an environment of its own; Python 3.10 to 3.12.
LABEL_VENV ?= .venv-label-app
LABEL_BIN := $(LABEL_VENV)/bin
PORT ?= 8000
HOST ?= 127.0.0.1

.PHONY: install demo label-app test test-label-app check bench sanitize sanitize-cuda emulate-cuda clean

install: $(VENV)/.installed

# The stamp is younger than the files that say what is needed, or the environment is made again.
$(VENV)/.installed: pyproject.toml setup.py $(wildcard csrc/ms_deform_attn/*)
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'dinomed needs Python 3.10 or newer; make PYTHON=python3.11 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

# A real head scan (the first frame of the one that nibabel's package carries), segmented with the weights in the bundle.
demo: install
	$(BIN)/python -m monai.bundle run inferring --bundle_root $(BUNDLE) --config_file $(BUNDLE)/configs/inference.yaml \
	  --logging_file $(BUNDLE)/configs/logging.conf --output_dir $(DEMO) --frame 0 \
	  --input "$$($(BIN)/python -c 'import nibabel, pathlib; print(pathlib.Path(nibabel.__file__).parent / "tests/data/example4d.nii.gz")')"
	@echo
	@echo "label map: $(DEMO)/example4d_seg.nii.gz"
	@echo "picture:   $(DEMO)/example4d_seg.png"
	@echo "table:     $(DEMO)/example4d_seg.json"

# 3D Slicer's server on a folder of scans: make label-app STUDIES=folder [PORT=8000] [HOST=0.0.0.0]
label-app: $(LABEL_VENV)/.installed
	@test -n "$(STUDIES)" || { echo "name a folder of scans: make label-app STUDIES=folder [PORT=8000]" >&2; exit 2; }
	$(LABEL_BIN)/python -m dinomed.label_app --studies "$(STUDIES)" --port $(PORT) --host $(HOST)

$(LABEL_VENV)/.installed: pyproject.toml setup.py $(wildcard csrc/ms_deform_attn/*)
	$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13) and 'MONAI Label needs Python 3.10 to 3.12; make PYTHON=python3.11 ...')"
	test -x $(LABEL_BIN)/python || $(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(LABEL_BIN)/python -m pip install --quiet torch torchvision
	$(LABEL_BIN)/python -m pip install --quiet --no-build-isolation --editable ".[label]"
	touch $@

test: install
	$(BIN)/python -m pytest $(TESTS)

test-label-app: $(LABEL_VENV)/.installed
	$(LABEL_BIN)/python -m pip install --quiet "pytest>=8"
	$(LABEL_BIN)/python -m pytest --durations=5 tests/label_app

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if ls csrc/*/*.cpp >/dev/null 2>&1; then $(BIN)/clang-format --dry-run --Werror $$(ls csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu 2>/dev/null); fi

bench: install
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

# Random and hostile inputs through the CPU kernels, under the address and undefined-behaviour sanitizers.
sanitize:
	sh csrc/sanitize.sh

# The CUDA kernels' tests on a GPU under compute-sanitizer: wrong addresses, then races in shared memory. The environment
# must hold the CUDA library: DINOMED_BUILD=cuda make install, in a fresh one.
sanitize-cuda: install
	$(BIN)/python -c "from dinomed.ops import kernel_status as s; exit(None if s()['CUDA'] == 'compiled kernel' else s()['CUDA'])"
	for tool in memcheck racecheck; do compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
	  $(BIN)/python -m pytest -m "gpu and not slow" tests/ops/test_ms_deform_attn_cuda.py || exit 1; done

# The CUDA kernels' source compiled against a stand-in for CUDA and run on the CPU: their tests without a GPU.
emulate-cuda: install
	PYTHON=$(BIN)/python sh csrc/emulate_cuda.sh

clean:
	rm -rf $(VENV) $(LABEL_VENV) $(DEMO) build dist *.egg-info
