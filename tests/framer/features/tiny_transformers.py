"""Every image transformer that diffusers ships, built tiny, with the inputs of one forward pass on a 4 x 6 grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor, nn

Inputs = dict[str, Any]
Change = Callable[[Inputs, int, int], None]
Prediction = Callable[[Tensor], Tensor]

ROWS, COLUMNS = 4, 6
TEXT = 5
WIDTH = 16
# Large enough that what attention carries to other tokens stays behind what the residual stream keeps.
CHANGE = 10.0
HEADS: dict[str, int] = {"attention_head_dim": 8, "num_attention_heads": 2}


@dataclass(frozen=True)
class TinyTransformer:
    """One class of transformers.

    Attributes:
        name: Name of the class.
        config: Arguments of its constructor.
        inputs: Makes the arguments of its forward for a batch of this size; the same ones for the same size.
        change: Changes what the model is shown at one token, ``(inputs, row, column)``, in place.
        grid: Frames, rows and columns of tokens that these inputs make.
        prediction: The image ``[B, C, H, W]`` within the model's output.
    """

    name: str
    config: Mapping[str, Any]
    inputs: Callable[[int], Inputs]
    change: Change
    grid: tuple[int, int, int] = (1, ROWS, COLUMNS)
    prediction: Prediction = lambda output: output

    def build(self) -> nn.Module:
        """The model in training mode; the same weights in every call."""
        model: nn.Module = getattr(diffusers, self.name)(**self.config)
        _fill(model)
        return model.train()


def outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's output as one tensor; Z-Image gives a list of one tensor an image."""
    output = model(**inputs, return_dict=False)
    output = output[0] if isinstance(output, tuple) else output
    return torch.stack(output) if isinstance(output, list) else output


