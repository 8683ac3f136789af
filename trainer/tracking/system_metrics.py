"""The load of the machine that a process runs on, under MLflow's own names for such metrics."""

import os
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import psutil


class SystemMetrics:
    """Reads processor, memory, disk, network and, with nvidia-ml-py, GPUs of this machine."""

    def __init__(self, directory: Path) -> None:
        self._disks = {"disk": directory}
        cache = os.environ.get("MEZZOTINT_CACHE")
        if cache and Path(cache).is_dir():
            self._disks["cache_disk"] = Path(cache)
        self._gpus = nvml()
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # it tells the load since the call before

    def read(self) -> dict[str, float]:
        """The load now; processor and network since the last call and since the start."""
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
        }
        for name, directory in self._disks.items():
            disk = psutil.disk_usage(str(directory))
            values[f"{name}_usage_percentage"] = disk.percent
            values[f"{name}_available_megabytes"] = disk.free / 1e6
        now = psutil.net_io_counters()
        received = now.bytes_recv - self._network.bytes_recv
        values["network_receive_megabytes"] = received / 1e6
        values["network_transmit_megabytes"] = (now.bytes_sent - self._network.bytes_sent) / 1e6
        return values | (gpu_load(self._gpus) if self._gpus else {})


def nvml() -> ModuleType | None:
    """NVIDIA's management library, where its package is installed and a driver answers."""
    if find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def gpu_load(library: ModuleType) -> dict[str, float]:
    """Utilisation, memory and power of every GPU; a value that a card does not give is left out."""
    values = {}
    for index in range(library.nvmlDeviceGetCount()):
        name = f"gpu_{index}"
        try:
            card = library.nvmlDeviceGetHandleByIndex(index)
            memory = library.nvmlDeviceGetMemoryInfo(card)
            values[f"{name}_memory_usage_megabytes"] = memory.used / 1e6
            values[f"{name}_memory_usage_percentage"] = 100 * memory.used / memory.total
            rates = library.nvmlDeviceGetUtilizationRates(card)
            values[f"{name}_utilization_percentage"] = float(rates.gpu)
            values[f"{name}_power_usage_watts"] = library.nvmlDeviceGetPowerUsage(card) / 1000
        except library.NVMLError:
            continue
    return values
