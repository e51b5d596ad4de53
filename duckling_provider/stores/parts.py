"""How an object is cut into parts: equal ones, few enough for the store, large enough for the store.

S3 takes at most 10,000 parts of 5 MiB to 5 GiB (Amazon S3 User Guide, "Multipart upload limits"); some stores take
1,000 parts only, and some demand that all but the last are of one size.
"""

from __future__ import annotations

from dataclasses import dataclass

from duckling_provider.base.errors import RequestError, StoreError
from duckling_provider.base.units import human_bytes

MIB = 1 << 20
MIN_PART = 5 * MIB
MAX_PART = 5 << 30
#: What every store takes; an upload of more finds out at its beginning whether its store does, too.
SAFE_PARTS = 1000


class TooManyPartsError(StoreError):
    """The store takes fewer parts than the upload has: cut it into `SAFE_PARTS`."""

    retryable = False


@dataclass(frozen=True)
class PartPlan:
    """An object of `size` bytes in `count` parts of `part_size` bytes, the last one shorter."""

    size: int
    part_size: int

    @property
    def count(self) -> int:
        return max(1, -(-self.size // self.part_size))

    def bounds(self, index: int) -> tuple[int, int]:
        """First byte and byte after the last of part `index` (from 0)."""
        start = index * self.part_size
        return start, min(start + self.part_size, self.size)


def plan_parts(size: int, *, part_size: int, max_parts: int) -> PartPlan:
    """Cut `size` bytes into parts of `part_size`, or of the next whole MiB that needs no more than `max_parts`.

    Parts are whole MiB, so that every part of a ciphertext starts on a block of the cipher.

    :raises RequestError: when even the largest allowed parts are too many.
    """
    wanted = max(part_size, MIN_PART, -(-size // max_parts))
    rounded = -(-wanted // MIB) * MIB
    if rounded > MAX_PART:
        raise RequestError(
            f"{human_bytes(size)} in {max_parts} parts needs parts above the {human_bytes(MAX_PART)} that stores allow",
            hint="Raise s3.maxParts.",
        )
    return PartPlan(size, rounded)
