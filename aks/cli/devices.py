"""``aks devices``."""

from __future__ import annotations

from dataclasses import fields


def devices() -> None:
    """List the GPUs whose facts aks knows, and where they are from; others are read from the driver.

    \b
    Examples:
      aks devices
    """
    from rich.console import Console
    from rich.table import Table

    from aks.core.device import DeviceSpec, device_sources, known_devices

    facts = [field.name for field in fields(DeviceSpec)[1:]]
    shown = [name for name in facts if len({getattr(device, name) for device in known_devices().values()}) > 1]
    table = Table("device", *(name.replace("_", " ") for name in shown), "source")
    for name, device in known_devices().items():
        table.add_row(name, *(str(getattr(device, fact)) for fact in shown), device_sources()[name])
    Console().print(table)
