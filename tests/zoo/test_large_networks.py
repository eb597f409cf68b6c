"""VGG, PreResNet and Wide ResNet have the sizes that the literature has for them, and the structure of the papers.

The large ones are counted on torch's meta device, where parameters have shapes and no numbers.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra.errors import ArgumentError
from spectra.zoo.networks.allcnn import all_cnn
from spectra.zoo.networks.residual import ResidualUnit, preresnet, wide_resnet
from spectra.zoo.networks.vgg import vgg

# Parameters with 10 classes and with 100.
# VGG: torchsummary of the network with head 512-512-10 in public reports, and chenyaofo/pytorch-cifar-models. Without
#   batch norm: the sum over the convolutions of table 1 of Simonyan and Zisserman and the three linear maps.
# PreResNet, and WRN but 16-4: asserted by osmr/imgclsmob (pytorch/pytorchcv/models/preresnet_cifar.py, wrn_cifar.py);
#   He et al. (2016) and Zagoruyko and Komodakis (2016) print 1.7 M for 110 and 164 layers, 10.2 M for 1001, 0.6 M,
#   2.2 M, 8.9 M, 17.2 M, 11.0 M and 36.5 M for WRN-40-1, 40-2, 40-4, 22-8, 16-8 and 28-10.
# WRN-16-4 with 10 classes: public reproductions of Zagoruyko and Komodakis (2016). Ninety classes more are 90 rows more
#   of the last linear map, which is what the second column says where a source has only the first.
# WRN-28-10 with biases, and All-CNN-C: Granziol (2020) prints them for 100 classes.
EXACT = [
    (partial(vgg, 16), 15_245_130, 15_291_300),
    (partial(vgg, 16, batch_norm=True), 15_253_578, 15_299_748),
    (partial(vgg, 11, batch_norm=True), 9_756_426, 9_802_596),
    (partial(preresnet, 20, "basic"), 272_282, 278_132),
    (partial(preresnet, 56, "basic"), 855_578, 861_428),
    (partial(preresnet, 110, "basic"), 1_730_522, 1_736_372),
    (partial(preresnet, 1202, "basic"), 19_423_834, 19_429_684),
    (partial(preresnet, 164), 1_703_258, 1_726_388),
    (partial(preresnet, 1001), 10_327_706, 10_350_836),
    (partial(wide_resnet, 28, 10), 36_479_194, 36_536_884),
    (partial(wide_resnet, 16, 10), 17_116_634, 17_174_324),
    (partial(wide_resnet, 16, 4), 2_748_890, 2_772_020),
    (partial(wide_resnet, 28, 10, bias=True), 36_489_290, 36_546_980),
    (all_cnn, 1_369_738, 1_387_108),
]
IN_MILLIONS = [((40, 1), 0.6), ((40, 2), 2.2), ((40, 4), 8.9), ((22, 8), 17.2), ((16, 8), 11.0)]


def size(build) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


@pytest.mark.parametrize(("build", "ten", "hundred"), EXACT)
def test_networks_have_their_published_sizes(build, ten, hundred):
    assert size(build) == ten
    assert size(partial(build, classes=100)) == hundred


@pytest.mark.parametrize(("form", "millions"), IN_MILLIONS)
def test_wide_networks_have_the_sizes_that_their_papers_print(form, millions):
    assert abs(size(partial(wide_resnet, *form)) / 1e6 - millions) < 0.06  # printed to a tenth, not always rounded


@pytest.mark.parametrize(
    ("build", "layers"),
    [(partial(vgg, d), d) for d in (11, 16)]
    + [
        (partial(preresnet, d, b), d)
        for d, b in ((8, "basic"), (110, "basic"), (11, "bottleneck"), (164, "bottleneck"))
    ]
    + [(partial(wide_resnet, d, 2), d) for d in (10, 28)],
)
def test_the_depth_counts_the_layers_with_weights(build, layers):
    """Convolutions and linear maps without projections; in a Wide ResNet, all convolutions with the projections."""
    with torch.device("meta"):
        model = build()
    counted = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    shortcuts = sum(isinstance(getattr(m, "shortcut", None), nn.Conv2d) for m in model.modules())
    assert shortcuts == {vgg: 0, wide_resnet: 3}.get(build.func, 3 if "bottleneck" in build.args else 2)
    assert layers == (counted - 1 if build.func is wide_resnet else counted - shortcuts)


@pytest.mark.parametrize(
    "build",
    [
        partial(vgg, 11, batch_norm=True, width=1),
        partial(vgg, 16, width=1),
        partial(preresnet, 8, "basic", width=2),
        partial(preresnet, 11, width=2),
        partial(wide_resnet, 10, 1),
        partial(wide_resnet, 10, 1, bias=True, dropout=0.3),
        partial(all_cnn, width=2),
    ],
)
def test_images_of_cifar_become_scores(build):
    model = build(classes=7).eval()
    x = torch.randn(3, 3, 32, 32)
    assert model(x).shape == (3, 7)
    assert torch.allclose(model(x)[1:], model(x[1:]), atol=1e-5)  # each image for itself
    if build.func not in (vgg, all_cnn):
        assert model.units(model.stem(x)).shape[2:] == (8, 8)  # two of the three stages halve the side


def unit_by_hand(unit: ResidualUnit, x: torch.Tensor, shared: bool) -> torch.Tensor:
    y = F.relu(unit.norms[0](x))
    kept = y if shared else x
    kept = unit.shortcut(kept)
    for i, convolution in enumerate(unit.convolutions):
        y = convolution(y if i == 0 else F.relu(unit.norms[i](y)))
    return kept + y


def test_a_unit_without_weights_is_the_identity():
    """He et al. (2016), equation 5: what is added is nothing, and the shortcut passes on what came, negative or not."""
    unit = ResidualUnit(4, (4, 4), (3, 3)).eval()
    nn.init.zeros_(unit.convolutions[-1].weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(unit(x), x)


@pytest.mark.parametrize(("widths", "kernels"), [((6, 6), (3, 3)), ((3, 3, 6), (1, 3, 1))])
@pytest.mark.parametrize(("stride", "opens"), [(1, False), (1, True), (2, False)])
def test_units_that_open_or_change_the_shape_part_after_the_activation(widths, kernels, stride, opens):
    torch.manual_seed(0)
    unit = ResidualUnit(6, widths, kernels, stride, opens).eval()
    x = torch.randn(2, 6, 8, 8)
    shared = opens or stride == 2
    assert torch.equal(unit(x), unit_by_hand(unit, x, shared))
    assert not torch.allclose(unit(x), unit_by_hand(unit, x, not shared))
    assert unit(x).shape == (2, 6, 8 // stride, 8 // stride)


def test_only_the_first_unit_of_a_preresnet_opens():
    basic = [unit.shares_activation for unit in preresnet(14, "basic").units]
    assert basic == [True, False, True, False, True, False]
    wide = [unit.shares_activation for unit in wide_resnet(16, 1).units]
    assert wide == [False, False, True, False, True, False]  # 16 channels remain 16


@pytest.mark.parametrize("build", [partial(vgg, 11, width=16), partial(preresnet, 20), partial(wide_resnet, 10, 4)])
def test_convolutions_are_drawn_as_he_et_al_draw_them(build):
    torch.manual_seed(0)
    large = [m for m in build().modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 10000]
    assert large
    for module in large:
        wanted = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
        assert float(module.weight.detach().std()) == pytest.approx(wanted, rel=0.03)
        assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: vgg(13), "depth=13: VGG is there with 11 or 16 layers"),
        (lambda: vgg(16, width=0), "width=0"),
        (lambda: preresnet(100), r"depth=100: bottleneck units make 9n \+ 2 layers, with n at least 1$"),
        (lambda: preresnet(1202), r"9n \+ 2 layers, with n at least 1; it fits block='basic'"),
        (lambda: preresnet(1001, "basic"), r"6n \+ 2 layers, .*; it fits block='bottleneck'"),
        (lambda: preresnet(2), "depth=2"),
        (lambda: preresnet(-7), "depth=-7"),
        (lambda: preresnet(164, "wide"), "block='wide': one of basic, bottleneck"),
        (lambda: preresnet(11, width=0), "width=0"),
        (lambda: wide_resnet(27), r"depth=27: a Wide ResNet has 6n \+ 4 layers"),
        (lambda: wide_resnet(4), "depth=4"),
        (lambda: wide_resnet(10, 0), "width=0"),
    ],
)
def test_forms_that_make_no_network_are_refused(build, words):
    with pytest.raises(ArgumentError, match=words):
        build()


def test_all_cnn_is_its_table_written_out():
    """Springenberg et al. (2015), table 1: the padding of TensorFlow, dropout, and the mean over 6 x 6."""
    torch.manual_seed(0)
    model = all_cnn(classes=7, width=4)
    x = torch.randn(2, 3, 32, 32)
    weights = list(model.parameters())
    y = x
    for i in range(9):
        w, b = weights[2 * i : 2 * i + 2]
        if i in (2, 5):  # stride 2: zeros at the right and the bottom
            y = F.conv2d(F.pad(y, (0, 1, 0, 1)), w, b, stride=2)
        else:
            y = F.conv2d(y, w, b, padding=1 if i < 6 else 0)
        y = F.relu(y)
    assert y.shape == (2, 7, 6, 6)
    torch.testing.assert_close(model.eval()(x), y.mean((2, 3)))
    assert [w.shape[0] for w in weights[::2]] == [4, 4, 4, 8, 8, 8, 8, 8, 7]
    names = [name for name, _ in model.named_parameters()][::2]
    assert names == [*(f"conv{i}.1.weight" for i in range(1, 7)), "conv7.0.weight", "conv8.1.weight", "conv9.1.weight"]
    order = [(name, module.p) for name, module in model.named_children() if isinstance(module, nn.Dropout)]
    assert order == [("dropout1", 0.2), ("dropout2", 0.5), ("dropout3", 0.5)]
    children = [name for name, _ in model.named_children()]
    assert [children[children.index(name) + 1] for name, _ in order] == ["conv1", "conv4", "conv7"]
    assert not any(isinstance(module, nn.Dropout) for module in all_cnn(width=2, dropout=False).modules())


def test_all_cnn_is_drawn_by_xaviers_distribution_with_biases_of_a_tenth():
    torch.manual_seed(0)
    for module in all_cnn().modules():
        if isinstance(module, nn.Conv2d):
            inputs, outputs = module.in_channels, module.out_channels
            wanted = (2 / (module.kernel_size[0] ** 2 * (inputs + outputs))) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(wanted, rel=0.06)
            assert torch.equal(module.bias.detach(), torch.full((outputs,), 0.1))


def test_dropout_of_a_wide_network_is_between_the_convolutions_of_a_unit():
    unit = ResidualUnit(2, (2, 2), (3, 3), dropout=0.5).train()
    fed = []
    unit.convolutions[1].register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0]))
    torch.manual_seed(0)
    unit(torch.randn(4, 2, 8, 8))
    unit.eval()(torch.randn(4, 2, 8, 8))
    shares = [float((x == 0).double().mean()) for x in fed]
    assert 0.65 < shares[0] < 0.85  # half of what ReLU leaves
    assert 0.4 < shares[1] < 0.6
    assert ResidualUnit(2, (2, 2), (3, 3)).dropout is None


@pytest.mark.parametrize("channels", [1, 3])
def test_wide_networks_take_images_of_mnist(channels):
    model = wide_resnet(10, 1, channels=channels).eval()
    assert model(torch.randn(2, channels, 28, 28)).shape == (2, 10)
