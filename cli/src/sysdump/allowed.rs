// SPDX-License-Identifier: Apache-2.0
//! The fields of each kind that go into the archive. docs/operations.md says the same in words.
//!
//! Whatever a field of free text may hold, somebody puts a password into: so there are no annotations, no environment, no
//! arguments, no volumes of users' pods, and of what users run no messages either.

type Fields = &'static [&'static str];

pub(super) const METADATA: Fields = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.generation",
    "metadata.labels",
    "metadata.finalizers",
    "metadata.creationTimestamp",
    "metadata.deletionTimestamp",
    "metadata.ownerReferences[].kind",
    "metadata.ownerReferences[].name",
];

/// Kinds that are Wardline's own, or say nothing but what policy is: all of spec and status.
pub(super) const WHOLE: Fields = &["spec", "status"];

/// Of any pod what policy needs, and whether it runs.
pub(super) const POD: Fields = &[
    "spec.nodeName",
    "spec.hostNetwork",
    "spec.containers[].name",
    "spec.containers[].ports[].name",
    "spec.containers[].ports[].containerPort",
    "spec.containers[].ports[].hostPort",
    "spec.containers[].ports[].hostIP",
    "spec.containers[].ports[].protocol",
    "spec.initContainers[].name",
    "spec.initContainers[].restartPolicy",
    "spec.initContainers[].ports[].name",
    "spec.initContainers[].ports[].containerPort",
    "spec.initContainers[].ports[].hostPort",
    "spec.initContainers[].ports[].hostIP",
    "spec.initContainers[].ports[].protocol",
    "status.phase",
    "status.reason",
    "status.startTime",
    "status.hostIP",
    "status.podIPs[].ip",
    "status.conditions[].type",
    "status.conditions[].status",
    "status.conditions[].reason",
    "status.conditions[].lastTransitionTime",
    "status.containerStatuses[].name",
    "status.containerStatuses[].ready",
    "status.containerStatuses[].started",
    "status.containerStatuses[].restartCount",
    "status.containerStatuses[].state.running.startedAt",
    "status.containerStatuses[].state.waiting.reason",
    "status.containerStatuses[].state.terminated.reason",
    "status.containerStatuses[].state.terminated.exitCode",
    "status.containerStatuses[].state.terminated.signal",
    "status.containerStatuses[].state.terminated.startedAt",
    "status.containerStatuses[].state.terminated.finishedAt",
    "status.containerStatuses[].lastState.terminated.reason",
    "status.containerStatuses[].lastState.terminated.exitCode",
    "status.containerStatuses[].lastState.terminated.signal",
    "status.containerStatuses[].lastState.terminated.startedAt",
    "status.containerStatuses[].lastState.terminated.finishedAt",
];

/// Of Wardline's own pods also what they are made of, and what is said about them.
pub(super) const OWN_POD: Fields = &[
    "spec.containers[].image",
    "spec.containers[].imagePullPolicy",
    "spec.containers[].resources",
    "spec.containers[].securityContext",
    "spec.containers[].env[].name",
    "spec.nodeSelector",
    "spec.tolerations",
    "spec.priorityClassName",
    "spec.serviceAccountName",
    "spec.dnsPolicy",
    "status.conditions[].message",
    "status.containerStatuses[].image",
    "status.containerStatuses[].imageID",
    "status.containerStatuses[].state.waiting.message",
    "status.containerStatuses[].state.terminated.message",
    "status.containerStatuses[].lastState.terminated.message",
];

/// Wardline's own DaemonSet and Deployment.
pub(super) const WORKLOAD: Fields = &[
    "spec.replicas",
    "spec.selector",
    "spec.strategy",
    "spec.updateStrategy",
    "spec.template.metadata.labels",
    "spec.template.spec.hostNetwork",
    "spec.template.spec.dnsPolicy",
    "spec.template.spec.nodeSelector",
    "spec.template.spec.tolerations",
    "spec.template.spec.priorityClassName",
    "spec.template.spec.serviceAccountName",
    "spec.template.spec.containers[].name",
    "spec.template.spec.containers[].image",
    "spec.template.spec.containers[].imagePullPolicy",
    "spec.template.spec.containers[].ports",
    "spec.template.spec.containers[].resources",
    "spec.template.spec.containers[].securityContext",
    "spec.template.spec.containers[].env[].name",
    "spec.template.spec.containers[].volumeMounts",
    "spec.template.spec.volumes[].name",
    "spec.template.spec.volumes[].hostPath",
    "spec.template.spec.volumes[].configMap.name",
    "status",
];

/// `data` is a DaemonSet's template.
pub(super) const CONTROLLER_REVISION: Fields = &["revision", "data.spec.template.metadata.labels"];

pub(super) const NODE: Fields = &[
    "spec.podCIDRs",
    "spec.unschedulable",
    "spec.taints[].key",
    "spec.taints[].effect",
    "status.addresses",
    "status.allocatable",
    "status.nodeInfo.architecture",
    "status.nodeInfo.containerRuntimeVersion",
    "status.nodeInfo.kernelVersion",
    "status.nodeInfo.kubeletVersion",
    "status.nodeInfo.osImage",
    "status.nodeInfo.operatingSystem",
    "status.conditions[].type",
    "status.conditions[].status",
    "status.conditions[].reason",
    "status.conditions[].lastTransitionTime",
];

pub(super) const NAMESPACE: Fields = &["status.phase"];

pub(super) const SERVICE: Fields = &[
    "spec.type",
    "spec.clusterIPs",
    "spec.externalIPs",
    "spec.ports",
    "spec.selector",
    "spec.ipFamilies",
    "spec.sessionAffinity",
    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
    "spec.internalTrafficPolicy",
    "spec.externalTrafficPolicy",
    "spec.trafficDistribution",
    "spec.publishNotReadyAddresses",
    "spec.loadBalancerSourceRanges",
    "status.loadBalancer.ingress[].ip",
    "status.loadBalancer.ingress[].ipMode",
];

pub(super) const ENDPOINT_SLICE: Fields = &[
    "addressType",
    "ports",
    "endpoints[].addresses",
    "endpoints[].conditions",
    "endpoints[].hints",
    "endpoints[].nodeName",
    "endpoints[].zone",
    "endpoints[].targetRef.kind",
    "endpoints[].targetRef.namespace",
    "endpoints[].targetRef.name",
];

pub(super) const LEASE: Fields = &["spec"];

/// Those about Wardline's own objects.
pub(super) const EVENT: Fields = &[
    "type",
    "reason",
    "message",
    "action",
    "count",
    "series",
    "eventTime",
    "firstTimestamp",
    "lastTimestamp",
    "reportingComponent",
    "reportingInstance",
    "source",
    "involvedObject.apiVersion",
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
];
