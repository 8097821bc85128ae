# redirectd: `make help` lists what there is.
SHELL := /bin/bash
PY := .venv/bin/python
# The lab makes network namespaces, which takes root.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
PREFIX ?= /usr/local
DESTDIR ?=

.PHONY: help setup setup-test demo lab test test-long lint bench install clean \
    setup-image image image-test image-test-ci

help:
	@echo "make demo      watch ssh, rsync and psql survive four address changes (1 minute);"
	@echo "               ARGS=--stay keeps it running, with the admin page, until Ctrl-C"
	@echo "make lab       a small internet in network namespaces, to play with by hand"
	@echo "make test      all tests          make lint   ruff, mypy, mandoc"
	@echo "make test-long outages of ten minutes"
	@echo "make bench     gaps, throughput, memory"
	@echo "make image     CONFIG=gateway.toml IMAGE=out/gateway.img: an image for a card (docs/image.md)"
	@echo "make image-test-ci  the Debian image in QEMU (a quarter to half an hour); make image-test: all guests"
	@echo "make install   onto this machine (PREFIX=$(PREFIX), DESTDIR=)"
	@echo "make clean     remove what the above made here, and leftovers of killed labs"

setup:
	@tests/lab/setup.sh demo

setup-test:
	@tests/lab/setup.sh test

demo: setup
	@$(ROOT) $(PY) -m tests.lab.demo $(ARGS)

lab: setup
	@$(ROOT) $(PY) -m tests.lab.shell $(ARGS)

test: setup-test
ifeq ($(ARGS),)
	$(ROOT) $(PY) -m pytest -n 3 --dist loadfile --ignore=tests/openbsd --ignore=tests/pfconf
# Code for another system must run here all the same: 95 %, or this fails.
	$(ROOT) $(PY) -m pytest -n 3 --dist loadfile tests/openbsd tests/pfconf \
	    --cov --cov-config=tests/openbsd/coverage.ini --cov-report=term
	$(ROOT) rm -f .coverage
else
	$(ROOT) $(PY) -m pytest -n 3 --dist loadfile $(ARGS)
endif

# Outages of ten minutes.
test-long: setup-test
	$(ROOT) $(PY) -m pytest -m long $(ARGS)

lint: setup-test
	$(PY) -m ruff check .
	$(PY) -m mypy
	MYPYPATH=image-build $(PY) -m mypy --strict --explicit-package-bases image-build/*.py
	@for page in docs/man/*.[1-9]; do \
	    [ -e "$$page" ] || continue; \
	    echo "mandoc -T lint -W warning $$page"; \
	    mandoc -T lint -W warning "$$page" || exit 1; \
	done

bench: setup
	@$(ROOT) $(PY) -m tests.bench $(ARGS)

# Images and their tests: docs/image.md
CONFIG ?= gateway.toml
IMAGE ?= out/gateway.img

setup-image: setup-test
	@tests/image/setup.sh

image: setup-image
	$(PY) image-build/build debian --config $(CONFIG) -o $(IMAGE) $(ARGS)

# One Debian guest, emulated where KVM is missing.
image-test-ci: setup-image
	$(ROOT) env IMAGE_TEST=ci $(PY) -m pytest -s tests/image $(ARGS)

# OPENBSD_RELEASE=DIR OPENBSD_PACKAGES=DIR add the OpenBSD guests.
image-test: setup-image
	$(ROOT) env IMAGE_TEST=all OPENBSD_RELEASE=$(OPENBSD_RELEASE) \
	    OPENBSD_PACKAGES=$(OPENBSD_PACKAGES) $(PY) -m pytest -s tests/image $(ARGS)

# A virtual environment of its own, so that no Python package of the system changes.
install:
	@tests/lab/setup.sh install
	python3 -m venv $(DESTDIR)$(PREFIX)/lib/redirectd
	$(DESTDIR)$(PREFIX)/lib/redirectd/bin/python -m pip install --quiet --use-pep517 .
	@DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) appliance/share/install.sh

clean:
	-[ ! -x $(PY) ] || $(ROOT) $(PY) -c 'from tests.lab import kernel; print(*kernel.reap(), sep="\n")'
	$(ROOT) rm -rf .venv build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	$(ROOT) find . -name __pycache__ -type d -prune -exec rm -rf {} +
