"""From the bytes of image formats to tensors that share their memory where they can."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nablab.errors import DataError

IDX_UINT8 = 0x08
CIFAR_RECORD = 1 + 3 * 32 * 32


def idx_split(files: Sequence[bytearray]) -> tuple[Tensor, Tensor]:
    """Decode one idx file of images and one of labels.

    Returns:
        Images uint8 (N, 1, H, W) and labels int64 (N,).

    Raises:
        DataError: A file is not an idx file of unsigned bytes.
    """
    images, labels = (read_idx(content) for content in files)
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))


def read_idx(content: bytearray) -> np.ndarray:
    """Decode the array of an idx file (LeCun's format), sharing its memory.

    Args:
        content: Two zero bytes, the type (8: unsigned byte), the number of dimensions,
            each dimension as a big-endian 32-bit integer, then the values.

    Raises:
        DataError: It is not an idx file of unsigned bytes, or its length does not fit
            its shape.
    """
    header = np.frombuffer(content, np.uint8, count=min(4, len(content)))
    if (
        len(header) < 4
        or header[0]
        or header[1]
        or header[2] != IDX_UINT8
        or not header[3]
    ):
        raise DataError(
            "This is not an idx file of unsigned bytes: it begins with "
            f"{bytes(header).hex()}."
        )
    dimensions = int(header[3])
    start = 4 + 4 * dimensions
    shape = (
        np.frombuffer(content, ">u4", count=dimensions, offset=4)
        if len(content) >= start
        else [0]
    )
    if len(content) != start + int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"The idx file has {len(content):,} bytes, which does not fit its shape "
            f"{tuple(shape)}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(
        [int(n) for n in shape]
    )


def read_cifar(batches: Sequence[bytearray]) -> tuple[Tensor, Tensor]:
    """Decode CIFAR-10's binary batches.

    Args:
        batches: Records of 3,073 bytes: the label, then 1,024 bytes each of red, green
            and blue.

    Returns:
        Images uint8 (N, 3, 32, 32) and labels int64 (N,).

    Raises:
        DataError: A batch is not a whole number of records.
    """
    counts = [divmod(len(batch), CIFAR_RECORD) for batch in batches]
    if any(rest for _, rest in counts):
        raise DataError(
            f"A batch of CIFAR-10 is not a whole number of records of {CIFAR_RECORD:,} "
            "bytes."
        )
    total = sum(count for count, _ in counts)
    images = np.empty((total, CIFAR_RECORD - 1), np.uint8)
    labels = np.empty(total, np.int64)
    place = 0
    for batch, (count, _) in zip(batches, counts, strict=True):
        records = np.frombuffer(batch, np.uint8).reshape(count, CIFAR_RECORD)
        images[place : place + count] = records[:, 1:]
        labels[place : place + count] = records[:, 0]
        place += count
    return torch.from_numpy(images).reshape(total, 3, 32, 32), torch.from_numpy(labels)
