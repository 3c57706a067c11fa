"""Photographs, degradations and the training samples made of them."""
