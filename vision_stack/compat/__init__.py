"""What the parts are called in transformers' guide; the work is done elsewhere."""
