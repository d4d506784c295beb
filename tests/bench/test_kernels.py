"""Kernels by the names that a profile of training steps on an H200 had."""

import pytest

from scangolf.bench.kernels import Kernel, groups


@pytest.mark.parametrize(
    ("group", "names"),
    [
        (
            "attention",
            [
                "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x64",
                "void cudnn::fusion::convert_dq_to_16bits<true>(void const*, void*)",
                "void cudnn::fusion::compute_dot_do_o_specialized<true, 64>(void const*)",
            ],
        ),
        ("convolutions", ["conv_forward_kernel", "conv_backward_kernel"]),
        (
            "norms, rotations",
            ["gated_norm_kernel", "gated_norm_backward_kernel", "rotate_backward_kernel"],
        ),
        (
            "products",
            [
                "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT",
                "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>",
                "squared_relu_product_backward",
            ],
        ),
        ("scans", ["forward", "backward"]),
        ("copies", ["Memset (Device)", "Memcpy DtoH (Device -> Pinned)"]),
        (
            "compiled",  # by what they do, not by what they were fused from
            [
                "triton_per_fused__fused_rms_norm_backward_add_view_10",
                "triton_poi_fused_convolution_backward",
            ],
        ),
        ("others", ["void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float>>"]),
    ],
)
def test_groups_of_kernels(group: str, names: list[str]) -> None:
    kernels = [Kernel(name, 1.0, 2.0) for name in names]
    assert groups(kernels) == {group: kernels}


def test_the_group_with_the_most_time_comes_first() -> None:
    kernels = [Kernel("forward", 1.0, 1), Kernel("nvjet", 3.0, 1), Kernel("backward", 4.0, 1)]
    assert {name: len(of) for name, of in groups(kernels).items()} == {"scans": 2, "products": 1}
    assert list(groups(kernels)) == ["scans", "products"]
