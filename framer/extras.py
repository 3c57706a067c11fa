"""Optional libraries: imported where they are used, and named when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from framer.errors import MissingExtraError


def require(module: str, *, extra: str) -> ModuleType:
    """Imports an optional library.

    Args:
        module: Dotted module name, for example ``"cv2"`` or ``"skimage.metrics"``.
        extra: The extra of this package that installs the library.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingExtraError(f"{error.name} is not installed; {how_to_install(extra)}") from error


def how_to_install(extra: str) -> str:
    """What to do for an extra of this package, which is installed from its repository: no package index has it."""
    return f"install it in the clone of this repository with: pip install -c constraints.txt -e '.[{extra}]'"
