"""Bytes between devices, counted in the text of a compiled program."""

import re

from jvlmm.sharding.collectives import collective_bytes

HLO = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%layer (state: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %state = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %mixed = bf16[8,16]{1,0} custom-call(%x), custom_call_target="kernel", backend_config={"kernel": {"block": {
"rows": 8
}}}
  %weights = bf16[4,16]{1,0} slice(%x), slice={[0:4], [0:16]}
  %gathered = bf16[16,16]{1,0:T(8,128)} all-gather(%weights), replica_groups=[1,4]<=[4], dimensions={0}
  %scattered = bf16[2,16]{1,0} reduce-scatter(%x), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %next = (s32[], bf16[8,16]) tuple(%i, %x)
}

%unfinished (state.1: (s32[], bf16[8,16])) -> pred[] {
  %state.1 = (s32[], bf16[8,16]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %layers = s32[]{:T(128)} constant(28)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %layers), direction=LT
}

ENTRY %main (p: (s32[], bf16[8,16])) -> f32[32] {
  %p = (s32[], bf16[8,16]) parameter(0)
  %loop = (s32[], bf16[8,16]) while(%p), condition=%unfinished, body=%layer
  %gradient = f32[32]{0} constant({...})
  %sent = (f32[32]{0}, f32[32]{0}, u32[], u32[]) collective-permute-start(%gradient), source_target_pairs={{0,1}}
  %received = f32[32]{0} collective-permute-done(%sent)
  ROOT %total = f32[32]{0} all-reduce(%received), replica_groups=[1,4]<=[4], to_apply=%add
}
"""


def test_loops_count_as_often_as_they_run_and_reductions_twice():
    assert collective_bytes(HLO) == {
        "all-gather": 28 * 16 * 16 * 2,  # what is gathered, in bfloat16
        "reduce-scatter": 28 * 8 * 16 * 2,  # what is scattered
        "collective-permute": 32 * 4,
        "all-reduce": 2 * 32 * 4,
    }


def test_a_count_of_trips_in_the_text_is_believed():
    body = 'body=%layer, backend_config={"known_trip_count":{"n":"3"}}'
    assert collective_bytes(HLO.replace("body=%layer", body))["all-gather"] == 3 * 16 * 16 * 2


def test_a_program_without_collectives():
    assert collective_bytes("HloModule empty\n\nENTRY %main () -> f32[] {\n  ROOT %x = f32[] constant(0)\n}\n") == {}


def test_a_collective_spread_over_several_operations_counts_once():
    gather = "  %gathered = bf16[16,16]{1,0:T(8,128)} all-gather(%weights), channel_id=7, dimensions={0}\n"
    again = gather.replace("%gathered", "%gathered.1")
    other = gather.replace("%gathered", "%gathered.2").replace("channel_id=7", "channel_id=8")
    text = re.sub(r"  %gathered = .*\n", gather + again + other, HLO)
    assert collective_bytes(text)["all-gather"] == 2 * 28 * 16 * 16 * 2
