"""What a batch, a loader and a sample are."""
