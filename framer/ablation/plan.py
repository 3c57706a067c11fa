"""The runs of an ablation study: which there are, and what each is trained with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from framer.config.ablation import SET_BY_THE_SUITE, AblationTable
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.errors import ConfigError, UserError

_SEED_FOLDER: Final = re.compile(r"seed-(0|[1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One variant with one seed.

    Attributes:
        variant: The variant's name.
        title: What the table calls it.
        seed: The run's seed.
        base: The base configuration's file.
        overrides: Everything that goes over it, ``output_dir`` and ``seed`` included.
        config: What results.
    """

    variant: str
    title: str
    seed: int
    base: Path
    overrides: list[str]
    config: TrainConfig


def read_table(path: Path) -> AblationTable:
    """Reads an ablation's file.

    Raises:
        ConfigError: It is missing, not YAML, or says something else.
    """
    return load_config(AblationTable, path)


def plan_runs(
    table: AblationTable,
    file: Path,
    output: Path,
    *,
    config: Path | None,
    overrides: Sequence[str],
    only: Sequence[str],
    seeds: Sequence[int],
) -> list[PlannedRun]:
    """The runs of a study, variant by variant, each checked before any is started.

    Args:
        table: The study.
        file: Where it was read from.
        output: Folder of all runs.
        config: A base configuration in the place of the table's.
        overrides: ``key=value`` for every run, which a variant's own overrides go over.
        only: Names of variants; all where there are none.
        seeds: A run of each variant with each.

    Raises:
        UserError: A name is no variant's, or a seed comes twice or is negative.
        ConfigError: A variant's configuration is not valid; every such variant is named.
    """
    unknown = sorted(set(only) - set(table.variants))
    if unknown:
        raise UserError(f"--only: no variant {', '.join(unknown)} in {file}; it has {', '.join(table.variants)}")
    if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        raise UserError(f"--seeds: expected different seeds of 0 or more, got {' '.join(map(str, seeds))}")
    own = [override for override in overrides if override.partition("=")[0].strip() in SET_BY_THE_SUITE]
    if own:
        raise UserError(f"{', '.join(own)}: the suite sets it for every run; give --output, or --seeds")
    base = file.parent / table.base if config is None else config
    planned, problems = [], []
    for name, variant in table.variants.items():
        if only and name not in only:
            continue
        for seed in seeds:
            folder = output / name / f"seed-{seed}"
            # As JSON, which is YAML too, so that a path with a colon or a brace stays text.
            own = [f"output_dir={json.dumps(str(folder))}", f"seed={seed}"]
            everything = [*overrides, *variant.overrides, *own]
            try:
                checked = load_config(TrainConfig, base, everything)
            except ConfigError as error:
                problems.append(f"variant {name}: {error}")
                break
            planned.append(
                PlannedRun(
                    variant=name, title=variant.title, seed=seed, base=base, overrides=everything, config=checked
                )
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return planned


def with_earlier_runs(
    planned: Sequence[PlannedRun],
    table: AblationTable,
    file: Path,
    output: Path,
    *,
    config: Path | None,
    overrides: Sequence[str],
) -> list[PlannedRun]:
    """All runs that the table has a place for: those planned, and those that an earlier call began in the folder.

    Args:
        planned: From :func:`plan_runs`, with the same arguments.
        table: The study.
        file: Where it was read from.
        output: Folder of all runs.
        config: A base configuration in the place of the table's.
        overrides: ``key=value`` for every run.

    Returns:
        Variant by variant as in the table, each with its seeds in order.

    Raises:
        ConfigError: An earlier variant's configuration is not valid with these overrides.
    """
    known = {(run.variant, run.seed) for run in planned}
    runs = list(planned)
    for name in table.variants:
        matches = [_SEED_FOLDER.fullmatch(folder.name) for folder in (output / name).glob("seed-*") if folder.is_dir()]
        seeds = [int(match[1]) for match in matches if match is not None and (name, int(match[1])) not in known]
        if seeds:
            runs += plan_runs(table, file, output, config=config, overrides=overrides, only=[name], seeds=seeds)
    places = list(table.variants)
    return sorted(runs, key=lambda run: (places.index(run.variant), run.seed))
