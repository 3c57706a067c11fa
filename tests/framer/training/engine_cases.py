"""The trainer under many engine settings, and the same steps in plain torch without an engine, for comparison.

Run as a program, ``python engine_cases.py FOLDER CONFIG...``, it takes ``STEPS`` optimizer steps of each configuration,
on as many ranks as started it, and rank 0 writes losses, gradients and final weights to ``FOLDER/<name>.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from framer import Framer
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.models.build import build_model
from framer.models.restoration_model import RestorationModel
from framer.models.trainable import freeze_the_rest, trainable_parameters
from framer.objectives import build_objective
from framer.seeding import derived_seed
from framer.training import trainer as trainer_module
from framer.training.batches import build_dataset, stream_batches
from framer.training.engine import master_weights
from framer.training.trainer import Trainer

STEPS = 10
Gradients = dict[str, Tensor]


def plain_run(config: TrainConfig) -> dict[str, Any]:
    """Steps of one process in plain torch: what every engine must equal."""
    model = build_model(config.model, seed=config.seed)
    trained = trainable_parameters(model, config.model)
    freeze_the_rest(model, trained)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in trained}
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=config.optimizer.lr,
        betas=(config.optimizer.betas[0], config.optimizer.betas[1]),
        weight_decay=config.optimizer.weight_decay,
        eps=config.optimizer.eps,
    )
    restoration = RestorationModel(model, config.model, torch.device("cpu"))
    latents = restoration.latents
    objective = build_objective(config.objective, latents)
    seed = derived_seed(config.seed, "negatives", config.framer.seed)
    framer = Framer(
        model, config.framer.model_copy(update={"seed": seed}), prediction_type=config.objective.feature_prediction
    )
    losses, gradients = [], []
    for batch in stream_batches(build_dataset(config), config, rank=0, world_size=1, start=0, count=STEPS):
        upsampled = batch["lr_upsampled"]
        indices = torch.as_tensor(batch["index"]).tolist()
        clean = latents.encode(batch["hr"], upsampled, indices=indices, seed=config.seed)
        noisy = objective.add_noise(clean, upsampled, indices, config.seed)
        with framer.capture():
            output = restoration.predict(noisy.sample, upsampled, noisy.timesteps)
        framer_loss = framer.loss(sample=noisy.sample, sigmas=noisy.sigmas).total
        loss = objective.loss(output, noisy) + framer_loss
        loss.backward()
        losses.append((float(loss.detach()), float(framer_loss.detach())))
        gradients.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.training.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses, "gradients": gradients, "weights": model.state_dict()}


def engine_run(config: TrainConfig) -> dict[str, Any]:
    """The same steps of the trainer, under the configuration's engine."""
    trainer = Trainer(config)
    gradients: list[Gradients] = []
    original = trainer_module.step

    def recording_step(engine: Any) -> Any:
        found = {}
        for name, parameter in engine.module.named_parameters():
            if parameter.requires_grad:
                gradient = safe_get_full_grad(parameter)
                if gradient is not None:
                    found[name] = gradient.detach().float().cpu().clone()
        gradients.append(found)
        return original(engine)

    trainer_module.step = recording_step
    try:
        batches = stream_batches(
            trainer.dataset, config, rank=trainer.rank, world_size=trainer.world_size, start=0, count=STEPS
        )
        trainer.model.train()
        metrics = [trainer._optimizer_step(batches) for _ in range(STEPS)]
    finally:
        trainer_module.step = original
    weights = {name: value.detach().float().cpu().clone() for name, value in master_weights(trainer.engine)}
    losses = [(step.loss, step.framer_loss) for step in metrics]
    return {"losses": losses, "gradients": gradients, "weights": weights}


def main() -> None:
    folder = Path(sys.argv[1])
    for path in sys.argv[2:]:
        config = load_config(TrainConfig, path)
        result = engine_run(config)
        if dist.get_rank() == 0:
            torch.save(result, folder / f"{Path(config.output_dir).parent.name}.pt")
        dist.barrier()


if __name__ == "__main__":
    main()
