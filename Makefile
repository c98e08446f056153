# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. All that is built lies in target/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

# How images are named and built; see `target/debug/lab images --help`.
export IMAGE_PREFIX ?= wardline
# Backtraces of errors hide what they say.
export RUST_LIB_BACKTRACE := 0

LAB := target/debug/lab
SECTION := @hack/section.sh
CARGO_DENY := 0.20.2
# How often `make conformance` runs each case, and further options of `lab conformance`.
REPEAT ?= 1
CONFORMANCE ?=
# How many flows `make oracle` generates, and the seed that it generates them from.
FLOWS ?= 1000000
SEED ?= $(shell date +%s)
# Further values of the chart for `make manifests`.
SET ?=
# Tests that make namespaces or load programs need root; these crates have none.
UNPRIVILEGED := --package=wardline-policy --package=wardline-record --package=wardline-cli --package=wardline-crds --package=wardline-operator --package=wardline-e2e \
	--package=wardline-traffic --package=wardline-cni

# They wait for each other where they have to, and for the cluster most of the time.
CLUSTER_TESTS := --nocapture --test-threads=32

.PHONY: help
help: ## list the targets
	@echo "Wardline. Targets:"
	grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12 | sed 's/^/  make /'

.PHONY: demo
demo: deps tool ## from nothing to a policy log: cluster, images, chart, pods, connections and their records
	@$(LAB) demo

.PHONY: demo-down
demo-down: tool ## take the cluster down, and check that nothing of it is left
	@$(LAB) down

.PHONY: lab
lab: deps tool ## a real two-node cluster on this machine, without Wardline (target/lab/kubeconfig)
	@$(LAB) up

.PHONY: install
install: deps tool ## build the images, and install or upgrade Wardline in the running cluster
	@$(LAB) install

.PHONY: images
images: deps tool ## static binaries and images in target/images, each with what it is made of (IMAGE_PREFIX, VERSION, ARCH=amd64|arm64, BUILDER=buildah|docker|podman)
	@$(LAB) images

.PHONY: test
test: deps ## everything: check, the privileged tests, and the tests on the cluster; needs root
	@rm -rf target/test
	trap '$(MAKE) --no-print-directory tally' EXIT
	$(MAKE) --no-print-directory check-sections privileged-sections cluster-sections

.PHONY: check
check: deps ## formatting, lints, generated files, and the tests that need no root
	@rm -rf target/test
	trap '$(MAKE) --no-print-directory tally' EXIT
	$(MAKE) --no-print-directory check-sections

.PHONY: test-kernels
test-kernels: deps ## the tests that touch the kernel on Debian's 5.10, 6.1 and 6.12, in virtual machines without KVM; needs root
	@hack/test-kernels.sh

.PHONY: bench
bench: deps tool ## what packets, connections, records and policy changes cost: a table, and target/bench.json; needs root
	@echo 'measuring the packet programs'
	cargo run --quiet --release --package wardline-bpf --example packet_bench target/bench-packets.json > target/bench-packets.txt
	echo 'measuring the tables of Services'
	cargo run --quiet --release --package wardline-node --example services_bench
	$(LAB) bench --packets target/bench-packets.json --output target/bench.json

.PHONY: conformance
conformance: deps tool ## oracle, beside-kube-proxy, and Kubernetes' own network policy suite, all but the cases that open SCTP sockets: a table (REPEAT=3 for three rounds); needs root
	@status=0
	$(LAB) conformance --repeat $(REPEAT) $(CONFORMANCE) || status=1
	echo 'a million packets while policies are rewritten all the time'
	WARDLINE_ATOMIC_PACKETS=1000000 hack/named-tests.sh --package wardline-node --test traffic atomic -- --nocapture || status=1
	echo 'a million packets of each protocol and verdict, and their records'
	WARDLINE_EXACT_PACKETS=1000000 hack/named-tests.sh --package wardline-node --test log exact::records_are -- --nocapture || status=1
	echo '$(FLOWS) generated flows'
	$(MAKE) --no-print-directory oracle || status=1
	echo 'Services and node ports beside kube-proxy'
	$(MAKE) --no-print-directory beside-kube-proxy || status=1
	exit $$status

.PHONY: beside-kube-proxy
beside-kube-proxy: deps tool ## the tests of Services and node ports in a cluster of its own that runs kube-proxy too; needs root
	@status=0
	$(LAB) down
	$(LAB) up --kube-proxy && $(LAB) install && \
		hack/named-tests.sh --package wardline-e2e --features cluster-tests --test cluster -- $(CLUSTER_TESTS) services:: node_port:: || status=1
	$(LAB) down || status=1
	exit $$status

