"""Folders of pairs that other projects' scripts have prepared: reading, checking, converting."""
