"""Exponential moving average of the trained weights, each rank keeping that of its own share of the master copy.

Updates need no communication under any ZeRO stage; whole weights are put together one at a time, for evaluation and
export alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framer.config.health import EmaConfig
from framer.errors import UserError
from framer.extras import require
from framer.training.preemption import PreemptedError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_COUNTS = ("steps", "updates")


class Ema:
    """The average ``e <- d e + (1 - d) w`` of the float32 weights ``w`` that train, beginning with the first ones.

    The decay ``d`` of update n, counted from 0, is ``min(decay, (1 + n) / (10 + n))`` with the warm-up and ``decay``
    without it. Frozen parameters have none: they are the model's own.

    Args:
        engine: Started, of any ZeRO stage and precision.
        config: With a decay.

    Raises:
        ValueError: The config has none.
    """

    def __init__(self, engine: DeepSpeedEngine, config: EmaConfig) -> None:
        if config.decay is None:
            raise ValueError("the average of the weights needs a decay, got None")
        self._engine, self._decay, self._config = engine, config.decay, config
        self._steps = self._updates = 0
        self._average = {name: part.detach().float().clone() for name, part in _own_masters(engine)}

    def update(self) -> None:
        """Takes in the weights; to be called after each optimizer step that was not skipped."""
        self._steps += 1
        if self._steps % self._config.every:
            return
        masters = [part.detach().float() for _, part in _own_masters(self._engine)]
        if masters:  # of few weights, a rank may have no share
            torch._foreach_lerp_(list(self._average.values()), masters, 1 - self.decay)
        self._updates += 1

    @property
    def decay(self) -> float:
        """Decay of the next update."""
        warm = (1 + self._updates) / (10 + self._updates)
        return min(self._decay, warm) if self._config.warmup else self._decay

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Lets the model and its master copy be the average meanwhile; every rank must enter and leave.

        Afterwards both are what they were, bit for bit. Nothing may train meanwhile. After an error the master copy
        alone is brought back, for the model's weights take the other ranks, which may not have failed.
        """
        self._exchange()
        _refresh_model(self._engine)
        try:
            yield
        except PreemptedError:  # on all ranks alike
            self._exchange()
            _refresh_model(self._engine)
            raise
        except BaseException:
            self._exchange()
            raise
        self._exchange()
        _refresh_model(self._engine)

    def _exchange(self) -> None:
        # In place and by turns: it takes the memory of one parameter's share.
        for name, part in list(_own_masters(self._engine)):
            live = part.detach().clone()
            _set_own_master(self._engine, name, part, self._average[name])
            self._average[name].copy_(live)

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's share of the average and the counts, for a checkpoint."""
        counts = {"steps": torch.tensor(self._steps), "updates": torch.tensor(self._updates)}
        return counts | {f"average.{name}": value for name, value in self._average.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` gave on the same rank of as many.

        Raises:
            UserError: The state is of another model or number of ranks.
        """
        expected = {f"average.{name}": tuple(value.shape) for name, value in self._average.items()}
        found = {name: tuple(value.shape) for name, value in state.items() if name not in _COUNTS}
        if found != expected or not set(_COUNTS) <= state.keys():
            differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
            raise UserError(
                f"the average of the weights (training.ema) in the checkpoint does not fit this rank's: "
                f"{', '.join(differing[:3]) or 'its counts are missing'}"
            )
        self._steps, self._updates = int(state["steps"]), int(state["updates"])
        for name, value in self._average.items():
            value.copy_(state[f"average.{name}"])


def _own_masters(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Name and master copy of what this rank updates of each parameter that trains, without communication.

    Flat shares under ZeRO, whole parameters without; where the optimizer keeps them, so on the CPU with its offload.
    """
    from deepspeed.utils import safe_get_local_fp32_param

    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            yield name, safe_get_local_fp32_param(parameter)
        elif not hasattr(parameter, "_hp_mapping"):
            yield name, parameter
        elif parameter._hp_mapping is not None:
            yield name, parameter._hp_mapping.get_hp_fragment()


def _set_own_master(engine: DeepSpeedEngine, name: str, part: Tensor, value: Tensor) -> None:
    from deepspeed.utils import safe_set_local_fp32_param

    parameter = engine.module.get_parameter(name)
    if hasattr(parameter, "ds_id"):
        # With offload, what was read is a copy.
        safe_set_local_fp32_param(parameter, value)
    else:
        part.data.copy_(value)


def _refresh_model(engine: DeepSpeedEngine) -> None:
    """Computes the model's weights from the master copy, as the optimizer does after a step; on every rank."""
    deepspeed = require("deepspeed", extra="train")
    from deepspeed.utils import safe_get_full_fp32_param

    for parameter in engine.module.parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            master = safe_get_full_fp32_param(parameter)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if engine.global_rank == 0:
                    parameter.data.copy_(master)
        elif hasattr(parameter, "_hp_mapping"):
            parameter.data.copy_(safe_get_full_fp32_param(parameter))
