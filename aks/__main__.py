"""``python -m aks`` is ``aks``."""

from aks.cli import main

main()
