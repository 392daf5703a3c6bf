"""Two slots for bundles, so that a device can always go back: staged, on trial, committed."""
