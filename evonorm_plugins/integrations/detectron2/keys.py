"""The key of the paper's RPN head, for configs that say what its norm is.

Importing this package adds no key to anybody's configuration.
"""

from detectron2.config import CfgNode


def add_evonorm_config(cfg: CfgNode) -> None:
    """Add ``MODEL.RPN.NORM`` to a config, as configs that were saved with that key need it.

    It is the norm of ``PaperRPNHead``: None, which is what it starts as, stands for that of
    ``MODEL.FPN.NORM``. No other head reads it.
    """
    if "NORM" not in cfg.MODEL.RPN:
        cfg.MODEL.RPN.NORM = None


def remove_idle_keys(cfg: CfgNode) -> str | None:
    """Remove ``MODEL.RPN.NORM`` where it says nothing, so that others can read the config.

    Returns:
        A sentence on a norm that no head reads, or None.
    """
    rpn = cfg.MODEL.RPN
    norm, used = rpn.get("NORM"), rpn.HEAD_NAME == "PaperRPNHead"
    if "NORM" in rpn and not (used and norm is not None):
        del rpn["NORM"]
    if used or not norm:
        return None
    return f"MODEL.RPN.NORM {norm!r} is left out: {rpn.HEAD_NAME} has no norm."
