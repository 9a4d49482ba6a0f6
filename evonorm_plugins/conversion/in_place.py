"""Operations that are written ``a += b``, recorded as what they are."""

from torch import fx


def iadd(a, b):
    """``a += b``. torch.fx would make ``a + b`` of it, which others that hold ``a`` do not see."""
    a += b
    return a


def isub(a, b):
    """``a -= b``."""
    a -= b
    return a


def imul(a, b):
    """``a *= b``."""
    a *= b
    return a


def itruediv(a, b):
    """``a /= b``."""
    a /= b
    return a


class InPlaceProxy(fx.Proxy):
    """Records what is done in place as such."""

    def __iadd__(self, other):
        return self.tracer.create_proxy("call_function", iadd, (self, other), {})

    def __isub__(self, other):
        return self.tracer.create_proxy("call_function", isub, (self, other), {})

    def __imul__(self, other):
        return self.tracer.create_proxy("call_function", imul, (self, other), {})

    def __itruediv__(self, other):
        return self.tracer.create_proxy("call_function", itruediv, (self, other), {})
