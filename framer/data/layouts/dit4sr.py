"""The folders that DiT4SR and FRAMER train on (SD3.5's autoencoder and text encoders)."""

from __future__ import annotations

from typing import Final

from framer.data.layouts.base import LATENT_HR, LATENT_LR, POOLED_PROMPT_EMBEDS, PROMPT_EMBEDS, Layout

DIT4SR: Final = Layout(
    name="dit4sr",
    texts="prompt_txt",
    tensors=(PROMPT_EMBEDS, POOLED_PROMPT_EMBEDS, LATENT_HR, LATENT_LR),
    together=((PROMPT_EMBEDS, POOLED_PROMPT_EMBEDS), (LATENT_HR, LATENT_LR)),
    null_tensors=(
        (PROMPT_EMBEDS, "NULL_prompt_embeds.pt"),
        (POOLED_PROMPT_EMBEDS, "NULL_pooled_prompt_embeds.pt"),
    ),
    prompt_channels=4096,
    pooled_channels=2048,
    latent_channels=16,
    latent_downscale=8,
)
