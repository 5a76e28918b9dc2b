"""From a folder of files to an answer about any media file."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from toy_model import needs_eight

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example, Media
from jvlmm.data.processor import ProcessorOptions
from jvlmm.errors import CheckpointError, DataError
from jvlmm.models.huggingface import save_checkpoint
from jvlmm.rollout.checkpoint import generate_answer, load_generator
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules
from jvlmm.video.budget import PixelOptions
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.workers import Decoder

SHORT = SamplingOptions(max_tokens=6)
SMALL = ProcessorOptions(
    style="describe",
    frames=FrameOptions(num_frames=4),
    pixels=PixelOptions(784, 12544, 784, 12544),
    max_length=256,
)


@pytest.fixture(scope="module")
def checkpoint(tokenizer, config, params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer_folder = folder / "tokenizer"
    tokenizer._tokenizer.save_pretrained(tokenizer_folder)
    save_checkpoint(folder / "model", params, config, dtype="float32", source_dir=tokenizer_folder)
    return folder / "model"


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("media") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8)).save(path)
    return str(path)


def test_one_call_from_folder_to_answer(checkpoint, picture, tokenizer):
    with Decoder(workers=0) as decoder:
        response = generate_answer(checkpoint, [Media("image", picture)], "What is this?", decoder, SMALL, SHORT)
        bare = generate_answer(checkpoint, [], "What is this?", decoder, SMALL, SHORT)
    assert response.error is None and 1 <= len(response.tokens) <= 6
    assert response.text == tokenizer.decode(response.tokens)
    assert response.visual_tokens > 0 and response.frames == ((0,),)
    assert bare.visual_tokens == 0 and bare.text_tokens == response.text_tokens - 2  # vision start and end


@needs_eight
def test_on_a_mesh_weights_are_loaded_in_parts(checkpoint, picture):
    mesh, rules = make_mesh(MeshOptions(data=1, fsdp=4, tensor=2), jax.devices()[:8]), ShardingRules(vocab=())
    batch = BatchOptions(4, (256,), (1024,), shards=4)
    example = Example("one", "What is this?", "", "text", (Media("image", picture),))
    with Decoder(workers=0) as decoder:
        generator = load_generator(checkpoint, decoder, SMALL, SHORT, batch, mesh=mesh, rules=rules)
        (found,) = generator.generate([example])
        expected = generate_answer(checkpoint, example.media, example.question, decoder, SMALL, SHORT)
    kernel = max(jax.tree.leaves(generator.params["decoder"]), key=lambda x: x.size)
    assert kernel.addressable_shards[0].data.size < kernel.size and found.tokens == expected.tokens


def test_media_are_shown_as_the_checkpoint_asks(checkpoint, picture, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "preprocessor_config.json").write_text('{"min_pixels": 784, "max_pixels": 784}')
    with Decoder(workers=0) as decoder:
        response = generate_answer(folder, [Media("image", picture)], "What is this?", decoder, sampling=SHORT)
    assert response.visual_tokens == 1


def test_what_cannot_be_asked_raises_one_line(checkpoint, picture, tmp_path):
    def ask(folder=checkpoint, path=picture, question="What?", options=SMALL):
        with Decoder(workers=0) as decoder:
            generate_answer(folder, [Media("image", path)], question, decoder, options, SHORT)

    for error, word, arguments in (
        (DataError, "absent.png", {"path": str(tmp_path / "absent.png")}),
        (DataError, "empty", {"question": ""}),
        (DataError, "max_length=20", {"options": replace(SMALL, max_length=20)}),
        (CheckpointError, "nowhere", {"folder": tmp_path / "nowhere"}),
    ):
        with pytest.raises(error, match=word) as raised:
            ask(**arguments)
        assert "\n" not in str(raised.value)


def test_every_real_video_is_asked(checkpoint, real_data):
    files = sorted((real_data / "videos").iterdir())
    examples = [Example(f.name, "What happens?", "", "text", (Media("video", str(f)),)) for f in files]
    options = replace(SMALL, frames=FrameOptions(fps=1, min_frames=2, max_frames=4))
    with Decoder(workers=1) as decoder:
        generator = load_generator(checkpoint, decoder, options, SHORT, BatchOptions(4, (256,), (1024,)))
        responses = generator.generate(examples)
    assert len(files) >= 8
    for response in responses:
        assert response.error is None
        frames = list(response.frames[0])
        assert len(frames) in (2, 4) and frames == sorted(set(frames))
        assert response.visual_tokens > 0 and len(response.tokens) >= 1
