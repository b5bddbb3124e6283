#!/bin/bash
# Measures a fresh cluster of the built-in model with guidellm and prints a table. It installs guidellm with torch and
# datasets into a temporary environment (about 5 GB, some minutes), so it is no part of the suite.
#
#     tests/clients/run.sh [SECONDS PER RUN]
#
# $GUIDELLM: a folder that has the program already.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
export BATON_HOME="$folder/home"
trap '.venv/bin/baton down > /dev/null 2>&1 || true; rm -rf "$folder"' EXIT

if [ -z "${GUIDELLM:-}" ]; then
    .venv/bin/python -m venv "$folder/venv"
    "$folder/venv/bin/pip" install -q "guidellm>=0.8,<0.9"
    GUIDELLM=$folder/venv/bin
fi
# Free ports, so that another cluster of this machine goes on.
printf '[gateway]\nport = 0\nhttp_port = 0\n[router]\nadmin_port = 0\n' > "$folder/baton.toml"
.venv/bin/baton up --prefill 1 --decode 1 --config "$folder/baton.toml" > /dev/null
PATH="$GUIDELLM:$PATH" .venv/bin/baton bench --seconds "${1:-10}"
