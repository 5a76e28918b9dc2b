"""Examples become sequences whose placeholders, patches and positions belong together."""

import dataclasses
import threading

import numpy as np
import pytest

from jvlmm.data.example import Media
from jvlmm.data.patch_cache import PatchCache
from jvlmm.data.processor import Processor, ProcessorOptions
from jvlmm.errors import ConfigError, DataError, VideoError
from jvlmm.video.clip import Patches
from jvlmm.video.sampling import FrameOptions

VIDEO, IMAGE = Media("video", "/clips/6x56x84.mp4"), Media("image", "/clips/1x28x56.png")


def test_placeholders_stand_for_merged_patches_in_prompt_order(drawing, tokenizer):
    example = drawing.example(question="Compare <video> with <image>.", media=(IMAGE, VIDEO))
    sequence = drawing.processor().training(example)
    assert [p.grid for p in sequence.patches] == [(3, 4, 6), (1, 2, 4)]
    assert (sequence.tokens == tokenizer.video_id).sum() == 3 * 2 * 3
    assert (sequence.tokens == tokenizer.image_id).sum() == 2
    assert sequence.num_patches == 3 * 4 * 6 + 8
    is_media = np.isin(sequence.tokens, [tokenizer.video_id, tokenizer.image_id])
    np.testing.assert_array_equal(sequence.visual_index[is_media], np.arange(20))
    assert (sequence.visual_index[~is_media] == -1).all()
    assert sequence.positions.shape == (3, sequence.length)
    assert sequence.next_position == sequence.positions.max() + 1


def test_prompt_begins_the_training_sequence_and_has_nothing_to_learn(drawing, tokenizer):
    processor, example = drawing.processor(style="think"), drawing.example()
    prompt, training = processor.prompt(example), processor.training(example)
    n = prompt.length
    np.testing.assert_array_equal(training.tokens[:n], prompt.tokens)
    np.testing.assert_array_equal(training.positions[:, :n], prompt.positions)
    assert not prompt.loss_mask.any() and not training.loss_mask[:n].any()
    assert tokenizer.decode(training.tokens[training.loss_mask], False) == example.response + "<|im_end|>"
    assert "Think in <think>" in tokenizer.decode(prompt.tokens)


def test_only_the_tokens_named_are_learnt(drawing, tokenizer):
    answer = tokenizer.encode("yes no")
    named = [tokenizer.decode([token]) for token in answer[:1]]
    example, processor = drawing.example(response="yes no"), drawing.processor()
    whole = processor.training(example)
    some = processor.training(dataclasses.replace(example, learn=tuple(named)))
    np.testing.assert_array_equal(some.tokens, whole.tokens)
    assert set(some.tokens[some.loss_mask]) == {answer[0]} < set(whole.tokens[whole.loss_mask])
    with pytest.raises(DataError, match=r"learn names 'yes no', which is \d+ tokens"):
        processor.training(dataclasses.replace(example, learn=("yes no",)))
    with pytest.raises(
        DataError, match="learn names '#', of which no token is learnt; name tokens that the response has"
    ):
        processor.training(dataclasses.replace(example, learn=("#",)))


def test_text_only(drawing):
    sequence = drawing.processor().prompt(drawing.example(video=None))
    assert sequence.patches == () and (sequence.visual_index == -1).all()
    np.testing.assert_array_equal(sequence.positions, np.tile(np.arange(sequence.length), (3, 1)))


def test_seconds_of_the_clip_space_the_temporal_positions(drawing, tokenizer):
    """Frames at 2 per second, two to a patch: 1 s a step, 2 positions a second."""
    sequence = drawing.processor().prompt(drawing.example(video="8x28x28"))
    (patches,) = sequence.patches
    assert patches.seconds_per_grid == 1.0
    temporal = sequence.positions[0, sequence.tokens == tokenizer.video_id]
    np.testing.assert_array_equal(np.diff(temporal), [2, 2, 2])


