"""Whether a bundle on trial may stay: judged from outside of the agent, in numbers."""
