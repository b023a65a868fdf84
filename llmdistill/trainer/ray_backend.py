"""Ray Train's process group, on the network interface that the nodes know each other by."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


@dataclass
class ProcessGroupConfig(TorchConfig):
    """By itself Gloo takes the address of the host's name, on many machines loopback, which no other host reaches."""

    @property
    def backend_cls(self) -> type:
        """What sets the process group up."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(bind_gloo)
        super().on_start(worker_group, backend_config)


def bind_gloo() -> None:
    """Let Gloo use the interface of this node's Ray address, unless a person has chosen one."""
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
