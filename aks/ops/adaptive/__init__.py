"""Ops made of users' own Triton kernels (``aks.adaptive``): none is in ``OPS``."""
