"""Texts of photographs: captions, and the store of their embeddings."""