def test_text_after_media_is_an_option(drawing):
    example = drawing.example(video="20x28x28")
    by_grid, by_max = (drawing.processor(text_after_media=rule).prompt(example) for rule in ("grid", "max"))
    assert by_max.positions[0, -1] - by_grid.positions[0, -1] == 18


def test_times_are_said_before_the_patches_they_belong_to(drawing, tokenizer):
    example = drawing.example(question="Compare <video> with <image>.", media=(IMAGE, VIDEO))
    plain, timed = (drawing.processor(timestamps=form).training(example) for form in ("", "{:.1f}s"))
    patch = "<|vision_start|>" + "<|video_pad|>" * 6 + "<|vision_end|>"
    assert f"Compare 0.0s{patch}1.0s{patch}2.0s{patch} with" in tokenizer.decode(timed.tokens, False)
    image = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>."
    assert image in tokenizer.decode(timed.tokens, False)
    assert timed.grids == plain.grids == ((3, 4, 6), (1, 2, 4))
    is_media = timed.visual_index >= 0
    np.testing.assert_array_equal(timed.visual_index[is_media], np.arange(20))
    np.testing.assert_array_equal(timed.tokens[timed.loss_mask], plain.tokens[plain.loss_mask])
    temporal = timed.positions[0][timed.tokens == tokenizer.video_id].reshape(3, 6)
    assert (temporal == temporal[:, :1]).all() and (np.diff(temporal[:, 0]) > 6 // 2).all()
    with pytest.raises(DataError, match=f"{timed.length} tokens"):
        drawing.processor(timestamps="{:.1f}s", max_length=timed.length - 1).training(example)


@pytest.mark.parametrize(
    ("fields", "error", "reason"),
    [
        ({"question": "<video> <video> what?"}, DataError, r"2 <video>"),
        ({"question": "  "}, DataError, "question is empty"),
        ({"question": "what is <|video_pad|>?"}, DataError, "special token"),
        ({"media": (Media("video", "/clips/broken-1.mp4"),)}, VideoError, r"/clips/broken-1.mp4: is damaged"),
        ({"response": None}, DataError, "no response"),
        ({"response": " "}, DataError, "no response"),
        ({"question": "what? " * 400}, DataError, r"tokens \(8 visual\) exceed max_length=300"),
    ],
)
def test_unusable_examples_name_themselves(drawing, fields, error, reason):
    with pytest.raises(error, match=reason) as caught:
        drawing.processor(max_length=300).training(drawing.example(3, **fields))
    assert str(caught.value).startswith("e3: ")
    assert "\n" not in str(caught.value)


def test_length_counts_visual_tokens_and_the_limit_itself_is_allowed(drawing):
    length = drawing.processor().prompt(drawing.example()).length
    assert drawing.processor(max_length=length).prompt(drawing.example()).length == length
    with pytest.raises(DataError, match=f"{length} tokens"):
        drawing.processor(max_length=length - 1).prompt(drawing.example())


def test_template_that_places_fewer_media_is_refused(drawing, tokenizer_dir):
    from transformers import AutoTokenizer

    from jvlmm.data.tokenizer import ChatTokenizer

    blind = AutoTokenizer.from_pretrained(tokenizer_dir)
    blind.chat_template = blind.chat_template.replace("<|vision_start|><|video_pad|><|vision_end|>", "", 1)
    tokenizer = ChatTokenizer(blind)
    tokenizer._template_has_vision = True  # as a template would claim that drops only some media
    whole = drawing.processor()
    processor = Processor(tokenizer, whole.config, whole.options, drawing.decoder())
    with pytest.raises(DataError, match="e0: the chat template places 0 media, the example has 1"):
        processor.prompt(drawing.example())


def test_tokenizer_of_another_model_is_refused(tokenizer, model_config):
    tokens = dataclasses.replace(model_config.tokens, video=7)
    with pytest.raises(ConfigError, match="video token"):
        Processor(tokenizer, dataclasses.replace(model_config, tokens=tokens), ProcessorOptions(), None)
    text = dataclasses.replace(model_config.text, vocab_size=100)
    with pytest.raises(ConfigError, match="entries"):
        Processor(tokenizer, dataclasses.replace(model_config, text=text), ProcessorOptions(), None)


@pytest.mark.parametrize(
    "options",
    [{"style": "rhyme"}, {"max_length": 0}, {"cache_bytes": -1}, {"timestamps": "now"}, {"timestamps": "{:q}"}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))}="):
        ProcessorOptions(**options)


