"""What fits where, against numbers that are published or counted by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edge.chat.spec import DecoderSpec
from edge.console import print_json
from edge.devices import DEVICES, device_named
from edge.errors import UsageError
from host_tools.chat.llm_spec import llm_spec_from_config
from host_tools.chat.plan import Ask, Widths, demand_of, fit_plan, fits, supply_of
from host_tools.cli import cli

# The config.json of Llama-3-8B, which has 8,030,261,248 parameters.
LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "eos_token_id": 128001,
}
PARAMETERS = 8_030_261_248
SPEC = llm_spec_from_config(LLAMA_3_8B)
# Keys and values of a position: 32 layers, 8 heads of 128, FP16.
POSITION_BYTES = 2 * 32 * 8 * 128 * 2
ALL = ("fp32", "fp16", "int8", "w8a8", "int4")


def planned(target, **ask):
    return fit_plan(SPEC, device_named(target), Ask(**ask))


def row_of(plan, precision):
    return next(row for row in plan.rows if row.precision == precision)


@pytest.mark.parametrize(
    ("target", "fitting", "recommended"),
    [
        ("rtx-4060", {"int4"}, "int4"),
        ("agx-orin-64gb", set(ALL), "w8a8"),
        ("agx-xavier-32gb", {"fp16", "int8", "w8a8"}, "w8a8"),
        ("orin-nano-8gb", {"int4"}, "int4"),
        ("rtx-4090", {"fp16", "int8", "w8a8", "int4"}, "fp16"),
    ],
)
def test_what_fits_of_an_8b_model(target, fitting, recommended):
    plan = planned(target)
    assert {row.precision for row in plan.rows if row.verdict == "fits"} == fitting
    assert plan.recommended == recommended


def test_weights_are_the_parameters_in_their_precision():
    plan = planned("agx-thor")
    rotations = 2 * 8192 * 64  # values of cosines and sines
    table = 128256 * 4096
    outputs = 32 * (6144 + 4096 + 28672 + 4096) + 128256  # each with a scale and a zero point
    for precision, expected in {
        "fp32": 4 * PARAMETERS,
        "fp16": 2 * PARAMETERS,
        "int8": PARAMETERS + table + 3 * outputs,  # the embedding is FP16
        "int4": (PARAMETERS - table) * (0.5 + 2 / 128) + 2 * table,
    }.items():
        floats = 4 if precision == "fp32" else 2
        found = row_of(plan, precision).demand.weights
        assert found == pytest.approx(expected + rotations * floats, rel=5e-4)


def test_an_int8_head_costs_half_a_byte_for_each_of_its_weights():
    same, int8 = (
        row_of(planned("rtx-4060", head=head, context=2048), "int4") for head in ("same", "int8")
    )
    table = 128256 * 4096
    # One scale and one zero point a row, in place of a scale a block.
    more = table // 2 - table // 128 * 2 + 3 * 128256
    assert int8.demand.weights - same.demand.weights == pytest.approx(more, abs=8192)


def test_the_cache_is_that_of_all_lanes():
    row = row_of(planned("agx-thor", context=2048, lanes=3), "int4")
    assert row.demand.cache == POSITION_BYTES * 2048 * 3
    assert row.demand.total == sum(
        (row.demand.weights, row.demand.cache, row.demand.workspace, row.demand.runtime)
    )


def test_tokens_are_bounded_by_the_bandwidth():
    """272 GB/s; a token of fp16 reads 15.0 GB and, in full, 8192 positions."""
    row = row_of(planned("rtx-4060", context=8192, lanes=4), "fp16")
    read = 2 * (PARAMETERS - 128256 * 4096)
    full = 8192 * POSITION_BYTES
    assert row.tokens_per_s == pytest.approx(272e9 / read, rel=1e-3)
    assert row.tokens_per_s_full == pytest.approx(272e9 / (read + full), rel=1e-3)
    assert row.all_lanes_per_s == pytest.approx(4 * 272e9 / (read + 4 * full), rel=1e-3)


@pytest.mark.parametrize("form", ["scatter", "scatter-primitive", "prefix", "concat"])
def test_the_longest_context_fits_and_a_longer_one_does_not(form):
    lanes = 16
    row = row_of(planned("orin-nx-16gb", lanes=lanes, form=form), "int4")
    assert row.longest_context is not None
    assert row.longest_context < SPEC.context
    usable = supply_of(device_named("orin-nx-16gb")).usable_bytes
    for context, expected in ((row.longest_context, True), (row.longest_context + 256, False)):
        tried = row_of(planned("orin-nx-16gb", lanes=lanes, form=form, context=context), "int4")
        assert (tried.verdict == "fits") is expected
        assert (tried.demand.total <= usable) is expected


def test_a_context_that_was_asked_for_is_not_made_shorter():
    assert row_of(planned("rtx-4060"), "int4").context < 8192
    row = row_of(planned("rtx-4060", context=8192), "int4")
    assert (row.verdict, row.context) == ("too large", 8192)
    assert row.remark == f"{row.longest_context} positions would fit"
    with pytest.raises(UsageError, match=r"made for 1\.\.8192"):
        planned("rtx-4060", context=8193)


def test_a_reserve_takes_the_place_of_the_assumption():
    device = device_named("rtx-4060")
    mine = supply_of(device, 3_000_000_000)
    assert "assumed" not in mine.assumption
    assert supply_of(device, 0).usable_bytes - mine.usable_bytes == 3_000_000_000
    assert supply_of(device).usable_bytes < supply_of(device, 0).usable_bytes < device.memory_bytes
    assert planned("rtx-4060", reserve_bytes=3_000_000_000).recommended is None


def test_where_nothing_fits_the_way_out_is_named():
    assert planned("nano").advice.endswith("take a smaller model")
    assert planned("rtx-4060", lanes=64).advice.endswith("fewer --lanes or a shorter --context")


def test_int4_is_not_promised_where_tensorrt_reads_none():
    row = row_of(planned("agx-xavier"), "int4")
    assert (row.verdict, row.demand.total < 30e9) == ("not supported", True)


def test_without_a_known_bandwidth_no_speed_is_claimed():
    device = replace(device_named("rtx-4060"), bandwidth_bytes_per_s=None)
    plan = fit_plan(SPEC, device)
    assert {row.tokens_per_s for row in plan.rows} == {None}
    assert "tokens/s" not in plan.advice


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_every_known_device_gets_a_plan(device):
    plan = fit_plan(SPEC, device)
    assert [row.precision for row in plan.rows] == list(ALL)
    assert (plan.recommended is None) == all(row.verdict != "fits" for row in plan.rows)


def test_a_name_may_carry_the_memory():
    assert device_named("agx-xavier-32gb") is device_named("agx-xavier")
    assert device_named("agx-xavier-64gb") is not device_named("agx-xavier")
    assert device_named("rtx-4060-16gb") is None


def decoder(**changes):
    return DecoderSpec(
        **{
            "form": "scatter",
            "layers": 32,
            "kv_heads": 8,
            "head_dim": 128,
            "vocabulary": 128256,
            "context": 8192,
            "cache": "FP16",
            **changes,
        }
    )


WIDTHS = Widths(hidden=4096, intermediate=14336, heads=32)


def test_a_written_graph_is_judged_by_what_was_written():
    device = device_named("rtx-4060")
    row = row_of(planned("rtx-4060"), "int4")
    size = {"weights": row.demand.weights, "lanes": 4}
    assert fits(decoder(), WIDTHS, device, context=row.context, **size) is None
    problem = fits(decoder(), WIDTHS, device, context=8192, **size)
    assert problem is not None
    assert "4 lanes of 8192 positions" in problem
    assert f"cache {4 * 8192 * POSITION_BYTES:,}, " in problem
    assert "GeForce RTX 4060" in problem


def test_a_cache_that_is_copied_counts_twice():
    sizes = {
        form: demand_of(decoder(form=form), WIDTHS, weights=0, context=4096, lanes=2).cache
        for form in ("scatter", "concat")
    }
    assert sizes == {
        "scatter": POSITION_BYTES * 4096 * 2,
        "concat": POSITION_BYTES * 4096 * 4,
    }


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "llama.json"
    path.write_text(json.dumps(LLAMA_3_8B))
    return path


def run(capsys, monkeypatch, *words):
    monkeypatch.setenv("COLUMNS", "80")
    status = cli.main(["plan", *map(str, words)], standalone_mode=False)
    return status, capsys.readouterr().out


@pytest.mark.parametrize("target", ["rtx-4060", "agx-orin-64gb", "agx-xavier-32gb", "nano"])
def test_the_table_is_readable_at_80_columns(config, target, capsys, monkeypatch):
    status, out = run(capsys, monkeypatch, "--model", config, "--target", target)
    assert status == (1 if target == "nano" else 0)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    assert "…" not in out
    for precision in ALL:
        assert f"\n{precision} " in out


def test_the_json_holds_every_byte(config, capsys, monkeypatch):
    _, out = run(
        capsys, monkeypatch, "--model", config, "--target", "rtx-4060", "--lanes", 1, "--json"
    )
    print_json(planned("rtx-4060", lanes=1))
    assert out == capsys.readouterr().out
    int4 = json.loads(out)["rows"][-1]
    assert int4["demand"]["cache"] == POSITION_BYTES * int4["context"]


def test_a_folder_needs_no_weights(config, capsys, monkeypatch):
    (config.parent / "config.json").write_text(config.read_text())
    folder, file = (
        run(capsys, monkeypatch, "--model", path, "--target", "rtx-4060")
        for path in (config.parent, config)
    )
    assert folder == file


@pytest.mark.parametrize(
    ("content", "target", "message"),
    [
        ("{", "rtx-4060", "is no config.json"),
        ("[]", "rtx-4060", "is no config.json"),
        (None, "rtx-4060", "no such folder or file"),
        (json.dumps(LLAMA_3_8B), "rtx-4061", "not known; give one of nano, "),
    ],
)
def test_what_cannot_be_planned_is_a_usage_error(tmp_path, content, target, message):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        cli.main(["plan", "--model", str(path), "--target", target], standalone_mode=False)
