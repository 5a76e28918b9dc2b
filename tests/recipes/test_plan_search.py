"""`jvlmm plan --search`: candidates, their order, and what is left out."""

import importlib.util
import json
from pathlib import Path

import pytest

from jvlmm.cli.main import main
from jvlmm.errors import ConfigError
from jvlmm.recipes import searching
from jvlmm.recipes.planning import plan_recipe, programs_of
from jvlmm.recipes.recipe import load_recipe
from jvlmm.recipes.searching import SearchOptions, meshes, search_recipe
from jvlmm.sharding.ahead_of_time import compile_ahead
from jvlmm.sharding.topologies import parse_topology, topology_devices

RECIPE = Path(__file__).parent / "plan_recipe.py"
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'jvlmm[tpu]'"
)


def test_meshes_are_all_factorisations():
    found = meshes(8)
    assert len(found) == len(set(found)) == 20
    assert all(mesh.data * mesh.fsdp * mesh.tensor * mesh.context == 8 for mesh in found)


def test_the_best_come_first_and_what_is_told_can_be_typed():
    found = search_recipe(RECIPE, "h100:4", options=SearchOptions(compiles=5, batch_sizes=(8, 16)))
    programs, (search,) = found["programs"], found["search"]
    seconds = [program["seconds_per_sample"] for program in programs]
    assert len(programs) == 5 and seconds == pytest.approx(sorted(seconds), rel=0.01)
    assert search["candidates"] > 5 + search["refused"] and search["left_out"] > 0
    best = programs[0]
    again = plan_recipe(RECIPE, "h100:4", tuple(best["overrides"]))["programs"][0]
    assert again == {name: best.get(name) for name in again} | {"parts": again["parts"]}


def test_patch_buckets_grow_with_the_rows():
    found = search_recipe(RECIPE, "h100:2", options=SearchOptions(compiles=50, batch_sizes=(8, 16)))
    for program in found["programs"]:
        scaled = "sft.vision.patch_buckets=4096" in program["overrides"]
        assert scaled == (program["batch_size"] == 16)


def test_larger_batches_than_one_that_does_not_fit_are_not_compiled(monkeypatch):
    tried = []

    def describe(program, topology):
        tried.append(program.samples)
        return {"name": program.name, "fits": False, "seconds_per_sample": 1.0, "peak_gib": 1.0}

    monkeypatch.setattr(searching, "describe", describe)
    monkeypatch.setattr(searching, "devices_of", lambda topology: topology.num_devices)
    options = SearchOptions(compiles=1000, batch_sizes=(8, 16, 32))
    search = search_recipe(RECIPE, "v5e:1x1", options=options)["search"][0]
    assert search["pruned"] > 0
    assert len(tried) + search["pruned"] + search["refused"] == search["candidates"]


def test_a_model_that_fits_nowhere_ends_with_1(capsys):
    command = ["plan", str(RECIPE), "--topology", "l4:2", "--search", "--batch-sizes", "8", "sft.model=72b"]
    assert main([*command, "--json"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["programs"] == [] and found["search"][0]["arguments_too_large"] > 0
    assert main(command) == 1
    assert "sft: nothing fits; take a larger slice" in capsys.readouterr().out


def test_the_table_ends_with_the_overrides_to_type(capsys):
    assert main(["plan", str(RECIPE), "--topology", "h100:2", "--search", "--compiles", "2"]) == 0
    told = capsys.readouterr().out
    assert "by arithmetic: nothing was compiled" in told
    assert "sft: the best is sft.batch_size=" in told and "sft.mesh.fsdp=" in told


@pytest.mark.parametrize("options", [["--compiles", "0"], ["--batch-sizes", "8,x"], ["--batch-sizes", "0"]])
def test_bad_options_of_a_search_are_refused(options):
    assert main(["plan", str(RECIPE), "--topology", "h100:2", "--search", *options]) == 1


def test_options_of_a_search_without_one_are_refused(capsys):
    assert main(["plan", str(RECIPE), "--topology", "h100:2", "--compiles", "3"]) == 1
    assert "add --search" in capsys.readouterr().err


def test_a_recipe_that_suits_no_mesh_is_refused():
    with pytest.raises(ConfigError, match="no mesh and batch size suit h100:7; the first: .*do not divide"):
        search_recipe(RECIPE, "h100:7", options=SearchOptions(batch_sizes=(8,)))


@needs_compiler
def test_a_search_compiles_no_more_than_it_may():
    found = search_recipe(RECIPE, "v5e:1x1", options=SearchOptions(compiles=1, batch_sizes=(8,)))
    (program,) = found["programs"]
    assert found["by"] == "compilation" and program["fits"] and program["compile_s"] > 0


@needs_compiler
def test_programs_of_generation_compile_for_one_device_of_a_slice():
    devices = topology_devices(parse_topology("v5e:2x2"))
    _, prefill, decode = programs_of(load_recipe(RECIPE), devices, "tpu")
    for program in (prefill, decode):
        footprint = compile_ahead(program.trace())
        assert footprint.collectives == {}
        assert program.estimate().arguments == pytest.approx(footprint.arguments, rel=0.5)  # tiny arrays are padded
