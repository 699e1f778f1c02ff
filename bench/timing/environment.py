"""The machine that a number was taken on, and what disturbed the measurement."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter

PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "openvino", "torch",
    "vision-compress",
)  # fmt: skip
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Gpu:
    name: str
    driver: str
    sm_clock_mhz: str
    memory_clock_mhz: str
    power_limit_w: str
    persistence: str
    processes: int
    """Other compute processes on it."""


@dataclass(frozen=True)
class Environment:
    """What a comparison of two results must have in common is named in `comparable`."""

    machine: str
    system: str
    cpu_model: str
    cpus_online: int
    cpus_allowed: tuple[int, ...]
    """The affinity of this process."""
    cpu_quota: float | None
    """Quota of the control group, in CPUs; None where there is no limit."""
    governor: str | None
    virtual: bool
    memory_bytes: int
    load_1m: float
    python: str
    packages: dict[str, str]
    variables: dict[str, str]
    gpus: tuple[Gpu, ...] = ()

    def comparable(self) -> dict[str, object]:
        """The fields that must agree before two latencies may be set against each other."""
        everything = asdict(self)
        kept = (
            "machine", "cpu_model", "cpus_online", "cpus_allowed", "cpu_quota", "governor",
            "variables",
        )  # fmt: skip
        fields: dict[str, object] = {name: everything[name] for name in kept}
        fields["gpus"] = [
            {k: gpu[k] for k in ("name", "driver", "power_limit_w")} for gpu in everything["gpus"]
        ]
        return fields


@dataclass(frozen=True)
class Counters:
    """Readings whose growth tells of disturbance."""

    at_s: float
    ticks: tuple[int, ...]
    """CPU time since boot: user, nice, system, idle, iowait, irq, softirq, steal."""
    own_s: float
    """CPU time of this process."""
    throttled: int
    """Times the control group or the processor was throttled."""


@dataclass(frozen=True)
class Disturbance:
    """Shares of one CPU-second for each second of the measurement."""

    steal: float
    """Taken by the hypervisor, as a share of all CPUs' time."""
    others: float
    """CPUs kept busy by other processes."""
    throttled: int


def preflight(gpu: bool = False) -> Environment:
    """Look at the machine. `gpu` asks nvidia-smi too."""
    return Environment(
        machine=platform.machine(), system=f"{platform.system()} {platform.release()}",
        cpu_model=_cpu_model(), cpus_online=os.cpu_count() or 1, cpus_allowed=affinity(),
        cpu_quota=_quota(), governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        virtual=" hypervisor" in (_read("/proc/cpuinfo") or ""),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load_1m=os.getloadavg()[0], python=platform.python_version(), packages=_packages(),
        variables={v: os.environ[v] for v in VARIABLES if v in os.environ},
        gpus=_gpus() if gpu else (),
    )  # fmt: skip


def affinity() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _cpu_model() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor() or platform.machine()


def _quota() -> float | None:
    for path in ("/sys/fs/cgroup/cpu.max",):
        parts = (_read(path) or "max").split()
        if parts[0] != "max" and len(parts) == 2:
            return int(parts[0]) / int(parts[1])
    quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpus() -> tuple[Gpu, ...]:
    """Empty where nvidia-smi is missing: the runtime says itself that it has no GPU."""
    query = "name,driver_version,clocks.sm,clocks.mem,power.limit,persistence_mode"
    rows = _smi(f"--query-gpu={query}")
    processes = _smi("--query-compute-apps=pid")
    others = sum(1 for row in processes if row and row[0] != str(os.getpid()))
    return tuple(Gpu(*_six(row), others) for row in rows if len(row) == 6)


def _six(row: list[str]) -> tuple[str, str, str, str, str, str]:
    name, driver, sm, memory, power, persistence = row
    return name, driver, sm, memory, power, persistence


def _smi(query: str) -> list[list[str]]:
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def counters() -> Counters:
    """Read the counters now."""
    first = (_read("/proc/stat") or "cpu 0 0 0 0 0 0 0 0").splitlines()[0].split()
    own = os.times()
    throttled = 0
    for line in (_read("/sys/fs/cgroup/cpu.stat") or "").splitlines():
        if line.startswith("nr_throttled"):
            throttled += int(line.split()[1])
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_count"):
        throttled += int(_read(str(path)) or 0)
    return Counters(
        perf_counter(),
        tuple(int(t) for t in first[1:9]),
        # The processes that this one started and waited for measure for it.
        own.user + own.system + own.children_user + own.children_system,
        throttled,
    )


def disturbance(before: Counters, after: Counters) -> Disturbance:
    """What happened between two readings."""
    grown = [b - a for a, b in zip(before.ticks, after.ticks, strict=True)]
    total = sum(grown) or 1
    steal = grown[7] if len(grown) > 7 else 0
    busy = sum(grown) - sum(grown[3:5]) - steal
    ticks = os.sysconf("SC_CLK_TCK")
    seconds = max(after.at_s - before.at_s, 1e-9)
    others = max(busy / ticks - (after.own_s - before.own_s), 0.0) / seconds
    return Disturbance(steal / total, others, after.throttled - before.throttled)
