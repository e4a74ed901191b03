"""The convolutional head, and the map of what it looks at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ncp_rl import CnnNCPPolicy
from ncp_rl.vision import ConvHead, structural_similarity, visual_back_prop
from tests.random_env import box
from tests.teach.lessons import student

IMAGE = spaces.Box(0, 255, (3, 16, 80), np.uint8)


def test_light_takes_no_part() -> None:
    head = ConvHead(IMAGE, features_dim=5)
    images = torch.rand(4, 3, 16, 80)
    assert head(images).shape == (4, 5)
    assert torch.allclose(head.prepare(images), head.prepare(0.5 * images), atol=0.02)
    assert torch.isfinite(head(torch.zeros(2, 3, 16, 80))).all()


def test_a_head_refuses_what_it_cannot_see() -> None:
    with pytest.raises(ValueError, match="ConvHead is for images"):
        ConvHead(box(3))


def test_the_policy_sees_through_it() -> None:
    image = spaces.Box(0, 255, (16, 80, 3), np.uint8)
    model = student(image, policy=CnnNCPPolicy, features_extractor_class=ConvHead)
    model.learn(24)
    assert isinstance(model.policy.pi_features_extractor, ConvHead)


def bright_edges() -> ConvHead:
    """A head whose first channel is on where the image is bright, and whose others see nothing."""
    head = ConvHead(spaces.Box(0, 255, (1, 16, 32), np.uint8), features_dim=2, channels=(2, 2, 2))
    with torch.no_grad():
        for convolution in head.convolutions:
            assert isinstance(convolution, torch.nn.Conv2d) and convolution.bias is not None
            convolution.weight.zero_()
            convolution.bias.zero_()
            middle = convolution.kernel_size[0] // 2
            convolution.weight[0, 0, middle, middle] = 1.0
    return head


def test_the_map_is_where_the_light_is() -> None:
    """A known answer: a head that passes brightness on looks at the one bright spot, and nowhere else."""
    images = torch.zeros(2, 1, 16, 32)
    images[0, 0, 8, 8] = images[1, 0, 8, 24] = 1.0  # Where strides of two, three times, come by.
    found = visual_back_prop(bright_edges(), images)
    assert found.shape == (2, 16, 32) and float(found.max()) == 1.0
    for at, row in ((8, found[0]), (24, found[1])):
        assert float(row[8, at]) == 1.0
        seen = torch.nonzero(row)
        assert (seen - torch.tensor([8, at])).abs().max() <= 2  # Within the first kernel.


def test_where_nothing_is_active_nothing_is_looked_at() -> None:
    assert not visual_back_prop(bright_edges(), torch.zeros(1, 1, 16, 32)).any()


@pytest.mark.parametrize("shape", [(16, 80), (17, 33), (48, 160), (9, 9)])
def test_maps_have_the_size_of_the_image(shape: tuple[int, int]) -> None:
    head = ConvHead(spaces.Box(0, 255, (3, *shape), np.uint8))
    found = visual_back_prop(head, torch.rand(2, 3, *shape))
    assert found.shape == (2, *shape) and float(found.min()) >= 0 and float(found.max()) <= 1


def test_similarity_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 9, 7))  # Three windows.
    expected = []
    for top in range(3):
        one, other = a[top : top + 7].ravel(), b[top : top + 7].ravel()
        covariance = np.cov(one, other)
        luminance = (2 * one.mean() * other.mean() + 1e-4) / (one.mean() ** 2 + other.mean() ** 2 + 1e-4)
        structure = (2 * covariance[0, 1] + 9e-4) / (covariance[0, 0] + covariance[1, 1] + 9e-4)
        expected.append(luminance * structure)
    found = structural_similarity(torch.from_numpy(a)[None], torch.from_numpy(b)[None])
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-6)
    same = torch.rand(2, 20, 30)
    assert torch.allclose(structural_similarity(same, same), torch.ones(2))
