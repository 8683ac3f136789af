"""The load of a node, with and without GPUs."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from trainer.tracking import system_metrics
from trainer.tracking.system_metrics import SystemMetrics


def test_the_load_has_mlflow_s_names_and_sensible_values(tmp_path, monkeypatch):
    monkeypatch.setattr(system_metrics, "nvml", lambda: None)
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path))
    values = SystemMetrics(tmp_path).read()
    assert 0 <= values["cpu_utilization_percentage"] <= 100
    assert 0 < values["system_memory_usage_percentage"] < 100
    assert values["disk_available_megabytes"] == pytest.approx(
        values["cache_disk_available_megabytes"], rel=0.1
    )
    assert values["network_receive_megabytes"] >= 0
    assert not any(name.startswith("gpu") for name in values)


class NVMLError(Exception):
    """As the library's."""


@pytest.fixture
def library(monkeypatch) -> ModuleType:
    """Stands in for nvidia-ml-py on a machine with two cards, of which one tells less."""
    module = ModuleType("pynvml")
    module.__spec__ = ModuleSpec("pynvml", None)

    def power(card: int) -> int:
        if card == 1:
            raise NVMLError("not supported")
        return 250_000

    members = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=20e9, total=80e9),
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=90),
        "nvmlDeviceGetPowerUsage": power,
    }
    for name, member in members.items():
        setattr(module, name, member)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_every_gpu_is_told_of_as_far_as_it_tells(library, tmp_path):
    values = SystemMetrics(tmp_path).read()
    assert values["gpu_0_utilization_percentage"] == 90
    assert values["gpu_0_memory_usage_percentage"] == 25
    assert values["gpu_0_power_usage_watts"] == 250
    assert values["gpu_1_memory_usage_megabytes"] == 20_000
    assert "gpu_1_power_usage_watts" not in values


def test_a_machine_without_a_driver_has_a_load_without_gpus(library, monkeypatch, tmp_path):
    def no_driver() -> None:
        raise NVMLError("driver not loaded")

    monkeypatch.setattr(library, "nvmlInit", no_driver)
    assert not any(name.startswith("gpu") for name in SystemMetrics(tmp_path).read())
