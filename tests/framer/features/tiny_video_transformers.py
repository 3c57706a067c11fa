"""Every video transformer of diffusers in a size for tests: at least four blocks, few frames, rows unlike columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from diffusers.models.transformers import transformer_wan_animate_2
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

FRAMES, ROWS, COLUMNS = GRID = (3, 2, 4)
CHANNELS, TEXT_TOKENS, TEXT_CHANNELS = 4, 5, 16
BLOCKS = 4


def _channels_first(inputs: dict[str, Any], sample: int) -> Tensor:
    return inputs["hidden_states"][sample].movedim(0, -1)


def _frames_before_channels(inputs: dict[str, Any], sample: int) -> Tensor:
    return inputs["hidden_states"][sample].movedim(1, -1)


def _channels_last(inputs: dict[str, Any], sample: int) -> Tensor:
    return inputs["hidden_states"][sample]


def _packed_video(inputs: dict[str, Any], sample: int) -> Tensor:
    # What conditions the video comes before it.
    return inputs["hidden_states"][sample][-FRAMES * ROWS * COLUMNS :].view(*GRID, -1)


def _vision_item(inputs: dict[str, Any], sample: int) -> Tensor:
    return inputs["vision_tokens"][sample][0].movedim(0, -1)


@dataclass(frozen=True)
class TinyTransformer:
    """A transformer class with a configuration and inputs of test size.

    Attributes:
        name: The class, as ``diffusers`` exports it.
        config: Arguments of the class.
        make_inputs: Makes the arguments of the model's forward from the model, the batch size and a generator.
        latent: The noisy latent ``[F, H, W, C]`` of one sample, a view of the inputs.
        patch: Frames, rows and columns of that latent that make one token.
        grid: Frames, rows and columns of tokens that the inputs make.
        only_single: Whether one forward pass can hold no more than one sample.
        flex: Whether its attention is ``torch``'s flex attention, which has no backward pass on the CPU: replace it
            by :func:`dense_flex_attention`.
    """

    name: str
    config: dict[str, Any]
    make_inputs: Callable[[nn.Module, int, torch.Generator], dict[str, Any]]
    latent: Callable[[dict[str, Any], int], Tensor] = _channels_first
    patch: tuple[int, int, int] = (1, 2, 2)
    grid: tuple[int, int, int] = GRID
    only_single: bool = False
    flex: bool = False

    @property
    def batch(self) -> int:
        """Samples in a forward pass of the tests."""
        return 1 if self.only_single else 2

    def build(self) -> nn.Module:
        """The same random model at each call, with no parameter left at zero."""
        torch.manual_seed(0)
        model: nn.Module = getattr(diffusers, self.name)(**self.config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Gates and projections that start at zero would keep gradients from most of the model.
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.1)
        return model

    def inputs(self, model: nn.Module, batch: int) -> dict[str, Any]:
        """Arguments of the model's forward, the same ones at each call."""
        if self.only_single and batch != 1:
            raise ValueError(f"{self.name} takes one sample in a forward pass, not {batch}.")
        return self.make_inputs(model, batch, torch.Generator().manual_seed(1))


def dense_flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block_mask: BlockMask,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """What ``flex_attention`` computes under a block mask, with a backward pass on the CPU as well."""
    rows, columns = block_mask.BLOCK_SIZE
    blocks = block_mask.to_dense().bool().repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    blocks = blocks[..., : query.shape[-2], : key.shape[-2]]
    entries = create_mask(
        block_mask.mask_mod, blocks.shape[0], blocks.shape[1], query.shape[-2], key.shape[-2], device=query.device
    )
    allowed = blocks & entries
    attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale)
    # A row that may attend to nothing gives zeros.
    return attended.masked_fill(~allowed.any(-1, keepdim=True), 0.0)


