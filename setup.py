"""Metadata lives in pyproject.toml; this file keeps tools that look for a setup.py working."""

from setuptools import setup

setup()
