#!/usr/bin/env python
"""`hasten generate` under the name of the script that it takes the place of.

    python scripts/run_generate.py --cfg configs/scenes_sd_fp32_ddpm50.yaml --prompt "a red circle"

Every option is passed on; see `hasten generate --help`.
"""

import sys

from hasten.cli.main import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
