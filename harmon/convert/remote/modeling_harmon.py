"""A Harmon folder's model: what AutoModel.from_pretrained(FOLDER, trust_remote_code=True) gives.

Shape letters: B batch, L prompt length, C latent channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from harmon.answering import QWEN_EOS, AnswerConfig, answer
from harmon.convert.autoencoders import empty_autoencoder
from harmon.convert.remote.configuration_harmon import PretrainedHarmonConfig
from harmon.drawing import draw_latents
from harmon.model.harmon import Harmon
from harmon.model.mar import Grid
from harmon.pictures import levels


class PretrainedHarmon(PreTrainedModel):  # type: ignore[misc]
    """Harmon with its frozen autoencoder (`vae`), which stays float32 whatever the rest is.

    Parameters have the released names, and `vae.` before the autoencoder's.
    """

    config_class = PretrainedHarmonConfig
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = frozenset({"vae"})
    _no_split_modules = ("Qwen2DecoderLayer", "Block")

    def __init__(self, config: PretrainedHarmonConfig) -> None:
        super().__init__(config)
        whole = Harmon(config.model_sizes)
        object.__setattr__(self, "whole", whole)  # not a module of its own: its parts are, under the released names
        self.llm, self.mar, self.proj_in, self.proj_out = whole.llm, whole.mar, whole.proj_in, whole.proj_out
        self.vae = empty_autoencoder(config.autoencoder_sizes).requires_grad_(False)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The language model's table."""
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the language model's table."""
        self.llm.set_input_embeddings(value)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Logits [B, L, V] of prompts as the processor builds them, with pictures or without."""
        image = None if pixel_values is None else self.whole.visual_features(*self._tokens(pixel_values))[1]
        embeddings = self.whole.prompt_embeddings(input_ids, image)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.llm.model(inputs_embeds=embeddings, attention_mask=mask.long(), use_cache=False)
        return CausalLMOutput(logits=self.llm.lm_head(hidden.last_hidden_state))

    def draw_latents(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        seeds: Sequence[int] | None = None,
        width: int | None = None,
        height: int | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Latents [B, C, h, w] float32 of one picture a prompt.

        The processor builds the prompts, with their unconditional halves behind them unless guidance is off.
        `seeds` (None: 0, 1, ...) holds one number a picture. `sampling` overrides the folder's own: ar_steps,
        cfg (1: no guidance), cfg_schedule, diffusion_steps, temperature, clip_x0, and the approximations
        diffusion_steps_last, sampler, cfg_interval, cfg_every, refresh_every. ValueError where a side is no
        multiple of a token's.
        """
        options = {**self.config.sampling, **sampling}
        pictures = len(input_ids) // (1 if options.get("cfg", 3.0) == 1 else 2)
        stride = self.vae.stride
        unit, across, down = (
            stride * self.whole.config.mar.patch_size,
            width or self.config.px,
            height or self.config.px,
        )
        if across % unit or down % unit:
            raise ValueError(f"a picture of {across} x {down} px cannot be drawn: choose multiples of {unit} px")
        return draw_latents(
            self.whole,
            input_ids,
            attention_mask,
            (down // stride, across // stride),
            list(range(pictures)) if seeds is None else seeds,
            options,
        )

    @torch.no_grad()
    def draw(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Pictures uint8 [B, H, W, 3] RGB; arguments as `draw_latents` takes them."""
        return levels(self.vae.decode(self.draw_latents(input_ids, attention_mask, **options))).cpu()

    @torch.no_grad()
    def answer(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        seeds: Sequence[int] | None = None,
        eos_ids: Collection[int] = (QWEN_EOS,),
        **how: Any,
    ) -> list[list[int]]:
        """The new token ids of each answer; `how`: max_new_tokens, temperature (0: greedy), top_p."""
        latents = None if pixel_values is None else self.vae.encode(pixel_values)
        return answer(self.whole, latents, input_ids, attention_mask, AnswerConfig(**how), seeds=seeds, eos_ids=eos_ids)

    def _tokens(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        latents: Tensor = self.vae.encode(pixel_values)
        whole: Harmon = self.whole
        return whole.to_tokens(latents)
