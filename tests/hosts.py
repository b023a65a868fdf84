"""Hosts of a test: network namespaces on one bridge, each with an address and a home of its own, and Ray on them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import Processes

BIN = Path(sys.executable).parent
_NETWORK = "10.77.0"


@dataclass(frozen=True)
class Hosts:
    """Hosts by name; the first holds the bridge, and Ray's head where there is one."""

    prefix: str
    folder: Path
    names: tuple[str, ...]

    def at(self, host: str, *command: object) -> list[str]:
        """The command, to be run on a host."""
        return ["ip", "netns", "exec", f"{self.prefix}{host}", *map(str, command)]

    def address(self, host: str) -> str:
        return f"{_NETWORK}.{self.names.index(host) + 1}"

    def environment(self, host: str) -> dict[str, str]:
        """Every host has a home of its own, and no settings of Ray or paths of Python from here."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "PYTHONPATH"
        }
        home = self.folder / host
        home.mkdir(exist_ok=True)
        compiled = os.environ.get("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions"))
        return {
            **kept,
            "HOME": str(home),
            "TORCH_EXTENSIONS_DIR": compiled,  # DeepSpeed compiles for half a minute in a home that is new
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def ray_folder(self, host: str) -> Path:
        """Of the host alone, although all share one disk here: Ray unpacks a job's files anew on every node that the
        job comes to, and would remove the working directory of processes on another (MKL then ends them)."""
        return Path(f"/tmp/{self.prefix}{host}")

    def cut_off(self, host: str) -> None:
        """Take the host's cable away: nothing reaches it, and nothing says so."""
        _ip("-n", f"{self.prefix}{self.names[0]}", "link", "set", f"v{self.names.index(host)}", "down")

    def share_token(self, *hosts: str) -> None:
        """Make a token of Ray on the first host and copy it to others: the operator's way, one file to every host."""
        first = self.names[0]
        command = [BIN / "ray", "get-auth-token", "--generate"]
        subprocess.run(command, env=self.environment(first), capture_output=True, check=True)
        for host in hosts:
            self.environment(host)
            shutil.copytree(self.folder / first / ".ray", self.folder / host / ".ray")

    def ray_node(self, host: str, *options: str) -> list[str]:
        """The command that starts Ray on a host: the head on the first, a worker elsewhere."""
        start = [
            "ray",
            "start",
            "--block",
            f"--temp-dir={self.ray_folder(host)}",
            f"--node-ip-address={self.address(host)}",
        ]
        head = ["--head", "--port=6379"] if host == self.names[0] else [f"--address={self.address(self.names[0])}:6379"]
        return self.at(host, *start, *head, *options)


@contextlib.contextmanager
def make_hosts(folder: Path, names: Sequence[str], settings: Mapping[str, str]) -> Iterator[tuple[Hosts, Processes]]:
    """Hosts, and what starts daemons on them; without the right to make any the test is skipped.

    Args:
        folder: for homes and logs.
        names: of the hosts, a letter or two each.
        settings: environment variables of the daemons.
    """
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2 and root")
    hosts = Hosts(f"llmd{os.getpid()}", folder, tuple(names))
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(names):
            host = f"{hosts.prefix}{name}"
            if subprocess.run(["ip", "netns", "add", host], capture_output=True, check=False).returncode:
                pytest.skip("network namespaces cannot be made here")
            stack.callback(subprocess.run, ["ip", "netns", "delete", host], check=False)
            _ip("-n", host, "link", "set", "lo", "up")
            _connect(f"{hosts.prefix}{names[0]}", host, number)
            device = "eth0" if number else "br0"
            _ip("-n", host, "address", "add", f"{hosts.address(name)}/24", "dev", device)
            _ip("-n", host, "link", "set", device, "up")
            stack.callback(shutil.rmtree, hosts.ray_folder(name), ignore_errors=True)
        environment = {**hosts.environment(names[0]), **settings}
        yield hosts, stack.enter_context(Processes(folder, environment))


def _connect(first: str, host: str, number: int) -> None:
    if not number:
        _ip("-n", host, "link", "add", "br0", "type", "bridge")
        return
    plug = f"v{number}"
    _ip("-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", plug, "netns", first)
    _ip("-n", first, "link", "set", plug, "master", "br0", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
