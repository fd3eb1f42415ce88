#!/bin/sh
# Writes gateway_sidecar/engines/_pb from the .proto files here.
#
# Generated code refuses a protobuf older than itself. grpcio-tools 1.70 writes for protobuf 5.29, the floor in
# pyproject.toml, so it is used from an environment of its own, whatever is installed here.
set -eu
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3}" -m venv "$tools"
"$tools/bin/pip" install --quiet 'grpcio-tools==1.70.*' 'setuptools<81'
google=$("$tools/bin/python" -c 'import grpc_tools, os; print(os.path.dirname(grpc_tools.__file__))')/_proto
generated=gateway_sidecar/engines/_pb
for source in proto/*.proto; do
    "$tools/bin/python" -W ignore -m grpc_tools.protoc "-I$generated=proto" "-I$google" \
        --python_out=. --pyi_out=. "$generated/$(basename "$source")"
done
# The stubs say Mapping without its types, which strict checking does not allow.
sed -i '1i # mypy: ignore-errors' "$generated"/*_pb2.pyi
