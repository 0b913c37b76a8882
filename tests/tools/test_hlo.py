import pytest

from tools import hlo

TEXT = """HloModule jit_f, is_scheduled=true, entry_computation_layout={()->f32[]}

%row (p: bf16[40,30]) -> bf16[4,1,30] {
  %p = bf16[40,30]{1,0} parameter(0)
  %view = bf16[4,10,30]{2,1,0} bitcast(%p)
  ROOT %first = bf16[4,1,30]{2,1,0} slice(%view), slice={[0:4], [0:1], [0:30]}
}

%twice (q: f32[8,30]) -> f32[8,30] {
  %q = f32[8,30]{1,0} parameter(0)
  ROOT %sum = f32[8,30]{1,0} add(%q, %q)
}

%product (a: f32[8,30]) -> f32[8,8] {
  %a = f32[8,30]{1,0} parameter(0)
  ROOT %ab = f32[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}
}

%body (state: (s32[], f32[7])) -> (s32[], f32[7]) {
  %state = (s32[], f32[7]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %v = f32[7]{0} get-tuple-element(%state), index=1
  %double = f32[7]{0} add(%v, %v)
  ROOT %next = (s32[], f32[7]{0}) tuple(%i, %double)
}

ENTRY %main.1 (x.1: bf16[40,30], q.1: f32[8,30]) -> f32[8,30] {
  %x.1 = bf16[40,30]{1,0} parameter(0)
  %q.1 = f32[8,30]{1,0} parameter(1)
LINES
  ROOT %view.9 = f32[240]{0} bitcast(%q.1)
}
"""
LIBRARY = 'custom_call_target="__cu%s", metadata={op_name="jit(f)/ViT/fc1/dot"}'
WORKSPACE = "%g = (f32[40,8]{1,0}, s8[4194304]{0}) custom-call(%x.1, %q.1), "


def list_kernels(line):
    return hlo.list_kernels(TEXT.replace("LINES", f"  {line}"))


@pytest.mark.parametrize(
    "line, kind",
    [
        ("%r = bf16[4,1,30]{2,1,0} fusion(%x.1), kind=kLoop, calls=%row", "move"),
        ("%s = f32[8,30]{1,0} fusion(%q.1), kind=kInput, calls=%twice", "fusion"),
        ("%t = f32[8,8]{1,0} fusion(%q.1), kind=kCustom, calls=%product", "gemm"),
        ("%c = f32[8,30]{1,0} copy(%q.1)", "move"),
        (WORKSPACE + LIBRARY % "blas$lt$matmul", "gemm"),
        (WORKSPACE + LIBRARY % "dnn$fmhaSoftmaxBackward", "attention"),
        (WORKSPACE + LIBRARY % "dnn$convForward", "convolution"),
        (WORKSPACE + 'custom_call_target="imagepiece_reduce"', "custom"),
    ],
)
def test_kernels_have_their_kind(line, kind):
    assert [kernel.kind for kernel in list_kernels(line)] == [kind]


def test_a_kernel_has_its_shape_and_source():
    (product,) = list_kernels(WORKSPACE + LIBRARY % "blas$gemm")
    assert product.name == "g"
    assert product.shape.startswith("(f32[40,8]")
    assert product.source == "jit(f)/ViT/fc1/dot"


def test_loop_bodies_count_each_known_iteration():
    loop = "%w = (s32[], f32[7]{0}) while(%start), condition=%test, body=%body"
    times = ', backend_config={"known_trip_count":{"n":"3"}}'
    assert [k.name for k in list_kernels(loop + times)] == ["double"] * 3
    assert [k.name for k in list_kernels(loop)] == ["double"]
