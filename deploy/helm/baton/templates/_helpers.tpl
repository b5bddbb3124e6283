{{/* Labels of every object. */}}
{{- define "baton.labels" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "baton.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* "true" where operators of other pods may reach the router. */}}
{{- define "baton.adminOpen" -}}
{{- if or .Values.access.tokens.secret .Values.access.tls.clientCa .Values.access.openAdmin }}true{{ end }}
{{- end }}

{{/* The configuration: what the values say, and over it `config`. */}}
{{- define "baton.config" -}}
{{- $access := dict }}
{{- with .Values.access }}
{{- if .tls.secret }}
{{- $_ := set $access "tls_certificate" "/etc/baton/tls/tls.crt" }}
{{- $_ := set $access "tls_key" "/etc/baton/tls/tls.key" }}
{{- end }}
{{- if .tls.clientCa }}{{ $_ := set $access "client_ca" "/etc/baton/tls/ca.crt" }}{{ end }}
{{- if .tokens.secret }}{{ $_ := set $access "tokens_file" "/etc/baton/tokens/tokens.toml" }}{{ end }}
{{- if .openAdmin }}{{ $_ := set $access "open_admin" true }}{{ end }}
{{- end }}
{{- $pools := dict "gateways" .Values.gateways.count }}
{{- $ranks := dict }}
{{- $placement := dict "gateway" (dict "resources" (dict "baton_gateway" 1)) }}
{{- with .Values.placement.strategy }}{{ $_ := set $placement "strategy" . }}{{ end }}
{{- range $name, $pool := .Values.pools }}
{{- $_ := set $pools $name $pool.workers }}
{{- if or $pool.workers $pool.maxWorkers }}
{{- if gt (int (default 1 $pool.tensorParallel)) 1 }}{{ $_ := set $ranks $name (int $pool.tensorParallel) }}{{ end }}
{{- $takes := dict "cpus" $pool.cpus "gpus" $pool.gpus }}
{{- $_ := set $takes "resources" (dict (printf "baton_%s" $name) 1) }}
{{- $_ := set $takes "labels" (dict "baton-pool" $name) }}
{{- if $pool.env }}{{ $_ := set $takes "env" $pool.env }}{{ end }}
{{- $_ := set $placement $name $takes }}
{{- end }}
{{- end }}
{{- $router := dict }}
{{- if include "baton.adminOpen" . }}{{ $_ := set $router "admin_host" "0.0.0.0" }}{{ end }}
{{- $config := dict "model" (dict "path" .Values.model.path) "pools" $pools "placement" $placement }}
{{- $_ := set $config "gateway" (dict "host" "0.0.0.0") }}
{{- if $ranks }}{{ $_ := set $config "tensor_parallel" $ranks }}{{ end }}
{{- if $router }}{{ $_ := set $config "router" $router }}{{ end }}
{{- if $access }}{{ $_ := set $config "access" $access }}{{ end }}
{{- mergeOverwrite $config .Values.config | toJson }}
{{- end }}

{{/* A table of TOML and its subtables. A string or number of JSON is one of TOML, too. */}}
{{- define "baton.table" -}}
{{- $path := .path }}
{{- range $key, $value := .table }}
{{- if not (kindIs "map" $value) }}
{{ include "baton.key" $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .table }}
{{- if and (kindIs "map" $value) $value }}
{{- $inner := append $path (include "baton.key" $key) }}
[{{ join "." $inner }}]
{{- include "baton.table" (dict "path" $inner "table" $value) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "baton.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* Ports of gateways and router, which `config` may change. */}}
{{- define "baton.ports" -}}
{{- $config := include "baton.config" . | fromJson }}
{{- $gateway := $config.gateway }}
{{- $router := $config.router | default dict }}
{{- $ports := dict "grpc" ($gateway.port | default 50051) "http" ($gateway.http_port | default 8000) }}
{{- $_ := set $ports "admin" ($router.admin_port | default 50052) }}
{{- $_ := set $ports "adminHttp" ($router.admin_http_port | default 8001) }}
{{- toJson $ports }}
{{- end }}

{{/* Mounts and volumes of the Secrets that gateways and router read. */}}
{{- define "baton.secretMounts" -}}
{{- if .Values.access.tls.secret }}
- { name: tls, mountPath: /etc/baton/tls, readOnly: true }
{{- end }}
{{- if .Values.access.tokens.secret }}
- { name: tokens, mountPath: /etc/baton/tokens, readOnly: true }
{{- end }}
{{- end }}

{{- define "baton.secretVolumes" -}}
{{- if .Values.access.tls.secret }}
- name: tls
  secret: { secretName: {{ .Values.access.tls.secret }} }
{{- end }}
{{- if .Values.access.tokens.secret }}
- name: tokens
  secret: { secretName: {{ .Values.access.tokens.secret }} }
{{- end }}
{{- end }}

{{/* How a gateway is probed: HTTP; gRPC (readiness) and TCP without HTTP; TCP where each client needs a certificate. */}}
{{- define "baton.probe" -}}
{{- $ports := include "baton.ports" .root | fromJson }}
{{- $access := .root.Values.access }}
{{- if $access.tls.clientCa -}}
tcpSocket: { port: grpc }
{{- else if ne ($ports.http | toString) "off" -}}
httpGet: { path: {{ .path }}, port: http{{ if $access.tls.secret }}, scheme: HTTPS{{ end }} }
{{- else if and (eq .path "/readiness") (not $access.tls.secret) -}}
grpc: { port: {{ $ports.grpc }}, service: baton.v1.Inference }
{{- else -}}
tcpSocket: { port: grpc }
{{- end }}
{{- end }}

{{/* Annotations by which a Prometheus without an operator finds /metrics. */}}
{{- define "baton.scraped" -}}
{{- if and .root.Values.metrics.annotations (ne (.port | toString) "off") -}}
annotations:
  prometheus.io/scrape: "true"
  prometheus.io/path: /metrics
  prometheus.io/port: {{ .port | toString | quote }}
  prometheus.io/scheme: {{ if .root.Values.access.tls.secret }}https{{ else }}http{{ end }}
{{- end }}
{{- end }}

{{/* What a pod of any group has besides its container. */}}
{{- define "baton.scheduling" -}}
{{- with .group.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}