.PHONY: oracle
oracle: deps ## generated flows through the naive evaluator, the reference, the tables and the kernel (FLOWS, SEED); needs root
	@export WARDLINE_FLOWS=$(FLOWS) WARDLINE_SEED=$(SEED)
	hack/named-tests.sh --package wardline-policy --test agree -- --nocapture the_naive_evaluator
	hack/named-tests.sh --package wardline-node --test agree -- --nocapture the_kernel_decides

.PHONY: fmt
fmt: ## format the Rust code
	@cargo fmt --all

.PHONY: crds
crds: ## write the CRDs' YAML and the schema of the policy log from the types
	@cargo run --quiet --package wardline-crds --bin crdgen
	cargo run --quiet --package wardline-record --bin schemagen

.PHONY: chart
chart: deps tool ## lint the chart; validate what it renders, the manifests and the examples of deploy/ against the API's schemas
	@$(LAB) chart

.PHONY: values
values: tool ## write docs/values.md from the chart's values
	@$(LAB) chart --values

.PHONY: manifests
manifests: deps tool ## plain YAML and a kustomize base in target/manifests (IMAGE_PREFIX, VERSION, SET='KEY=VALUE ...')
	@$(LAB) manifests $(foreach value,$(SET),--set $(value))

.PHONY: deps
deps: ## install the Debian packages that are missing
	@hack/deps.sh

.PHONY: deny
deny: ## licenses, bans and sources of all dependencies; builds cargo-deny the first time
	@if ! target/tools/bin/cargo-deny --version 2>/dev/null | grep -qF ' $(CARGO_DENY)'; then
		cargo install --quiet --locked --debug --root target/tools --version $(CARGO_DENY) cargo-deny
	fi
	target/tools/bin/cargo-deny --log-level error check bans licenses sources

# The parts of check and test. Each is a section with its time; their tests are added up by tally.

.PHONY: check-sections
check-sections:
	$(SECTION) 'headers' hack/check-headers.sh
	hack/section.sh 'scripts and text' hack/check-text.sh
	hack/section.sh 'formatting' cargo fmt --all --check
	hack/section.sh 'lints' cargo clippy --quiet --workspace --all-targets --all-features -- -D warnings
	hack/section.sh 'CRDs fit their types' cargo run --quiet --package wardline-crds --bin crdgen -- --check
	hack/section.sh 'the log fits its schema' cargo run --quiet --package wardline-record --bin schemagen -- --check
	hack/section.sh 'chart and manifests' $(MAKE) --no-print-directory chart
	hack/section.sh 'tests without root' cargo test --quiet $(UNPRIVILEGED)

.PHONY: privileged-sections
privileged-sections:
	$(SECTION) 'dependencies' $(MAKE) --no-print-directory deny
	hack/section.sh 'packet programs' cargo test --quiet --package wardline-bpf
	hack/section.sh 'node daemon' cargo test --quiet --package wardline-node
	hack/section.sh 'alerts and shipping' cargo test --quiet --package wardline-e2e --features shipping-tests --test monitoring --test shipping
	hack/section.sh 'real traffic, with clsact' env WARDLINE_TEST_ATTACH=clsact cargo test --quiet --package wardline-node --test traffic

# The cluster goes down whatever happens, and that nothing is left of it is a test of its own.
.PHONY: cluster-sections
cluster-sections: tool
	@status=0
	$(LAB) down
	export KUBECONFIG=$(CURDIR)/target/lab/kubeconfig
	hack/section.sh 'cluster comes up' $(LAB) up && {
		hack/section.sh 'Wardline is installed' $(LAB) install || status=1
		hack/section.sh 'CRDs in an API server' cargo test --quiet --package wardline-crds --features apiserver-tests --test cel || status=1
		hack/section.sh 'on the cluster' cargo test --quiet --package wardline-e2e --features cluster-tests --test cluster -- $(CLUSTER_TESTS) || status=1
		hack/section.sh 'benchmark runs' $(LAB) bench --quick --output target/bench-quick.json || status=1
		hack/section.sh 'no privilege too many' $(LAB) audit || status=1
	} || status=1
	hack/section.sh 'nothing is left' $(LAB) down || status=1
	exit $$status

.PHONY: tally
tally:
	@hack/tally.sh

.PHONY: tool
tool:
	@cargo build --quiet --package wardline-e2e --bin lab
