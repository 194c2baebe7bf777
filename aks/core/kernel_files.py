"""The files of an artifact folder that hold compiled kernels: what they are called, and their format.

``kernels.bin`` has the cubins one after the other. ``kernels.json`` is one object:

``format``, ``version``, ``op``, ``device``, ``space_fingerprint``
    What it is, and what it belongs to.
``capability``, ``sm_count``, ``cuda``, ``triton``
    The GPU that it runs on; the CUDA version that the driver needs, as drivers count (12080 for 12.8); the
    compiler.
``parameters``, ``operands``, ``scratch``
    What a call consists of, in this order: its variables. A parameter is ``{name, support, derived}``:
    support lists the values of an attribute as formulas see them, or has ``{"low", "high"}`` of an axis;
    derived is the formula that gives it from the operands, -1 if the caller passes it. Scratch is
    ``[name, bytes]``.
``formulas``
    Postfix programs (``aks.core.postfix``) over the variables; everything else names them by place. What follows from
    a problem reads parameters alone: nodes, leaves, variants, programs, rows and columns of maps.
``nodes``, ``leaves``
    The tree. A node is ``[formula, threshold, left, right]``: left if the value is at most the threshold.
    Node 0 is the root (if there are none, leaf 0 is); a child is a later node, or ``-1 - leaf``. A leaf is
    ``[abstains, config, formula, config, formula, ...]``: the first config whose formula holds, the last
    with formula -1.
``configs``
    null for a vendor's routine, of which ``product`` may name some, else ``{variant, programs, scratch,
    kernels}``: formulas that name the kernel, the formula of the grid, whether it uses scratch, and
    ``[value, ..., function]`` for each kernel, in order.
``product``
    null, or what configs ask of cuBLASLt: ``{a, b, d, transpose_a, element_type, workspace, workspace_bytes,
    alignment, num_algorithms, vendor, configs}`` as in ``aks.ops.launch_spec.Product``. Matrices are ``[pointer,
    rows, columns, row_stride]``, workspace a place in scratch, configs ``[config, algorithm]`` for each that is one,
    and vendor the formula that says where config 0 is algorithm 0, -1 if nowhere.
``functions``
    ``{name, cubin, num_warps, shared_bytes, early_start, signature, boxes}``.
``signatures``
    Parameters of a function: ``["value", bytes, formula]``, or ``["map", pointer, rows, columns,
    row_stride]``, for which a function has a box ``[rows, columns, element_type, element_bytes, swizzle]``.
``cubins``
    ``[offset, bytes, sha256]``.
"""

from __future__ import annotations

TABLE_FILE, CODE_FILE = "kernels.json", "kernels.bin"
FORMAT, VERSION = "aks-kernels", 3
