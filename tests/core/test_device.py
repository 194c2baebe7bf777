"""Device facts: names, rows, and what is refused."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib import resources
from operator import attrgetter

import pytest

from aks.core.device import DeviceSpec, device_aliases, device_slug, device_sources, find_device, known_devices
from aks.core.errors import UnknownDeviceError

H200 = find_device("h200")
TABLE = resources.files("aks.core").joinpath("devices.toml")


@pytest.mark.parametrize("device", known_devices().values(), ids=attrgetter("name"))
def test_every_row_of_the_table_is_plausible(device):
    assert device_slug(device.name) == device.name
    assert device.smem_bytes_per_block <= device.smem_bytes_per_sm
    assert 70 <= device.capability < 200
    assert device_sources()[device.name]
    # Operations of an SM in a clock by capability (architecture white papers); GeForce has half of it.
    per_clock = {80: 2048, 86: 1024, 89: 1024, 90: 4096, 100: 8192, 120: 1024}[device.capability]
    ratio = device.tflops_16bit * 1e6 / (device.sm_count * device.clock_mhz * per_clock)
    assert any(abs(ratio / expected - 1) < 0.1 for expected in (1.0, 0.5)), ratio
    assert DeviceSpec.from_row(device.to_row()) == device
    assert "name" not in device.variables()


@pytest.mark.parametrize(
    ("driver_name", "slug"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("h200", "h200"),
    ],
)
def test_a_driver_name_becomes_a_short_one(driver_name, slug):
    assert device_slug(driver_name) == slug


def test_a_device_is_found_by_either_name():
    assert find_device("NVIDIA H200") == H200


def test_a_models_name_alone_is_one_of_its_rows():
    assert find_device("a100").name == "a100-sxm4-80gb"
    assert find_device("NVIDIA H100").name == "h100-80gb-hbm3"
    assert find_device("h100-64sm").name == "h100-80gb-hbm3-64sm"


def test_an_alias_is_a_name_of_one_row_and_is_no_row_itself():
    names = [alias for row in tomllib.loads(TABLE.read_text()).values() for alias in row.get("aliases", ())]
    assert len(set(names)) == len(names) == len(device_aliases())
    assert not set(names) & set(known_devices())
    assert all(device_slug(name) == name for name in names)


def test_a_partition_is_a_device_with_fewer_sms():
    part = H200.partition(66)
    assert (part.name, part.sm_count, part.tflops_16bit) == ("h200-66sm", 66, 494)
    same = {"name": "h200", "sm_count": 132, "tflops_16bit": 989}
    assert replace(part, **same) == H200 == H200.partition(132)
    assert find_device("h200-66sm") == part
    assert DeviceSpec.from_row(part.to_row()) == part


@pytest.mark.parametrize("sm_count", [0, -8, 133])
def test_a_partition_has_some_of_the_sms(sm_count):
    with pytest.raises(UnknownDeviceError, match=rf"no partition of {sm_count} SMs: 'h200' has 132"):
        H200.partition(sm_count)


def test_a_partition_of_an_unknown_device_is_refused():
    with pytest.raises(UnknownDeviceError, match=r"'h300'; known"):
        find_device("h300-64sm")
    with pytest.raises(UnknownDeviceError, match="133 SMs"):
        find_device("h200-133sm")


def test_an_unknown_device_says_what_is_known_and_what_to_do():
    with pytest.raises(UnknownDeviceError, match=r"'h300'; known: .*h200.*; add a row to devices\.toml"):
        find_device("h300")
    assert str(UnknownDeviceError("plain text")) == "plain text"


@pytest.mark.parametrize("value", [0, -5, 1.5, True, "132"])
def test_a_fact_is_a_positive_integer(value):
    with pytest.raises(UnknownDeviceError, match="sm_count"):
        replace(H200, sm_count=value)


@pytest.mark.parametrize(
    ("fact", "value"), [("l2_bytes", 60), ("dram_gb_s", 4_800_000), ("clock_mhz", 1), ("capability", 9)]
)
def test_a_fact_in_another_unit_is_refused(fact, value):
    with pytest.raises(UnknownDeviceError, match=f"{fact}={value}; it must be an integer from .*mind the unit"):
        replace(H200, **{fact: value})


def test_a_block_has_no_more_shared_memory_than_an_sm():
    with pytest.raises(UnknownDeviceError, match="smem_bytes_per_block=233473; an SM has 233472"):
        replace(H200, smem_bytes_per_block=233473)


def test_a_row_without_a_fact_is_refused():
    row = H200.to_row()
    del row["sm_count"]
    with pytest.raises(UnknownDeviceError, match="sm_count"):
        DeviceSpec.from_row(row)


def test_a_partition_knows_its_gpu_and_a_whole_gpu_is_its_own():
    assert H200.gpu_sm_count == 132
    part = H200.partition(64)
    assert (part.sm_count, part.gpu_sm_count) == (64, 132)
    assert DeviceSpec.from_row(part.to_row()) == part
    with pytest.raises(UnknownDeviceError, match=r"sm_count=132, but is said to be of a GPU of 100"):
        replace(H200, gpu_sm_count=100)


def test_facts_from_before_partitions_are_of_whole_gpus():
    row = H200.to_row()
    del row["gpu_sm_count"]
    assert DeviceSpec.from_row(row) == H200
