"""What the CUDA driver says of devices, through ctypes: no package, no context, no hang.

Source: CUDA Driver API, "Device Management" and "Version Management".
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from edge.errors import first_line

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_SM_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
_SM_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_SM_MINOR = 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """One device as its driver describes it. cuda: the highest version the driver runs."""

    name: str
    sm: str
    sm_count: int
    memory_bytes: int
    cuda: str


def cuda_problem() -> str | None:
    """Return why no CUDA device can be used by this process, or None if one can.

    TensorRT without a driver returns objects that segfault on use: ask this first.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return (
            f"the CUDA driver is not there ({first_line(error)}); install the NVIDIA driver, or "
            "start the container with the NVIDIA runtime"
        )
    status, count = driver.cuInit(0), ctypes.c_int()
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status == _NO_DEVICE or (status == 0 and count.value == 0):
        return "the CUDA driver sees no device; check nvidia-smi and who may open /dev/nvidia*"
    if status != 0:
        return f"the CUDA driver refuses with error {status}; check nvidia-smi, or reboot"
    return None


def query_cuda(index: int = 0) -> CudaDevice | None:
    """Return what the driver says of one device, or None if there is no driver or device."""
    if cuda_problem() is not None:
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    device, version = ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
    calls = (
        driver.cuDeviceGet(ctypes.byref(device), index),
        driver.cuDeviceGetName(name, _NAME_BYTES, device),
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        driver.cuDriverGetVersion(ctypes.byref(version)),
    )
    if any(status != 0 for status in calls):
        return None

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    return CudaDevice(
        name=name.value.decode("utf-8", "replace"),
        sm=f"{attribute(_SM_MAJOR)}.{attribute(_SM_MINOR)}",
        sm_count=attribute(_SM_COUNT),
        memory_bytes=memory.value,
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def gpus_like(first: CudaDevice) -> int:
    """Return how many devices, from the first on, are the same as this one; at least 1."""
    count = 1
    while query_cuda(count) == first:
        count += 1
    return count


def free_memory_bytes(index: int = 0) -> int | None:
    """Return how much memory of one device is free, or None if no driver tells.

    Makes the device's primary context for the moment, which takes about a second.
    """
    if cuda_problem() is not None:
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuDeviceGet(ctypes.byref(device), index) != 0:
        return None
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != 0:
        return None
    try:
        driver.cuCtxPushCurrent_v2(context)
        status = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return free.value if status == 0 else None
