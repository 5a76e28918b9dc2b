"""Each verb on real files, with a small random model: what it prints as JSON and what it leaves on disk."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jvlmm.cli.main import main
from jvlmm.data.bpe import train_tokenizer
from jvlmm.data.moving_shapes.reading import Questions
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.models.config import ModelConfig, SpecialTokens, TextConfig, VisionConfig
from jvlmm.models.huggingface import load_config, load_params, save_adapter, save_checkpoint
from jvlmm.models.qwen2_5_vl import init_params
from jvlmm.training.lora import LoraOptions, init_adapters, merge_adapters

VISION = VisionConfig(
    depth=1,
    hidden_size=32,
    num_heads=2,
    intermediate_size=48,
    out_hidden_size=48,
    window_size=56,
    fullatt_block_indexes=(0,),
)
TEXT = TextConfig(
    hidden_size=48,
    intermediate_size=64,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    rope_theta=1e4,
    mrope_section=(2, 2, 2),
    tie_word_embeddings=True,
)
LORA = LoraOptions(rank=2, targets=("decoder/layers_*/mlp/*",))
SMALL = [f"{split}_{kind}=2" for split in ("train", "validation", "test", "test_hard") for kind in ("clips", "images")]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models")
    train_tokenizer(["What colour is the circle? It is red."] * 3, 300, folder / "tokenizer", 28 * 28, 56 * 56)
    tokenizer = ChatTokenizer.from_pretrained(folder / "tokenizer")
    tokens = SpecialTokens(
        image=tokenizer.image_id,
        video=tokenizer.video_id,
        vision_start=tokenizer.vision_start_id,
        vision_end=tokenizer.vision_end_id,
        eos=(tokenizer.eos_id, tokenizer.pad_id),
        pad=tokenizer.pad_id,
    )
    config = ModelConfig(vision=VISION, text=replace(TEXT, vocab_size=tokenizer.length), tokens=tokens)
    params = init_params(config, jax.random.key(0))
    save_checkpoint(folder / "model", params, config, dtype="float32", source_dir=folder / "tokenizer")
    return str(folder / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("data") / "shapes")
    assert main(["data", "build", "moving-shapes", "--out", folder, *SMALL]) == 0
    return folder


@pytest.fixture
def result(capsys):
    """Run a command that must succeed and return its JSON object."""

    def run(*arguments):
        status = main([*arguments, "--json"])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return json.loads(printed.out.splitlines()[-1])

    return run


@pytest.fixture
def failure(capsys):
    """Run a command that must fail and return its one line."""

    def run(*arguments):
        assert main(list(arguments)) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def picture(tmp_path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def video_of(dataset: str) -> str:
    from jvlmm.data.moving_shapes import load

    return next(e.media[0].path for e in load(dataset, "test") if e.media[0].type == "video")


def test_build_counts_every_split_and_repeats_itself(dataset, result):
    built = result("data", "build", "moving-shapes", "--out", dataset, *SMALL)
    assert {split: counts["clips"] for split, counts in built["examples"].items()} == {
        "train": 2,
        "validation": 2,
        "test": 2,
        "test_hard": 2,
    }


def test_build_refuses_a_misspelt_option(tmp_path, failure):
    line = failure("data", "build", "moving-shapes", "--out", str(tmp_path / "x"), "train_clip=3")
    assert "train_clip" in line and "train_clips" in line
    assert not (tmp_path / "x").exists()


def test_inspect_shows_what_would_be_used(dataset, result):
    record = result("data", "inspect", video_of(dataset), "frames.num_frames=4")
    assert record["kind"] == "video"
    assert len(record["used"]["times"]) == 4


def test_inspect_shows_what_a_checkpoint_asks_for(model, picture, result):
    """Its processor files bound the pixels of an image; what is set here wins."""
    plain, asked = result("data", "inspect", picture), result("data", "inspect", picture, "--model", model)
    assert asked["used"]["visual_tokens"] < plain["used"]["visual_tokens"]
    again = result("data", "inspect", picture, "--model", model, "pixels.max_pixels=1003520", "pixels.min_pixels=3136")
    assert again["used"] == plain["used"]


def test_inspect_prints_for_a_reader(picture, capsys):
    assert main(["data", "inspect", picture]) == 0
    assert "80x60" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing.mp4", "empty.mp4", "."])
def test_inspect_of_what_cannot_be_read_is_one_line(tmp_path, name, failure):
    (tmp_path / "empty.mp4").touch()
    assert str(tmp_path / name) in failure("data", "inspect", str(tmp_path / name))


def test_check_lists_what_cannot_be_used(tmp_path, picture, model, result):
    rows = [
        {"id": "good", "question": "Red?", "answer": "yes", "answer_type": "yesno"},
        {"id": "gone", "question": "Red?", "answer": "yes", "answer_type": "yesno"},
        {"id": "empty", "question": " ", "answer": "yes", "answer_type": "yesno"},
    ]
    for row, file in zip(rows, ("picture.png", "gone.png", "picture.png"), strict=True):
        row["media"] = [{"type": "image", "path": file}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\nnot json\n")
    checked = result("data", "check", str(path))
    assert (checked["examples"], checked["usable"]) == (4, 1)
    assert {problem["id"] for problem in checked["problems"]} == {"gone", "empty", "rows.jsonl:4"}
    assert checked["tokens"] == {}
    assert sum(result("data", "check", str(path), "--model", model)["tokens"].values()) == 1


def test_check_names_rows_that_are_hardly_meant_so(tmp_path, result, capsys):
    rows = [
        {"answer": "A", "answer_type": "mcq", "options": ["red", "blue"], "response": "<answer>B</answer>"},
        {"answer": "A", "answer_type": "mcq", "options": ["red", "blue"], "response": "<answer>A</answer>"},
        {"answer": "maybe", "answer_type": "yesno"},
        {"answer": "two", "answer_type": "number", "response": "It is <answer>2</answer>"},
        {"answer": "many", "answer_type": "number"},
        {"answer": "a red circle", "answer_type": "text", "response": "The circle that is red."},
        {"answer": "yes", "answer_type": "yesno", "medai": [], "source": "mine", "responses": ["yes"]},
    ]
    lines = (json.dumps({"id": f"r{n}", "question": "Which?", **row}) for n, row in enumerate(rows))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    checked = result("data", "check", str(tmp_path / "rows.jsonl"))
    assert (checked["usable"], checked["disagree"], checked["unscorable"]) == (7, ["r0"], ["r2", "r4"])
    assert checked["misspelt"] == {"medai (media?)": ["r6"], "responses (response?)": ["r6"]}
    assert main(["data", "check", str(tmp_path / "rows.jsonl")]) == 0
    assert "another answer than the row (id r0)" in capsys.readouterr().out


def test_check_knows_where_boxes_stand(tmp_path, picture, model, result):
    """Of two pictures it is not known which one a box is of; where both sides name shares, nobody asks."""
    Image.open(picture).resize((80, 120)).save(tmp_path / "taller.png")
    media = [{"type": "image", "path": name} for name in ("picture.png", "taller.png")]
    row = {"id": "box", "question": "Where?", "answer": "[0.1,0.1,0.5,0.5]", "answer_type": "boxes", "media": media}
    path = tmp_path / "rows.jsonl"
    plain = {"id": "plain", "question": "Red?", "answer": "yes", "answer_type": "yesno"}
    path.write_text(f"{json.dumps(row)}\n{json.dumps(plain)}\n")
    shares = ("coordinates=shares", "answer_coordinates=shares")
    assert result("data", "check", str(path), "--model", model, *shares)["usable"] == 2
    (problem,) = result("data", "check", str(path), "--model", model, shares[0])["problems"]
    assert problem["id"] == "box" and "name it by box_medium" in problem["reason"]


def test_generate_takes_files_in_the_order_given_within_the_budget_of_the_checkpoint(model, dataset, picture, result):
    """Its image processor allows 56 x 56 pixels: four visual tokens, and the video is two patches in time."""
    arguments = ["generate", "--model", model, "What is red?", "sampling.max_tokens=3", "frames.num_frames=4"]
    arguments += ["pixels.video_min_pixels=784", "pixels.video_max_pixels=784"]
    video = video_of(dataset)
    first = result(*arguments, "--image", picture, "--video", video)
    second = result(*arguments, "--video", video, "--image", picture)
    assert [len(frames) for frames in first["frames"]] == [1, 4]
    assert [len(frames) for frames in second["frames"]] == [4, 1]
    assert 2 < first["visual_tokens"] <= 4 + 2
    assert 1 <= len(first["tokens"]) <= 3
    assert result(*arguments, "--image", picture, "pixels.max_pixels=12544")["visual_tokens"] > 4


def test_a_checkpoint_says_how_to_sample_where_it_is_asked(model, dataset, tmp_path, result):
    folder = shutil.copytree(model, tmp_path / "model")
    stated = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.9}
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | stated))
    asked = ["generate", "--model", str(folder), "What moves?", "sampling.max_tokens=6"]
    given = ["sampling.temperature=0.7", "sampling.top_k=50", "sampling.repetition_penalty=1.9"]
    own = result(*asked, "sampling.from_checkpoint=true")["tokens"]
    assert own == result(*asked, *given)["tokens"] != result(*asked)["tokens"]
    overridden = ["sampling.temperature=0", "sampling.repetition_penalty=1"]
    assert result(*asked, "sampling.from_checkpoint=true", *overridden)["tokens"] == result(*asked)["tokens"]
    figures = result(
        *("eval", "--model", str(folder), "--data", dataset, "--limit", "1", "--out", str(tmp_path / "out")),
        *("sampling.max_tokens=2", "sampling.from_checkpoint=true", "vision.frames.num_frames=4"),
    )
    sampling = figures["manifest"]["sampling"]
    assert (sampling["temperature"], sampling["top_k"], sampling["repetition_penalty"]) == (0.7, 50, 1.9)


def test_an_adapter_is_merged_for_generate_and_eval(model, dataset, tmp_path, result, failure):
    """An adapter that makes one word the answer to everything; the same folder as a model is named for what it is."""
    config = load_config(model)
    adapters = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 3.0, np.float32), init_adapters(config, LORA, jax.random.key(0))
    )
    save_adapter(tmp_path / "adapter", adapters, config, LORA.alpha, model)
    merged = merge_adapters(load_params(model, config), adapters, LORA, "float32")
    save_checkpoint(tmp_path / "merged", merged, config, "float32", source_dir=model)
    asked = ["generate", "What moves?", "sampling.max_tokens=6", "--model"]
    plain, adapted = result(*asked, model), result(*asked, model, "--adapter", str(tmp_path / "adapter"))
    assert adapted["tokens"] == result(*asked, str(tmp_path / "merged"))["tokens"] != plain["tokens"]
    evaluation = ["eval", "--data", dataset, "--limit", "1", "sampling.max_tokens=4", "vision.frames.num_frames=4"]
    outputs = []
    for name, arguments in (("a", [model, "--adapter", str(tmp_path / "adapter")]), ("m", [str(tmp_path / "merged")])):
        figures = result(*evaluation, "--out", str(tmp_path / name), "--model", *arguments)
        outputs.append(json.loads(Path(figures["predictions"]).read_text().splitlines()[0])["raw"])
    assert outputs[0] == outputs[1]
    assert "holds a PEFT adapter" in failure(*asked, str(tmp_path / "adapter"))
    assert "no adapter" in failure(*asked, model, "--adapter", model)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "--model", "no-such-model", "What?"], "no-such-model"),
        (["generate", "--model", "MODEL", "--image", "no-such.png", "What?"], "no-such.png"),
        (["generate", "--model", "MODEL", "--image", "PICTURE", "<image> or <image>?"], "image"),
        (["generate", "--model", "MODEL", "--image", "PICTURE", " "], "question"),
        (["generate", "--model", "MODEL", "What?", "sampling.max_token=1"], "max_tokens"),
        (["eval", "--model", "MODEL", "--data", "no-such.jsonl"], "no-such.jsonl"),
        (["eval", "--model", "MODEL", "--data", "DATA", "--split", "tset"], "tset"),
        (["generate", "--model", "MODEL", "What?", "--lite"], "--lite is a part of V-Reason; add --vreason"),
        (["generate", "--model", "MODEL", "What?", "--vreason", "vreason.k=0"], "vreason.k=0"),
        (["eval", "--model", "MODEL", "--data", "DATA", "--vreason", "--lite", "vreason.lite.ratio=1"], "lite.ratio=1"),
        (["eval", "--model", "MODEL", "--data", "DATA", "--vreason-file", "x.json"], "add --vreason"),
        (["eval", "--model", "MODEL", "--data", "DATA", "--vreason", "--vreason-file", "x.json"], "x.json"),
        (["vreason", "calibrate", "--model", "MODEL", "--data", "DATA", "--out", "x.txt"], "x.txt"),
        (["vreason", "calibrate", "--model", "MODEL", "--data", "DATA", "k=0"], "vreason.k=0"),
        (["vreason", "calibrate", "--model", "MODEL", "--data", "DATA", "lr="], "lr=()"),
        (["vreason", "plot", "no-such.jsonl"], "no-such.jsonl"),
        (["convert", "from-hf", "no-such-model", "OUT"], "no-such-model"),
        (["convert", "to-hf", "no-such-folder", "OUT", "--like", "MODEL"], "no-such-folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, named, model, picture, dataset, tmp_path, failure, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": model, "PICTURE": picture, "DATA": dataset, "OUT": str(tmp_path / "out")}
    line = failure(*(places.get(argument, argument) for argument in arguments))
    assert line.startswith("jvlmm: error: ") and named in line
    assert "unexpected" not in line
    assert not (tmp_path / "out").exists()


def test_eval_scores_and_writes_every_answer(model, dataset, tmp_path, result):
    figures = result(
        *("eval", "--model", model, "--data", dataset, "--split", "test", "--limit", "3", "--out", str(tmp_path)),
        *("sampling.max_tokens=4", "batch_size=2", "vision.frames.num_frames=4"),
    )
    assert figures["counts"]["overall"] == 3
    assert 0 <= figures["accuracy"]["overall"] <= 1
    assert len(Path(figures["predictions"]).read_text().splitlines()) == 3


def test_eval_tells_figures_by_type_and_how_many_answers_could_be_read(capsys):
    from jvlmm.cli.evaluate import show
    from jvlmm.evaluation.metrics import summarize
    from jvlmm.evaluation.predictions import Prediction

    sizes = {"visual_tokens": 0, "text_tokens": 9, "output_tokens": 2, "latency_s": 0.1, "frames": ()}
    asked = {"id": "a", "question_type": "general", "raw": "", "parse_method": "tag", "finished": True, **sizes}
    read = Prediction(**asked, answer_type="mcq", parsed="A", correct=True, score=1.0, format_ok=True)
    unread = Prediction(**asked, answer_type="yesno", parsed=None, correct=False, score=0.0, format_ok=False)
    figures = summarize([read, unread])
    show({**figures, "protocol": "think", "predictions": "p.jsonl", "results": "results.json"})
    told = capsys.readouterr().out
    assert "answer type yesno" in told and "[0.095, 0.905]" in told
    assert "50% of the answers have the form that counts" in told and "50% of the answers can be read" in told
    show({**summarize([read]), "protocol": "think", "predictions": "p.jsonl", "results": "results.json"})
    assert "% of the answers" not in capsys.readouterr().out


def test_vreason_steers_what_has_a_video_and_says_where_it_is_off(model, dataset, capsys):
    arguments = ["generate", "--model", model, "What moves?", "--vreason", "sampling.max_tokens=4", "--json"]
    arguments += ["frames.num_frames=4", "pixels.video_min_pixels=784", "pixels.video_max_pixels=784"]
    assert main([*arguments, "--video", video_of(dataset), "--lite", "vreason.trace=true"]) == 0
    printed = capsys.readouterr()
    steered = json.loads(printed.out)
    assert steered["control"]["video_rows"] == 1 and steered["control"]["freed_mib"] > 0
    told = f"{model}: shown otherwise than the checkpoint asks: pixels.video_max_pixels=784 instead of 3136\n"
    assert printed.err == told
    assert len(steered["control"]["entropy"]) == len(steered["tokens"])
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "control" not in json.loads(printed.out)
    assert printed.err == f"{told}V-Reason was off in 1 question(s), whose prompts have no video tokens\n"


def test_eval_with_vreason_keeps_its_options_and_traces(model, dataset, tmp_path, result):
    options = tmp_path / "vreason.json"
    options.write_text(json.dumps({"lr": 0.02, "trace": True}))
    figures = result(
        *("eval", "--model", model, "--data", dataset, "--limit", "5", "--out", str(tmp_path)),
        *("sampling.max_tokens=4", "batch_size=2", "vision.frames.num_frames=4"),
        *("--vreason", "--vreason-file", str(options), "vreason.k=1"),
    )
    recorded = figures["manifest"]["control"]["vreason"]
    assert (recorded["lr"], recorded["k"], recorded["mode"], recorded["lite"]) == (0.02, 1, "switch", None)
    seen = figures["vreason"]
    assert seen["questions"] + seen["without_video"] == 5 and seen["questions"] > 0 and seen["skipped_updates"] == 0
    traces = [json.loads(line) for line in (tmp_path / "traces" / "eval.jsonl").read_text().splitlines()]
    assert len(traces) == seen["questions"]
    assert all(len(trace["alpha"]) == len(trace["entropy"]) for trace in traces)


def test_a_calibration_is_blind_to_answers_and_eval_takes_it(model, dataset, tmp_path, result, monkeypatch):
    """Answers changed for others leave every figure as it is; the file and the traces go where they are used."""
    monkeypatch.chdir(tmp_path)
    arguments = ["vreason", "calibrate", "--model", model, "--data", dataset, "--split", "test", "questions=3"]
    arguments += ["lr=0.003,0.03", "beta=0.9", "k=2", "vreason.b1=0", "sampling.max_tokens=12"]
    arguments += ["vision.frames.num_frames=4", "batch_size=4", "vision.workers=0"]
    found = result(*arguments, "--out", "vreason.json")
    assert [row["lr"] for row in found["sweep"]] == [0.003, 0.03] and found["plain"]["questions"] == 3
    best = min(found["sweep"], key=lambda row: row["distance"])
    assert found["chosen"] == {"lr": best["lr"], "beta": 0.9, "k": 2}
    written = json.loads(Path("vreason.json").read_text())
    assert (written["lr"], written["b1"], written["trace"]) == (best["lr"], 0.0, False)
    drawn = result("vreason", "plot", *found["traces"], "--out", "curves.svg")
    assert len(drawn["curves"]) == 2 and Path("curves.svg").read_text().startswith("<svg")
    figures = result(
        *("eval", "--model", model, "--data", dataset, "--limit", "1", "sampling.max_tokens=2", "--vreason"),
        *("--vreason-file", "vreason.json", "vision.frames.num_frames=4"),
    )
    assert figures["manifest"]["control"]["vreason"]["lr"] == best["lr"]
    other = lambda self, index, read=Questions.__getitem__: replace(read(self, index), answer="X", meta={})  # noqa: E731
    monkeypatch.setattr(Questions, "__getitem__", other)
    assert result(*arguments, "--out", "again.json")["sweep"] == found["sweep"]


def test_weights_survive_the_way_to_orbax_and_back(model, tmp_path, result):
    orbax, back = str(tmp_path / "orbax"), tmp_path / "back"
    there = result("convert", "from-hf", model, orbax, "--dtype", "float32", "--scan-layers")
    assert there["path"] == orbax
    assert result("convert", "to-hf", orbax, str(back), "--dtype", "float32")["parameters"] == there["parameters"]
    expected, found = load_file(f"{model}/model.safetensors"), load_file(back / "model.safetensors")
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
