"""A channel: a TUF repository of static files that devices follow; see docs/trust.md."""
