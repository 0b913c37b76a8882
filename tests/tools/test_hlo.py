"""Kernels, collectives, bytes and products of a compiled text.

The texts are small programs in the form that XLA prints them, counted by hand.
"""

import pytest

from tools import hlo

TEXT = """HloModule jit_f, is_scheduled=true, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%row (p: bf16[40,30]) -> bf16[4,1,30] {
  %p = bf16[40,30]{1,0} parameter(0)
  %view = bf16[4,10,30]{2,1,0} bitcast(%p)
  ROOT %first = bf16[4,1,30]{2,1,0} slice(%view), slice={[0:4], [0:1], [0:30]}
}

%some (x: bf16[40,30], at: s32[4,3]) -> (f32[12,5], f32[12,5]) {
  %x = bf16[40,30]{1,0} parameter(0)
  %heads = bf16[4,10,6,5]{3,2,1,0} bitcast(%x), metadata={op_name="a"}
  %wide = f32[4,10,6,5]{3,2,1,0} convert(%heads)
  %zero = f32[] constant(0)
  %mean = f32[40,5]{1,0} reduce(%wide, %zero), dimensions={2}, to_apply=%add
  %at = s32[4,3]{1,0} parameter(1)
  %index = s32[12]{0} bitcast(%at)
  %one = f32[12,5]{1,0} gather(%mean, %index), slice_sizes={1,5}
  %two = f32[12,5]{1,0} gather(%mean, %index), slice_sizes={1,5}
  ROOT %both = (f32[12,5]{1,0}, f32[12,5]{1,0}) tuple(%one, %two)
}

%norm (q: f32[8,30]) -> f32[8,30] {
  %q = f32[8,30]{1,0} parameter(0)
  %zero.2 = f32[] constant(0)
  %total = f32[8]{0} reduce(%q, %zero.2), dimensions={1}, to_apply=%add
  %spread = f32[8,30]{1,0} broadcast(%total), dimensions={0}
  ROOT %rest = f32[8,30]{1,0} subtract(%q, %spread)
}

%body (state: (s32[], f32[7])) -> (s32[], f32[7]) {
  %state = (s32[], f32[7]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %v = f32[7]{0} get-tuple-element(%state), index=1
  %twice = f32[7]{0} add(%v, %v)
  ROOT %next = (s32[], f32[7]{0}) tuple(%i, %twice)
}

%test (state.2: (s32[], f32[7])) -> pred[] {
  %state.2 = (s32[], f32[7]{0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main.1 (x.1: bf16[40,30], at.1: s32[4,3], q.1: f32[8,30]) -> f32[8,30] {
  %x.1 = bf16[40,30]{1,0} parameter(0)
  %at.1 = s32[4,3]{1,0} parameter(1)
  %q.1 = f32[8,30]{1,0} parameter(2)
LINES
  %start = (s32[], f32[7]{0}) tuple(%at.1, %q.1)
  ROOT %view.9 = f32[240]{0} bitcast(%q.1)
}
"""
LIBRARY = 'custom_call_target="__cu%s", metadata={op_name="jit(f)/ViT/fc1/dot"}'


def program(*lines):
    """A program whose entry has these lines."""
    return TEXT.replace("LINES", "\n".join(f"  {line}" for line in lines))


def kernels(*lines):
    return hlo.kernels(program(*lines))


def test_views_are_no_kernels():
    assert kernels() == []


