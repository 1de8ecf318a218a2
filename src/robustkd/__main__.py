"""Entry point of ``python -m robustkd``, which is also that of ``torchrun -m robustkd``."""

from robustkd.cli import main

if __name__ == "__main__":
    main()
