"""`edge-agent capture` and `replay`: record real requests, and send them again."""
