"""`python -m glider` is the command `glider`."""

from glider.cli.main import main

main()
