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
