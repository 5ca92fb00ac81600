"""The listening socket."""

import socket


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
      ValueError: the port is taken, or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as why:
        made.close()
        raise ValueError(f"--host={host} --port={port} cannot be opened: {why}") from why
    made.listen(2048)
    return made
