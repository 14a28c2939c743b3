"""The guard around a script that knows nothing of it, without any Trainer."""
