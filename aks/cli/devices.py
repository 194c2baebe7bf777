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

    from aks.core.device import DeviceSpec, device_aliases, device_sources, known_devices

    facts = [field.name for field in fields(DeviceSpec)[1:]]
    shown = [name for name in facts if len({getattr(device, name) for device in known_devices().values()}) > 1]
    table = Table("device", *(name.replace("_", " ") for name in shown), "also", "source")
    for name, device in known_devices().items():
        aliases = [alias for alias, row in device_aliases().items() if row == name]
        facts_shown = (str(getattr(device, fact)) for fact in shown)
        table.add_row(name, *facts_shown, ", ".join(aliases), device_sources()[name])
    Console().print(table)
