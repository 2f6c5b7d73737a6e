"""Ray nodes as operators start them: `ray start --block` in processes of their own, ended by killing them."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.integration.conftest import COVERAGE

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RayNodes:
    """A cluster on this machine: a head with its dashboard on loopback, then any number of worker nodes."""

    def __init__(self, environment):
        """`environment` is that of the nodes, and so of what runs on them: keys, tokens, caches."""
        self.dashboard, self.metrics = free_port(), [free_port()]  # metrics of each node
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self._scratch = Path(tempfile.mkdtemp(prefix="tr-", dir="/tmp"))  # sockets' paths must be short
        own = {name: value for name, value in os.environ.items() if name not in (*COVERAGE, "PYTHONPATH")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**own, "PATH": path, "RAY_TMPDIR": str(self._scratch), **environment}
        self._nodes = {}
        self._gcs = free_port()
        dashboard = ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        head = ["--head", f"--port={self._gcs}", "--ray-client-server-port", str(free_port()), *dashboard]
        self._start("head", *head, f"--metrics-export-port={self.metrics[0]}", "--num-cpus=2")

    def add(self, name):
        """Start a worker node with a CPU.

        It has a folder of its own, as a machine has: in a shared one the nodes would delete each other's working folder
        of a job, and torch cannot be imported in a folder that is gone (oneMKL ends the process).
        """
        self.metrics.append(free_port())
        ports = f"--address=127.0.0.1:{self._gcs}", f"--metrics-export-port={self.metrics[-1]}"
        self._start(name, *ports, "--num-cpus=1", f"--temp-dir={self._scratch / name}")

    def _start(self, name, *arguments):
        ports = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent")
        self._nodes[name] = subprocess.Popen(
            [
                *(*RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=200000000"),
                "--node-ip-address=127.0.0.1",
                *(f"--node-name={name}", *arguments, *(f"--{port}-port={free_port()}" for port in ports)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=(self._scratch / f"{name}.log").open("w"),
            env=self.environment,
        )

    def kill(self, name):
        """A machine that is switched off: everything on it ends at once."""
        process = self._nodes.pop(name)
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in family:
            one.kill()
        psutil.wait_procs(family, timeout=30)
        process.wait()

    def close(self):
        for name in list(self._nodes)[::-1]:
            self.kill(name)
        shutil.rmtree(self._scratch, ignore_errors=True)
