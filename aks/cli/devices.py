"""``aks devices``."""

from __future__ import annotations

from dataclasses import fields


def devices() -> None:
    """List the GPUs whose facts aks knows; others are read from the driver.

    \b
    Examples:
      aks devices
    """
    from rich.console import Console
    from rich.table import Table

    from aks.core.device import DeviceSpec, known_devices

    known = known_devices().values()
    table = Table("", *(device.name for device in known))
    for field in fields(DeviceSpec)[1:]:
        table.add_row(field.name, *(str(getattr(device, field.name)) for device in known))
    Console().print(table)