def test_cache_spares_decoding_and_keeps_parts_of_a_video_apart(drawing):
    decoder = drawing.decoder()
    processor = drawing.processor(decoder, cache_bytes=10**8)
    first = processor.prompt(drawing.example(0))
    again = processor.prompt(drawing.example(1))
    assert len(decoder.calls) == 1
    np.testing.assert_array_equal(first.patches[0].pixels, again.patches[0].pixels)
    processor.prompt(drawing.example(2, media=(Media("video", "/clips/4x56x56.mp4", start=1.0),)))
    assert len(decoder.calls) == 2
    without = drawing.decoder()
    processor = drawing.processor(without)
    processor.prompt(drawing.example(0)), processor.prompt(drawing.example(1))
    assert len(without.calls) == 2


def _patches(num_bytes):
    return Patches(np.zeros((1, num_bytes), np.uint8), (1, 1, 1), 0.0, np.zeros(1), np.zeros(1, np.int64))


def test_cache_drops_the_least_recently_used_within_its_bytes():
    cache, made = PatchCache(100), []

    def get(key, size=40):
        cache.get(key, lambda: made.append(key) or _patches(size))

    get("a"), get("b"), get("a"), get("c")  # b goes
    assert cache.bytes == 80
    get("a"), get("c")
    assert made == ["a", "b", "c"]
    get("b")
    assert made == ["a", "b", "c", "b"]
    get("large", 101), get("large", 101)
    assert made.count("large") == 2 and cache.bytes <= 100


def test_cache_shared_by_threads_stays_within_its_bytes():
    cache = PatchCache(100)

    def use(seed):
        for key in np.random.default_rng(seed).integers(0, 6, 200).tolist():
            assert cache.get(key, lambda key=key: _patches(20 + key)).pixels.shape[1] == 20 + key

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert cache.bytes == sum(p.pixels.nbytes for p in cache._entries.values()) <= 100


def test_real_video_through_the_real_decoder(drawing, real_data):
    from jvlmm.video.workers import Decoder

    with Decoder(workers=1) as decoder:
        processor = drawing.processor(decoder, frames=FrameOptions(num_frames=4))
        media = (Media("video", str(real_data / "videos/flipping_a_pancake.mkv")),)
        sequence = processor.prompt(drawing.example(media=media))
        (patches,) = sequence.patches
        assert patches.grid[0] == 2 and len(patches.times) == 4
        assert (sequence.visual_index >= 0).sum() * 4 == len(patches.pixels)
        with pytest.raises(VideoError, match="e0: .*nowhere.mp4"):
            processor.prompt(drawing.example(media=(Media("video", str(real_data / "nowhere.mp4")),)))


def test_media_of_every_turn_are_seen_in_the_order_of_the_turns(drawing):
    """Each turn's medium stands where the turn asks about it, with its own grid."""
    earlier = drawing.example(1, "4x28x56", question="<video>First?", response="red")
    example = drawing.example(0, "4x56x28", question="And <video> then?", earlier=(earlier,))
    processor = drawing.processor()
    sequence = processor.training(example)
    assert [patches.grid for patches in sequence.patches] == [(2, 2, 4), (2, 4, 2)]
    alone = dataclasses.replace(example, media=(), question="Then?")
    assert (processor.training(alone).visual_index >= 0).sum() == 4, "the earlier turn's alone"
    assert (sequence.visual_index >= 0).sum() == 8


def test_a_system_text_reaches_the_prompt(drawing):
    processor = drawing.processor()
    text = processor.tokenizer.decode(processor.prompt(drawing.example(system="Answer B.")).tokens, False)
    assert text.startswith("<|im_start|>system\nAnswer B.<|im_end|>") and "helpful" not in text
