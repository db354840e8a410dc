"""Stream Bluesky runs to Atomscale while the plan runs."""
