{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}
{{- /* Names are fixed: there is one Wardline a cluster, and the operator finds the daemon's objects by them. */ -}}

{{- define "wardline.labels" -}}
app.kubernetes.io/part-of: wardline
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- /* (list IMAGE APP_VERSION) -> REPOSITORY:TAG or REPOSITORY@DIGEST */ -}}
{{- define "wardline.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 1) }}
{{- end -}}
{{- end -}}
