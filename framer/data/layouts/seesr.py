"""The folders that SeeSR trains on: pairs, and tags as text."""

from __future__ import annotations

from typing import Final

from framer.data.layouts.base import Layout

SEESR: Final = Layout(name="seesr", texts="tag")
