import numpy as np
import pytest
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from jvlmm.video.budget import PixelOptions, image_size
from jvlmm.video.clip import Clip
from jvlmm.video.patches import flatten_patches, resize_frames, to_patches


def random_clip(count: int, height: int, width: int, fps: float = 0.0) -> Clip:
    frames = np.random.default_rng(height * width).integers(0, 256, (count, height, width, 3), np.uint8)
    return Clip(frames, np.arange(count) / 2.0, np.arange(count), duration=count / 2, fps=fps)


def normalise(pixels: np.ndarray, processor) -> np.ndarray:
    """What the device does: bytes [N, 3·2·14·14] → float32, rescaled and normalised per channel."""
    mean = np.array(processor.image_mean, np.float32)[:, None]
    std = np.array(processor.image_std, np.float32)[:, None]
    channels = pixels.reshape(len(pixels), 3, -1).astype(np.float32) / 255
    return ((channels - mean) / std).reshape(len(pixels), -1)


@pytest.mark.parametrize("size", [(56, 56), (100, 333), (720, 1280), (31, 900), (1500, 1100), (20, 20)])
def test_image_patches_equal_transformers(size):
    processor = Qwen2VLImageProcessorPil()
    clip = random_clip(1, *size)
    expected = processor(Image.fromarray(clip.frames[0]), return_tensors="np")
    patches = to_patches(clip, image_size(*size, PixelOptions()))
    assert patches.pixels.dtype == np.uint8
    assert [list(patches.grid)] == expected["image_grid_thw"].tolist()
    assert patches.seconds_per_grid == 0
    np.testing.assert_allclose(normalise(patches.pixels, processor), expected["pixel_values"], atol=1e-6, rtol=0)


def test_video_patches_hold_the_pixels_of_their_place():
    frames = random_clip(5, 56, 84).frames
    pixels, grid = flatten_patches(frames)
    assert grid == (3, 4, 6)
    padded = np.concatenate([frames, frames[-1:]])
    rows = [
        padded[2 * t : 2 * t + 2, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14].transpose(3, 0, 1, 2).ravel()
        for t in range(3)
        for block_y in range(2)
        for block_x in range(3)
        for y in (2 * block_y, 2 * block_y + 1)
        for x in (2 * block_x, 2 * block_x + 1)
    ]
    assert np.array_equal(pixels, rows)


def test_a_video_of_one_picture_equals_its_image():
    frame = random_clip(1, 84, 56).frames
    assert np.array_equal(flatten_patches(frame)[0], flatten_patches(np.repeat(frame, 2, axis=0))[0])


def test_every_frame_is_resized_as_pillow_does():
    frames = random_clip(3, 90, 70).frames
    expected = [np.asarray(Image.fromarray(f).resize((84, 56), Image.Resampling.BICUBIC)) for f in frames]
    assert np.array_equal(resize_frames(frames, (56, 84)), expected)
    assert resize_frames(frames, (90, 70)) is frames


def test_last_frame_repeats_to_an_even_number():
    clip = random_clip(3, 28, 28, fps=2.0)
    patches = to_patches(clip, (28, 28))
    assert patches.grid == (2, 2, 2)
    last = patches.pixels.reshape(2, 4, 3, 2, 14, 14)[1]
    assert np.array_equal(last[:, :, 0], last[:, :, 1])
    assert patches.times.tolist() == clip.times.tolist()
    assert patches.indices.tolist() == [0, 1, 2]


def test_seconds_per_grid_follow_the_sampled_rate():
    clip = random_clip(4, 28, 28, fps=4.0)
    assert to_patches(clip, (28, 28)).seconds_per_grid == 0.5
    assert to_patches(clip, (28, 28), fps=1.0).seconds_per_grid == 2.0


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 28"):
        flatten_patches(np.zeros((2, 30, 28, 3), np.uint8))
