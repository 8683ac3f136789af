"""A real SLURM of a few virtual nodes on this machine, for tests (root; slurmctld, slurmd, munge).

Every node is a slurmd in its own process, mount and host-name namespace: names differ, each has a
private scratch disk, and killing the first process of a node is a power cut. All of it is removed
when the process that started it dies, however it dies.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "setpriv")

CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/log/slurmctld.log
SlurmdLogFile={home}/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PriorityType=priority/basic
EnforcePartLimits=ALL
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=10
KillWait=15
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName={names} NodeHostname={names} NodeAddr=127.0.0.1 Port={ports} CPUs={cpus} RealMemory=4000
PartitionName=batch Nodes={names} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=n1 MaxNodes=1 MaxTime=10 State=UP
"""
NODE = """
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs -o size=1g tmpfs "$2/scratch"
if [ "$1" != n1 ]; then mount -t tmpfs -o size=16m tmpfs "$2/private"; fi
exec slurmd -D -N "$1" -f "$2/slurm.conf"
"""


def missing() -> str | None:
    """Why no SLURM can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a SLURM of virtual nodes needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return (
            f"{', '.join(absent)} not installed: apt-get install slurm-wlm slurmctld slurmd munge"
        )
    probe = subprocess.run(
        ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no virtual nodes here: {probe.stderr.strip()}" if probe.returncode else None


@dataclass
class Lab:
    """A running SLURM. `environment` is what its commands need; `shared` is seen by every node."""

    home: Path
    nodes: tuple[str, ...]
    cpus: int
    environment: dict[str, str] = field(default_factory=dict)
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def shared(self) -> Path:
        """Seen by every node."""
        return self.home / "shared"

    @property
    def private(self) -> Path:
        """Seen by the first node and by this machine; the other nodes have one of their own."""
        return self.home / "private"

    @property
    def scratch(self) -> Path:
        """Each node's own disk."""
        return self.home / "scratch"

    def cluster(self, **changes: object) -> str:
        """A cluster file for this lab, as text."""
        settings: dict[str, object] = {
            "name": "lab",
            "partition": "batch",
            "shared": str(self.home),
            "scratch": str(self.scratch),
            "signal_seconds": 30,
            # the tests' own settings, and where DeepSpeed finds what it has compiled
            "export": ["TORCH_EXTENSIONS_DIR"],
            **changes,
        }
        return "".join(f"{key}: {_yaml(value)}\n" for key, value in settings.items())

    def call(self, *command: object) -> str:
        """Run a command of SLURM; returns what it prints."""
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def state(self, job: int) -> str:
        """SLURM's word for where a job stands."""
        shown = self.call("scontrol", "--oneliner", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    def wait_for(self, job: int, *states: str, timeout: float = 90.0) -> str:
        """Wait until a job is in one of these states; returns which."""
        deadline = time.monotonic() + timeout
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state}, not {states}"
            time.sleep(0.1)
        return state

    def wait_for_nodes(self, count: int, timeout: float = 30.0) -> None:
        """Wait until so many nodes are idle."""
        deadline = time.monotonic() + timeout
        while True:
            idle = self.call("sinfo", "--noheader", "--partition=batch", "--format=%t %D").split()
            here = dict(zip(idle[::2], idle[1::2], strict=True))
            if int(here.get("idle", 0)) >= count:
                return
            assert time.monotonic() < deadline, f"nodes: {here}"
            time.sleep(0.05)

    def kill_node(self, node: str) -> None:
        """A power cut: every process of the node is gone at once."""
        daemon = self._daemons.pop(node)
        daemon.kill()  # the namespace's first process follows, and takes all others with it
        daemon.wait()

    def start_node(self, node: str) -> None:
        """Switch a node on."""
        space = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._start(node, *space, "bash", "-ec", NODE, "node", node, str(self.home))

    def _start(self, name: str, *command: str) -> None:
        with (self.home / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def up(self) -> None:
        """Start all daemons and wait until the nodes are idle."""
        for name in ("state", "spool", "log", "shared", "private", "scratch"):
            (self.home / name).mkdir()
        self.home.chmod(0o755)
        key = self.home / "munge.key"
        key.write_bytes(random.SystemRandom().randbytes(1024))
        key.chmod(0o400)
        host, (port, *ports) = socket.gethostname(), free_ports(1 + len(self.nodes))
        (self.home / "hosts").write_text(
            "".join(f"127.0.0.1 {name}\n" for name in ("localhost", host, *self.nodes))
        )
        conf = CONF.format(
            host=host,
            port=port,
            home=self.home,
            names=",".join(self.nodes),
            ports=",".join(map(str, ports)),
            cpus=self.cpus,
        )
        (self.home / "slurm.conf").write_text(conf)
        self.environment["SLURM_CONF"] = str(self.home / "slurm.conf")
        self._start(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={self.home}/munge.socket", f"--pid-file={self.home}/munged.pid"),
            *(f"--log-file={self.home}/log/munged.log", f"--seed-file={self.home}/munge.seed"),
        )
        deadline = time.monotonic() + 10
        while not (self.home / "munge.socket").exists():
            assert time.monotonic() < deadline, (self.home / "log" / "munged.out").read_text()
            time.sleep(0.02)
        self._start("slurmctld", "slurmctld", "-D", "-i", "-f", str(self.home / "slurm.conf"))
        for node in self.nodes:
            self.start_node(node)
        deadline = time.monotonic() + 10
        while self._quietly("scontrol", "ping") != 0:
            assert time.monotonic() < deadline, (self.home / "log" / "slurmctld.log").read_text()
            time.sleep(0.05)
        self.wait_for_nodes(len(self.nodes))

    def down(self) -> None:
        """Cancel what runs, then stop nodes, controller and authentication, in this order."""
        self._quietly("scancel", "--state=PENDING,RUNNING,SUSPENDED")
        for node in self.nodes:
            if node in self._daemons:
                self.kill_node(node)
        for name in ("slurmctld", "munged"):
            daemon = self._daemons.pop(name)
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()

    def _quietly(self, *command: str) -> int:
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            command, env=environment, capture_output=True, timeout=60, check=False
        ).returncode


@pytest.fixture(scope="session")
def slurm() -> Iterator["Lab"]:
    """A SLURM of three nodes, n1 to n3, of two processors each."""
    reason = missing()
    if reason and os.environ.get("CI") in ("true", "1"):
        pytest.fail(f"this must not be skipped under CI: {reason}")
    if reason:
        pytest.skip(reason)
    with lab() as found:
        yield found


@contextmanager
def lab(nodes: int = 3, cpus: int = 2) -> Iterator[Lab]:
    """A SLURM of `nodes` nodes, n1 to nN, of `cpus` processors each."""
    home = Path(tempfile.mkdtemp(prefix="slurm-"))
    found = Lab(home, tuple(f"n{number}" for number in range(1, nodes + 1)), cpus)
    try:
        found.up()
        yield found
    finally:
        found.down()
        shutil.rmtree(home, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """TCP ports that are free now and are not given out to clients meanwhile."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0 and port not in ports:
                ports.append(port)
    return ports


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
