"""Checks that the kernels that draw tokens can be launched here: Triton compiles their launchers in C."""

from __future__ import annotations

from baton.protocol.errors import ConfigError


def check_triton() -> None:
    """Raise `ConfigError` when Triton finds no GPU or cannot compile its launchers."""
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # Compiles a helper, or finds it in Triton's cache.
    except Exception as error:  # Errors of Triton, compiler and linker share no base class.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"Triton cannot compile the kernels that draw tokens ({reason}): install a C compiler and Python's headers "
            "(gcc, python3-dev)."
        ) from error
