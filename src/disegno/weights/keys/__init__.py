"""Names of tensors, as tables: one file a family of names."""
