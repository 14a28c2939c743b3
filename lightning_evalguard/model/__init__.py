"""What a model is: its modules, tensors and attributes."""
