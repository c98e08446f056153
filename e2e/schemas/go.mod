// SPDX-License-Identifier: Apache-2.0

// Not built: schemas and the definitions of others' kinds are taken from these modules, see src/chart/schemas.rs and
// tests/sbom.rs.
module wardline.io/e2e/schemas

go 1.26.3

require (
	github.com/CycloneDX/cyclonedx-go v0.12.0
	github.com/argoproj/argo-cd/v3 v3.5.3
	github.com/fluxcd/kustomize-controller v1.9.6
	github.com/fluxcd/source-controller v1.9.6
	github.com/prometheus-operator/prometheus-operator v0.85.0
	k8s.io/kubernetes v1.36.3
)
