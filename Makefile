# The one entry. `make up` gives a running cluster, `make test` runs everything that CI runs.

SHELL := /bin/bash
# Without -u: a bash that ssh starts reads /etc/bash.bashrc, and Debian's uses variables that are not set.
.SHELLFLAGS := -e -o pipefail -c
.DEFAULT_GOAL := help

KEELSON_ROOT ?= /var/lib/keelson
TARGET_DIR   ?= $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
RELEASE      := $(TARGET_DIR)/release
export KEELSON_ROOT

DAEMONS := kube-store kube-apiserver kube-scheduler kube-controller-manager kubelet kube-proxy \
           keelson-dns keelson-network keelson-local kubeadm

.PHONY: help up down demo-image build packages test-packages check fmt clippy unit e2e test soak-store bench bench-store fix

help: ## Show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

packages: ## Install what running a cluster needs from Debian
	@deploy/local/packages.sh run

test-packages: packages
	@deploy/local/packages.sh test
	@command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest

build: ## Build every daemon in release mode
	cargo build --release $(addprefix -p ,$(DAEMONS))
	cargo rustc --release -p pause -- -C target-feature=+crt-static

up: packages build ## Start a cluster (KEELSON_ROOT=/some/dir for one of its own network)
	@"$(RELEASE)/keelson-local" up

down: ## Stop the cluster (PURGE=1 removes its data)
	@if [ ! -x "$(RELEASE)/keelson-local" ] && [ ! -d "$(KEELSON_ROOT)" ]; then \
	   echo "there is no cluster at $(KEELSON_ROOT)"; exit; \
	 elif [ ! -x "$(RELEASE)/keelson-local" ]; then cargo build --release -p keelson-local; fi; \
	 "$(RELEASE)/keelson-local" down $(if $(PURGE),--purge)

demo-image: ## Load localhost/busybox:latest into the cluster's runtime
	@deploy/local/packages.sh demo
	@"$(RELEASE)/keelson-local" demo-image

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets -- -D warnings

check: fmt clippy ## Formatting and lints

unit: ## Unit and integration tests of every crate
	cargo build -p kube-store # storage and API server are tested against it
	cargo nextest run --workspace --exclude e2e

e2e: test-packages ## End-to-end tests against real daemons and containers
	cargo build $(addprefix -p ,$(DAEMONS))
	cargo rustc -p pause -- -C target-feature=+crt-static
	e2e/run

test: test-packages check unit e2e ## Everything that CI runs

# A variable of make, not of the shell: bash counts its own SECONDS.
SECONDS ?= 600
soak-store: ## The store's real processes under load and faults (SECONDS=600 SEED=n)
	cargo build -p kube-store --tests
	FAULTS_SECONDS=$(SECONDS) $(if $(SEED),FAULTS_SEED=$(SEED)) \
	   cargo test -p kube-store --test faults -- --exact faults --nocapture

bench: packages build ## Measure against the peers on this machine (ARGS="store --time 500ms" for a part)
	@e2e/bench.sh $(ARGS)

bench-store: test-packages ## The store's bars beside Debian's etcd (ARGS="store-load --time 1s" for a part)
	cargo build --release -p kube-store
	cargo build --release -p e2e --bin bench
	@"$(RELEASE)/bench" $(or $(ARGS),store-load store-endurance churn)

fix: ## Format and apply the lints' suggestions
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
