"""Keys that this package adds to Detectron2's configuration."""

from detectron2.config import defaults


def register() -> None:
    """Add the keys to the defaults, so that ``get_cfg()`` and saved configs have them."""
    # Norm of PaperRPNHead; Detectron2's own RPN head has none.
    defaults._C.MODEL.RPN.NORM = ""
