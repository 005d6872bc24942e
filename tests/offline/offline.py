"""No network but this machine: a connection or a name look-up that would leave it raises `Online`."""

import ipaddress
import socket


class Online(RuntimeError):
    """A test tried to reach the network. Not an OSError, which a retry loop would swallow."""


def is_here(host) -> bool:
    """Whether a host name or address is this machine."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(str(host).split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def forbid(attempts: list[str]) -> None:
    """Replace the ways out of `socket` in this process; what is refused is also added to `attempts`."""

    def refuse(host):
        attempts.append(str(host))
        raise Online(f"the tests use no network, this one asked for {host}")

    def guarded(method):
        def call(self, *arguments):
            target = arguments[-1]  # connect(address), sendto(data[, flags], address)
            if self.family in (socket.AF_INET, socket.AF_INET6) and not is_here(target[0]):
                refuse(target[0])
            return method(self, *arguments)

        return call

    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        if not is_here(host):
            refuse(host)
        return look_up(host, *arguments, **options)

    socket.getaddrinfo = getaddrinfo
