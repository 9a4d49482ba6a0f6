"""Errors: what they name, and that they come before anything is done."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from evonorm_plugins import EvoNormS0, convert
from evonorm_plugins.errors import ConvertError
from tests.conversion.blocks import Forward, Functional, Untraceable, conv

BN = nn.BatchNorm2d


def refusal(model, **options):
    with pytest.raises(ConvertError) as caught:
        convert(model, "EvoNormS0", **options)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_model_without_norms():
    assert refusal(nn.Sequential(conv(), nn.ReLU())) == "Sequential holds no norm"
    only = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.LocalResponseNorm(2))
    assert refusal(only) == (
        "Sequential holds no norm of (N, C, ...), only 1 LayerNorm, 1 LocalResponseNorm"
    )
    assert "2 EvoNormS0 already" in refusal(nn.Sequential(EvoNormS0(4), EvoNormS0(4)))


def test_not_a_model():
    assert "not 'resnet50'" in refusal("resnet50")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("EvoNormS9", {}, "unknown norm-activation 'EvoNormS9'"),
        ("EvoNormS0", {"groups": 0}, "groups=0"),
        ("EvoNormB0", {"groups": 8}, "EvoNormB0 got an unexpected keyword argument 'groups'"),
        ("EvoNormS0(groups=", {}, "cannot read the options"),
        ("EvoNormS0", {"apply_act": True}, "apply_act"),
        (3, {}, "got 3"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with pytest.raises(ConvertError, match=message.replace("(", r"\(")):
        convert(Functional(), name, **options)


def test_option_that_does_not_fit_a_norm_names_it():
    model = nn.Sequential(nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24), nn.ReLU())
    with pytest.raises(ConvertError, match=r"^1: group_size=16 does not divide 24 channels$"):
        convert(model, "EvoNormS0", group_size=16)
    assert convert(model, "EvoNormS0", group_size=12).model[1].groups == 2


def test_scripted():
    model = nn.Sequential(torch.jit.script(nn.Sequential(conv(), BN(4), nn.ReLU())))
    assert refusal(model) == "0 is scripted: convert the model it was made from"


def test_quantized():
    model = nn.Sequential(conv(), BN(4), nn.ReLU(), torch.ao.nn.quantized.Conv2d(4, 4, 1))
    assert refusal(model) == "3 is quantized (Conv2d): convert before quantizing"


def test_without_parameters_yet():
    message = refusal(nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU()))
    assert message == "0 has no parameters yet (LazyConv2d): run the model once"


def test_compiled():
    model = torch.compile(nn.Sequential(conv(), BN(4)), backend="eager")
    assert "the model is a OptimizedModule" in refusal(model)


def test_norm_used_twice():
    def forward(self, x):
        return F.relu(self.bn(self.conv2(F.relu(self.bn(self.conv1(x))))))

    model = Forward(forward, conv1=conv(), conv2=conv(4, 4), bn=BN(4))
    assert "  bn: it is used 2 times in the forward of the model" in refusal(model)
    shared = BN(4)
    model = nn.Sequential(nn.Sequential(conv(), shared), nn.Sequential(conv(4, 4), shared))
    assert "  0.1: it is used twice, in the forward of 0 and 1" in refusal(model)


def test_activation_for_some_readers():
    def forward(self, x):
        y = self.bn(self.conv(x))
        return F.relu(y) + self.last(y)

    message = refusal(Forward(forward, conv=conv(), bn=BN(4), last=conv(4, 4)))
    assert (
        "  bn: its output goes to relu() in the forward of the model, and unactivated to "
        "Conv2d last" in message
    )


def test_activation_in_one_mode():
    def forward(self, x):
        y = self.bn(self.conv(x))
        return F.relu(y) if self.training else y

    message = refusal(Forward(forward, conv=conv(), bn=BN(4)))
    assert "bn: an activation follows it in one mode and not in the other" in message


def test_two_activations():
    message = refusal(nn.Sequential(conv(), BN(4), nn.ReLU(), nn.SiLU()))
    assert "1: 2 follows it, and then SiLU 3" in message
    convert(nn.Sequential(conv(), BN(4), nn.ReLU(), nn.ReLU()), "EvoNormS0")


def test_every_ambiguous_norm_is_named_and_can_be_kept():
    def forward(self, x):
        a, b = self.bn1(self.conv1(x)), self.bn2(self.conv2(x))
        return F.relu(a) + a + F.relu(b) + b + self.bn3(self.conv3(x))

    model = Forward(
        forward, conv1=conv(), conv2=conv(), conv3=conv(), bn1=BN(4), bn2=BN(4), bn3=BN(4)
    )
    message = refusal(model)
    assert "  bn1: " in message
    assert "  bn2: " in message
    assert "bn3" not in message
    report = convert(model, "EvoNormS0", keep=["bn[12]"]).report
    assert list(report.affine) == ["bn3"]
    assert "no norm of the model has a name like 'bn7'" in refusal(model, keep=["bn7"])


def test_part_that_runs_several_times_after_a_norm_once():
    class Activate(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.pool(F.relu(x))

    def forward(self, x):
        y = self.conv1(x)
        return self.part(self.bn(y)) + self.part(y)

    message = refusal(Forward(forward, conv1=conv(), bn=BN(4), part=Activate()))
    assert "relu() in the forward of part: it follows BatchNorm2d bn, Conv2d conv1" in message


def test_forward_that_cannot_be_traced():
    model = Untraceable(conv=conv(), bn=BN(4), act=nn.ReLU(), conv2=conv(4, 4), act2=nn.ReLU())
    message = refusal(model)
    assert "bn: it is in the model, whose forward cannot be traced (TraceError" in message
    assert "norms and activations are no pairs" in message

    class Hidden(Functional):
        def forward(self, x):
            y = self.bn(self.conv(x))
            return self.finish(y) if x.sum() > 0 else y

        def finish(self, y):
            return F.relu(y)

    assert "applies an activation itself" in refusal(Hidden())


def test_norms_that_are_not_what_they_seem():
    class Doubled(BN):
        def forward(self, x):
            return 2 * super().forward(x)

    assert "Doubled has a forward of its own" in refusal(nn.Sequential(conv(), Doubled(4)))
    hooked = nn.Sequential(conv(), BN(4))
    hooked[1].register_forward_hook(lambda *_: None)
    assert "1: it has hooks" in refusal(hooked)
    hooked = nn.Sequential(conv(), BN(4), nn.ReLU())
    hooked[2].register_forward_pre_hook(lambda *_: None)
    assert refusal(hooked) == "2 goes, and has hooks: remove them first"
    normed = nn.Sequential(conv(), parametrizations.weight_norm(nn.GroupNorm(2, 4), dim=None))
    assert "1: its " in refusal(normed)
