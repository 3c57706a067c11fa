"""Cosine similarity of two feature maps in each band."""