def _text(batch: int, generator: torch.Generator, tokens: int = TEXT_TOKENS, channels: int = TEXT_CHANNELS) -> Tensor:
    return torch.randn(batch, tokens, channels, generator=generator)


def _video(
    batch: int,
    generator: torch.Generator,
    channels: int = CHANNELS,
    frames: int = FRAMES,
    rows: int = 2 * ROWS,
    columns: int = 2 * COLUMNS,
) -> Tensor:
    return torch.randn(batch, channels, frames, rows, columns, generator=generator)


def _timestep(batch: int) -> Tensor:
    return torch.linspace(300.0, 700.0, batch)


def _text_mask(batch: int) -> Tensor:
    """One text token of padding at the end."""
    mask = torch.ones(batch, TEXT_TOKENS)
    mask[:, -1] = 0
    return mask


def _usual(
    model: nn.Module, batch: int, generator: torch.Generator, channels: int = CHANNELS, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_states": _video(batch, generator, channels),
        "encoder_hidden_states": _text(batch, generator),
        "timestep": _timestep(batch),
        **more,
    }


_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT_CHANNELS,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": BLOCKS,
    "rope_max_seq_len": 32,
}


def _wan_animate(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    # The first latent frame is the reference image; four pixel frames of the face make one more latent frame.
    return _usual(model, batch, generator, 2 * CHANNELS + 4) | {
        # Wan takes what comes before the last 512 tokens for the image's.
        "encoder_hidden_states": _text(batch, generator, 512),
        "encoder_hidden_states_image": _text(batch, generator, 3, 8),
        "pose_hidden_states": _video(batch, generator, frames=FRAMES - 1),
        "face_pixel_values": torch.randn(batch, 3, 4 * (FRAMES - 2) + 1, 16, 16, generator=generator),
    }


def _wan_vace(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    return _usual(model, batch, generator) | {"control_hidden_states": _video(batch, generator, 6)}


def _anyflow(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    inputs = _usual(model, batch, generator)
    timestep = inputs["timestep"][:, None].repeat(1, FRAMES)
    return inputs | {
        "hidden_states": inputs["hidden_states"].transpose(1, 2),
        "timestep": timestep,
        "r_timestep": timestep / 2,
    }


def _anyflow_far(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    # The oldest of four chunks is compressed; the others' clean frames follow the noisy ones.
    frames = FRAMES + 1
    timestep = _timestep(batch)[:, None].repeat(1, frames)
    return {
        "hidden_states": _video(batch, generator, frames=frames).transpose(1, 2),
        "encoder_hidden_states": _text(batch, generator),
        "timestep": timestep,
        "r_timestep": timestep / 2,
        "chunk_partition": [1] * frames,
        "clean_hidden_states": _video(batch, generator).transpose(1, 2),
        "clean_timestep": torch.zeros(batch, FRAMES),
    }


def _helios(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    def frame_numbers(first: int, count: int) -> Tensor:
        return torch.arange(first, first + count)[None].expand(batch, -1)

    return _usual(model, batch, generator) | {
        "indices_hidden_states": frame_numbers(7, FRAMES),
        "indices_latents_history_short": frame_numbers(6, 1),
        "indices_latents_history_mid": frame_numbers(4, 2),
        "indices_latents_history_long": frame_numbers(0, 4),
        "latents_history_short": _video(batch, generator, frames=1),
        "latents_history_mid": _video(batch, generator, frames=2),
        "latents_history_long": _video(batch, generator, frames=4),
    }


def _frames_first(
    model: nn.Module, batch: int, generator: torch.Generator, frames: int = FRAMES, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_states": _video(batch, generator, frames=frames).transpose(1, 2),
        "encoder_hidden_states": _text(batch, generator),
        "timestep": _timestep(batch),
        **more,
    }


def _hunyuan(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    return _usual(model, batch, generator) | {
        "encoder_attention_mask": _text_mask(batch),
        "pooled_projections": torch.randn(batch, 8, generator=generator),
        "guidance": torch.full((batch,), 6000.0),
    }


def _hunyuan15(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    return _usual(model, batch, generator) | {
        "encoder_attention_mask": _text_mask(batch),
        "encoder_hidden_states_2": _text(batch, generator, channels=12),
        "encoder_attention_mask_2": _text_mask(batch),
        "image_embeds": _text(batch, generator, 3, 8),
    }


def _framepack(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    return _hunyuan(model, batch, generator) | {
        "image_embeds": _text(batch, generator, 3, 8),
        "indices_latents": torch.arange(8, 8 + FRAMES),
        "latents_clean": _video(batch, generator, frames=2),
        "indices_latents_clean": torch.tensor([0, 7]),
        "latents_history_2x": _video(batch, generator, frames=2),
        "indices_latents_history_2x": torch.arange(5, 7),
        "latents_history_4x": _video(batch, generator, frames=4),
        "indices_latents_history_4x": torch.arange(1, 5),
    }


def _packed(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    return {
        "hidden_states": _text(batch, generator, FRAMES * ROWS * COLUMNS, CHANNELS),
        "encoder_hidden_states": _text(batch, generator),
        "timestep": _timestep(batch),
        "encoder_attention_mask": _text_mask(batch),
        "num_frames": FRAMES,
        "height": ROWS,
        "width": COLUMNS,
    }


def _packed_with_audio(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    return _packed(model, batch, generator) | {
        "audio_hidden_states": _text(batch, generator, 6, CHANNELS),
        "audio_encoder_hidden_states": _text(batch, generator),
        "audio_encoder_attention_mask": _text_mask(batch),
        "audio_num_frames": 6,
        "fps": 24.0,
    }


def _kandinsky5(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    return _usual(model, batch, generator) | {
        "hidden_states": _video(batch, generator).movedim(1, -1),
        "pooled_projections": torch.randn(batch, 8, generator=generator),
        "visual_rope_pos": tuple(torch.arange(size) for size in GRID),
        "text_rope_pos": torch.arange(TEXT_TOKENS),
    }


def _kandinsky6(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    return _usual(model, batch, generator) | {
        "hidden_states": _video(batch, generator).movedim(1, -1),
        "pooled_projections": torch.randn(batch, 8, generator=generator),
        "audio_hidden_states": _text(batch, generator, 6, CHANNELS),
    }


def _kandinsky6_upscaler(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    return {
        "hidden_states": _video(batch, generator, 2 * CHANNELS + 1, 2, 8, 16).movedim(1, -1),
        "timestep": _timestep(batch),
    }


def _cosmos3(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    # The first frame is the condition; sound follows the video.
    video, noisy_frames = FRAMES * ROWS * COLUMNS, torch.arange(1, FRAMES)
    video_rows = torch.arange(TEXT_TOKENS, TEXT_TOKENS + video)
    sound_rows = torch.arange(TEXT_TOKENS + video, TEXT_TOKENS + video + 3)
    return {
        "input_ids": torch.arange(TEXT_TOKENS),
        "text_indexes": torch.arange(TEXT_TOKENS),
        "position_ids": torch.arange(TEXT_TOKENS + video + 3)[None].repeat(3, 1),
        "und_len": TEXT_TOKENS,
        "sequence_length": TEXT_TOKENS + video + 3,
        "vision_tokens": [_video(1, generator)],
        "vision_token_shapes": [GRID],
        "vision_sequence_indexes": video_rows,
        "vision_mse_loss_indexes": video_rows[ROWS * COLUMNS :],
        "vision_timesteps": torch.full(((FRAMES - 1) * ROWS * COLUMNS,), 500.0),
        "vision_noisy_frame_indexes": [noisy_frames],
        "sound_tokens": [torch.randn(4, 3, generator=generator)],
        "sound_token_shapes": [(3, 1, 1)],
        "sound_sequence_indexes": sound_rows,
        "sound_mse_loss_indexes": sound_rows,
        "sound_timesteps": torch.full((3,), 500.0),
        "sound_noisy_frame_indexes": [torch.arange(3)],
    }


def _minimax(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    # Text, one keyframe, audio, then the video itself.
    keyframe, audio, video = ROWS * COLUMNS, 6, FRAMES * ROWS * COLUMNS
    starts = torch.tensor([0, TEXT_TOKENS, keyframe, audio]).cumsum(0)
    rows = torch.stack(torch.meshgrid(*(1.5 * torch.arange(size) for size in GRID), indexing="ij"), dim=-1)
    positions = torch.zeros(int(starts[-1]) + video, 3)
    positions[starts[1] : starts[2], 1:] = rows[0].flatten(0, 1)[:, 1:]
    positions[starts[3] :] = rows.flatten(0, 2)
    tags = torch.zeros(len(positions), dtype=torch.long)
    tags[starts[1] :], tags[starts[2] : starts[3]] = 1, 2
    timestep_indices = torch.ones(len(positions), dtype=torch.long)
    timestep_indices[starts[1] : starts[2]] = 0
    return {
        "hidden_states": _text(batch, generator, keyframe + video, CHANNELS * 4),
        "audio_hidden_states": _text(batch, generator, audio, 4),
        "encoder_hidden_states": _text(batch, generator),
        "timestep": torch.tensor([10.0, 500.0]),
        "timestep_indices": timestep_indices,
        "token_tags": tags,
        "position_ids": positions,
        "video_indices": torch.cat([torch.arange(starts[1], starts[2]), torch.arange(starts[3], starts[3] + video)]),
        "audio_indices": torch.arange(starts[2], starts[3]),
        "text_indices": torch.arange(TEXT_TOKENS),
    }


def _sana_world(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    cameras = torch.cat([torch.eye(4).flatten(), torch.tensor([4.0, 4.0, COLUMNS / 2, ROWS / 2])])
    return {
        "hidden_states": _video(batch, generator, rows=ROWS, columns=COLUMNS),
        "encoder_hidden_states": _text(batch, generator)[:, None],
        "encoder_attention_mask": _text_mask(batch),
        "timestep": _timestep(batch)[:, None, None].repeat(1, 1, FRAMES),
        "camera_conditions": cameras.repeat(batch, FRAMES, 1),
        "chunk_plucker": _video(batch, generator, 6, rows=ROWS, columns=COLUMNS),
    }


def _uncompiled_block_mask(*args: Any, _compile: bool, **kwargs: Any) -> BlockMask:
    return create_block_mask(*args, **kwargs)


def _wan_animate2(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    def videos(channels: int, frames: int) -> list[Tensor]:
        return list(_video(batch, generator, channels, frames))

    def grids(frames: int) -> Tensor:
        return torch.tensor([[frames, ROWS, COLUMNS]] * batch)

    texts = list(_text(batch, generator))
    cache = transformer_wan_animate_2.WanAnimate2KVCache(BLOCKS)
    shared = {"timestep": _timestep(batch), "encoder_hidden_states": texts, "kv_cache": cache}
    # The pass over the reference video fills the cache that the pass over the noisy video reads.
    with torch.no_grad():
        model(
            hidden_states=videos(CHANNELS, FRAMES - 1),
            condition_latents=videos(2, FRAMES - 1),
            kv_cache_mode="extract",
            seq_len=(FRAMES - 1) * ROWS * COLUMNS,
            offset_grid_sizes=grids(FRAMES - 1),
            **shared,
        )
    # The model makes this mask itself, but compiles a kernel for it.
    with patch.object(transformer_wan_animate_2, "create_block_mask", _uncompiled_block_mask):
        mask = model.create_mask(FRAMES - 1, ROWS * COLUMNS, "cpu")
    model.block_masks[(FRAMES - 1, ROWS * COLUMNS)] = mask
    return shared | {
        "hidden_states": videos(CHANNELS, FRAMES),
        "condition_latents": videos(2, FRAMES),
        "kv_cache_mode": "cached",
        "seq_len": FRAMES * ROWS * COLUMNS,
        "reference_grid_sizes": grids(FRAMES - 1),
        "origin_len": 4 * (FRAMES - 2) + 1,
        "origin_area": [16 * ROWS, 16 * COLUMNS],
    }


def _mochi(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    return _usual(model, batch, generator) | {"encoder_attention_mask": _text_mask(batch).bool()}


_HUNYUAN = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": TEXT_CHANNELS,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 4, 4),
}
_COGVIDEOX = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "time_embed_dim": 16,
    "text_embed_dim": TEXT_CHANNELS,
    "num_layers": BLOCKS,
    "sample_width": 2 * COLUMNS,
    "sample_height": 2 * ROWS,
    "sample_frames": 4 * (FRAMES - 1) + 1,
    "max_text_seq_length": TEXT_TOKENS,
}
_LTX2 = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "audio_in_channels": CHANNELS,
    "audio_out_channels": CHANNELS,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 12,
    "audio_cross_attention_dim": 24,
    "num_layers": BLOCKS,
    "caption_channels": TEXT_CHANNELS,
}
_KANDINSKY = {
    "in_text_dim": TEXT_CHANNELS,
    "in_text_dim2": 8,
    "time_dim": 16,
    "model_dim": 24,
    "ff_dim": 48,
    "num_visual_blocks": BLOCKS,
    "axes_dims": (4, 4, 4),
}

_ALL = [
    TinyTransformer(
        "AllegroTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_layers": BLOCKS,
            "cross_attention_dim": 48,
            "sample_height": 2 * ROWS,
            "sample_width": 2 * COLUMNS,
            "sample_frames": FRAMES,
            "caption_channels": TEXT_CHANNELS,
        },
        _usual,
    ),
    TinyTransformer(
        "AnyFlowTransformer3DModel",
        dict(_WAN),
        _anyflow,
        latent=_frames_before_channels,
    ),
    TinyTransformer(
        "AnyFlowFARTransformer3DModel",
        dict(_WAN),
        _anyflow_far,
        latent=lambda inputs, sample: _frames_before_channels(inputs, sample)[1:],
        flex=True,
    ),
    TinyTransformer("ChronoEditTransformer3DModel", dict(_WAN), _usual),
    TinyTransformer("CogVideoXTransformer3DModel", dict(_COGVIDEOX), _frames_first, latent=_frames_before_channels),
    TinyTransformer("ConsisIDTransformer3DModel", dict(_COGVIDEOX), _frames_first, latent=_frames_before_channels),
    TinyTransformer(
        "CosmosTransformer3DModel",
        {
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": BLOCKS,
            "mlp_ratio": 2.0,
            "text_embed_dim": TEXT_CHANNELS,
            "adaln_lora_dim": 4,
            "max_size": (4, 8, 8),
            "concat_padding_mask": False,  # the resize of the mask takes torchvision
        },
        partial(_usual, fps=24),
    ),
    TinyTransformer(
        "Cosmos3OmniTransformer",
        {
            "head_dim": 12,
            "hidden_size": 24,
            "intermediate_size": 48,
            "latent_channel": CHANNELS,
            "num_attention_heads": 2,
            "num_hidden_layers": BLOCKS,
            "num_key_value_heads": 1,
            "patch_latent_dim": 4 * CHANNELS,
            "sound_dim": 4,
            "sound_gen": True,
            "vocab_size": 8,
            "rope_axes_dim": (2, 2, 2),
        },
        _cosmos3,
        latent=_vision_item,
        only_single=True,
    ),
    TinyTransformer(
        "EasyAnimateTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "patch_size": 2,
            "num_layers": BLOCKS,
            "mmdit_layers": 2,
            "time_embed_dim": 16,
            "text_embed_dim": TEXT_CHANNELS,
        },
        _usual,
    ),
    TinyTransformer(
        "HeliosTransformer3DModel",
        {key: value for key, value in _WAN.items() if key != "rope_max_seq_len"} | {"rope_dim": (4, 4, 4)},
        _helios,
    ),
    TinyTransformer("HunyuanVideoTransformer3DModel", dict(_HUNYUAN), _hunyuan),
    TinyTransformer(
        "HunyuanVideo15Transformer3DModel",
        {key: value for key, value in _HUNYUAN.items() if key not in ("num_single_layers", "pooled_projection_dim")}
        | {"num_layers": BLOCKS, "text_embed_2_dim": 12, "image_embed_dim": 8, "patch_size": 2},
        _hunyuan15,
    ),
    TinyTransformer(
        "HunyuanVideoFramepackTransformer3DModel",
        _HUNYUAN | {"has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True},
        _framepack,
    ),
    TinyTransformer(
        "Kandinsky5Transformer3DModel",
        _KANDINSKY | {"in_visual_dim": CHANNELS, "out_visual_dim": CHANNELS, "num_text_blocks": 1},
        _kandinsky5,
        latent=_channels_last,
    ),
    TinyTransformer(
        "Kandinsky6Transformer3DModel",
        _KANDINSKY
        | {
            "in_visual_dim": CHANNELS,
            "out_visual_dim": CHANNELS,
            "num_text_blocks": 1,
            "visual_cond": False,
            "in_audio_dim": CHANNELS,
            "out_audio_dim": CHANNELS,
        },
        _kandinsky6,
        latent=_channels_last,
    ),
    TinyTransformer(
        "Kandinsky6SRTransformer3DModel",
        {
            "in_visual_dim": CHANNELS,
            "out_visual_dim": CHANNELS,
            "time_dim": 16,
            "model_dim": 24,
            "ff_dim": 48,
            "num_visual_blocks": BLOCKS,
            "axes_dims": (4, 4, 4),
            "nabla_window": (1, 1, 1),
        },
        _kandinsky6_upscaler,
        grid=(2, 8, 16),
        patch=(1, 1, 1),
        flex=True,
        latent=_channels_last,
    ),
    TinyTransformer(
        "LatteTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_layers": BLOCKS,
            "cross_attention_dim": 24,
            "attention_bias": True,
            "sample_size": 8,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
            "caption_channels": TEXT_CHANNELS,
            "video_length": FRAMES,
        },
        _usual,
    ),
    TinyTransformer(
        "LTXVideoTransformer3DModel",
        {
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "cross_attention_dim": 24,
            "num_layers": BLOCKS,
            "caption_channels": TEXT_CHANNELS,
        },
        _packed,
        latent=_packed_video,
        patch=(1, 1, 1),
    ),
    TinyTransformer(
        "LTX2VideoTransformer3DModel", dict(_LTX2), _packed_with_audio, latent=_packed_video, patch=(1, 1, 1)
    ),
    TinyTransformer(
        "MiniMaxH3Transformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "hidden_size": 24,
            "num_layers": BLOCKS,
            "num_refiner_layers": 1,
            "ffn_dim": 48,
            "in_channels": CHANNELS,
            "audio_in_channels": 4,
            "text_dim": TEXT_CHANNELS,
            "freq_dim": 32,
            "time_embed_hidden_dim": 16,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        _minimax,
        latent=_packed_video,
        patch=(1, 1, 1),
    ),
    TinyTransformer(
        "MochiTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": BLOCKS,
            "pooled_projection_dim": 16,
            "in_channels": CHANNELS,
            "text_embed_dim": TEXT_CHANNELS,
            "time_embed_dim": 16,
            "max_sequence_length": TEXT_TOKENS,
        },
        _mochi,
    ),
    TinyTransformer(
        "MotifVideoTransformer3DModel",
        {
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "num_single_layers": 3,
            "num_decoder_layers": 1,
            "mlp_ratio": 2.0,
            "text_embed_dim": TEXT_CHANNELS,
            "rope_axes_dim": (4, 4, 4),
        },
        _usual,
    ),
    TinyTransformer(
        "SanaVideoTransformer3DModel",
        {
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": BLOCKS,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": TEXT_CHANNELS,
            "rope_max_seq_len": 32,
        },
        _usual,
    ),
    TinyTransformer(
        "SanaWMTransformer3DModel",
        {
            "in_channels": CHANNELS,
            "num_layers": BLOCKS,
            "hidden_size": 48,
            "num_attention_heads": 2,
            "linear_head_dim": 24,
            "softmax_every_n": 2,
            "caption_channels": TEXT_CHANNELS,
            "chunk_plucker_channels": 6,
            "chunk_plucker_post_attn_blocks": BLOCKS,
        },
        _sana_world,
        patch=(1, 1, 1),
    ),
    TinyTransformer("SkyReelsV2Transformer3DModel", dict(_WAN), _usual),
    TinyTransformer("WanTransformer3DModel", dict(_WAN), _usual),
    TinyTransformer(
        "WanAnimateTransformer3DModel",
        _WAN
        | {
            "in_channels": 2 * CHANNELS + 4,
            "latent_channels": CHANNELS,
            "image_dim": 8,
            "added_kv_proj_dim": 24,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        _wan_animate,
    ),
    TinyTransformer(
        "WanAnimate2Transformer3DModel",
        {
            "text_len": TEXT_TOKENS,
            "in_dim": CHANNELS + 2,
            "dim": 24,
            "ffn_dim": 48,
            "freq_dim": 32,
            "text_dim": TEXT_CHANNELS,
            "out_dim": CHANNELS,
            "num_heads": 2,
            "num_layers": BLOCKS,
            "use_img_emb": False,
        },
        _wan_animate2,
        flex=True,
    ),
    TinyTransformer("WanVACETransformer3DModel", _WAN | {"vace_layers": [0, 2], "vace_in_channels": 6}, _wan_vace),
]

TINY_VIDEO: dict[str, TinyTransformer] = {tiny.name: tiny for tiny in _ALL}


def _kandinsky5_sparse(model: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Any]:
    grid = (2, 8, 16)
    blocks = 4
    # model.set_attention_backend() would set it for every model of the process.
    for block in model.visual_transformer_blocks:
        block.self_attention.processor._attention_backend = "flex"
    return _kandinsky5(model, batch, generator) | {
        "hidden_states": _video(batch, generator, CHANNELS, 2, 16, 32).movedim(1, -1),
        "visual_rope_pos": tuple(torch.arange(size) for size in grid),
        "sparse_params": {"to_fractal": True, "sta_mask": torch.eye(blocks).bool()[None, None], "P": 0.8},
    }


VARIANTS: dict[str, TinyTransformer] = {
    "CogVideoX 1.5, patches of two frames": replace(
        TINY_VIDEO["CogVideoXTransformer3DModel"],
        config=_COGVIDEOX | {"patch_size_t": 2, "patch_bias": False, "use_rotary_positional_embeddings": True},
        make_inputs=partial(_frames_first, frames=2 * FRAMES),
        patch=(2, 2, 2),
    ),
    "HunyuanVideo from an image, which replaces the first frame": replace(
        TINY_VIDEO["HunyuanVideoTransformer3DModel"], config=_HUNYUAN | {"image_condition_type": "token_replace"}
    ),
    "Kandinsky 5 with sparse attention": replace(
        TINY_VIDEO["Kandinsky5Transformer3DModel"], make_inputs=_kandinsky5_sparse, grid=(2, 8, 16), flex=True
    ),
}
"""Configurations of the same classes that lay their tokens out in another way."""
