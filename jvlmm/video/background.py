"""Pictures with transparency and of more than 8 bits, as RGB."""

import numpy as np
from PIL import Image

from jvlmm.errors import VideoError


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Lay uint8 [..., 4] on white: uint8 [..., 3], rounded as Pillow's `paste` with a mask (and so qwen_vl_utils)."""
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    if np.all(alpha == 255):
        return rgb
    wide = rgb.astype(np.uint32) * alpha + 255 * (255 - alpha.astype(np.uint32)) + 128
    return (((wide >> 8) + wide) >> 8).astype(np.uint8)


def image_to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an image of any mode: uint8 [H, W, 3].

    What is transparent lies on white, and grey of 16 bits keeps its high byte. Raises VideoError for numbers without a
    known white: floats, and integers beyond 16 bits.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() >= 2**16:
            raise VideoError("holds integers beyond 16 bits, whose white is not known; save it with 8 bits")
        channels = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1)
        clear = image.info.get("transparency")
        return channels if clear is None else np.where((grey == clear)[..., None], np.uint8(255), channels)
    if image.mode == "F":
        raise VideoError("holds floating-point numbers, whose white is not known; save it with 8 bits")
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))
