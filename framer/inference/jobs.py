"""Which image files become which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framer.data.images import find_images
from framer.errors import UserError
from framer.inference.pictures import FORMATS
from framer.listing import some_of


@dataclass(frozen=True)
class Job:
    """One file.

    Attributes:
        source: What is read.
        output: What is written.
        key: Path of the source within its input folder, without suffix, with forward slashes; a file's stem.
    """

    source: Path
    output: Path
    key: str


def plan_jobs(inputs: Sequence[Path], output: Path, *, suffix: str | None = None) -> list[Job]:
    """Names the outputs of all inputs.

    A folder's images are written at the same places below ``output``. A single file is written to ``output`` itself
    where that has an image's suffix and is no folder, and below it otherwise. A folder that has a suffix must be there
    already, since it may be meant as a file. Images below ``output`` are no inputs,
    where it lies within an input folder.

    Args:
        inputs: Image files and folders.
        output: File or folder.
        suffix: Of what is written, with its dot; by default each input's own.

    Returns:
        A job a file, in the order of the inputs, folders sorted.

    Raises:
        UserError: An input is missing, a folder holds no image, an output's suffix is not known, two inputs have the
            same output, or an output is an input, a folder, or the folder of another output.
    """
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    if len(inputs) == 1 and inputs[0].is_file() and output.suffix.lower() in FORMATS and not output.is_dir():
        if suffix is not None and FORMATS[suffix] != FORMATS[output.suffix.lower()]:
            raise UserError(f"the output {output} is not what the format {suffix[1:]} says; leave one of them out")
        jobs = [Job(inputs[0], output, inputs[0].stem)]
    else:
        if output.exists() and not output.is_dir():
            raise UserError(f"the output {output} is a file; give a folder")
        if output.suffix and not output.exists():
            raise UserError(_not_a_file(inputs, output))
        jobs = _into_folder(inputs, output, suffix)
    _check(jobs)
    return jobs


def _not_a_file(inputs: Sequence[Path], output: Path) -> str:
    """Why an output that is named like a file cannot be one."""
    why = f"cannot write {output.suffix}; known are {' '.join(FORMATS)}"
    if output.suffix.lower() in FORMATS:
        why = f"{some_of(inputs, separator=' ')} cannot become one file; give a folder"
    return f"the output {output} is named like a file: {why} (make the folder first if it shall have this name)"


def _into_folder(inputs: Sequence[Path], output: Path, suffix: str | None) -> list[Job]:
    jobs: dict[Job, None] = {}
    own = output.resolve()
    for given in inputs:
        root = given if given.is_dir() else given.parent
        sources = find_images(given) if given.is_dir() else [given]
        if given.is_dir():
            if given.resolve() == own:
                raise UserError(f"the output folder {output} is also an input; give another folder")
            outside = [source for source in sources if own not in source.resolve().parents]
            if not outside:
                raise UserError(f"image folder {given} holds no image but those in the output folder {output}")
            sources = outside
        for source in sources:
            relative = source.relative_to(root)
            written = output / (relative if suffix is None else relative.with_suffix(suffix))
            if written.suffix.lower() not in FORMATS:
                raise UserError(
                    f"{source}: cannot write {written.suffix or 'files without a suffix'}; choose a --format"
                )
            jobs[Job(source, written, relative.with_suffix("").as_posix())] = None
    return list(jobs)


def _check(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve(): job.source for job in jobs}
    overwritten = [f"{job.output} (from {job.source})" for job in jobs if job.output.resolve() in sources]
    if overwritten:
        raise UserError(f"inputs would be overwritten, give another output: {some_of(overwritten, separator='; ')}")
    folders = [str(job.output) for job in jobs if job.output.is_dir()]
    if folders:
        raise UserError(f"folders have the names of results, give another output: {some_of(folders, separator='; ')}")
    makers: dict[Path, list[Path]] = {}
    for job in jobs:
        makers.setdefault(job.output.resolve(), []).append(job.source)
    clashes = [
        f"{' and '.join(map(str, sources))} would both become {output}"
        for output, sources in makers.items()
        if len(sources) > 1
    ]
    if clashes:
        raise UserError(f"rename inputs, or give their folders one at a time: {some_of(clashes, separator='; ')}")
    within = [f"{output} in {parent}" for output in makers for parent in output.parents if parent in makers]
    if within:
        raise UserError(
            "results would lie in others as if these were folders; rename inputs, or give their folders one at a time: "
            f"{some_of(within, separator='; ')}"
        )
