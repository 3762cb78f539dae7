"""What workers of the tests do: they obey, hang, die, or eat memory."""

from __future__ import annotations

import os
import time


def obey(item: str) -> str:
    if item == "hang":
        time.sleep(60)
    if item == "hang in C":
        return str(9 ** (9**9))
    if item == "die":
        os._exit(3)
    if item == "raise":
        raise ValueError("no")
    if item == "eat":
        return str(len(bytearray(1 << 40)))
    if item == "print":
        print("not a result")
    return item if len(item) < 100 else str(len(item))
