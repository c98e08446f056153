{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}
{{- /* Names are fixed: there is one Wardline a cluster, and the operator finds the daemon's objects by them. */ -}}

{{- define "wardline.labels" -}}
app.kubernetes.io/part-of: wardline
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- /* (list WHOSE VALUES APP_VERSION) -> REPOSITORY:TAG or REPOSITORY@DIGEST of WHOSE image */ -}}
{{- define "wardline.image" -}}
{{- $whose := index . 0 -}}
{{- $image := (index . 1 $whose).image -}}
{{- $help := printf "%s.image.repository is not set. There are no published images yet: build them with `make images IMAGE_PREFIX=REGISTRY/NAME`, push what lies in target/images, and install with --set operator.image.repository=REGISTRY/NAME/operator,daemon.image.repository=REGISTRY/NAME/node" $whose -}}
{{- $_ := required $help $image.repository -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 2) }}
{{- end -}}
{{- end -}}

{{- /* What every pod of the operator's image has in common. */ -}}
{{- define "wardline.placement" -}}
{{- $operator := .Values.operator -}}
# A cluster whose network is broken must still get the daemon that repairs it.
hostNetwork: true
# The node's own: apiServer.host may be a name, and the cluster's DNS a Service that nobody has translated yet.
dnsPolicy: Default
{{- with $operator.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $operator.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
  - key: node.kubernetes.io/not-ready
    operator: Exists
  - key: node.kubernetes.io/network-unavailable
    operator: Exists
  - key: node.cloudprovider.kubernetes.io/uninitialized
    operator: Exists
  - key: node-role.kubernetes.io/control-plane
    operator: Exists
  {{- with $operator.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- /* What every pod of the tests has in common that stands in the cluster's network, as any other pod. */ -}}
{{- define "wardline.bystander" -}}
automountServiceAccountToken: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
  - key: node-role.kubernetes.io/control-plane
    operator: Exists
  {{- with .Values.operator.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- /* (list ROOT ARGUMENT...) -> a container that runs one of the operator's commands; why it failed stands in the pod's status. */ -}}
{{- define "wardline.command" -}}
{{- $root := first . -}}
image: {{ include "wardline.image" (list "operator" $root.Values $root.Chart.AppVersion) }}
imagePullPolicy: {{ $root.Values.operator.image.pullPolicy }}
args:
  {{- toYaml (rest .) | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
resources:
  {{- toYaml $root.Values.operator.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- /* Where the API server is, for clusters without kube-proxy. */ -}}
{{- define "wardline.apiServer" -}}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.apiServer.host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.apiServer.port | quote }}
{{- end -}}
