"""Bytes that one rank sends to reduce gradients, for collectives that use the links as well as can be.

A ring (or anything as good) over N ranks sends (N - 1) / N of the data for a reduce-scatter, the same for an
all-gather, and twice that for an all-reduce, which is one after the other.
"""


def reduce_scatter(size: float, ranks: int) -> float:
    """Bytes a rank sends so that every rank holds the sum of one N-th of ``size`` bytes."""
    return size * (ranks - 1) / ranks


def all_gather(size: float, ranks: int) -> float:
    """Bytes a rank sends so that every rank holds all ``size`` bytes, of which each had one N-th."""
    return size * (ranks - 1) / ranks


def all_reduce(size: float, ranks: int) -> float:
    """Bytes a rank sends so that every rank holds the sum of ``size`` bytes."""
    return reduce_scatter(size, ranks) + all_gather(size, ranks)


def ddp_every_batch(size: float, ranks: int, micro_batches: int) -> float:
    """DDP that reduces in every backward: an all-reduce per micro-batch."""
    return micro_batches * all_reduce(size, ranks)


def ddp_surgery(size: float, ranks: int, vectors: int) -> float:
    """Surgery on shards: V reduce-scatters and one all-gather, which is (V + 1) / 2 all-reduces."""
    return vectors * reduce_scatter(size, ranks) + all_gather(size, ranks)


def sharded(size: float, shards: int, replicas: int, times: int) -> float:
    """FSDP2's reductions of a gradient of ``size`` bytes: ``times`` reduce-scatters over the shards of a replica.

    With several replicas (HSDP) each is followed by an all-reduce of the shard over the replicas. Gathering weights in
    forward and backward is not counted: surgery does not change it.
    """
    return times * (reduce_scatter(size, shards) + all_reduce(size / shards, replicas))
