"""ERFNet: its size, its receptive field, and that factorised convolutions are convolutions."""

from __future__ import annotations

import pytest
import torch

from everymask.errors import InputError
from everymask.layers.erfnet import BranchedERFNet, Downsampler, FactorizedResidual


def test_the_network_of_the_paper_has_2_1_million_parameters() -> None:
    one_branch = BranchedERFNet(3, (20,), dropout=0.3)
    assert sum(each.numel() for each in one_branch.parameters()) == pytest.approx(2.1e6, abs=0.05e6)


def test_outputs_are_at_full_resolution() -> None:
    network = BranchedERFNet(2, (4, 1), base=4, repeats=1).eval()
    first, second = network(torch.rand(2, 2, 24, 40))
    assert first.shape == (2, 4, 24, 40)
    assert second.shape == (2, 1, 24, 40)


def test_the_receptive_field_is_what_it_says() -> None:
    torch.manual_seed(0)
    network = BranchedERFNet(1, (2, 1), base=2, repeats=1).double().eval()
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, 0.01, 0.1)  # positive weights: nothing cancels, no unit dies
    side = 2 * network.radius + 4 * network.stride
    side += -side % (2 * network.stride)  # so that half of it is the first pixel of a cell
    reached = 0
    # Where a pixel lies in its cell of the deepest features decides how far it sees: at its edges the farthest.
    for place in (side // 2, side // 2 + network.stride - 1):
        image = torch.rand(1, 1, side, side, dtype=torch.double, requires_grad=True)
        sum(each[0, :, place, place].sum() for each in network(image)).backward()  # type: ignore[union-attr]
        assert image.grad is not None
        seen = torch.nonzero(image.grad[0, 0].abs().sum(0))[:, 0]
        reached = max(reached, int((seen - place).abs().max()))
    assert network.radius - 8 <= reached <= network.radius


@pytest.mark.parametrize("flat", [0, 1, 3])
def test_outputs_of_volumes_are_at_full_resolution(flat: int) -> None:
    network = BranchedERFNet(2, (6, 1), base=4, repeats=1, dimensions=3, flat=flat).eval()
    assert (network.stride, network.depth_stride) == (8, 2 ** (3 - flat))
    first, second = network(torch.rand(2, 2, network.depth_stride, 16, 24))
    assert first.shape == (2, 6, network.depth_stride, 16, 24)
    assert second.shape == (2, 1, network.depth_stride, 16, 24)


def test_the_receptive_field_in_volumes_is_what_it_says() -> None:
    torch.manual_seed(0)  # in lines, whose other axes are as short as they can be
    for flat in (0, 2):
        network = BranchedERFNet(1, (1,), base=2, repeats=1, dimensions=3, flat=flat).double().eval()
        for parameter in network.parameters():
            torch.nn.init.uniform_(parameter, 0.01, 0.1)
        for axis, radius, stride in ((2, network.depth_radius, network.depth_stride), (4, network.radius, 8)):
            size = [1, 1, network.depth_stride, 8, 8]
            size[axis] = 2 * radius + 4 * stride + -(2 * radius + 4 * stride) % (2 * stride)
            reached = 0
            for place in (size[axis] // 2, size[axis] // 2 + stride - 1):
                volume = torch.rand(*size, dtype=torch.double, requires_grad=True)
                network(volume)[0].select(axis, place).sum().backward()
                assert volume.grad is not None
                seen = torch.nonzero(volume.grad.abs().sum([each for each in range(5) if each != axis]))[:, 0]
                reached = max(reached, int((seen - place).abs().max()))
            assert radius - 8 <= reached <= radius


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_factorised_block_of_volumes_is_two_convolutions_of_rank_one_kernels(dilation: int) -> None:
    torch.manual_seed(0)
    block = FactorizedResidual(1, dilation, dimensions=3).eval()
    volume = torch.rand(1, 1, 7, 9, 10)
    inner = volume
    for across, column, row, step in (
        (block.first_across[0], block.first_column, block.first_row, 1),
        (block.second_across[0], block.second_column, block.second_row, dilation),
    ):
        # Positive numbers pass ReLU unchanged.
        for convolution in (across, column, row):
            torch.nn.init.uniform_(convolution.weight, 0.1, 1)
        for convolution in (across, column):
            torch.nn.init.zeros_(convolution.bias)
        kernel = across.weight * column.weight * row.weight
        assert kernel.shape == (1, 1, 3, 3, 3)
        inner = torch.nn.functional.conv3d(inner, kernel, padding=step, dilation=step)
    torch.testing.assert_close(block(volume), inner / (1 + block.first_norm.eps) + volume)


@pytest.mark.parametrize("dilation", [1, 3])
def test_a_factorised_block_is_two_convolutions_of_rank_one_kernels(dilation: int) -> None:
    torch.manual_seed(0)
    block = FactorizedResidual(1, dilation).eval()
    # Without the nonlinearity between them a column and a row are one kernel: positive numbers pass ReLU unchanged.
    for convolution in (block.first_column, block.second_column):
        torch.nn.init.uniform_(convolution.weight, 0.1, 1)
        torch.nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    for convolution in (block.first_row, block.second_row):
        torch.nn.init.uniform_(convolution.weight, 0.1, 1)
    images = torch.rand(1, 1, 20, 21)
    inner = images
    for column, row, step in (
        (block.first_column, block.first_row, 1),
        (block.second_column, block.second_row, dilation),
    ):
        kernel = column.weight * row.weight
        inner = torch.nn.functional.conv2d(inner, kernel, padding=step, dilation=step)
    # Batch normalisation of an untrained network divides by sqrt(1 + eps), twice here.
    expected = inner / (1 + block.first_norm.eps) + images
    torch.testing.assert_close(block(images), expected)


def test_downsampling_keeps_the_largest_values() -> None:
    block = Downsampler(3, 8).eval()
    images = torch.rand(2, 3, 6, 8)
    out = block(images)
    assert out.shape == (2, 8, 3, 4)
    largest = images.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    torch.testing.assert_close(out[:, 5:] * (1 + block.norm.eps) ** 0.5, largest)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="base must be larger than the number of channels, 16, got 16"):
        BranchedERFNet(16, (1,))
    with pytest.raises(InputError, match="repeats must be at least 1"):
        BranchedERFNet(1, (1,), repeats=0)
