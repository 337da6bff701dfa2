"""As the package above it."""

from torch import Tensor, wanted


def linear(x, w):
    wanted(x.dtype is w.dtype and x.shape[1] == w.shape[1], "linear of", x.shape, w.shape)
    return Tensor((x.shape[0], w.shape[0]), x.dtype)


def pad(x, sizes):
    before, after, above, below = sizes
    return x.like(shape=(x.shape[0] + above + below, x.shape[1] + before + after))
