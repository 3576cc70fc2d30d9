"""Images: their sources, prepared records, split protocols and training streams."""
