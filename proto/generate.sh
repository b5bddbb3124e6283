#!/usr/bin/env bash
# Regenerates baton/v1 from the .proto files. The generator is deliberately older than the runtime: code made by it
# runs under every newer grpcio and protobuf. It lives in an environment of its own, because it wants an old protobuf.
#   proto/generate.sh [OUT_DIR]     OUT_DIR defaults to the repository's root
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root}
tools=${BATON_PROTO_ENV:-$root/.venv-proto}
if [[ ! -x $tools/bin/python ]]; then
  "${PYTHON:-python3}" -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check 'grpcio-tools==1.71.2' 'setuptools<81' 'mypy-protobuf==3.6.0'
fi
mkdir -p "$out"
PATH="$tools/bin:$PATH" "$tools/bin/python" -m grpc_tools.protoc -I "$root/proto" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
  "$root"/proto/baton/v1/*.proto
# worker.proto and the like without a service get empty gRPC modules
rm -f "$out"/baton/v1/worker_pb2_grpc.py "$out"/baton/v1/worker_pb2_grpc.pyi
