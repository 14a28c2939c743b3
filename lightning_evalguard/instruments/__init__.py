"""How a step is watched, replayed and undone."""
