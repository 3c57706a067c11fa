"""Notes on the terms under which photographs are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from framer.data.photographs import BUNDLED
from framer.data.shards.manifest import LicenceRecord
from framer.errors import UserError

UNKNOWN_LICENCE: Final = "unknown"
_ALL: Final = "all"


def stated_licence(licences: Sequence[LicenceRecord]) -> str | None:
    """What a manifest's user said of photographs of their own; None where nothing was said, or they are bundled."""
    stated = [each.licence for each in licences if each.photographs == _ALL and each.licence != UNKNOWN_LICENCE]
    return stated[0] if stated else None


def licences_of(paths: Sequence[Path], *, bundled: bool, stated: str | None) -> list[LicenceRecord]:
    """What a manifest says about the licences of photographs.

    Args:
        paths: The photographs.
        bundled: Whether they are those that install with the package, whose licences are known one by one.
        stated: What the user says of photographs of their own; None where nothing was said.

    Raises:
        UserError: A licence is stated for the bundled photographs.
    """
    if not bundled:
        return [LicenceRecord(photographs=_ALL, licence=UNKNOWN_LICENCE if stated is None else stated)]
    if stated is not None:
        raise UserError(
            f"--licence {stated}: the bundled photographs have licences of their own, which the manifest notes; leave "
            "--licence out"
        )
    names = {path.stem for path in paths}
    return [
        LicenceRecord(
            photographs=photograph.name,
            licence=photograph.licence,
            credit=photograph.credit,
            source=photograph.source,
        )
        for photograph in BUNDLED
        if photograph.name in names
    ]
