"""The pytest plugin and its fixture."""
