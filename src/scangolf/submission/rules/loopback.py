"""Brings up the loopback of a new network namespace, then becomes the command it is given.

Processes of one machine talk over it, as those of torch.distributed do. It leads nowhere else.
"""

import fcntl
import os
import socket
import struct
import sys

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
"""Linux: sets the flags of an interface."""

if __name__ == "__main__":
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
    os.execvp(sys.argv[1], sys.argv[1:])
