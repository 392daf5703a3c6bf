"""What is read off a Jetson's files, against values computed by hand from the same files."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from edge.probes.jetson import JetsonProbe
from edge.probes.sample import Sample
from tests.edge.probes.machine_trees import MACHINE_TREES

AGX = MACHINE_TREES["agx-orin-jetpack6"]


def flat(value, prefix=""):
    if isinstance(value, dict):
        return {k: v for n, x in value.items() for k, v in flat(x, f"{prefix}.{n}").items()}
    if isinstance(value, tuple):
        return {k: v for n, x in enumerate(value) for k, v in flat(x, f"{prefix}.{n}").items()}
    return {prefix: round(value, 9) if isinstance(value, float) else value}


@pytest.mark.parametrize("device", MACHINE_TREES)
def test_every_field_is_what_the_files_say(device: str, tmp_path: Path) -> None:
    tree = MACHINE_TREES[device]
    read = flat(asdict(JetsonProbe(tree.write(tmp_path)).read()))
    assert read == flat(asdict(tree.expected))


def test_a_machine_that_is_no_jetson_has_nothing_to_say(tmp_path: Path) -> None:
    AGX.write(tmp_path)
    (tmp_path / "proc/device-tree/compatible").write_text("raspberrypi,4-model-b\0")
    assert JetsonProbe(tmp_path).read() == Sample()


def test_a_gpu_whose_node_appears_after_the_start_is_found(tmp_path: Path) -> None:
    root = AGX.write(tmp_path / "root")
    (root / "sys/class/devfreq").rename(tmp_path / "later")
    probe = JetsonProbe(root)
    assert probe.read().gpus == ()
    (tmp_path / "later").rename(root / "sys/class/devfreq")
    assert probe.read().gpus[0].utilization_percent == pytest.approx(43.7)


def test_a_node_that_moves_is_found_again(tmp_path: Path) -> None:
    probe = JetsonProbe(AGX.write(tmp_path))
    probe.read()
    folder = tmp_path / "sys/class/devfreq"
    (folder / "17000000.gpu").rename(folder / "17000000.ga10b")
    assert probe.read().gpus[0].clock_hz == 930_750_000


@pytest.mark.parametrize("name", [name for name in AGX.files if not name.startswith("proc/device")])
def test_any_file_may_vanish_or_hold_garbage(name: str, tmp_path: Path) -> None:
    probe = JetsonProbe(AGX.write(tmp_path))
    whole = flat(asdict(probe.read()))
    for content in (None, b"", b"\xff\xfe", b"N/A\n", b"9" * 40, b"-", b"\0"):
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content)
        read = flat(asdict(probe.read()))
        numbers = {k: v for k, v in read.items() if isinstance(v, float | int)}
        # What is still told is what it was, but for sums, and a label that is a new name now.
        same = {k for k, v in numbers.items() if whole.get(k) == v}
        others = set(numbers) - same - {".power_watts"}
        assert all(key.startswith((".rails_watts", ".temperatures")) for key in others), others


def test_the_limit_of_a_zone_is_its_lowest_trip_point_that_slows_the_machine(
    tmp_path: Path,
) -> None:
    zone = AGX.write(tmp_path) / "sys/class/thermal/thermal_zone1"
    trips = {"active": 51_000, "passive": 99_000, "critical": 104_500, "hot": -274_000}
    for number, (kind, millis) in enumerate(trips.items()):
        (zone / f"trip_point_{number}_type").write_text(f"{kind}\n")
        (zone / f"trip_point_{number}_temp").write_text(f"{millis}\n")
    probe = JetsonProbe(tmp_path)
    sample = probe.read()
    name = (zone / "type").read_text().removesuffix("-thermal\n").removesuffix("-therm\n").lower()
    assert sample.temperature_limits_celsius == {name: 99.0}
    for file in zone.glob("trip_point_*"):
        file.unlink()
    assert probe.read().temperature_limits_celsius == {name: 99.0}


def test_an_event_of_over_current_is_a_reason_until_the_next_reading(tmp_path: Path) -> None:
    probe = JetsonProbe(AGX.write(tmp_path))
    probe.read()
    (tmp_path / "sys/class/hwmon/hwmon0/oc3_event_cnt").write_text("18\n")
    assert probe.read().gpus[0].throttle_reasons == ("over-current-3",)
    assert probe.read().gpus[0].throttle_reasons == ()


def test_a_jetson_that_shows_nothing_is_an_empty_sample(tmp_path: Path) -> None:
    AGX.write(tmp_path)
    shutil.rmtree(tmp_path / "sys")
    for name in ("proc/meminfo", "etc/nvpmodel.conf", "var/lib/nvpmodel/status"):
        (tmp_path / name).unlink()
    assert JetsonProbe(tmp_path).read() == Sample()
