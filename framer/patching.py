"""Functions of other libraries, replaced for a while where these offer no seam."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(target: object, name: str, value: Any) -> Iterator[None]:
    """Puts another attribute in the place of a module's, class's or object's own meanwhile.

    Args:
        target: Whose attribute it is; of an object, the class's method comes back where it had none of its own.
        name: The attribute.
        value: What it is meanwhile.
    """
    had_own = name in vars(target)
    own = vars(target).get(name)
    setattr(target, name, value)
    try:
        yield
    finally:
        if had_own:
            setattr(target, name, own)
        else:
            delattr(target, name)
