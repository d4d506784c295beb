"""`python -m scangolf`, and so `torchrun -m scangolf`."""

from scangolf.cli import main

main()
