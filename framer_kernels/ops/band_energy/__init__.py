"""Mean magnitude of a feature map in each band."""
