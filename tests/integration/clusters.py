"""Ray nodes as operators start them: `ray start --block` in processes of their own, ended by killing them."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

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
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**own, "PATH": path, "RAY_TMPDIR": str(self._scratch), **environment}
        self._nodes = {}
        self.gcs = free_port()
        dashboard = ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        head = ["--head", f"--port={self.gcs}", "--ray-client-server-port", str(free_port()), *dashboard]
        self._start("head", *head, f"--metrics-export-port={self.metrics[0]}", "--num-cpus=2")

    def add(self, name, cpus=1):
        """Start a worker node.

        It has a folder of its own, as a machine has: in a shared one the nodes would delete each other's working folder
        of a job, and torch cannot be imported in a folder that is gone (oneMKL ends the process).
        """
        self.metrics.append(free_port())
        ports = f"--address=127.0.0.1:{self.gcs}", f"--metrics-export-port={self.metrics[-1]}"
        self._start(name, *ports, f"--num-cpus={cpus}", f"--temp-dir={self._scratch / name}")

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
        _end(self._nodes.pop(name))

    def close(self):
        for name in list(self._nodes)[::-1]:
            self.kill(name)
        shutil.rmtree(self._scratch, ignore_errors=True)


def namespaces_permitted():
    """Whether this user may have folders of their own mounted."""
    tried = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(tried, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


class IslandNodes:
    """A cluster whose nodes have no folder in common: /tmp, the home's cache and HF_HOME are each node's own."""

    OWN = (
        "mount -t tmpfs tmpfs /tmp && mkdir -p ~/.cache && mount -t tmpfs tmpfs ~/.cache && mkdir -p /tmp/place /tmp/r"
    )

    def __init__(self, environment, carried):
        """A head without CPUs; `carried` are folders that it has in its working folder, by name."""
        root = str(Path(__file__).parents[2])
        own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        folders = {"RAY_TMPDIR": "/tmp/r", "TAILOR_RAY_CACHE": "/tmp/cache", "HF_HOME": "/tmp/hf", "PYTHONPATH": root}
        self.environment = {**own, **folders, **environment}
        self._logs = Path(tempfile.mkdtemp(prefix="tr-", dir="/tmp"))
        self._gcs = free_port()
        self._nodes = {}
        copies = " && ".join(f"cp -r {source} /mnt/{name}" for name, source in carried.items())
        moves = " && ".join(f"mv /mnt/{name} /tmp/place/{name}" for name in carried)
        # through a folder that is the namespace's own as well, for /tmp is covered in between
        before, after = f"mount -t tmpfs tmpfs /mnt && {copies}", moves
        head = ["--head", f"--port={self._gcs}", "--include-dashboard=false", "--num-cpus=0"]
        self._start("head", f"{before} && {self.OWN} && {after}", [*head, "--ray-client-server-port", str(free_port())])
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{self._gcs}"

    def add(self, name, cpus):
        self._start(name, self.OWN, [f"--address=127.0.0.1:{self._gcs}", f"--num-cpus={cpus}"])

    def _start(self, name, prepare, arguments):
        ports = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
        start = [
            *(*RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000"),
            *("--node-ip-address=127.0.0.1", f"--node-name={name}", *arguments),
            *(f"--{port}-port={free_port()}" for port in ports),
        ]
        script = f"{prepare} && cd /tmp/place && exec {shlex.join(start)}"
        self._nodes[name] = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", script],
            stdout=subprocess.DEVNULL,
            stderr=(self._logs / f"{name}.log").open("w"),
            env=self.environment,
        )

    def wait_for(self, count, seconds=90):
        """Until so many nodes are alive."""
        deadline = time.monotonic() + seconds
        asked = "import ray; ray.init(log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"
        while self.run("head", [sys.executable, "-c", asked], check=False).strip()[-1:] != str(count):
            assert time.monotonic() < deadline, [path.read_text()[-2000:] for path in self._logs.iterdir()]
            time.sleep(1)

    def open(self, name, command, **options):
        """Start a command in a node's namespace and working folder."""
        inside = ["nsenter", "--mount", f"--target={self._nodes[name].pid}", "bash", "-c"]
        script = f"cd /tmp/place && exec {shlex.join(command)}"
        return subprocess.Popen([*inside, script], env=self.environment, **options)

    def run(self, name, command, check=True):
        process = self.open(name, command, stdout=subprocess.PIPE, text=True)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0 or not check, said
        return said

    def write(self, name, path, text):
        process = self.open(name, ["tee", path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        process.communicate(text)

    def kill(self, name):
        """A machine that is switched off: everything on it ends at once, and its folders are gone."""
        _end(self._nodes.pop(name))

    def close(self):
        for name in list(self._nodes)[::-1]:
            self.kill(name)
        shutil.rmtree(self._logs, ignore_errors=True)


def _end(process):
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in family:
        one.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait()
