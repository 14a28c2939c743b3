"""Which samples are evaluated."""
