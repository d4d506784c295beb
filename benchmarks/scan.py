"""Speed of the selective scan on this machine, checked first: `scangolf bench scan` as a script.

python benchmarks/scan.py
python benchmarks/scan.py --shape 64x1024 4x16384 --channels 1024 --json
"""

import sys

from scangolf.cli import main

if __name__ == "__main__":
    main(["bench", "scan", *sys.argv[1:]])
