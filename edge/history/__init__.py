"""The last day of this device, kept on it: a gap in polling is not a gap in history."""
