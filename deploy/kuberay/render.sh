#!/usr/bin/env bash
# Writes raycluster.yaml and rayjob.yaml from the chart deploy/helm/baton:  HELM=helm deploy/kuberay/render.sh
set -euo pipefail
cd "$(dirname "$0")"
helm="${HELM:-helm}"
chart=../helm/baton

cat > raycluster.yaml <<'HEAD'
# Kubernetes with the KubeRay operator, 1.5 or newer (labels and resources of a group), without Helm:
#   kubectl apply -f deploy/kuberay/raycluster.yaml
#   kubectl apply -f deploy/kuberay/rayjob.yaml        # runs `baton up` on it
# Edit the image (deploy/kuberay/Dockerfile), node selectors, resources, replicas.
#
# render.sh writes this file from the chart deploy/helm/baton, whose values include TLS and tokens.
# There is no RayService: it deploys Ray Serve applications, upgrades and probes them through Serve's own controller.
# Baton brings its own router and actors, so a RayCluster holds them and a RayJob starts them.
HEAD
"$helm" template baton "$chart" -s templates/configmap.yaml -s templates/services.yaml -s templates/raycluster.yaml >> raycluster.yaml

cat > rayjob.yaml <<'HEAD'
# Runs `baton up` on the RayCluster of raycluster.yaml. Later commands:
#   kubectl exec -it SOME-HEAD-POD -c ray-head -- baton status
HEAD
"$helm" template baton "$chart" -s templates/rayjob.yaml >> rayjob.yaml
