// SPDX-License-Identifier: Apache-2.0

// Package netpol compiles the upstream end-to-end tests of Kubernetes' network features into one binary.
package netpol

import (
	"flag"
	"os"
	"testing"

	"k8s.io/kubernetes/test/e2e"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"

	// Registers the suite, of which the lab runs the cases named Netpol.
	_ "k8s.io/kubernetes/test/e2e/network"
)

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	framework.AfterReadingAllFlags(&framework.TestContext)
	os.Exit(m.Run())
}

// TestUpstream hands over to the framework, which picks its cases by --ginkgo.focus.
func TestUpstream(t *testing.T) {
	e2e.RunE2ETests(t)
}