@pytest.mark.parametrize(
    "line, kind, size",
    [
        # The selected part of a slice.
        (
            "%r = bf16[4,1,30]{2,1,0} fusion(%x.1), kind=kLoop, calls=%row",
            *("move", 2 * (4 * 30) + 2 * (4 * 30)),
        ),
        # Two gathers of 12 rows, each the sum of 6 heads: 24 of 40 rows of x.
        (
            "%s = (f32[12,5]{1,0}, f32[12,5]{1,0}) fusion(%x.1, %at.1), calls=%some",
            *("fusion", 2 * (24 * 30) + 4 * 12 + 4 * (2 * 12 * 5)),
        ),
        # An operand that is used twice.
        (
            "%n = f32[8,30]{1,0} fusion(%q.1), kind=kInput, calls=%norm",
            *("fusion", 4 * (8 * 30) + 4 * (8 * 30)),
        ),
        # Results of other code: bytes are no workspace there, they may be decisions.
        (
            "%k = (bf16[4,8,30]{2,1,0}, u8[4,8]{1,0}) custom-call(%x.1, %at.1), "
            'custom_call_target="imagepiece_reduce", api_version=API_VERSION_TYPED_FFI',
            *("custom", 2 * 40 * 30 + 4 * 4 * 3 + 2 * 4 * 8 * 30 + 4 * 8),
        ),
    ],
)
def test_bytes_are_those_that_are_read_and_written(line, kind, size):
    assert [(one.kind, one.bytes) for one in kernels(line)] == [(kind, size)]


def test_a_product_counts_its_operands_without_workspace():
    (product,) = kernels(
        "%g = (f32[40,8]{1,0}, s8[4194304]{0}) custom-call(%x.1, %q.1), "
        + LIBRARY % "blas$lt$matmul"
    )
    assert product.kind == "gemm"
    assert product.bytes == 2 * 40 * 30 + 4 * 8 * 30 + 4 * 40 * 8
    assert product.flops == pytest.approx(2 * 40 * 30 * 8)


def test_a_batch_of_products():
    """Four products [10, 30] [30, 2]."""
    first, second, product = kernels(
        "%a.1 = f32[4,10,30]{2,1,0} broadcast(%x.1), dimensions={}",
        "%b.1 = f32[4,30,2]{2,1,0} broadcast(%x.1), dimensions={}",
        "%g = (f32[4,10,2]{2,1,0}, s8[64]{0}) custom-call(%a.1, %b.1), "
        + LIBRARY % "blas$gemm",
    )
    assert product.flops == pytest.approx(2 * 4 * 10 * 30 * 2)


@pytest.mark.parametrize("end, passes", [("Softmax", 1), ("SoftmaxBackward", 2.5)])
def test_attention_counts_whole_tiles(end, passes):
    """65 tokens are computed as 128; two products of 2 * 128 * 128 * 64 a head."""
    (attention,) = kernels(
        "%f = (bf16[2,3,65,64]{3,1,2,0}, u8[16]{0}) custom-call(%x.1), "
        + LIBRARY % f"dnn$fmha{end}"
    )
    assert attention.kind == "attention"
    assert attention.flops == passes * 2 * (2 * 3) * (2 * 128 * 128 * 64)
    assert attention.bytes == 2 * 40 * 30 + 2 * (2 * 3 * 65 * 64)


@pytest.mark.parametrize(
    "name, result, operands, labels",
    [
        ("Forward", "4,7,7,16", ("4,14,14,8", "16,3,3,8"), "b01f_o01i->b01f"),
        ("BackwardInput", "4,14,14,8", ("4,7,7,16", "16,3,3,8"), "b01f_o01i->b01f"),
        ("BackwardFilter", "16,3,3,8", ("4,14,14,8", "4,7,7,16"), "b01f_b01f->o01i"),
        ("BackwardFilter", "16,3,3,8", ("4,14,14,8", "4,7,7,16"), "b01f_o01i->b01f"),
    ],
)
def test_a_convolution_and_its_gradients_cost_the_same(name, result, operands, labels):
    """Stride 2, 14 pixels to 7: 4 * 7 * 7 values of 16 channels from 3 * 3 * 8."""
    *_, convolution = kernels(
        f"%a.1 = f32[{operands[0]}]{{3,2,1,0}} broadcast(%x.1), dimensions={{}}",
        f"%b.1 = f32[{operands[1]}]{{3,2,1,0}} broadcast(%x.1), dimensions={{}}",
        f"%c = (f32[{result}]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%a.1, %b.1), "
        f"window={{size=3x3 stride=2x2 pad=1_1x1_1}}, dim_labels={labels}, "
        + LIBRARY
        % f"dnn$conv{name}",
    )
    assert convolution.kind == "convolution"
    assert convolution.flops == 2 * (4 * 7 * 7) * 16 * (3 * 3 * 8)


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    loop = "%w = (s32[], f32[7]{0}) while(%start), condition=%test, body=%body"
    times = ', backend_config={"known_trip_count":{"n":"3"}}'
    assert [k.name for k in kernels(loop + times)] == ["twice"] * 3
    assert [k.name for k in kernels(loop)] == ["twice"]


