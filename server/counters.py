"""What a group counts."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What happened in a group since the store was opened; `rows` is kept from one opening to the next."""

    rows: int = 0  # rows created and not removed, expired ones included until they are swept
    lookup_keys: int = 0
    memory_hits: int = 0
    disk_hits: int = 0
    inserts: int = 0
    misses: int = 0  # lookups without training that found no row
    not_admitted: int = 0  # occurrences in training lookups that were given the value for unadmitted keys
    expired: int = 0  # rows found expired, or swept
    removed: int = 0  # rows that shrink removed
    push_keys: int = 0
    updates: int = 0  # rows updated, once a push
    puts: int = 0  # rows stored as they were sent
    skipped_absent: int = 0  # gradients dropped because their key had no row
    skipped_unadmitted: int = 0
    skipped_not_finite: int = 0
    rejected_not_finite: int = 0  # pushes refused as a whole because a gradient of this group held NaN or Inf
    gradient_square_sum: float = 0.0  # of the gradients behind `updates`: squared L2 norms, repeats summed, not clipped
