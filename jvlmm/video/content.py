"""What a file is that someone took for a video: named by its first bytes, before any decoder reads it."""

from pathlib import Path

from jvlmm.errors import VideoError

HEAD = 4096  # bytes that are looked at
TEXTS = (  # how text begins, and what it then is
    ("#extm3u", "a playlist"),
    ("ffconcat", "a playlist"),
    ("[playlist]", "a playlist"),
    ("<!doctype html", "an HTML page"),
    ("<html", "an HTML page"),
    ("<?xml", "an XML file"),
    ("version https://git-lfs", "a pointer of Git LFS, which `git lfs pull` replaces"),
)
PICTURES = (  # signatures of pictures that FFmpeg would open as one frame, or by names of several files
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
)


IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "ICO")  # for Pillow


def refuse_other_content(file: Path) -> None:
    """Raise VideoError where a file's first bytes are text or a still picture: neither is a video."""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    text = text_kind(file)
    if text is not None:
        raise VideoError(f"is no readable video (it is {text}); give the video itself")
    for signature, kind in PICTURES:
        if head.startswith(signature):
            raise VideoError(f"is no readable video (it is {kind}); use it as an image")
    if head.startswith(b"\x89PNG") and b"acTL" not in head:
        raise VideoError("is no readable video (it is a still PNG picture); use it as an image")
    if is_webp(head):
        raise VideoError("is no readable video (it is a still WebP picture); use it as an image")


def text_kind(file: Path) -> str | None:
    """What a file of text is, such as "an HTML page"; None where its first bytes are no text."""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    if not is_text(head):
        return None
    said = head.decode(errors="replace").lstrip("\ufeff \t\r\n").lower()
    return next((kind for start, kind in TEXTS if said.startswith(start)), "text")


def is_webp(head: bytes) -> bool:
    """Whether a file that begins so is a WebP picture, still or animated."""
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def is_text(head: bytes) -> bool:
    """Whether bytes are printable UTF-8, but for a character cut at their end and the colours of terminals."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" or error.start < len(head) - 3:
            return False
    return all(byte >= 32 or byte in b"\t\n\v\f\r\x1b" for byte in head)