def test_an_asynchronous_operation_counts_once():
    copies = kernels(
        "%c.1 = (f32[8,30]{1,0}, f32[8,30]{1,0}, u32[]) copy-start(%q.1)",
        "%c.2 = f32[8,30]{1,0} copy-done(%c.1)",
    )
    assert [k.name for k in copies] == ["c.1"]


GROUPS = "replica_groups={{0,1},{2,3}}, to_apply=%add"
SOURCE = ', metadata={op_name="jit(f)/ViT/norm_0/psum"}'


def collectives(*lines):
    return hlo.collectives(program(*lines))


def test_a_collective_is_counted_at_its_start_and_is_no_kernel():
    lines = (
        f"%r.1 = f32[8,30]{{1,0}} all-reduce-start(%q.1), {GROUPS}{SOURCE}",
        "%r.2 = f32[8,30]{1,0} all-reduce-done(%r.1)",
    )
    (one,) = collectives(*lines)
    assert (one.name, one.op, one.bytes, one.devices) == ("r.1", "all-reduce", 960, 2)
    assert one.parts == (hlo.Part("f32[8,30]{1,0}", "jit(f)/ViT/norm_0/psum"),)
    assert kernels(*lines) == []


def test_several_arrays_in_one_collective():
    """A tuple, and arrays that XLA has concatenated."""
    negated = '%m.1 = f32[2,5]{1,0} negate(%q.1), metadata={op_name="a/div"}'
    view = "%v.1 = f32[10]{0} bitcast(%m.1)"
    both = "(f32[10]{0}, f32[8,30]{1,0})"
    joined = "%j.1 = f32[250]{0} concatenate(%v.1, %q.1), dimensions={0}"
    (pair,) = collectives(
        negated, view, f"%r = {both} all-reduce(%v.1, %q.1), {GROUPS}"
    )
    (one,) = collectives(
        negated, view, joined, f"%r = f32[250] all-reduce(%j.1), {GROUPS}"
    )
    assert pair.bytes == one.bytes == 4 * 250
    assert [part.shape for part in one.parts] == ["f32[2,5]{1,0}", "f32[8,30]{1,0}"]
    assert one.parts == pair.parts
    assert one.parts[0].source == "a/div"


@pytest.mark.parametrize(
    "groups, devices",
    [
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=mesh['host'=4,'device'=2] {'device'}", 2),
        ("source_target_pairs={{0,2},{1,1},{2,0}}", 3),
    ],
)
def test_other_notations_of_groups(groups, devices):
    pair = "(f32[8,30]{1,0}, f32[8,30]{1,0})"
    line = f"%p = {pair} collective-permute-start(%q.1), channel_id=1, {groups}"
    (one,) = collectives(line)
    assert (one.op, one.bytes) == ("collective-permute", 960)
    assert one.devices == devices


def test_host_waits():
    lines = (
        "%w.1 = (s32[], f32[7]{0}) while(%start), condition=%test, body=%body",
        "%w.2 = (s32[], f32[7]{0}) while(%start), condition=%test, body=%body, "
        'backend_config={"known_trip_count":{"n":"3"}}',
        "%i = ((f32[7]{0}), token[]) infeed(%t)",
        "%c.1 = (f32[8]{0}) custom-call(%q.1), "
        'custom_call_target="xla_ffi_python_gpu_callback"' + SOURCE,
        "%b = f32[8,30]{1,0} conditional(%x.1, %q.1, %q.1), branch_computations={%add}",
        "%k = f32[8,30]{1,0} copy(%q.1)",
    )
    assert hlo.host_waits(program(*lines)) == [
        "while w.1",
        "infeed i",
        "custom-call c.1 jit(f)/ViT/norm_0/psum",
        "conditional b",
    ]
