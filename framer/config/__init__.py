"""Typed configuration: sections, presets, loading and overrides."""
