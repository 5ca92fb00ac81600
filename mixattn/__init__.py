"""What the model is, and how good it is."""
