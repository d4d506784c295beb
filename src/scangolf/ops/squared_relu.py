"""The MLP with a squared ReLU (So et al. 2021, arXiv:2109.08668, Primer) as one torch operator.

    a = relu(x up^T)^2        y = a down^T

What x up^T itself was is not kept: the backward pass needs its positive part alone, which is
sqrt(a). On GPUs that can, squares and roots are taken inside of the products
(ops/squared_relu_triton.py); elsewhere by plain torch operations.

Shapes: ... any leading dimensions, R rows of them all, D channels, H hidden ones.
"""

from torch import Tensor, library

from scangolf.ops.kernels import HAS_TRITON

FEWEST_ROWS = 4096
"""Of fewer, as in decoding, large tiles would use a part of the GPU."""


def fused_takes(x: Tensor, up: Tensor) -> bool:
    """Whether the kernels can have an MLP's input x and a first matrix of up's shape, and are
    worth it."""
    if not (HAS_TRITON and x.is_cuda and x.numel() >= FEWEST_ROWS * x.shape[-1]):
        return False
    from scangolf.ops.squared_relu_triton import takes

    return takes(x, up)


def squared_relu_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """relu(x up^T)^2 down^T.

    Args:
        x: [..., D], any floating dtype.
        up: [H, D], x's dtype.
        down: [D, H], x's dtype.

    Returns:
        y in x's shape and dtype, contiguous.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}: expected a floating dtype")
    D, H = x.shape[-1], up.shape[0]
    for name, w, shape in (("up", up, (H, D)), ("down", down, (D, H))):
        if (w.shape, w.dtype, w.device) != (shape, x.dtype, x.device):
            raise ValueError(
                f"{name} is {w.dtype} of shape {tuple(w.shape)} on {w.device}: expected {x.dtype} "
                f"of shape {shape} on {x.device}, with x of {D} channels and up of {H} rows"
            )
    y, _ = _mlp(x, up, down)
    return y


@library.custom_op("scangolf::squared_relu_mlp", mutates_args=())
def _mlp(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """y, and a [..., H] for the backward pass."""
    x_RD = x.reshape(-1, x.shape[-1])
    if fused_takes(x, up):
        from scangolf.ops.squared_relu_triton import hidden

        a_RH = hidden(x_RD, up)
    else:
        a_RH = (x_RD @ up.mT).relu().square()
    return (a_RH @ down.mT).view(x.shape), a_RH.view(*x.shape[:-1], len(up))


@_mlp.register_fake
def _(x, up, down):
    return x.new_empty(x.shape), x.new_empty(*x.shape[:-1], len(up))


@library.custom_op("scangolf::squared_relu_mlp_backward", mutates_args=())
def _mlp_backward(
    grad_y: Tensor, x: Tensor, up: Tensor, down: Tensor, a: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, up and down, contiguous."""
    dy_RD, x_RD, a_RH = (v.reshape(-1, v.shape[-1]) for v in (grad_y, x, a))
    if fused_takes(x, up):
        from scangolf.ops.squared_relu_triton import hidden_backward

        du_RH = hidden_backward(dy_RD, down, a_RH)
    else:
        du_RH = (dy_RD @ down) * (2 * a_RH.sqrt())
    return (du_RH @ up).view(x.shape), du_RH.mT @ x_RD, dy_RD.mT @ a_RH


@_mlp_backward.register_fake
def _(grad_y, x, up, down, a):
    return x.new_empty(x.shape), up.new_empty(up.shape), down.new_empty(down.shape)


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_y, grad_a):
    """Only the backward pass asks for a: nobody has a gradient of it."""
    if grad_y is None:
        return None, None, None
    return _mlp_backward(grad_y, *ctx.saved_tensors)


_mlp.register_autograd(_gradients, setup_context=_save_for_backward)
