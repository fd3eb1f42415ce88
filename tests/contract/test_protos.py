"""Our few messages against the engines' published protos: the wire knows numbers, so numbers must agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import grpc_tools
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from smg_grpc_proto.generated import (
    mlx_engine_pb2,
    sglang_scheduler_pb2,
    tokenspeed_encoder_pb2,
    tokenspeed_scheduler_pb2,
    trtllm_service_pb2,
    vllm_engine_pb2,
)

from gateway_sidecar.engines._pb import grpc_pb2, loads_pb2, mlx_pb2, sglang_pb2, tokenspeed_pb2, trtllm_pb2, vllm_pb2
from gateway_sidecar.engines.dialect import STANDARD_HEALTH, Rpc
from gateway_sidecar.engines.grpc_probe import REFLECTION
from gateway_sidecar.kinds import ENGINES

REPOSITORY = Path(__file__).parents[2]
GENERATED = "gateway_sidecar/engines/_pb"

PUBLISHED: list[tuple[ModuleType, list[ModuleType]]] = [
    (sglang_pb2, [sglang_scheduler_pb2]),
    (vllm_pb2, [vllm_engine_pb2]),
    (mlx_pb2, [mlx_engine_pb2]),
    (trtllm_pb2, [trtllm_service_pb2]),
    (tokenspeed_pb2, [tokenspeed_scheduler_pb2]),
    (grpc_pb2, [health_pb2, reflection_pb2]),
    *((loads_pb2, [published]) for published in (sglang_scheduler_pb2, tokenspeed_scheduler_pb2)),
]
PUBLISHED_FILES: list[FileDescriptor] = [
    *(module.DESCRIPTOR for _, modules in PUBLISHED for module in modules),
    tokenspeed_encoder_pb2.DESCRIPTOR,
]
DIALECTS = [engine.grpc for engine in ENGINES if engine.grpc is not None]
RPCS = [
    STANDARD_HEALTH.rpc,
    REFLECTION,
    *(rpc for dialect in DIALECTS for rpc in (dialect.server_info, dialect.model_info)),
    *(dialect.loads for dialect in DIALECTS if dialect.loads is not None),
    *(dialect.health.rpc for dialect in DIALECTS if dialect.health is not STANDARD_HEALTH),
]


def _published_message(name: str, modules: list[ModuleType]) -> Descriptor:
    (found,) = (
        module.DESCRIPTOR.message_types_by_name[name]
        for module in modules
        if name in module.DESCRIPTOR.message_types_by_name
    )
    assert isinstance(found, Descriptor)
    return found


def _shape(field: FieldDescriptor) -> tuple[object, ...]:
    """What the wire and the reader depend on. Messages of ours have a package of ours: only Google's have one name."""
    message = field.message_type.full_name if field.message_type else None
    known = message if message and message.startswith("google.") else message and message.rsplit(".", 1)[1]
    return field.name, field.number, field.type, field.is_repeated, known


@pytest.mark.parametrize(("ours", "published"), PUBLISHED, ids=lambda value: getattr(value, "__name__", ""))
def test_every_field_has_the_engines_number_and_type(ours: ModuleType, published: list[ModuleType]) -> None:
    """A field read under a wrong number is a lie that no test on the other side can catch."""
    for name, message in ours.DESCRIPTOR.message_types_by_name.items():
        theirs = _published_message(name, published)
        for field in message.fields:
            assert _shape(field) == _shape(theirs.fields_by_name[field.name]), f"{name}.{field.name}"
        for enum in message.enum_types:
            values = theirs.enum_types_by_name[enum.name].values_by_name
            assert {v.name: v.number for v in enum.values} == {n: v.number for n, v in values.items()}


def _published_method(rpc: Rpc) -> MethodDescriptor:
    _, service, method = rpc.path.split("/")
    for file in PUBLISHED_FILES:
        for described in file.services_by_name.values():
            if described.full_name == service:
                return described.methods_by_name[method]
    raise AssertionError(f"no published service is called {service}")


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.path)
def test_every_path_is_a_published_method_with_our_messages(rpc: Rpc) -> None:
    """A path is service and method as published, and takes and gives the messages that we send and read."""
    method = _published_method(rpc)
    assert method.input_type.name == rpc.request.DESCRIPTOR.name
    assert method.output_type.name == rpc.response.DESCRIPTOR.name
    # Reflection is called as if it were unary: one request, one answer.
    assert method.client_streaming == method.server_streaming == (rpc is REFLECTION)


def test_reflection_names_are_published_services() -> None:
    """An engine is known by the names that its published services have."""
    published = {service.full_name for file in PUBLISHED_FILES for service in file.services_by_name.values()}
    for dialect in DIALECTS:
        assert dialect.services <= published
        assert dialect.service in dialect.services


def test_generated_code_is_what_the_protos_say(tmp_path: Path) -> None:
    """Checked-in code that differs from its source is worse than none; `proto/generate.sh` renews it."""
    sources = sorted((REPOSITORY / "proto").glob("*.proto"))
    google = Path(grpc_tools.__file__).parent / "_proto"
    output = tmp_path / "set.binpb"
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"-I{GENERATED}=proto", f"-I{google}", f"--descriptor_set_out={output}"),
            *(f"{GENERATED}/{source.name}" for source in sources),
        ],
        cwd=REPOSITORY,
        check=True,
    )
    described = {file.name: file for file in FileDescriptorSet.FromString(output.read_bytes()).file}
    for ours in dict.fromkeys(ours for ours, _ in PUBLISHED):
        checked_in = FileDescriptorProto.FromString(ours.DESCRIPTOR.serialized_pb)
        expected = described.pop(checked_in.name)
        for message in expected.message_type:
            for field in message.field:
                field.ClearField("json_name")  # only protoc's own output has it
        assert checked_in == expected
    assert not described


def test_generated_code_runs_with_the_oldest_protobuf_that_we_allow() -> None:
    """Generated code refuses a runtime older than itself: its version is the floor in pyproject.toml."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (floor,) = (d.split(">=")[1] for d in project["dependencies"] if d.startswith("protobuf>="))
    for generated in (REPOSITORY / GENERATED).glob("*_pb2.py"):
        version = re.search(r"^# Protobuf Python Version: (\d+\.\d+)", generated.read_text(), re.MULTILINE)
        assert version
        assert version[1] == floor
