"""Names of photographs by which their texts are found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from framer.errors import UserError


def photograph_key(path: Path, root: Path | None) -> str:
    """The name of a photograph in captions and text stores.

    Args:
        path: The photograph.
        root: The folder that was searched for photographs; None where they lie in no common one, as the bundled ones.

    Returns:
        The path below ``root`` without the suffix, with forward slashes; without ``root``, the file's name alone.

    Raises:
        UserError: It is not UTF-8, so that no file of texts can hold it.
        ValueError: The photograph is not below ``root``.
    """
    relative = Path(path.name) if root is None else path.relative_to(root)
    key = relative.with_suffix("").as_posix()
    if key != key.encode(errors="replace").decode():
        raise UserError(
            f"the name of the photograph {str(path)!a} is not UTF-8, so that no text can be kept under it; rename "
            "it, or the folder that it lies in"
        )
    return key


def photographs_by_key(photographs: Sequence[Path], root: Path | None) -> dict[str, Path]:
    """Photographs by :func:`photograph_key`, in the given order.

    Raises:
        UserError: Two have the same key, so that a text cannot tell which of them it is of; or one's is not UTF-8.
        ValueError: One is not below ``root``.
    """
    found: dict[str, Path] = {}
    for path in photographs:
        key = photograph_key(path, root)
        if found.setdefault(key, path) != path:
            raise UserError(
                f"the photographs {found[key]} and {path} differ by their suffix alone, so that a text cannot be told "
                "to be of one of them; rename one"
            )
    return found
