#!/usr/bin/env python
"""`hasten bench` under the name of the script that it takes the place of.

    python scripts/run_benchmark.py --cfg configs/scenes_sd_mix_bf16_int8_dpm10.yaml --prompt "a red circle"

Every option is passed on; see `hasten bench --help`.
"""

import sys

from hasten.cli.main import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]])
