#!/usr/bin/env bash
# Regenerates baton/protocol/v1 from the .proto files. The generator is deliberately older than the runtime: code made by it
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
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
PATH="$tools/bin:$PATH" "$tools/bin/python" -m grpc_tools.protoc -I "$root/proto" \
  --python_out="$made" --grpc_python_out="$made" --mypy_out="$made" --mypy_grpc_out="$made" \
  "$root"/proto/baton/v1/*.proto
# worker.proto and the like without a service get empty gRPC modules
rm -f "$made"/baton/v1/worker_pb2_grpc.py "$made"/baton/v1/worker_pb2_grpc.pyi
# protoc names a module by the path of its .proto file, which is the protobuf package's name. Ours lie in a package below.
sed -i -E 's/\bbaton\.v1\.([a-z]+_pb2)/baton.protocol.v1.\1/g; s/from baton\.v1 import/from baton.protocol.v1 import/
  s#code in baton/v1/#code in baton/protocol/v1/#' "$made"/baton/v1/*
mkdir -p "$out/baton/protocol/v1"
cp "$made"/baton/v1/* "$out/baton/protocol/v1/"
