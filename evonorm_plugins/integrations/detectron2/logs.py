"""The logger of this package, whose messages Detectron2's logger prints."""

import logging

logger = logging.getLogger("detectron2.evonorm_plugins")