def _fill(model: nn.Module) -> None:
    """Weights that let a gradient reach every block: gates and output layers start at zero, some are not set at all."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (parameter == 1).all())


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _times(batch: int, largest: float = 1000.0) -> Tensor:
    return torch.linspace(0.3, 0.7, batch) * largest


def _latent(batch: int, channels: int = 4, patch: int = 2, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    return _random(batch, channels, rows * patch, columns * patch)


def _text(batch: int, length: int = TEXT, channels: int = WIDTH) -> Tensor:
    return _random(batch, length, channels, seed=2)


def _text_mask(batch: int) -> Tensor:
    """The prompts shorten by one token from sample to sample."""
    return torch.arange(TEXT) < TEXT - torch.arange(batch)[:, None] % TEXT


def _image_ids(columns: int = 3, first: float = 0.0) -> Tensor:
    """Coordinates ``[h*w, columns]`` of the packed tokens: frame, row, column, and zeros."""
    ids = torch.zeros(ROWS, COLUMNS, columns)
    ids[..., 0] = first
    ids[..., 1] = torch.arange(ROWS)[:, None]
    ids[..., 2] = torch.arange(COLUMNS)
    return ids.flatten(0, 1)


def _of_latent(name: str = "hidden_states", patch: int = 2) -> Change:
    def change(inputs: Inputs, row: int, column: int) -> None:
        inputs[name][..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += CHANGE

    return change


def _of_packed(name: str = "hidden_states", first: int = 0) -> Change:
    def change(inputs: Inputs, row: int, column: int) -> None:
        inputs[name][:, first + row * COLUMNS + column] += CHANGE

    return change


def _of_list(inputs: Inputs, row: int, column: int) -> None:
    for latent in inputs["x"]:
        latent[..., row * 2 : row * 2 + 2, column * 2 : column * 2 + 2] += CHANGE


def _packed_image(first: int = 0) -> Prediction:
    def prediction(output: Tensor) -> Tensor:
        image = output[:, first : first + ROWS * COLUMNS]
        return image.transpose(1, 2).unflatten(2, (ROWS, COLUMNS))

    return prediction


def _patches_image(output: Tensor) -> Tensor:
    # [B, L, C, 1, p, p] -> [B, C, h, p, w, p]
    patches = output[:, : ROWS * COLUMNS, :, 0].unflatten(1, (ROWS, COLUMNS))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _sizes(batch: int, names: tuple[str, ...] = ("original_size", "target_size", "crop_coords")) -> Inputs:
    return {name: torch.tensor([[64.0, 96.0]]).repeat(batch, 1) for name in names}


def _square(batch: int) -> Inputs:
    # DiT takes the square root of the number of tokens for both sides: it runs on square grids only.
    return {
        "hidden_states": _latent(batch, rows=4, columns=4),
        "timestep": _times(batch).long(),
        "class_labels": torch.arange(batch) % 10,
    }


def _sd3(batch: int) -> Inputs:
    return {
        "hidden_states": _latent(batch),
        "encoder_hidden_states": _text(batch),
        "pooled_projections": _random(batch, WIDTH, seed=3),
        "timestep": _times(batch),
    }


def _latent_and_text(batch: int) -> Inputs:
    return {"hidden_states": _latent(batch), "encoder_hidden_states": _text(batch), "timestep": _times(batch)}


def _pixart(batch: int) -> Inputs:
    return _latent_and_text(batch) | {
        "encoder_attention_mask": _text_mask(batch),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _sana(batch: int) -> Inputs:
    return {
        "hidden_states": _latent(batch, patch=1),
        "encoder_hidden_states": _text(batch),
        "encoder_attention_mask": _text_mask(batch),
        "timestep": _times(batch),
    }


def _auraflow(batch: int) -> Inputs:
    return _latent_and_text(batch) | {"timestep": _times(batch, 1.0)}


def _hunyuan_dit(batch: int) -> Inputs:
    angles = _random(ROWS * COLUMNS, 8, seed=4)
    return _latent_and_text(batch) | {
        "text_embedding_mask": _text_mask(batch),
        "encoder_hidden_states_t5": _text(batch, 4),
        "text_embedding_mask_t5": torch.ones(batch, 4, dtype=torch.bool),
        "image_meta_size": torch.tensor([[64.0, 96.0, 64.0, 96.0, 0.0, 0.0]]).repeat(batch, 1),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def _lumina_next(batch: int) -> Inputs:
    return {
        "hidden_states": _latent(batch),
        "timestep": _times(batch, 1.0),
        "encoder_hidden_states": _text(batch),
        "encoder_mask": _text_mask(batch),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 8, 8),
        "cross_attention_kwargs": {},
    }


def _lumina2(batch: int) -> Inputs:
    return {
        "hidden_states": _latent(batch),
        "timestep": _times(batch, 1.0),
        "encoder_hidden_states": _text(batch),
        "encoder_attention_mask": _text_mask(batch),
    }


def _cogview(batch: int) -> Inputs:
    return _latent_and_text(batch) | _sizes(batch)


def _glm(batch: int) -> Inputs:
    return (
        _latent_and_text(batch)
        | _sizes(batch, ("target_size", "crop_coords"))
        | {
            "prior_token_id": (torch.arange(batch * ROWS * COLUMNS) % 32).view(batch, -1),
            "prior_token_drop": torch.zeros(batch, dtype=torch.bool),
        }
    )


def _ernie(batch: int) -> Inputs:
    return {
        "hidden_states": _latent(batch, patch=1),
        "timestep": _times(batch),
        "text_bth": _text(batch),
        "text_lens": _text_mask(batch).sum(1),
    }


def _flux(batch: int) -> Inputs:
    return {
        "hidden_states": _random(batch, ROWS * COLUMNS, 8),
        "encoder_hidden_states": _text(batch),
        "timestep": _times(batch, 1.0),
        "img_ids": _image_ids(),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def _flux1(batch: int) -> Inputs:
    return _flux(batch) | {"pooled_projections": _random(batch, WIDTH, seed=3)}


def _flux2(batch: int) -> Inputs:
    return _flux(batch) | {
        "img_ids": _image_ids(4).expand(batch, -1, -1),
        "txt_ids": torch.zeros(batch, TEXT, 4),
        "guidance": torch.full((batch,), 4.0),
    }


def _flux3(batch: int) -> Inputs:
    # The pipeline scales the coordinates to the image's size: they are no whole numbers.
    return _flux(batch) | {"img_ids": _image_ids(4) * 0.4, "txt_ids": torch.zeros(TEXT, 4)}


def _bria(batch: int) -> Inputs:
    return _flux(batch) | {"timestep": _times(batch)}


def _bria_fibo(batch: int) -> Inputs:
    return _bria(batch) | {"text_encoder_layers": [_random(batch, TEXT, 8, seed=5 + layer) for layer in range(4)]}


def _bria_fibo2(batch: int) -> Inputs:
    return {
        "hidden_states": _latent(batch),
        "timestep": _times(batch, 1.0),
        "encoder_hidden_states": _random(batch, 2, TEXT, WIDTH, seed=2),
        "encoder_attention_mask": torch.ones(batch, TEXT, dtype=torch.bool),
    }


def _longcat(batch: int) -> Inputs:
    # The pipeline counts rows and columns of the image from 512, and marks the image's tokens with a one.
    ids = _image_ids(first=1.0)
    ids[:, 1:] += 512
    return _flux(batch) | {"img_ids": ids}


def _hunyuan_image(batch: int) -> Inputs:
    return {
        "hidden_states": _latent(batch, patch=1),
        "timestep": _times(batch),
        "encoder_hidden_states": _text(batch),
        "encoder_attention_mask": _text_mask(batch),
    }


def _hidream(batch: int) -> Inputs:
    return {
        "hidden_states": _latent(batch),
        "timesteps": _times(batch),
        "encoder_hidden_states_t5": _text(batch),
        "encoder_hidden_states_llama3": _random(4, batch, TEXT, WIDTH, seed=3),
        "pooled_embeds": _random(batch, WIDTH, seed=4),
    }


def _ideogram4(batch: int) -> Inputs:
    image, mask = ROWS * COLUMNS, _text_mask(batch).flip(1)
    positions = torch.arange(TEXT)[:, None].repeat(batch, 1, 3)
    padding = torch.full((batch, TEXT), -1)
    return {
        "hidden_states": torch.cat([torch.zeros(batch, TEXT, 8), _random(batch, image, 8)], 1),
        "timestep": _times(batch, 1.0),
        "encoder_hidden_states": torch.cat([_text(batch), torch.zeros(batch, image, WIDTH)], 1),
        "position_ids": torch.cat([positions, (_image_ids() + 65536).long().expand(batch, -1, -1)], 1),
        "segment_ids": torch.cat([padding.masked_fill(mask, 1), torch.ones(batch, image).long()], 1),
        "indicator": torch.cat([mask * 3, torch.full((batch, image), 2)], 1),
    }


def _joy_image(batch: int) -> Inputs:
    # [B, items, C, T, H, W]: the reference, then the image that is made of it.
    items = torch.stack([_latent(batch), _random(batch, 4, ROWS * 2, COLUMNS * 2, seed=3)], 1)
    return {"hidden_states": items.unsqueeze(3), "timestep": _times(batch), "encoder_hidden_states": _text(batch)}


def _of_last_item(inputs: Inputs, row: int, column: int) -> None:
    inputs["hidden_states"][:, -1, ..., row * 2 : row * 2 + 2, column * 2 : column * 2 + 2] += CHANGE


def _joy_image_plus(batch: int) -> Inputs:
    reference = 2 * 3
    return {
        "hidden_states": _random(batch, ROWS * COLUMNS + reference, 4, 1, 2, 2),
        "timestep": _times(batch),
        "encoder_hidden_states": _text(batch),
        "encoder_hidden_states_mask": _text_mask(batch).float(),
        "shape_list": [[(1, ROWS, COLUMNS), (1, 2, 3)]] * batch,
    }


def _krea2(batch: int) -> Inputs:
    return {
        "hidden_states": _random(batch, ROWS * COLUMNS, 8),
        "encoder_hidden_states": _random(batch, TEXT, 2, WIDTH, seed=2),
        "timestep": _times(batch, 1.0),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), _image_ids()]),
        "encoder_attention_mask": _text_mask(batch),
    }


def _qwen(batch: int) -> Inputs:
    # The image, then a reference of 2 x 3 tokens.
    return {
        "hidden_states": _random(batch, ROWS * COLUMNS + 6, 8),
        "encoder_hidden_states": _text(batch),
        "encoder_hidden_states_mask": _text_mask(batch),
        "timestep": _times(batch, 1.0),
        "img_shapes": [[(1, ROWS, COLUMNS), (1, 2, 3)]] * batch,
    }


def _nucleus(batch: int) -> Inputs:
    return _qwen(batch) | {
        "hidden_states": _random(batch, ROWS * COLUMNS, 8),
        "img_shapes": [(1, ROWS, COLUMNS)] * batch,
    }


def _qwen21(batch: int) -> Inputs:
    # The prompt holds one slot for every 2 x 2 tokens of an image: a reference of 2 x 2 tokens in its midst, then ours.
    slots = [False, False, True, False, False] + [True] * (ROWS * COLUMNS // 4)
    return {
        "hidden_states": _random(batch, 4 + ROWS * COLUMNS, 8),
        "encoder_hidden_states": _text(batch),
        "timestep": _times(batch, 1.0),
        "img_shapes": [[(1, 2, 2), (1, ROWS, COLUMNS)]] * batch,
        "img_mask": torch.tensor(slots).expand(batch, -1),
    }


def _omnigen(batch: int) -> Inputs:
    length = TEXT + 1 + ROWS * COLUMNS
    return {
        "hidden_states": _latent(batch),
        "timestep": _times(batch, 1.0),
        "input_ids": (torch.arange(batch * TEXT) % 30).view(batch, TEXT),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(batch, length, length),
        "position_ids": torch.arange(length).expand(batch, -1),
    }


def _prx(batch: int) -> Inputs:
    return _latent_and_text(batch) | {"timestep": _times(batch, 1.0), "attention_mask": _text_mask(batch)}


def _z_image(batch: int) -> Inputs:
    return {
        "x": list(_latent(batch).unsqueeze(2)),
        "t": _times(batch, 1.0),
        "cap_feats": [_random(TEXT + 30 * sample, WIDTH, seed=2 + sample) for sample in range(batch)],
    }


_DUAL: dict[str, int] = {"num_layers": 2, "num_single_layers": 2} | HEADS
_FLUX = _DUAL | {"in_channels": 8, "joint_attention_dim": WIDTH, "axes_dims_rope": (2, 2, 4)}
_COGVIEW = HEADS | {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "text_embed_dim": WIDTH,
    "time_embed_dim": WIDTH,
    "condition_dim": 8,
}
_PATCHED = HEADS | {"in_channels": 4, "num_layers": 4, "sample_size": 16, "patch_size": 2}
_JOY_IMAGE = {
    "in_channels": 4,
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "text_dim": WIDTH,
    "num_layers": 4,
    "rope_dim_list": [2, 2, 4],
}
_CONTINUOUS = HEADS | {"in_channels": WIDTH, "num_layers": 4, "norm_num_groups": 4, "cross_attention_dim": WIDTH}


def _unet_part(batch: int) -> Inputs:
    return {"hidden_states": _latent(batch, WIDTH, patch=1), "encoder_hidden_states": _text(batch)}


_ALL = (
    TinyTransformer(
        "AuraFlowTransformer2DModel",
        HEADS
        | {
            "sample_size": 16,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "joint_attention_dim": WIDTH,
            "caption_projection_dim": WIDTH,
            "pos_embed_max_size": 64,
        },
        _auraflow,
        _of_latent(),
    ),
    TinyTransformer(
        "BriaFibo2Transformer2DModel",
        {
            "in_channels": 4,
            "dim": 24,
            "n_layers": 3,
            "n_refiner_layers": 2,
            "n_heads": 2,
            "cap_feat_dim": WIDTH,
            "injection_layer_ids": (1,),
            "perceiver_num_layers": 1,
            "min_num_gist_tokens": 3,
            "max_num_gist_tokens": 6,
            "gist_step": 1,
            "gist_min_text_len": 2,
            "gist_max_text_len": 8,
            "axes_dims": (4, 4, 4),
            "axes_lens": (32, 16, 16),
        },
        _bria_fibo2,
        _of_latent(),
    ),
    TinyTransformer(
        "BriaFiboTransformer2DModel",
        _FLUX | {"text_encoder_dim": 8},
        _bria_fibo,
        _of_packed(),
        prediction=_packed_image(),
    ),
    TinyTransformer("BriaTransformer2DModel", _FLUX, _bria, _of_packed(), prediction=_packed_image()),
    TinyTransformer(
        "ChromaTransformer2DModel",
        _FLUX | {"approximator_num_channels": 16, "approximator_hidden_dim": WIDTH, "approximator_layers": 1},
        _flux,
        _of_packed(),
        prediction=_packed_image(),
    ),
    TinyTransformer("CogView3PlusTransformer2DModel", _COGVIEW | {"pos_embed_max_size": 16}, _cogview, _of_latent()),
    TinyTransformer("CogView4Transformer2DModel", _COGVIEW | {"rope_axes_dim": (16, 16)}, _cogview, _of_latent()),
    TinyTransformer(
        "DiTTransformer2DModel", _PATCHED | {"num_embeds_ada_norm": 10}, _square, _of_latent(), grid=(1, 4, 4)
    ),
    TinyTransformer("DreamLiteTransformer2DModel", _CONTINUOUS, _unet_part, _of_latent(patch=1)),
    TinyTransformer(
        "ErnieImageTransformer2DModel",
        {
            "hidden_size": WIDTH,
            "num_attention_heads": 2,
            "num_layers": 4,
            "ffn_hidden_size": WIDTH,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": 12,
            "rope_axes_dim": (2, 2, 4),
        },
        lambda batch: _ernie(batch) | {"text_bth": _text(batch, channels=12)},
        _of_latent(patch=1),
    ),
    TinyTransformer(
        "Flux2Transformer2DModel",
        _FLUX | {"axes_dims_rope": (2, 2, 2, 2), "timestep_guidance_channels": WIDTH},
        _flux2,
        _of_packed(),
        prediction=_packed_image(),
    ),
    TinyTransformer(
        "Flux3Transformer2DModel",
        _FLUX | {"axes_dims_rope": (2, 2, 2, 2), "cond_in_channels": 8, "timestep_channels": WIDTH},
        _flux3,
        _of_packed(),
        prediction=_packed_image(),
    ),
    TinyTransformer(
        "FluxTransformer2DModel",
        _FLUX | {"pooled_projection_dim": WIDTH},
        _flux1,
        _of_packed(),
        prediction=_packed_image(),
    ),
    TinyTransformer(
        "GlmImageTransformer2DModel", _COGVIEW | {"prior_vq_quantizer_codebook_size": 32}, _glm, _of_latent()
    ),
    TinyTransformer(
        "HiDreamImageTransformer2DModel",
        _DUAL
        | {
            "patch_size": 2,
            "in_channels": 4,
            "caption_channels": [WIDTH, WIDTH],
            "text_emb_dim": WIDTH,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (12, 12),
            "llama_layers": [0, 1, 2, 3],
        },
        _hidream,
        _of_latent(),
    ),
    TinyTransformer(
        "HunyuanDiT2DModel",
        HEADS
        | {
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 16,
            "hidden_size": WIDTH,
            "num_layers": 4,
            "cross_attention_dim": WIDTH,
            "cross_attention_dim_t5": WIDTH,
            "pooled_projection_dim": WIDTH,
            "text_len": TEXT,
            "text_len_t5": 4,
        },
        _hunyuan_dit,
        _of_latent(),
    ),
    TinyTransformer(
        "HunyuanImageTransformer2DModel",
        _DUAL
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_refiner_layers": 1,
            "text_embed_dim": WIDTH,
            "rope_axes_dim": (4, 4),
        },
        _hunyuan_image,
        _of_latent(patch=1),
    ),
    TinyTransformer(
        "Ideogram4Transformer2DModel",
        HEADS
        | {
            "in_channels": 8,
            "num_layers": 4,
            "intermediate_size": WIDTH,
            "adaln_dim": WIDTH,
            "llm_features_dim": WIDTH,
            "mrope_section": (2, 1, 1),
        },
        _ideogram4,
        _of_packed(first=TEXT),
        prediction=_packed_image(TEXT),
    ),
    TinyTransformer(
        "JoyImageEditPlusTransformer3DModel", _JOY_IMAGE, _joy_image_plus, _of_packed(), prediction=_patches_image
    ),
    TinyTransformer(
        "JoyImageEditTransformer3DModel",
        _JOY_IMAGE,
        _joy_image,
        _of_last_item,
        prediction=lambda output: output[:, -1, :, 0],
    ),
    TinyTransformer(
        "Krea2Transformer2DModel",
        HEADS
        | {
            "in_channels": 8,
            "num_layers": 4,
            "num_key_value_heads": 1,
            "intermediate_size": WIDTH,
            "timestep_embed_dim": WIDTH,
            "text_hidden_dim": WIDTH,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": WIDTH,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        _krea2,
        _of_packed(),
        prediction=_packed_image(),
    ),
    TinyTransformer("LongCatImageTransformer2DModel", _FLUX, _longcat, _of_packed(), prediction=_packed_image()),
    TinyTransformer(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": WIDTH,
            "num_layers": 3,
            "num_refiner_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": WIDTH,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (32, 16, 16),
            "cap_feat_dim": WIDTH,
        },
        _lumina2,
        _of_latent(),
    ),
    TinyTransformer(
        "LuminaNextDiT2DModel",
        {
            "sample_size": 16,
            "hidden_size": WIDTH,
            "num_layers": 4,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": WIDTH,
            "cross_attention_dim": WIDTH,
        },
        _lumina_next,
        _of_latent(),
    ),
    TinyTransformer(
        "NucleusMoEImageTransformer2DModel",
        HEADS
        | {
            "in_channels": 8,
            "out_channels": 2,
            "num_layers": 5,
            "num_key_value_heads": 1,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (4, 2, 2),
            "mlp_ratio": 12.0,
            "num_experts": 2,
            "moe_intermediate_dim": WIDTH,
            "capacity_factors": 1.0,
        },
        _nucleus,
        _of_packed(),
        prediction=_packed_image(),
    ),
    TinyTransformer(
        "OmniGenTransformer2DModel",
        {
            "hidden_size": WIDTH,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": WIDTH,
            "num_layers": 4,
            "pad_token_id": 31,
            "vocab_size": 32,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 64,
            "rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
            "pos_embed_max_size": 16,
            "time_step_dim": WIDTH,
        },
        _omnigen,
        _of_latent(),
    ),
    TinyTransformer(
        "OvisImageTransformer2DModel", _FLUX | {"out_channels": 8}, _flux, _of_packed(), prediction=_packed_image()
    ),
    TinyTransformer(
        "PRXTransformer2DModel",
        {
            "in_channels": 4,
            "context_in_dim": WIDTH,
            "hidden_size": WIDTH,
            "num_heads": 2,
            "depth": 4,
            "axes_dim": [4, 4],
        },
        _prx,
        _of_latent(),
    ),
    TinyTransformer(
        "PixArtTransformer2DModel",
        _PATCHED | {"cross_attention_dim": WIDTH, "caption_channels": WIDTH},
        _pixart,
        _of_latent(),
    ),
    TinyTransformer(
        "QwenImage21Transformer2DModel",
        HEADS
        | {
            "in_channels": 8,
            "out_channels": 8,
            "num_layers": 4,
            "context_in_dim": WIDTH,
            "axes_dims_rope": (4, 2, 2),
        },
        _qwen21,
        _of_packed(first=4),
    ),
    TinyTransformer(
        "QwenImageTransformer2DModel",
        HEADS
        | {
            "in_channels": 8,
            "out_channels": 2,
            "num_layers": 4,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (4, 2, 2),
        },
        _qwen,
        _of_packed(),
        prediction=_packed_image(),
    ),
    TinyTransformer(
        "SD3Transformer2DModel",
        _PATCHED
        | {
            "joint_attention_dim": WIDTH,
            "caption_projection_dim": WIDTH,
            "pooled_projection_dim": WIDTH,
            "out_channels": 4,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0, 1),
            "qk_norm": "rms_norm",
        },
        _sd3,
        _of_latent(),
    ),
    TinyTransformer(
        "SanaTransformer2DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": WIDTH,
            "caption_channels": WIDTH,
            "sample_size": 16,
        },
        _sana,
        _of_latent(patch=1),
    ),
    TinyTransformer("Transformer2DModel", _CONTINUOUS, _unet_part, _of_latent(patch=1)),
    TinyTransformer(
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": WIDTH,
            "n_layers": 3,
            "n_refiner_layers": 2,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": WIDTH,
            "axes_dims": [4, 2, 2],
            "axes_lens": [128, 16, 16],
        },
        _z_image,
        _of_list,
        prediction=lambda output: output[:, :, 0],
    ),
)

TINY: dict[str, TinyTransformer] = {tiny.name: tiny for tiny in _ALL}


_VIDEO = "makes videos"
_MUSIC = "makes music or sound"

# Why the other transformers that diffusers exports are not here.
NOT_IMAGES: dict[str, str] = {
    "AceStepTransformer1DModel": _MUSIC,
    "AllegroTransformer3DModel": _VIDEO,
    "AnyFlowFARTransformer3DModel": _VIDEO,
    "AnyFlowTransformer3DModel": _VIDEO,
    "ChronoEditTransformer3DModel": _VIDEO,
    "CogVideoXTransformer3DModel": _VIDEO,
    "ConsisIDTransformer3DModel": _VIDEO,
    "Cosmos3OmniTransformer": _VIDEO,
    "CosmosTransformer3DModel": _VIDEO,
    "DualTransformer2DModel": "two Transformer2DModels side by side within a U-Net, not one after the other",
    "EasyAnimateTransformer3DModel": _VIDEO,
    "HeliosTransformer3DModel": _VIDEO,
    "HunyuanVideo15Transformer3DModel": _VIDEO,
    "HunyuanVideoFramepackTransformer3DModel": _VIDEO,
    "HunyuanVideoTransformer3DModel": _VIDEO,
    "Kandinsky5Transformer3DModel": _VIDEO,
    "Kandinsky6SRTransformer3DModel": _VIDEO,
    "Kandinsky6Transformer3DModel": _VIDEO,
    "LTX2VideoTransformer3DModel": _VIDEO,
    "LTXVideoTransformer3DModel": _VIDEO,
    "LatteTransformer3DModel": _VIDEO,
    "LongCatAudioDiTTransformer": _MUSIC,
    "MiniMaxH3Transformer3DModel": _VIDEO,
    "MiniMaxMusic3RVQDepthDecoder": _MUSIC,
    "MiniMaxMusic3Transformer1DModel": _MUSIC,
    "MochiTransformer3DModel": _VIDEO,
    "MotifVideoTransformer3DModel": _VIDEO,
    "PriorTransformer": "makes an image embedding: one vector, no map",
    "RFD4ProteinaTransformer": "makes proteins",
    "SanaVideoTransformer3DModel": _VIDEO,
    "SanaWMLTX2RefinerTransformer3DModel": _VIDEO,
    "SanaWMTransformer3DModel": _VIDEO,
    "SkyReelsV2Transformer3DModel": _VIDEO,
    "StableAudio3DiTModel": _MUSIC,
    "StableAudioDiTModel": _MUSIC,
    "T5FilmDecoder": _MUSIC,
    "TransformerTemporalModel": "a part of a video U-Net, along time alone",
    "WanAnimate2Transformer3DModel": _VIDEO,
    "WanAnimateTransformer3DModel": _VIDEO,
    "WanTransformer3DModel": _VIDEO,
    "WanVACETransformer3DModel": _VIDEO,
}
