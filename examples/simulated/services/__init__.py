"""The gRPC services of the engines, one file each, over the messages of `smg_grpc_proto`."""

from __future__ import annotations

from collections.abc import Mapping

from examples.simulated.options import EngineKind
from examples.simulated.services.base import EngineService
from examples.simulated.services.mlx import MlxService
from examples.simulated.services.sglang import SglangService
from examples.simulated.services.tokenspeed import TokenSpeedService
from examples.simulated.services.trtllm import TrtllmService
from examples.simulated.services.vllm import VllmService

SERVICES: Mapping[EngineKind, type[EngineService]] = {
    EngineKind.SGLANG_GRPC: SglangService,
    EngineKind.VLLM_GRPC: VllmService,
    EngineKind.TRTLLM_GRPC: TrtllmService,
    EngineKind.MLX_GRPC: MlxService,
    EngineKind.TOKENSPEED_GRPC: TokenSpeedService,
}

__all__ = ["SERVICES", "EngineService"]
