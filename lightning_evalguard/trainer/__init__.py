"""Where the guard stands inside Lightning."""
