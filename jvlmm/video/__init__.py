"""Files to frames to patches, on the host, in NumPy."""
