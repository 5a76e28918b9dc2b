"""The other side: transformers' model on PyTorch, as its own generation and trainer run it."""

from pathlib import Path

import numpy as np
import torch
import transformers

from jvlmm.bench.workload import Arrays, Workload


class Reference:
    """The model in this process; see `worker.Side`.

    Position ids are given, where transformers would compute them in every call; optimiser updates are fused.
    """

    def __init__(self, folder: Path):
        workload = Workload.load(folder)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        self.model = model.to(self.device)
        self.new_tokens = workload.new_tokens
        arrays, config = Arrays.load(folder), model.config
        vision = _vision_inputs(arrays, folder)
        self.vision = {name: tensor.to(self.device) for name, tensor in vision.items()}
        self.vision["pixel_values_videos"] = self.vision["pixel_values_videos"].to(dtype)
        self.prompt = self._place(_padded(arrays, left=True))
        self.training = self._place(_padded(arrays, left=False))
        self.banned = [config.image_token_id, config.video_token_id, config.vision_start_token_id]
        self.banned += [config.vision_end_token_id, *self.model.generation_config.eos_token_id]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
        self.started = None

    def _place(self, tensors):
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    @torch.inference_mode()
    def tower(self) -> None:
        pixels, grids = self.vision["pixel_values_videos"], self.vision["video_grid_thw"]
        self.model.model.visual(pixels, grid_thw=grids)
        self._wait()

    @torch.inference_mode()
    def prefill(self) -> None:
        prompt = {name: self.prompt[name] for name in ("input_ids", "attention_mask", "position_ids")}
        outputs = self.model(**prompt, **self.vision, use_cache=True, logits_to_keep=1)
        self.started = self._draw(outputs.logits), outputs.past_key_values
        self._wait()

    @torch.inference_mode()
    def decode(self) -> list[int]:
        token, cache = self.started
        drawn, mask = [token], self.prompt["attention_mask"]
        following = self.prompt["position_ids"][:, :, -1:] + 1  # padded to the left
        for step in range(self.new_tokens - 1):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            outputs = self.model(
                input_ids=token,
                attention_mask=mask,
                position_ids=following + step,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            token = self._draw(outputs.logits)
            drawn.append(token)
        return torch.cat(drawn, dim=1).cpu().numpy().ravel().tolist()

    def train(self) -> float:
        batch = {name: self.training[name] for name in ("input_ids", "attention_mask", "position_ids", "labels")}
        loss = self.model(**batch, **self.vision, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        return loss.item()

    def facts(self) -> dict[str, object]:
        return {"platform": self.device}

    def device_peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def _draw(self, logits):
        """Greedy tokens int64 [B, 1] of logits [B, 1, V]."""
        logits[:, :, self.banned] = -torch.inf
        return logits[:, -1].argmax(-1, keepdim=True)

    def _wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def _vision_inputs(arrays: Arrays, folder: Path) -> dict[str, torch.Tensor]:
    """All clips as transformers' processor hands them on: normalised on the host."""
    defaults = transformers.Qwen2VLImageProcessorPil()
    per_channel = arrays.pixels.shape[-1] // 3
    mean, std = (np.repeat(np.float32(x), per_channel) for x in (defaults.image_mean, defaults.image_std))
    pixels = (arrays.pixels.reshape(-1, arrays.pixels.shape[-1]).astype(np.float32) / 255 - mean) / std
    grids = np.tile(arrays.grid.astype(np.int64), (len(arrays.tokens), 1))
    return {"pixel_values_videos": torch.from_numpy(pixels), "video_grid_thw": torch.from_numpy(grids)}


def _padded(arrays: Arrays, left: bool) -> dict[str, torch.Tensor]:
    """Tokens, mask, positions and labels; padding to the left for generation, to the right for training."""
    length = arrays.tokens.shape[1]
    shifts = (length - arrays.lengths) * left
    rows = range(len(arrays.tokens))
    roll = lambda array: np.stack([np.roll(array[row], shifts[row], axis=-1) for row in rows])  # noqa: E731
    mask = np.arange(length) < arrays.lengths[:, None]
    labels = np.where(arrays.answers, arrays.tokens, -100)
    made = {"input_ids": arrays.tokens, "attention_mask": mask, "labels": labels, "position_ids": arrays.positions}
    made = {name: torch.from_numpy(roll(array).astype(np.int64)) for name, array in made.items()}
    made["position_ids"] = made["position_ids"].permute(1, 0, 2).contiguous()
    return made
