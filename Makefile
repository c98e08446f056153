# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. All that is built lies in target/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

export LAB := target/debug/lab

.PHONY: help
help: ## list the targets
	@echo "Wardline. Targets:"
	grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14 | sed 's/^/  make /'

.PHONY: lab
lab: tool ## bring up a real two-node cluster on this machine (target/lab/kubeconfig)
	@$(LAB) up

.PHONY: demo-down
demo-down: tool ## take the cluster down, and check that nothing of it is left
	@$(LAB) down

.PHONY: tool
tool:
	@cargo build --quiet --package wardline-e2e --bin lab
