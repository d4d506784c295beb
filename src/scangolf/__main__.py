"""`python -m scangolf`, and `torchrun -m scangolf`."""

from scangolf.cli import main

if __name__ == "__main__":
    main()
