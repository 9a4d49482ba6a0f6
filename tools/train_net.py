#!/usr/bin/env python
"""Train and evaluate any Detectron2 config; --help says how.

The same as ``python -m evonorm_plugins.integrations.detectron2.train``.
"""

import sys

from evonorm_plugins.integrations.quiet import silence_libraries

# Before Detectron2 is imported, here and in the processes of several GPUs, which run this file too.
silence_libraries()


def main(argv=None):
    try:
        from evonorm_plugins.integrations.detectron2.train import main
    except ImportError as error:
        missing = (
            f"Detectron2 cannot be imported ({error}); tools/install_detectron2.py installs it"
        )
        print(f"error: {missing}", file=sys.stderr)
        return 2
    return main(argv)


if __name__ == "__main__":
    sys.exit(main())
