"""Differentiable image transformations with parameters of their own for every image.

Every function takes images in [0, 1] and returns images in [0, 1] of the same shape. Parameters of
zero leave the images as they are. The first dimension of a parameter is the batch; a size of 1
applies one transformation to all images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustkd.core.types import Images


def displace(images: Images, shift: Float[Tensor, "b height width 2"]) -> Images:
    """Read every pixel at a displaced position, by bilinear interpolation.

    Positions outside the image are moved to its border.

    Args:
        images: N x C x H x W in [0, 1].
        shift: Displacement of every pixel in pixels, columns before rows.
    """
    height, width = images.shape[2:]
    rows, columns = (
        torch.arange(size, device=images.device, dtype=images.dtype) for size in (height, width)
    )
    here = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    # In the coordinates of grid_sample, -1 and 1 are the outer edges of the outermost pixels.
    size = torch.tensor([width, height], device=images.device, dtype=images.dtype)
    where = ((2 * (here + shift) + 1) / size - 1).expand(len(images), -1, -1, -1)
    read = F.grid_sample(images, where, "bilinear", padding_mode="border", align_corners=False)
    return read.clamp(0, 1)  # rounding of the weights


def smooth(
    control: Float[Tensor, "b c k k"], size: tuple[int, ...]
) -> Float[Tensor, "b c height width"]:
    """Interpolate smooth fields from grids of control points, whose corners are those of the image.

    Between the control points, a field can exceed their largest value: by up to 1.89 times with
    4 x 4 points, where neighbours have opposite signs.

    The interpolation is bicubic and linear in the control points, so it is a product with the
    fields of single points. ``torch.nn.functional.interpolate`` returns the same up to rounding,
    but its backward pass takes more than ten times as long. The product has full precision under
    autocast as well, since positions of pixels need it.

    Args:
        control: Values at the control points.
        size: Height and width of the fields.
    """
    points = control.shape[2] * control.shape[3]
    single = torch.eye(points, device=control.device, dtype=control.dtype)
    single = single.view(1, points, *control.shape[2:])
    fields = F.interpolate(single, size, mode="bicubic", align_corners=True)
    with torch.autocast(control.device.type, enabled=False):
        found = control.flatten(2) @ fields.view(points, -1)
    return found.view(*control.shape[:2], *size)


def flow(images: Images, control: Float[Tensor, "b 2 k k"]) -> Images:
    r"""Warp images along a smooth field: :math:`x'(p) = x(p + \mathrm{bicubic}(c)(p))`.

    Source: spatially transformed adversarial examples, Xiao et al. 2018, arXiv 1801.02612.
    Difference: the field is interpolated from a grid of control points, so it is smooth by
    construction and needs no smoothness loss.

    Args:
        images: N x C x H x W in [0, 1].
        control: Displacements at the control points in pixels, columns before rows.
    """
    field = smooth(control, images.shape[2:])
    return displace(images, field.permute(0, 2, 3, 1))


def affine(images: Images, matrix: Float[Tensor, "b 2 3"]) -> Images:
    """Rotate, shear, scale and translate images.

    Args:
        images: N x C x H x W in [0, 1].
        matrix: Difference from the identity of the map from output to input coordinates, which
            range from -1 to 1; columns before rows, the translation last.
    """
    height, width = images.shape[2:]
    rows, columns = (
        (2 * torch.arange(size, device=images.device, dtype=images.dtype) + 1) / size - 1
        for size in (height, width)
    )
    grid_columns, grid_rows = torch.meshgrid(columns, rows, indexing="xy")
    here = torch.stack([grid_columns, grid_rows, torch.ones_like(grid_rows)], dim=-1)
    size = torch.tensor([width, height], device=images.device, dtype=images.dtype)
    return displace(images, torch.einsum("hwk,bjk->bhwj", here, matrix) * size / 2)


def tone_curve(images: Images, knots: Float[Tensor, "b c k"]) -> Images:
    r"""Change every pixel by a function of its value: :math:`x' = x + \mathrm{linear}(v)(x)`.

    The function is piecewise linear between equally spaced knots.

    Source: functional adversarial attacks, Laidlaw and Feizi 2019, arXiv 1906.00001. Difference:
    one function for each channel (or one for all) and not of the whole colour.

    Args:
        images: N x C x H x W in [0, 1].
        knots: Change of the pixel values 0, 1 / (k - 1), ..., 1; c is 1 or the number of channels.
    """
    count = knots.shape[2]
    place = images * (count - 1)
    change = torch.zeros_like(images)
    for k in range(count):
        change = change + knots[:, :, k, None, None] * (1 - (place - k).abs()).clamp_min(0)
    return (images + change).clamp(0, 1)


def light_field(images: Images, control: Float[Tensor, "b 2 k k"]) -> Images:
    r"""Light images unevenly: :math:`x' = x (1 + g) + o` with smooth fields g and o.

    Args:
        images: N x C x H x W in [0, 1].
        control: Gain and offset at the control points.
    """
    field = smooth(control, images.shape[2:])
    return (images * (1 + field[:, :1]) + field[:, 1:]).clamp(0, 1)


def colour_matrix(images: Images, matrix: Float[Tensor, "b c c_plus_1"]) -> Images:
    """Mix the colour channels and add a constant colour.

    Args:
        images: N x C x H x W in [0, 1].
        matrix: Difference from the identity matrix, C x C; the constant is the last column.
    """
    mixed = torch.einsum("nchw,ndc->ndhw", images, matrix[:, :, :-1].expand(len(images), -1, -1))
    return (images + mixed + matrix[:, :, -1, None, None]).clamp(0, 1)


def filtered(images: Images, kernel: Float[Tensor, "b k k"]) -> Images:
    """Filter images by a small kernel that all channels share: ``x' = x + kernel * x``.

    Args:
        images: N x C x H x W in [0, 1].
        kernel: Odd height and width; the border is reflected.
    """
    n, channels = images.shape[:2]
    padded = F.pad(images, (kernel.shape[-1] // 2,) * 4, mode="reflect")
    kernels = kernel.expand(n, -1, -1).repeat_interleave(channels, 0)[:, None, None]
    change = convolved(padded.flatten(0, 1)[:, None], kernels)
    return (images + change.view_as(images)).clamp(0, 1)


def convolved(
    images: Float[Tensor, "n c height width"], kernels: Float[Tensor, "n d c k k"]
) -> Float[Tensor, "n d height_less_k width_less_k"]:
    """Filter every image by kernels of its own, without padding.

    Args:
        images: Images with c channels.
        kernels: For each image, d kernels over all channels.
    """
    n, filters = kernels.shape[:2]
    if n == 0:
        return F.conv2d(images, kernels.new_zeros(kernels.shape[1:]))
    # One convolution, with a group for each image.
    groups = F.conv2d(images.reshape(1, -1, *images.shape[2:]), kernels.flatten(0, 1), groups=n)
    return groups.view(n, filters, *groups.shape[2:])


def low_frequency(images: Images, control: Float[Tensor, "b c k k"]) -> Images:
    """Add a smooth pattern, interpolated from a grid of control points.

    Args:
        images: N x C x H x W in [0, 1].
        control: Addition at the control points, for each channel.
    """
    field = smooth(control, images.shape[2:])
    return (images + field).clamp(0, 1)
