"""jetson-stats as documented: its units, sensors that are off, a service that goes."""

import pytest

from edge.probes.jtop import JtopProbe
from edge.probes.sample import GpuSample, ProbeChain, Sample


class FakeJtop:
    """The properties of jtop.jtop() on an AGX Orin: KB, kHz, mW and percent."""

    memory = {  # noqa: RUF012
        "RAM": {"tot": 64335836, "used": 9, "shared": 2097152, "lfb": 1},
        "SWAP": {"tot": 1000, "used": 10, "cached": 0},
    }
    gpu = {  # noqa: RUF012
        "gpu": {
            "type": "integrated",
            "status": {"railgate": False, "load": 43.7},
            "freq": {"cur": 930750, "min": 306000, "max": 1300500},
        }
    }
    power = {  # noqa: RUF012
        "rail": {
            "VDD_GPU_SOC": {"online": True, "volt": 19864, "curr": 201, "power": 3992},
            "NC": {"online": False, "power": 0},
        },
        "tot": {"power": 8595},
    }
    temperature = {  # noqa: RUF012
        "cpu": {"online": True, "temp": 47.031},
        "cv0": {"online": False, "temp": -256},
        "GPU": {"online": True, "temp": 45.5},
    }
    nvpmodel = "MODE_30W"

    def __init__(self):
        self.started = self.closed = 0
        self.alive = True

    def start(self):
        self.started += 1

    def ok(self):
        return self.alive

    def close(self):
        self.closed += 1


def test_every_value_has_its_unit():
    assert JtopProbe(FakeJtop()).read() == Sample(
        memory_total_bytes=64335836 * 1024,
        swap_used_bytes=10 * 1024,
        swap_total_bytes=1000 * 1024,
        temperatures_celsius={"cpu": 47.031, "gpu": 45.5},
        rails_watts={"VDD_GPU_SOC": 3.992},
        power_watts=8.595,
        power_mode="MODE_30W",
        gpus=(
            GpuSample(
                memory="unified",
                memory_used_bytes=2 << 30,
                memory_total_bytes=64335836 * 1024,
                utilization_percent=43.7,
                clock_hz=930_750_000,
                clock_max_hz=1_300_500_000,
                temperature_celsius=45.5,
            ),
        ),
    )


def test_a_service_that_goes_is_a_failure_and_is_left():
    client = FakeJtop()
    probe = JtopProbe(client)
    probe.read()
    client.alive = False
    with pytest.raises(OSError, match=r"jtop\.service"):
        probe.read()
    assert (client.started, client.closed) == (1, 1)


def test_without_the_package_the_other_sources_still_answer():
    class Other:
        name = "other"

        def read(self):
            return Sample(rss_bytes=1)

        def close(self):
            return None

    assert ProbeChain([JtopProbe(), Other()]).read() == Sample(rss_bytes=1)
