#!/bin/bash
# Drives a fresh cluster of the built-in model with guidellm, and prints its table. It needs the package index, about
# 3 GB of disk and some minutes, so it is not part of the suite.
#
#     tests/clients/run.sh [seconds per rate]
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-10}
baton=${BATON:-.venv/bin/baton}
folder=$(mktemp -d)
export BATON_HOME="$folder/home"
stop() { "$baton" down > /dev/null 2>&1 || true; rm -rf "$folder"; }
trap stop EXIT

echo "installing guidellm in $folder"
if [ -n "${GUIDELLM:-}" ]; then
    guidellm=$GUIDELLM
else
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install -q "guidellm>=0.8,<0.9"
    guidellm=$folder/venv/bin/guidellm
fi
