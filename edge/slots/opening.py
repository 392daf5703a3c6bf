"""The bundle that the configuration means: the one that the slots serve, or a folder."""

from __future__ import annotations

from pathlib import Path

from edge.bundle import Bundle, open_bundle
from edge.config import AgentConfig
from edge.errors import SlotsError
from edge.slots.layout import Layout, state_in
from edge.slots.state import SlotName
from edge.trust import trusted_keys_in


def open_configured(config: AgentConfig, *, defer_engines: bool = False) -> Bundle:
    """Return the verified bundle; needs no right to write. See `bundle.open_bundle`.

    Raises SlotsError if the slots serve nothing yet.
    """
    if config.slots is not None:
        slot = state_in(config.slots).serving
        if slot is None:
            raise SlotsError(
                f"no bundle is in service in {config.slots}; install one with `edge-agent install`"
            )
        return open_slot(config, config.slots, slot, defer_engines=defer_engines)
    return open_bundle(
        config.bundle,
        trusted_keys_in(config.trusted_keys),
        allow_unsigned=config.allow_unsigned,
        defer_engines=defer_engines,
    )


def open_slot(
    config: AgentConfig, root: Path, slot: SlotName, *, defer_engines: bool = False
) -> Bundle:
    """Return the verified bundle in a slot; raises what `open_bundle` does."""
    return open_bundle(
        Layout(root).slot(slot),
        trusted_keys_in(config.trusted_keys),
        allow_unsigned=config.allow_unsigned,
        defer_engines=defer_engines,
        is_slot=True,
    )
